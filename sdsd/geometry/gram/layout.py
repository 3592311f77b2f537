"""Where sums of products lie in memory, and how much is computed at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdsd_kernels import BACKENDS, checks, gram_strips

from ..arithmetic import WINDOW
from ..arrays import neurons_first, room, usable_device

if TYPE_CHECKING:
    import numpy as np

PART_SAMPLES, PART_ELEMENTS, MOST_SAMPLES = 1024, 2**22, 2**14
"""Samples that are converted, and whose products are added to T, together: at least 1,024, more up to 16 MiB in
float32, and 16,384 at most, for BLAS adds up the samples of a few neurons one after the other. Smaller updates wait for
each other in a buffer: adding to T takes longer than the products of 64 samples."""


def samples_together(n: int) -> int:
    """How many samples of `n` neurons are summed in the dtype of products before float64 takes over, at least."""
    return min(MOST_SAMPLES, max(PART_SAMPLES, PART_ELEMENTS // n))


STRIP = gram_strips.STRIP
"""Rows of T that lie together, and are finished together."""
TILE = 1024
"""Side of the largest product. 2,048 is as fast, and strips of 256 rows take 1.14 times as long at 4,096 neurons."""
LEAF, LEAF_ROWS = 512, 128
"""A square on the diagonal of this side is computed in strips of so many rows, larger ones by halving."""


class Triangle:
    """Where the upper triangle of an (n, n) matrix lies in flat memory: strips of rows, each from the diagonal on.

    A strip of rows [start, stop) holds columns [start, n), so it is a matrix that BLAS and torch can write; a share of
    height / n of the memory lies below the diagonal and is not used.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.height = min(n, STRIP)
        self._offsets = [0]
        for start in range(0, n, self.height):
            self._offsets.append(self._offsets[-1] + (min(start + self.height, n) - start) * (n - start))

    @property
    def elements(self) -> int:
        return self._offsets[-1]

    def tiles(self, side: int) -> Iterator[tuple[slice, slice]]:
        """Rectangles of at most `side` by `side` that cover the triangle, as (rows, columns) of products to compute."""
        for rows, columns in halved(0, self.n):
            for top in range(rows.start, rows.stop, side):
                for left in range(columns.start, columns.stop, side):
                    if left + side > top:
                        yield (
                            slice(top, min(top + side, rows.stop)),
                            slice(left, min(left + side, columns.stop)),
                        )

    def pieces(self, flat: Tensor, rows: slice, columns: slice) -> Iterator[tuple[slice, Tensor]]:
        """A tile as views of `flat`, a strip at a time: (part of the tile's rows, view)."""
        first = rows.start - rows.start % self.height
        for start in range(first, rows.stop, self.height):
            top, bottom = max(start, rows.start), min(start + self.height, rows.stop)
            yield slice(top - rows.start, bottom - rows.start), self.piece(flat, top, bottom, columns)

    def piece(self, flat: Tensor, top: int, bottom: int, columns: slice) -> Tensor:
        """Rows [top, bottom), all of one strip, and `columns` as a view of `flat`."""
        strip = top // self.height
        start = strip * self.height
        lines = flat[self._offsets[strip] : self._offsets[strip + 1]].view(-1, self.n - start)
        return lines[top - start : bottom - start, columns.start - start : columns.stop - start]

    def blocks(self, rows: int) -> Iterator[tuple[int, int]]:
        """(top, bottom) of blocks of at most `rows` rows that do not cross strips; each holds columns [top, n)."""
        for start in range(0, self.n, self.height):
            stop = min(start + self.height, self.n)
            for top in range(start, stop, rows):
                yield top, min(top + rows, stop)

    def block(self, flat: Tensor, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) and columns [top, n) as a view of `flat`."""
        return self.piece(flat, top, bottom, slice(top, self.n))

    def diagonal(self, flat: Tensor) -> Tensor:
        """A copy of the diagonal.  # shape: (n,)"""
        blocks = self.blocks(self.height)
        return torch.cat([self.block(flat, top, bottom).diagonal() for top, bottom in blocks])


SETTINGS = ("n", "center", "dtype")
"""What sums must have in common to be added."""


