"""Passes over the upper triangle of cosines in torch: its blocks, one after the other in the same buffer.

What is no pair (the other half of the square on the diagonal, neurons without direction) is overwritten with a value
that counts for nothing.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from ..pairwise.blocks import SMALLEST_SIDE, Neurons, block_sides, prepare, triangle_blocks
from ..pairwise.config import Request
from .config import check_room, most_pairs

BLOCK = (512, 2048)
"""4 MiB of float32: products take 13 to 14 ns a pair of 512 samples in blocks from 256 × 1024 to 512 × 4096, 16 with
128 rows, and what follows them up to twice as long in blocks that leave the cache."""
BIN_BYTES = 4
"""The number of a cosine's bin."""
LOOKED_INTO = 2**14
"""Cosines searched for pairs together, where there are any."""
FOUND_BYTES = 60
"""What finding pairs allocates for each cosine searched."""
CHUNK = 2**16
"""Pairs that wait together to be put in order, which takes no more memory than a block did."""


def cosine_totals_torch(rows: Tensor, kind: str, bins: int, request: Request) -> tuple[Tensor, Tensor]:
    """Counts (BINS,) int64 of the cosines of `rows` (N, OUTER, INNER), for a "histogram", or row sums (N,) float64 of
    what `kind` makes of them; and inverse norms (N,)."""
    neurons = prepare(rows, center=request.center)
    histogram, size = kind == "histogram", neurons.dtype.itemsize
    # Cosines of exactly 1 belong to the last bin; what is no pair, a "cosine" of 3, comes out last.
    places, dtype = (2 * bins + 1, torch.int64) if histogram else (rows.shape[0], torch.float64)
    totals = torch.zeros(places, dtype=dtype, device=rows.device)
    size, fixed = size + histogram * BIN_BYTES, 3 * totals.nbytes
    sides = block_sides(neurons, neurons, BLOCK, pair_bytes=size, fixed_bytes=fixed, max_bytes=request.max_bytes)
    if histogram:
        dtype = torch.int16 if 2 * bins <= torch.iinfo(torch.int16).max else torch.int32
        buffer = torch.empty(sides[0] * sides[1], dtype=dtype, device=rows.device)
    nothing = {"histogram": 3, "distance": 1}.get(kind, 0)
    for block, row, column in triangle_blocks(neurons, sides, fill=nothing, progress=request.progress):
        if histogram:
            place = buffer[: block.numel()].copy_(block.add_(1).mul_(bins * 0.5).flatten())
            totals += torch.bincount(place, minlength=places)
            continue
        if kind == "absolute":
            block.abs_()
        elif kind == "distance":
            block.mul_(-2).add_(2).sqrt_()
        totals[row : row + block.shape[0]] += block.sum(1)
        totals[column : column + block.shape[1]] += block.sum(0)
    if histogram:
        totals[bins - 1] += totals[bins]
        totals = totals[:bins].clone()
    return totals, neurons.inverse_norm


def cosine_pairs_torch(rows: Tensor, threshold: float, above: bool, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of `rows` (N, OUTER, INNER) past a threshold: first, second (int64) and cosine, in order.

    Products cost far more than looking at them, so pairs are kept while they are counted, as long as they fit.
    TooManyPairsError carries the full count.
    """
    assert request.max_bytes is not None
    neurons = prepare(rows, center=request.center)
    size, count = neurons.dtype.itemsize, rows.shape[0]
    fixed = min(LOOKED_INTO, count * count) * FOUND_BYTES + count * 24
    height, width = BLOCK
    while height * width * size > request.max_bytes // 4 and height > SMALLEST_SIDE:  # the rest is for what is found
        height, width = height // 2, width // 2
    preferred = height, width
    sides = block_sides(neurons, neurons, preferred, pair_bytes=size, fixed_bytes=fixed, max_bytes=request.max_bytes)
    scratch = fixed + neurons.kept_bytes + sides[0] * sides[1] * size
    kept = _Kept(neurons, sides[1], (threshold, above), most_pairs(size, scratch, request.max_bytes))
    nothing = -torch.inf if above else torch.inf
    for block, row, column in triangle_blocks(neurons, sides, fill=nothing, progress=request.progress):
        kept.look_into(block, row, column)
    check_room(kept.count, size, scratch, request.max_bytes)
    neurons.rooms.clear()
    return kept.in_order()


class _Kept:
    """Pairs as they come up, block by block, until they are put in order."""

    def __init__(self, neurons: Neurons, width: int, past: tuple[float, bool], most: int) -> None:
        self.threshold, above = past
        self.past, self.best = (torch.ge, torch.amax) if above else (torch.le, torch.amin)
        self.most, self.count = most, 0
        self.in_row = torch.zeros(neurons.rows.shape[0], dtype=torch.int64, device=neurons.rows.device)
        self.lines = max(1, LOOKED_INTO // width)
        self.dtypes = torch.int32, torch.int32, torch.int32, neurons.dtype
        self.chunks: list[list[Tensor]] = []
        """Of CHUNK pairs each: first neurons, how many pairs of these came before, second neurons, cosines."""
        self.filled: list[int] = []

    def look_into(self, block: Tensor, row: int, column: int) -> None:
        lines = self.past(self.best(block, 1), self.threshold).nonzero().flatten()
        for some in lines.split(self.lines) if len(lines) else ():
            self._keep(block[some], some + row, column)

    def _keep(self, part: Tensor, rows: Tensor, column: int) -> None:
        line, second = self.past(part, self.threshold).nonzero(as_tuple=True)
        pairs = len(line)
        self.count += pairs
        if self.count > self.most:
            self.chunks.clear()
            return
        counts = torch.bincount(line, minlength=len(rows))
        rank = torch.arange(pairs, device=line.device).add_((self.in_row[rows] - (counts.cumsum(0) - counts))[line])
        self.in_row[rows] += counts
        if not self.filled or self.filled[-1] + pairs > CHUNK:
            self.chunks.append([_room(max(CHUNK, part.shape[1]), dtype, part.device) for dtype in self.dtypes])
            self.filled.append(0)
        here = slice(self.filled[-1], self.filled[-1] + pairs)
        for room, new in zip(self.chunks[-1], (rows[line], rank, second + column, part[line, second]), strict=True):
            room[here] = new
        self.filled[-1] += pairs

    def in_order(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs by first, then second neuron: those of a row came up from left to right."""
        device = self.in_row.device
        second = torch.empty(self.count, dtype=torch.int64, device=device)
        cosine = torch.empty(self.count, dtype=self.dtypes[-1], device=device)
        start = self.in_row.cumsum(0) - self.in_row
        for pairs in self.filled:
            first, rank, *values = (room[:pairs] for room in self.chunks.pop(0))  # given back once they have been read
            place = start.index_select(0, first).add_(rank)
            for whole, value in zip((second, cosine), values, strict=True):
                whole[place] = value.to(whole.dtype)
        first = torch.arange(len(start), device=device).repeat_interleave(self.in_row, output_size=self.count)
        return first, second, cosine


def _room(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory that the system gets back when it is freed, which the C heap need not do."""
    if device.type != "cpu":
        return torch.empty(length, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, length * dtype.itemsize), dtype=dtype)
