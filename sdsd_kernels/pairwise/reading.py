"""Neurons as torch reads them: slices of their samples, copies in another dtype, means, largest values, norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .products import SUMMED, multiplies_in_place

PASS_ELEMENTS = 2**18
"""Values converted together where neurons are read for their norms: 1 MiB in float32 and 4 MiB of float64."""
SCRATCH_ELEMENTS = 2**22
"""Bound on what `chunks` converts at a time (16 MiB in float32), unless 256 samples already exceed it."""
SQUARES = {torch.float32: (2.0**-80, 2.0**120), torch.float64: (2.0**-800, 2.0**1000)}
"""Range of ‖x‖² in which no product that matters is subnormal and r_i r_j is normal."""


def sample_slices(shape: torch.Size, most: int) -> Iterator[tuple[slice, slice]]:
    """Cut OUTER × INNER samples into pieces of at most `most`, as equal as can be.

    What is converted then takes memory of one size; pieces of changing size leave holes in the C heap.
    """
    _, outer, inner = shape
    together, each = (-(-count // -(-count // part)) for count, part in ((outer, max(1, most // inner)), (inner, most)))
    for first_outer in range(0, outer, together):
        for first_inner in range(0, inner, each):
            yield slice(first_outer, first_outer + together), slice(first_inner, first_inner + each)


def converted(
    chunk: Tensor, dtype: torch.dtype, mean: Tensor | None, scale: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """chunk · scale − mean as a matrix (neurons, samples) in `dtype`, neurons or samples adjacent as in the chunk.

    Written into `out`, flat memory with room for it, where that is given.

    Scales are powers of two, so that this order rounds as the other does, and numbers near the ends of the range stay
    within it.
    """
    neurons, outer, inner = chunk.shape
    room = chunk.new_empty(chunk.numel(), dtype=dtype) if out is None else out[: chunk.numel()]
    if chunk.stride(0) < chunk.stride(2):
        copy = room.view(outer, inner, neurons).permute(2, 0, 1)
    else:
        copy = room.view(neurons, outer, inner)
    copy.copy_(chunk)
    if scale is not None:
        copy.mul_(scale[:, None, None])
    if mean is not None:
        copy.sub_(mean[:, None, None])
    return copy.flatten(1)


def chunks(
    rows: Tensor,
    dtype: torch.dtype,
    mean: Tensor | None,
    scale: Tensor | None,
    *,
    copy: bool = False,
    most: int | None = None,
    room: Tensor | None = None,
) -> Iterator[Tensor]:
    """rows · scale − mean as matrices (neurons, samples), copies if `copy`, or else where they lie.

    Copies have `most` samples at most, and lie in `room`, where it is given, one over the other.
    """
    if not copy and mean is None and scale is None and multiplies_in_place(rows, dtype):
        yield from rows[:, 0].split(SUMMED, 1)
        return
    for part in sample_slices(rows.shape, most or min(SUMMED, max(256, SCRATCH_ELEMENTS // rows.shape[0]))):
        yield converted(rows[:, part[0], part[1]], dtype, mean, scale, room)


def reduced(
    rows: Tensor,
    dtype: torch.dtype,
    mean: Tensor | None,
    scale: Tensor | None,
    reduce: Callable[[Tensor], Tensor],
    join: Callable[[Tensor, Tensor], Tensor] = torch.add,
) -> Tensor:
    """What `reduce` makes of rows · scale − mean, (neurons, samples) to (neurons,), joined over all samples, in float64.

    Read in the order they lie in memory, at most PASS_ELEMENTS values at a time.
    """
    neurons, outer, inner = rows.shape
    by_neuron = rows.stride(2) <= rows.stride(0)
    samples = min(outer * inner, PASS_ELEMENTS if by_neuron else max(1, PASS_ELEMENTS // neurons))
    together = max(1, PASS_ELEMENTS // samples) if by_neuron else neurons
    total = rows.new_zeros(neurons, dtype=torch.float64)
    for first in range(0, neurons, together):
        which = slice(first, first + together)
        for part in sample_slices(rows.shape, samples):
            chunk = converted(rows[which, part[0], part[1]], dtype, part_of(mean, which), part_of(scale, which))
            total[which] = join(total[which], reduce(chunk))
    return total


def part_of(vector: Tensor | None, which: slice | Tensor) -> Tensor | None:
    """What of a vector there may be belongs to some neurons."""
    return None if vector is None else vector[which]


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """What products of `dtype` are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def means(rows: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """Mean of every neuron, of x · scale. Sums of x − x_0 are as small as the spread, and a constant neuron's mean is
    exactly x_0."""
    first = rows[:, 0, 0].to(dtype)
    first = first if scale is None else first * scale
    total = reduced(rows, dtype, first, scale, lambda values: values.sum(1))
    return first + (total / (rows.shape[1] * rows.shape[2])).to(dtype)


def squares(rows: Tensor, dtype: torch.dtype, mean: Tensor | None, scale: Tensor | None) -> Tensor:
    """‖x · scale − mean‖² of every neuron, in float64."""
    return reduced(rows, dtype, mean, scale, lambda values: values.double().square_().sum(1))


def out_of_range(square: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether ‖x‖² leaves what products of `dtype` can do, or is NaN."""
    smallest, largest = SQUARES[dtype]
    return ~((square >= smallest) & (square <= largest))


def scales(rows: Tensor, dtype: torch.dtype, suspicious: Tensor) -> Tensor | None:
    """Powers of two that bring the largest value of `suspicious` neurons into [1/2, 1); None if all stay as they are.

    Values that differ do so by a unit of their largest at least, so that centring later leaves the range of no dtype.
    """
    peak = reduced(rows, dtype, None, None, lambda values: values.abs_().amax(1), torch.maximum).to(dtype)
    suspicious = suspicious & peak.isfinite() & (peak > 0)
    if not bool(suspicious.any()):
        return None
    return to_one(torch.where(suspicious, peak, 0.5))


def to_one(peak: Tensor) -> Tensor:
    """The power of two that brings `peak` into [1/2, 1), as far as it is a normal number itself."""
    bound = 126 if peak.dtype == torch.float32 else 1022
    exponent = torch.frexp(peak).exponent.clamp(-bound, bound)
    return torch.ldexp(torch.ones_like(peak), -exponent)
