"""Passes over the upper triangle of cosines in torch: its blocks, one after the other in the same buffer.

A strip of rows meets its columns from the diagonal on, block by block. What is no pair (the other half of the square on
the diagonal, neurons without direction) is overwritten with a value that counts for nothing. Serves every device and
every dtype; on a CPU it is the default.
"""

from __future__ import annotations

import mmap
from array import array

import torch
from torch import Tensor

from .._progress import Progress
from ..pairwise.blocks import SMALLEST_SIDE, Neurons, block_sides, cosine_blocks, prepare
from .budget import check_count, most_pairs

BLOCK = (512, 2048)
"""4 MiB of float32: products take 13 to 14 ns a pair of 512 samples in blocks from 256 × 1024 to 512 × 4096, 16 with
128 rows, and what follows them up to twice as long in blocks that leave the cache."""
BIN_BYTES = 4
"""The number of a cosine's bin."""
LOOKED_INTO = 2**14
"""Cosines searched for pairs together, where there are any."""
FOUND_BYTES = 60
"""What finding pairs allocates for each cosine searched, in buffers of one size: temporaries of changing size leave
holes in the C heap that none of the next fits in."""
CHUNK = 2**18
"""Pairs that wait together to be put in order."""


def sides_of(
    neurons: Neurons,
    *,
    pair_bytes: int = 0,
    fixed_bytes: int,
    max_bytes: int | None,
    preferred: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Of blocks with `pair_bytes` beside each cosine."""
    return block_sides(
        neurons,
        neurons,
        preferred=preferred or BLOCK,
        pair_bytes=neurons.dtype.itemsize + pair_bytes,
        fixed_bytes=fixed_bytes + neurons_bytes(neurons),
        max_bytes=max_bytes,
    )


def neurons_bytes(neurons: Neurons) -> int:
    """What stays of reading neurons: mean, scale, inverse norm, and flags of one side of a block."""
    return neurons.rows.shape[0] * (3 * neurons.dtype.itemsize + 1)


def cosine_histogram_torch(
    rows: Tensor, *, bins: int, center: bool, max_bytes: int | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Counts (BINS,) int64 of the cosines of `rows` (N, OUTER, INNER), and the inverse norms (N,)."""
    neurons = prepare(rows, center=center)
    # Cosines of exactly 1 belong to the last bin; what is no pair, a "cosine" of 3, comes out last.
    counts = torch.zeros(2 * bins + 1, dtype=torch.int64, device=rows.device)
    sides = sides_of(neurons, pair_bytes=BIN_BYTES, fixed_bytes=3 * counts.nbytes, max_bytes=max_bytes)
    dtype = torch.int16 if 2 * bins <= torch.iinfo(torch.int16).max else torch.int32
    buffer = torch.empty(sides[0] * sides[1], dtype=dtype, device=rows.device)
    for block, _, _ in cosine_blocks(neurons, neurons, sides, fill=3, progress=progress):
        place = buffer[: block.numel()].copy_(block.add_(1).mul_(bins * 0.5).flatten())
        counts += torch.bincount(place, minlength=2 * bins + 1)
    counts[bins - 1] += counts[bins]
    return counts[:bins].clone(), neurons.inverse_norm


def cosine_row_sums_torch(
    rows: Tensor, *, kind: str, center: bool, max_bytes: int | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Row sums (N,) float64 of what `kind` makes of the cosines of `rows` (N, OUTER, INNER), and inverse norms (N,)."""
    neurons = prepare(rows, center=center)
    sums = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    sides = sides_of(neurons, fixed_bytes=3 * sums.nbytes, max_bytes=max_bytes)
    nothing = 1 if kind == "distance" else 0
    for block, row, column in cosine_blocks(neurons, neurons, sides, fill=nothing, progress=progress):
        if kind == "absolute":
            block.abs_()
        elif kind == "distance":
            block.mul_(-2).add_(2).sqrt_()
        sums[row : row + block.shape[0]] += block.sum(1)
        sums[column : column + block.shape[1]] += block.sum(0)
    return sums, neurons.inverse_norm


def cosine_pairs_torch(
    rows: Tensor, *, threshold: float, above: bool, center: bool, max_bytes: int, progress: Progress | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of `rows` (N, OUTER, INNER) past a threshold: first, second (int64) and cosine, in order.

    Products cost far more than looking at them, so pairs are kept while they are counted, as long as they fit.
    TooManyPairsError carries the full count.
    """
    neurons = prepare(rows, center=center)
    itemsize, count = neurons.dtype.itemsize, rows.shape[0]
    fixed = min(LOOKED_INTO, count * count) * FOUND_BYTES + count * 24
    height, width = BLOCK
    while height * width * 4 > max_bytes // 4 and max(height, width) > SMALLEST_SIDE:  # the rest is for what is found
        height, width = (height // 2, width) if height > width else (height, width // 2)
    sides = sides_of(neurons, fixed_bytes=fixed, max_bytes=max_bytes, preferred=(height, width))
    scratch = fixed + neurons_bytes(neurons) + sides[0] * sides[1] * itemsize
    waiting = _Waiting(sides[1], neurons, threshold, above, most_pairs(itemsize, scratch, max_bytes))
    nothing = -torch.inf if above else torch.inf
    for block, row, column in cosine_blocks(neurons, neurons, sides, fill=nothing, progress=progress):
        waiting.look_into(block, row, column)
    check_count(waiting.kept, itemsize, scratch, max_bytes)
    neurons.rooms.clear()
    return waiting.in_order()


class _Waiting:
    """Pairs as they are found, block by block, until they are put in order. All buffers have one size."""

    def __init__(self, width: int, neurons: Neurons, threshold: float, above: bool, most: int) -> None:
        self.count, self.threshold, self.above, self.most = neurons.rows.shape[0], threshold, above, most
        self.device, self.dtype = neurons.rows.device, neurons.dtype
        self.size = max(LOOKED_INTO, width)
        self.part = torch.empty(self.size, dtype=self.dtype, device=self.device)
        self.past = torch.empty(self.size, dtype=torch.bool, device=self.device)
        self.place = torch.empty(self.size, dtype=torch.int64, device=self.device)
        self.value = torch.empty(self.size, dtype=self.dtype, device=self.device)
        self.kept = 0
        self.chunks: list[tuple[Tensor, Tensor]] = []  # second neurons, int32, and cosines
        self.filled = CHUNK
        self.rows, self.counts = array("i"), array("i")  # pairs of each row in each part looked into
        self.pieces: list[tuple[int, int, int, int]] = []  # chunk, first pair in it, pairs, rows

    def look_into(self, block: Tensor, row: int, column: int) -> None:
        best = block.amax(1) if self.above else block.amin(1)
        hit = (best >= self.threshold if self.above else best <= self.threshold).nonzero().flatten()
        for some in hit.split(max(1, self.size // block.shape[1])) if len(hit) else ():
            self._keep(block, some, row, column)

    def _keep(self, block: Tensor, some: Tensor, row: int, column: int) -> None:
        shape = (len(some), block.shape[1])
        searched = shape[0] * shape[1]
        part = torch.index_select(block, 0, some, out=self.part[:searched].view(shape))
        past = self.past[:searched].view(shape)
        torch.ge(part, self.threshold, out=past) if self.above else torch.le(part, self.threshold, out=past)
        counts = past.sum(1)
        pairs = int(counts.sum())
        self.kept += pairs
        if self.kept > self.most:
            self.chunks.clear()
            self.pieces.clear()
            return
        self.past[searched:] = False
        place = torch.nonzero_static(self.past, size=self.size, fill_value=0)[:, 0]
        torch.take(self.part, place, out=self.value)
        torch.remainder(place, shape[1], out=self.place).add_(column)
        if self.filled + pairs > CHUNK or not self.chunks:
            length = max(CHUNK, self.size)
            self.chunks.append((_room(length, torch.int32, self.device), _room(length, self.dtype, self.device)))
            self.filled = 0
        second, cosine = self.chunks[-1]
        second[self.filled : self.filled + pairs] = self.place[:pairs]
        cosine[self.filled : self.filled + pairs] = self.value[:pairs]
        self.pieces.append((len(self.chunks) - 1, self.filled, pairs, shape[0]))
        self.filled += pairs
        self.rows.extend((some + row).tolist())
        self.counts.extend(counts.tolist())

    def in_order(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs by first, then second neuron. A row's pieces come from left to right, so each goes behind the last."""
        rows, counts = (torch.tensor(each, dtype=torch.int64, device=self.device) for each in (self.rows, self.counts))
        in_row = torch.zeros(self.count, dtype=torch.int64, device=self.device).index_add_(0, rows, counts)
        end = in_row.cumsum(0) - in_row
        second = torch.empty(self.kept, dtype=torch.int64, device=self.device)
        cosine = torch.empty(self.kept, dtype=self.dtype, device=self.device)
        passed = 0
        for chunk, start, pairs, lines in self.pieces:
            if chunk > 0 and self.chunks[chunk - 1] is not NOTHING:
                self.chunks[chunk - 1] = NOTHING  # given back as soon as it has been read
            here = slice(passed, passed + lines)
            passed += lines
            before = counts[here].cumsum(0) - counts[here]
            place = (end[rows[here]] - before).repeat_interleave(counts[here])
            place += torch.arange(pairs, device=self.device)
            second[place] = self.chunks[chunk][0][start : start + pairs].long()
            cosine[place] = self.chunks[chunk][1][start : start + pairs]
            end[rows[here]] += counts[here]
        self.chunks.clear()
        first = torch.arange(self.count, device=self.device).repeat_interleave(in_row, output_size=self.kept)
        return first, second, cosine


NOTHING = (torch.empty(0), torch.empty(0))


def _room(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory that the system gets back when it is freed, which the C heap need not do."""
    if device.type != "cpu":
        return torch.empty(length, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, length * dtype.itemsize), dtype=dtype)
