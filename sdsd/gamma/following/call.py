"""One call of a torch function, as the rules see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .track import Found, Mixed, Part, Summed, Track, is_second, track_of


class Call:
    """`name(*args, **kwargs)`, with n samples in the batch."""

    __slots__ = ("args", "func", "kwargs", "n", "name", "outputs", "which")

    def __init__(self, func: Any, name: str, args: Any, kwargs: Any, n: int) -> None:
        self.func, self.name, self.args, self.kwargs, self.n = func, name, args, kwargs, n
        self.outputs: list[Tensor] = []
        self.which = 0
        """Which of several outputs is asked for."""

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by place or by name."""
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, default)

    def dims(self, place: int, name: str = "dim", default: Any = None) -> Any:
        value = self.get(place, name, default)
        if value is None and name == "dim":
            value = self.kwargs.get("axis", default)
        return value

    def tensors(self) -> list[Tensor]:
        return list(nested((self.args, self.kwargs)))

    def tracked(self) -> list[tuple[Tensor, Track]]:
        """Inputs that carry samples."""
        return [(t, track) for t in self.tensors() if isinstance(track := track_of(t), Track)]

    def mixed(self, where: str) -> Mixed:
        return Mixed(self._where(where))

    def part(self, place: int, count: int) -> Part:
        """One of the pieces of this call's first tensor."""
        return Part(self._where("parts the samples"), id(self.outputs), place, count)

    def summed(self) -> Summed:
        return Summed(self._where("over the samples"))

    def _where(self, where: str) -> str:
        shapes = ", ".join(str(tuple(t.shape)) for t, _ in self.tracked()[:2])
        return f"torch's {self.name} {where} (of shape {shapes})"


def nested(value: Any) -> Iterator[Tensor]:
    """Tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from nested(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from nested(each)


def listed(dim: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions counted from the front."""
    values = dim if isinstance(dim, (tuple, list)) else (dim,)
    return tuple(int(d) % ndim if ndim else 0 for d in values)


def aligned(call: Call, out: Tensor, inputs: list[tuple[Tensor, Track]]) -> Found:
    """Elementwise over tensors that broadcast: all tracks have to fall on one dimension of the output."""
    first: Track | None = None
    # A further input of the model that does not lie as the samples do is none of them: a mask, a table of distances.
    sure = [pair for pair in inputs if not is_second(pair[0])]
    for tensor, track in sure + [pair for pair in inputs if is_second(pair[0])]:
        here = Track(out.ndim - tensor.ndim + track.axis, track.outer, track.inner)
        if first is None:
            first = here
        elif here != first:
            if sure and is_second(tensor) and not tensor.requires_grad:
                continue
            return call.mixed("joins the samples of one tensor with another dimension of the other")
    if first is None:
        return None
    if not 0 <= first.axis < out.ndim or out.shape[first.axis] != first.outer * call.n * first.inner:
        return call.mixed("spreads the samples")
    return first
