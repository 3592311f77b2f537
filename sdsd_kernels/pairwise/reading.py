"""Neurons as torch reads them: slices of their samples, copies in another dtype, means, largest values, norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .products import SUMMED

PASS_ELEMENTS = 2**18
"""Values converted together where neurons are read for their norms: 1 MiB in float32 and 4 MiB of float64."""
SCRATCH_ELEMENTS = 2**22
"""Bound on what `chunks` converts at a time (16 MiB in float32), unless 256 samples already exceed it."""
SQUARES = {torch.float32: (2.0**-80, 2.0**120), torch.float64: (2.0**-800, 2.0**1000)}
"""Range of ‖x‖² in which no product that matters is subnormal and r_i r_j is normal."""

Own = TypeVar("Own", bound="Values")


@dataclass(frozen=True)
class Values:
    """What is multiplied of neurons, rows · scale − mean.

    Scales are powers of two, so that this order rounds as the other does, and numbers near the ends of the range stay
    within it.

    Attributes:
        rows: as they lie in memory.  # shape: (N, OUTER, INNER)
        dtype: of products and cosines: float64 or float32.
        mean: subtracted from every scaled neuron, or None.  # shape: (N,)
        scale: powers of two that keep products in range, or None where all are 1.  # shape: (N,)
    """

    rows: Tensor
    dtype: torch.dtype
    mean: Tensor | None = None
    scale: Tensor | None = None

    @property
    def converts(self) -> bool:
        """Whether products need a copy: BLAS takes one sample stride, and neurons or samples adjacent."""
        neurons, outer, inner = self.rows.shape
        stride_neuron, _, stride_inner = self.rows.stride()
        adjacent = (stride_inner == 1 and stride_neuron >= inner) or (stride_neuron == 1 and stride_inner >= neurons)
        plain = self.rows.dtype == self.dtype and self.mean is None and self.scale is None
        return not (plain and outer == 1 and adjacent)

    def some(self: Own, which: slice | Tensor) -> Own:
        """Those of some neurons."""
        own: dict[str, Any] = {name: each[which] for name, each in vars(self).items() if isinstance(each, Tensor)}
        return replace(self, **own)

    def copy(self, part: tuple[slice, slice] = (slice(None), slice(None)), room: Tensor | None = None) -> Tensor:
        """Some samples as a matrix (neurons, samples), neurons or samples adjacent as in the rows.

        Written into `room`, flat memory with room for it, where that is given.
        """
        chunk = self.rows[:, part[0], part[1]]
        neurons, outer, inner = chunk.shape
        room = chunk.new_empty(chunk.numel(), dtype=self.dtype) if room is None else room[: chunk.numel()]
        if chunk.stride(0) < chunk.stride(2):
            copy = room.view(outer, inner, neurons).permute(2, 0, 1)
        else:
            copy = room.view(neurons, outer, inner)
        copy.copy_(chunk)
        if self.scale is not None:
            copy.mul_(self.scale[:, None, None])
        if self.mean is not None:
            copy.sub_(self.mean[:, None, None])
        return copy.flatten(1)

    def chunks(self, *, copy: bool, most: int | None = None, room: Tensor | None = None) -> Iterable[Tensor]:
        """Matrices (neurons, samples): where samples lie, or copies of `most` at most, all in `room` if it is given."""
        if not copy:
            return self.rows[:, 0].split(SUMMED, 1)
        most = most or min(SUMMED, max(256, SCRATCH_ELEMENTS // self.rows.shape[0]))
        return (self.copy(part, room) for part in sample_slices(self.rows.shape, most))

    def reduced(
        self, reduce: Callable[[Tensor], Tensor], join: Callable[[Tensor, Tensor], Tensor] = torch.add
    ) -> Tensor:
        """What `reduce` makes of (neurons, samples), joined over all samples, float64.  # shape: (N,)

        Read in the order they lie in memory, at most PASS_ELEMENTS values at a time.
        """
        neurons, outer, inner = self.rows.shape
        by_neuron = self.rows.stride(2) <= self.rows.stride(0)
        samples = min(outer * inner, PASS_ELEMENTS if by_neuron else max(1, PASS_ELEMENTS // neurons))
        together = max(1, PASS_ELEMENTS // samples) if by_neuron else neurons
        total = self.rows.new_zeros(neurons, dtype=torch.float64)
        for first in range(0, neurons, together):
            some = self if together >= neurons else self.some(slice(first, first + together))
            sums = total[first : first + together]
            for part in sample_slices(self.rows.shape, samples):
                sums.copy_(join(sums, reduce(some.copy(part))))
        return total


def sample_slices(shape: torch.Size, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut OUTER × INNER samples into pieces of at most `most`, as equal as can be.

    What is converted then takes memory of one size; pieces of changing size leave holes in the C heap.
    """
    _, outer, inner = shape
    together, each = (-(-count // -(-count // part)) for count, part in ((outer, max(1, most // inner)), (inner, most)))
    for first_outer in range(0, outer, together):
        for first_inner in range(0, inner, each):
            yield slice(first_outer, first_outer + together), slice(first_inner, first_inner + each)


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """What products of `dtype` are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def values_of(rows: Tensor, scale: Tensor | None = None, *, center: bool) -> Values:
    """What products take of `rows`. Sums of x − x_0 are as small as the spread, and a constant neuron's mean is x_0."""
    values = Values(rows, summed_in(rows.dtype), None, scale)
    if not center:
        return values
    first = rows[:, 0, 0].to(values.dtype) * (1 if scale is None else scale)
    rest = replace(values, mean=first).reduced(lambda some: some.sum(1)) / (rows.shape[1] * rows.shape[2])
    return replace(values, mean=first + rest.to(values.dtype))


def in_range(rows: Tensor, squares: Callable[[Values], Tensor], *, center: bool) -> tuple[Values, Tensor]:
    """Values of `rows`, scaled where products need it, and a copy of their `squares`, ‖a‖² (N,); NaN: not finite."""
    values = values_of(rows, center=center)
    square = squares(values)
    suspicious = square.clamp(*SQUARES[values.dtype]) != square  # NaN differs from itself
    if bool(suspicious.any()) and (scale := _scales(rows, suspicious)) is not None:
        values = values_of(rows, scale, center=center)
        square = squares(values)
    return values, torch.where(square.isfinite(), square, torch.nan)


def _scales(rows: Tensor, suspicious: Tensor) -> Tensor | None:
    """Powers of two that bring the largest value of `suspicious` neurons into [1/2, 1); None if all stay as they are.

    Values that differ do so by a unit of their largest at least, so that centring later leaves the range of no dtype.
    """
    values = Values(rows, summed_in(rows.dtype))
    peak = values.reduced(lambda some: some.abs_().amax(1), torch.maximum).to(values.dtype)
    suspicious = suspicious & peak.isfinite() & (peak > 0)
    return to_one(torch.where(suspicious, peak, 0.5)) if bool(suspicious.any()) else None


def to_one(peak: Tensor) -> Tensor:
    """The power of two that brings `peak` into [1/2, 1), as far as it is a normal number itself."""
    bound = 126 if peak.dtype == torch.float32 else 1022
    exponent = torch.frexp(peak).exponent.clamp(-bound, bound)
    return torch.ldexp(torch.ones_like(peak), -exponent)
