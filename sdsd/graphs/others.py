"""Inputs beside the example, for models whose forward decides by what it is given: one run does not show all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .calls import Call

TIMES = -3.0
COMPARISONS = 16
"""Of sizes with numbers: how many are tried the other way."""
NUMBERS, PAIRS = 2**25, 2**26
"""What an input that is made larger may have: numbers, and pairs of places along the axis that grows, for attention
keeps a number a head for each."""


class Decisions:
    """What a forward decides by, of what it is given.

    Attributes:
        by_sizes: it compares how many samples, words or pixels there are.
        by_values: it takes numbers out of tensors, and goes on as they say.
        beyond: sizes that it compares with numbers, each with the nearest for which it would go another way.
    """

    atoms = None

    def __init__(self) -> None:
        self.by_sizes = False
        self.by_values = False
        self.beyond: set[tuple[int, int]] = set()

    def compared(self, size: int = 0, beyond: int = 0) -> None:
        """A size of an input was compared."""
        self.by_sizes = True
        if beyond > 0:
            self.beyond.add((size, beyond))

    def add(self, other: Decisions) -> None:
        """What another run decided by."""
        self.by_sizes |= other.by_sizes
        self.by_values |= other.by_values
        self.beyond |= other.beyond

    def used(self, _count: Any, _how: str) -> None:
        """As a number, which says nothing of neurons."""

    def equal(self, _count: Any, _other: Any) -> None:
        """As `compared` says."""


def others(call: Call, decisions: Decisions, most: int) -> Iterator[list[Call]]:
    """Inputs of other sizes, and of other values, as far as a forward decides by them; of each list, the first that
    the model runs on is enough.

    Args:
        call: the example.
        decisions: what the model decided by on it.
        most: numbers in an input that is made larger than twice the example.
    """
    first = next(tensors_in((call.args, call.kwargs)), None)
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
        growth = min(most, NUMBERS) / max(1, *(tensor.numel() for tensor in tensors_in((call.args, call.kwargs))))
        for size, beyond in sorted(decisions.beyond)[:COMPARISONS]:
            for changes in _resized(first, size, beyond, growth) if first.numel() else []:
                yield [_changed(call, each) for each in changes]
    if decisions.by_values:
        yield [_changed(call, _other_way)]
        yield [_changed(call, _nothing)]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among arguments, in dictionaries too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


Change = Callable[[Tensor], Tensor]


def _changed(call: Call, *changes: Change) -> Call:
    def made(value: Any) -> Any:
        if isinstance(value, Tensor):
            for change in changes if value.layout == torch.strided else ():
                value = change(value)
            return value
        if isinstance(value, Mapping) and type(value) is dict:
            return {name: made(part) for name, part in value.items()}
        return type(value)(map(made, value)) if type(value) in (tuple, list) else value

    return Call(made(call.args), made(call.kwargs))


def _sliced(dim: int, size: int, to: int) -> Change:
    """What is as large along `dim` as the first tensor, smaller."""
    return lambda x: x.narrow(dim, 0, to) if x.ndim > max(dim, 0) and x.shape[dim] == size else x


def _resized(first: Tensor, size: int, to: int, growth: float) -> Iterator[list[Change]]:
    """For each axis of the first tensor that has this size, changes to the other one; where none has, for it was
    computed from sizes, changes that make one axis larger by as much. No tensor grows by more than `growth`."""
    dims = [dim for dim in range(first.ndim) if first.shape[dim] == size]
    times = -(-to // size) if size else 0
    if not dims and times > 1:
        wanted = [(dim, first.shape[dim] * times) for dim in (1, 0, -1) if dim < first.ndim]
        yield [_to(dim, first.shape[dim], larger) for dim, larger in wanted if _fits(first, dim, larger, growth)]
    for dim in dims:
        changes = [_to(dim, size, to)] if _fits(first, dim, to, growth) else []
        if first.ndim > 3 and dim > 1 and first.shape[-1] == first.shape[-2] and (to / size) ** 2 <= growth:
            height, width = _to(first.ndim - 2, size, to), _to(first.ndim - 1, size, to)
            changes.insert(0, lambda x, height=height, width=width: width(height(x)))  # type: ignore[misc]
        yield changes


def _fits(first: Tensor, dim: int, to: int, growth: float) -> bool:
    """Whether an input is small enough with an axis of that size."""
    size, last = first.shape[dim], first.ndim - 1
    if to > growth * size:
        return False
    others = first.numel() // size // (1 if dim in (-1, last) else first.shape[-1])
    return first.ndim > 3 or to <= size or to * to * others <= PAIRS


def _to(dim: int, size: int, to: int) -> Change:
    """What is as large along `dim` as the first tensor, of another size."""

    def change(x: Tensor) -> Tensor:
        if x.ndim <= max(dim, 0) or x.shape[dim] != size or not size:
            return x
        return x.index_select(dim, torch.arange(to, device=x.device) % size)

    return change


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
