"""Inputs beside the example, for models whose forward decides by what it is given: one run does not show all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

TIMES = -3.0


class Call(NamedTuple):
    """An example of both kinds: positional and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Decisions:
    """What a forward decides by, of what it is given.

    Attributes:
        by_sizes: it compares how many samples, words or pixels there are.
        by_values: it takes numbers out of tensors, and goes on as they say.
    """

    atoms = None

    def __init__(self) -> None:
        self.by_sizes = False
        self.by_values = False

    def compared(self) -> None:
        """A size of an input was compared."""
        self.by_sizes = True

    def used(self, _count: Any, _how: str) -> None:
        """As a number, which says nothing of neurons."""

    def equal(self, _count: Any, _other: Any) -> None:
        """As `compared` says."""


def others(call: Call, decisions: Decisions) -> Iterator[list[Call]]:
    """Inputs of other sizes, and of other values, as far as a forward decides by them; of each list, the first that
    the model runs on is enough."""
    first = next(_tensors((call.args, call.kwargs)), None)
    if first is None or first.ndim == 0:
        return
    batch = first.shape[0]
    length = first.shape[1] if first.ndim > 1 else 0
    pixels = first.shape[-1] if first.ndim > 2 else 0
    if decisions.by_sizes:
        one, shorter = _sliced(0, batch, 1), _sliced(1, length, max(1, length // 2))
        smaller = _sliced(-1, pixels, max(1, pixels // 2))
        yield [_changed(call, one, shorter), _changed(call, one, smaller), _changed(call, one)]
        more, longer, larger = _repeated(0, batch), _repeated(1, length), _repeated(-1, pixels)
        yield [_changed(call, more, longer), _changed(call, more, larger), _changed(call, more), _changed(call, longer)]
    if decisions.by_values:
        yield [_changed(call, _other_way)]
        yield [_changed(call, _nothing)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


Change = Callable[[Tensor], Tensor]


def _changed(call: Call, *changes: Change) -> Call:
    def made(value: Any) -> Any:
        if isinstance(value, Tensor):
            for change in changes:
                value = change(value)
            return value
        if isinstance(value, Mapping) and type(value) is dict:
            return {name: made(part) for name, part in value.items()}
        return type(value)(map(made, value)) if type(value) in (tuple, list) else value

    return Call(made(call.args), made(call.kwargs))


def _sliced(dim: int, size: int, to: int) -> Change:
    """What is as large along `dim` as the first tensor, smaller."""
    return lambda x: x.narrow(dim, 0, to) if x.ndim > max(dim, 0) and x.shape[dim] == size else x


def _repeated(dim: int, size: int) -> Change:
    return lambda x: torch.cat([x, x.flip(0)], dim) if x.ndim > max(dim, 0) and x.shape[dim] == size else x


def _other_way(x: Tensor) -> Tensor:
    if x.dtype == torch.bool or x.numel() == 0:
        return x
    return x * TIMES if x.is_floating_point() or x.is_complex() else x.flip(-1) if x.ndim else x


def _nothing(x: Tensor) -> Tensor:
    if x.dtype == torch.bool or x.numel() == 0:
        return x
    return torch.zeros_like(x) if x.is_floating_point() or x.is_complex() else torch.full_like(x, x.min().item())
