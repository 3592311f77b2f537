"""What an entry of the zoo is: a model made from a tiny configuration, and a batch of N samples of length T."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.zoo.verdict import TOLERANCE

VOCABULARY = 31
TEXT = ((4, 4), (4, 6), (3, 5))
"""N and T of the batches of text: T = N and T ≠ N."""


@dataclass(frozen=True)
class Architecture:
    """`make()` builds it in train mode with its usual dropout; `batch(n, t)` is what `loss(model, batch)` takes."""

    make: Callable[[], nn.Module]
    batch: Callable[[int, int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    sizes: tuple[tuple[int, int], ...] = TEXT
    tolerance: float = TOLERANCE
    mixes: str = ""
    """What mixes the samples, so that no loop over them has the gradient and it can but be refused."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(n: int, t: int, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCABULARY, (n, t), generator=generator(seed))


def values(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def labels(n: int, below: int = 3) -> Tensor:
    return torch.arange(n) % below


def of_output(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that a transformers model computes itself."""
    return model(**batch).loss


def of_values(model: nn.Module, batch: Any) -> Tensor:
    """A mean over samples of the first output, for models that compute no loss; uneven, so that norms matter."""
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    first = next(x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point())
    flat = first.flatten(1)
    weights = torch.cos(torch.arange(flat.shape[1], dtype=flat.dtype))
    return (flat @ weights / flat.shape[1] ** 0.5 - 1).square().mean()
