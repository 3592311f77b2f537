"""What programs are put together from: modules whose forward is a function, data, losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

N = 6


class Net(nn.Module):
    """Parts by name, and a forward that is a function of the module and its input."""

    def __init__(self, compute: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(self, *args, **kwargs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def numbers(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def tokens(*shape: int, below: int = 11) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(5 + sum(shape)))


def classes(n: int = N, below: int = 3) -> Tensor:
    return torch.arange(n) * 5 % below


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def class_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of a classifier, (N, classes) against (N,)."""
    return F.cross_entropy(model(x), y)


def any_loss(model: nn.Module, *inputs: Any) -> Tensor:
    """A mean over samples of an output of any shape (N, …), uneven, so that norms do not make it constant."""
    output = model(*inputs)
    flat = output.flatten(1)
    weights = torch.cos(torch.arange(flat.shape[1], dtype=flat.dtype))
    return (flat @ weights - 1).square().mean()
