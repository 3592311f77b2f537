"""The tensors that a call is given, and those in what a model takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def tensors_in(args: Any, kwargs: Any) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value, {})
    for value in kwargs.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value, {})


def deep_tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested containers and in plain objects such as a ModelOutput."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from deep_tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from deep_tensors(each)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module, Callable)):  # type: ignore[arg-type]
        for each in vars(value).values():
            if isinstance(each, (Tensor, dict, tuple, list)):
                yield from deep_tensors(each)