@dataclass(frozen=True)
class Plan:
    """What does not change while an accumulator is filled; `GramAccumulator` says what its settings mean.

    Attributes:
        triangle: the layout of T.
        part: samples that wait, or are converted, together.
        rows: of a block that is finished together.
        side: of a tile of products.
    """

    n: int
    center: bool
    dtype: torch.dtype
    device: torch.device
    precision: str
    backend: str | None
    nonfinite: str
    max_bytes: int | None
    triangle: Triangle
    part: int
    rows: int
    side: int

    @staticmethod
    def of(
        n: int,
        center: bool,
        dtype: torch.dtype,
        *,
        device: torch.device | str | None,
        precision: str,
        max_bytes: int | None,
        backend: str | None,
        nonfinite: str,
    ) -> Plan:
        """From what `GramAccumulator` takes; errors as it lists them."""
        n = checks.check_integer(n, "n", least=1, why="neuron")
        if dtype not in WINDOW:
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}. It is that of products.")
        precision = checks.check_precision(precision)
        checks.check_choice(nonfinite, "nonfinite", ("warn", "raise"))
        if backend is not None:
            checks.check_choice(backend, "backend", BACKENDS)
        if backend == "triton" and dtype == torch.float64:
            raise ValueError("backend: Triton was asked for, but its kernels have no float64. Use backend='torch'.")
        triangle = Triangle(n)
        part, rows, side = scratch_sizes(triangle, max_bytes)
        where = usable_device(device or "cpu")
        return Plan(n, bool(center), dtype, where, precision, backend, nonfinite, max_bytes, triangle, part, rows, side)

    def through_kernel(self) -> bool:
        """Whether kernels take a batch whole, rather than tile by tile."""
        return self.dtype == torch.float32 and gram_strips.served(self.device, self.backend)

    def scratch(self, rows: int, columns: int) -> Tensor:
        """Memory in the dtype of products.

        Where it is bounded, pieces of changing size may leave no holes in the C heap, and each comes from the system,
        which takes updates of few neurons more than half as long again.
        """
        if self.max_bytes is None:
            return torch.empty((rows, columns), dtype=self.dtype, device=self.device)
        return room(rows, columns, self.dtype, self.device)

    def blocks(self, flat: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows of T and their columns from the first of them on, block by block."""
        for top, bottom in self.triangle.blocks(self.rows):
            yield slice(top, bottom), self.triangle.block(flat, top, bottom)

    def need_center(self, what: str) -> None:
        """ValueError unless means are kept."""
        if not self.center:
            raise ValueError(
                f"{what}: expected an accumulator that centres, got center=False, which keeps no means. "
                "Make it with GramAccumulator(n, center=True)."
            )

    def require_same(self, other: Plan) -> None:
        """ValueError unless sums of both can be added."""
        for name in SETTINGS:
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"other: expected the same {name}, {getattr(self, name)}, got {getattr(other, name)}. Only "
                    "accumulators with the same n, center and dtype can be merged."
                )

    def checked(self, activations: Tensor | np.ndarray, neuron_dim: int | None) -> Tensor:
        """A batch as (n, …); TypeError or ValueError for one that does not fit."""
        rows = neurons_first(activations, neuron_dim)
        if rows.dtype == torch.float64 and self.dtype != torch.float64:
            raise TypeError(
                "activations: this accumulator takes float32, float16 and bfloat16, got torch.float64. Pass "
                "activations.float(), or make it with GramAccumulator(n, dtype=torch.float64)."
            )
        if rows.shape[0] != self.n:
            raise ValueError(
                f"activations: expected {self.n} neurons, as many as the accumulator has, got {rows.shape[0]} (shape "
                f"{tuple(activations.shape)}). Check that neuron_dim names the dimension that counts neurons."
            )
        if rows.device != self.device:
            raise ValueError(
                f"activations: expected device {self.device} like the accumulator, got {rows.device}. Move them, or "
                f"make it with GramAccumulator(n, device={str(rows.device)!r})."
            )
        return rows


def scratch_sizes(triangle: Triangle, max_bytes: int | None) -> tuple[int, int, int]:
    """Samples that wait, or are converted, together; rows of a block; side of a tile."""
    part = samples_together(triangle.n)
    if max_bytes is None:
        return part, triangle.height, TILE
    max_bytes = checks.check_integer(max_bytes, "max_bytes", optional=True)
    # One waiting sample, one converted one in two copies, and a tile of as many products as a row has, each in 8
    # bytes a neuron; or, for all_reduce, one row of sums and two packed ones.
    smallest = 4 * 8 * triangle.n
    fits = max_bytes // smallest
    if fits < 1:
        raise ValueError(
            f"max_bytes: expected at least {smallest:,}, what blocks of one row and one sample take for "
            f"{triangle.n} neurons, got {max_bytes:,}. Allow more, or leave max_bytes out."
        )
    side = min(TILE, math.isqrt(fits * triangle.n))
    return min(part, fits), min(triangle.height, fits), side


def triangles_bytes(n: int) -> int:
    """What the sums of products of `n` neurons take: two triangles of float64."""
    return 2 * 8 * Triangle(n).elements


def scratch_bytes(n: int, dtype: torch.dtype) -> int:
    """What comes on top on a CPU without `max_bytes`: waiting and converted samples, two copies of each, and a tile."""
    tile = min(n, TILE) ** 2
    return (4 * samples_together(n) * n + 2 * tile) * dtype.itemsize


def halved(first: int, last: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles that cover the triangle over [first, last): the upper right quarter, then the same in both halves."""
    if last - first <= LEAF:
        for top in range(first, last, LEAF_ROWS):
            yield slice(top, min(top + LEAF_ROWS, last)), slice(top, last)
        return
    half = first + -(-(last - first) // (2 * LEAF_ROWS)) * LEAF_ROWS
    yield slice(first, half), slice(half, last)
    yield from halved(first, half)
    yield from halved(half, last)


def packed_rows(block: Tensor) -> Tensor:
    """The entries on and above the diagonal of a block that starts on it, row by row."""
    return torch.cat([row[first:] for first, row in enumerate(block.unbind())])


def unpack(packed: Tensor, block: Tensor) -> None:
    """Write what `packed_rows` gave into a block."""
    lengths = range(block.shape[1], block.shape[1] - block.shape[0], -1)
    for first, (row, entries) in enumerate(zip(block.unbind(), packed.split(list(lengths)), strict=True)):
        row[first:] = entries
