"""Whether two models compute the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...models import evaluating, untouched

SAME = 1e-9
"""Two orders of one network may differ by so much of its largest output, in float64."""


def require_same(model: nn.Module, moved: nn.Module, example: Any) -> None:
    """ValueError unless both compute the same, in float64 and eval mode."""
    arguments = example if isinstance(example, tuple) else (example,)
    wide = tuple(_wide(each) for each in arguments)
    outputs = []
    for each in (model, moved):
        network = copy.deepcopy(each).double()
        with untouched(network), evaluating(network), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs.append([tensor.double() for tensor in _tensors(network(*wide))])
    for before, after in zip(*outputs, strict=True):
        off, most = (before - after).abs().max().item(), before.abs().max().item()
        if not off <= SAME * most:
            raise ValueError(
                f"apply: the model with its neurons in another order computes something else: outputs differ by up to "
                f"{off:.3g}, of {most:.3g}. Something in its forward depends on the order of neurons; match its layers "
                "one by one, by activations."
            )


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and value.numel() else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
