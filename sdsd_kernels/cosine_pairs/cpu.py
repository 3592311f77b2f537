"""Passes over the upper triangle of cosines in torch: its blocks, one after the other in the same buffer.

A strip of rows meets its columns from the diagonal on, block by block. What is no pair (the other half of the square on
the diagonal, neurons without direction) is overwritten with a value that counts for nothing. Serves every device and
every dtype; on a CPU it is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .._cosine_blocks import SMALLEST_SIDE, Neurons, block_sides, fill_cosines, prepare
from .budget import check_count, most_pairs

Progress = Callable[[int, int], None]

BLOCK = (512, 2048)
"""4 MiB of float32: products take 13 to 14 ns a pair of 512 samples in blocks from 256 × 1024 to 512 × 4096, 16 with
128 rows, and what follows them up to twice as long in blocks that leave the cache."""
BIN_BYTES = 4
"""The number of a cosine's bin."""
LOOKED_INTO = 2**14
"""Cosines searched for pairs together, where there are any."""
FOUND_BYTES = 60
"""What finding pairs allocates for each cosine searched, if every one is past the threshold."""


@dataclass(frozen=True)
class Triangle:
    """The upper triangle of cosines of some neurons, cut into blocks.

    Attributes:
        neurons: read and ready for products.
        sides: rows and columns of a block.
        progress: told of blocks done, if anybody.
    """

    neurons: Neurons
    sides: tuple[int, int]
    progress: Progress | None

    def blocks(self) -> Iterator[tuple[Tensor, int, int]]:
        """(cosines, first row, first column), strip by strip, from left to right; the buffer is overwritten."""
        count = self.neurons.rows.shape[0]
        height, width = self.sides
        places = [(row, column) for row in range(0, count, height) for column in range(row, count, width)]
        buffer = self.neurons.rows.new_empty(height * width, dtype=self.neurons.dtype)
        for done, (row, column) in enumerate(places, 1):
            shape = (min(height, count - row), min(width, count - column))
            block = buffer[: shape[0] * shape[1]].view(shape)
            fill_cosines(block, self.neurons, row, self.neurons, column)
            yield block, row, column
            if self.progress is not None:
                self.progress(done, len(places))

    def overwrite_others(self, block: Tensor, row: int, column: int, value: float) -> None:
        """Put `value` where a block of blocks() has no pair: on and below the diagonal, and without direction."""
        rows, columns = block.shape
        if column < row + rows:
            width = min(columns, row + rows - column)
            first = torch.arange(row, row + rows, device=block.device)
            second = torch.arange(column, column + width, device=block.device)
            block[:, :width].masked_fill_(second <= first[:, None], value)
        for side, start in ((0, row), (1, column)):
            without = ~self.neurons.directed[start : start + block.shape[side]]
            if bool(without.any()):
                block.index_fill_(side, without.nonzero().flatten(), value)


def triangle(
    rows: Tensor,
    *,
    center: bool,
    pair_bytes: int,
    fixed_bytes: int,
    max_bytes: int | None,
    progress: Progress | None,
    preferred: tuple[int, int] | None = None,
) -> Triangle:
    """Read `rows` (N, OUTER, INNER) and choose blocks of `pair_bytes` beside each cosine within `max_bytes`."""
    neurons = prepare(rows, center=center)
    sides = block_sides(
        neurons,
        neurons,
        preferred=preferred or BLOCK,
        pair_bytes=neurons.dtype.itemsize + pair_bytes,
        fixed_bytes=fixed_bytes + neurons_bytes(neurons),
        max_bytes=max_bytes,
    )
    return Triangle(neurons, sides, progress)


def neurons_bytes(neurons: Neurons) -> int:
    """What stays of reading neurons: mean, scale, inverse norm, and flags of one side of a block."""
    return neurons.rows.shape[0] * (3 * neurons.dtype.itemsize + 1)


def cosine_histogram_torch(
    rows: Tensor, *, bins: int, center: bool, max_bytes: int | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Counts (BINS,) int64 of the cosines of `rows` (N, OUTER, INNER), and the inverse norms (N,)."""
    # Two more: cosines of exactly 1, which belong to the last bin, and what is no pair.
    counts = torch.zeros(bins + 2, dtype=torch.int64, device=rows.device)
    upper = triangle(
        rows,
        center=center,
        pair_bytes=BIN_BYTES,
        fixed_bytes=3 * counts.nbytes,
        max_bytes=max_bytes,
        progress=progress,
    )
    dtype = torch.int16 if bins + 1 <= torch.iinfo(torch.int16).max else torch.int32
    buffer = torch.empty(upper.sides[0] * upper.sides[1], dtype=dtype, device=rows.device)
    for block, row, column in upper.blocks():
        block.add_(1).mul_(bins * 0.5)
        upper.overwrite_others(block, row, column, bins + 1)
        counts += torch.bincount(buffer[: block.numel()].copy_(block.flatten()), minlength=bins + 2)
    counts[bins - 1] += counts[bins]
    return counts[:bins].clone(), upper.neurons.inverse_norm


def cosine_row_sums_torch(
    rows: Tensor, *, kind: str, center: bool, max_bytes: int | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Row sums (N,) float64 of what `kind` makes of the cosines of `rows` (N, OUTER, INNER), and inverse norms (N,)."""
    sums = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    upper = triangle(
        rows, center=center, pair_bytes=0, fixed_bytes=3 * sums.nbytes, max_bytes=max_bytes, progress=progress
    )
    for block, row, column in upper.blocks():
        if kind == "absolute":
            block.abs_()
        elif kind == "distance":
            block.mul_(-2).add_(2).sqrt_()
        upper.overwrite_others(block, row, column, 0)
        sums[row : row + block.shape[0]] += block.sum(1)
        sums[column : column + block.shape[1]] += block.sum(0)
    return sums, upper.neurons.inverse_norm


def cosine_pairs_torch(
    rows: Tensor, *, threshold: float, above: bool, center: bool, max_bytes: int, progress: Progress | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of `rows` (N, OUTER, INNER) past a threshold: first, second (int64) and cosine, in order.

    Products cost far more than looking at them, so pairs are kept while they are counted, as long as they fit.
    TooManyPairsError carries the full count.
    """
    count = rows.shape[0]
    fixed = min(LOOKED_INTO, count * count) * FOUND_BYTES + count * 24
    upper = triangle(
        rows,
        center=center,
        pair_bytes=0,
        fixed_bytes=fixed,
        max_bytes=max_bytes,
        progress=progress,
        preferred=_largest_block(max_bytes // 4),
    )
    itemsize = upper.neurons.dtype.itemsize
    scratch = fixed + neurons_bytes(upper.neurons) + upper.sides[0] * upper.sides[1] * itemsize
    most = most_pairs(itemsize, scratch, max_bytes)
    pieces: list[_Piece] = []
    found = 0
    for block, row, column in upper.blocks():
        upper.overwrite_others(block, row, column, -torch.inf if above else torch.inf)
        for piece in _past_threshold(block, row, column, threshold, above):
            found += len(piece.second)
            if found <= most:
                pieces.append(piece)
            else:
                pieces.clear()
    check_count(found, itemsize, scratch, max_bytes)
    return _in_order(pieces, count, found, upper.neurons)


@dataclass(frozen=True)
class _Piece:
    """Pairs of some rows with the columns of one block, row by row."""

    rows: Tensor
    counts: Tensor
    """Pairs of each of `rows`."""
    second: Tensor
    """int32: half the memory while pieces wait to be put in order."""
    cosine: Tensor


def _past_threshold(block: Tensor, row: int, column: int, threshold: float, above: bool) -> Iterator[_Piece]:
    best = block.amax(1) if above else block.amin(1)
    hit = (best >= threshold if above else best <= threshold).nonzero().flatten()
    for some in hit.split(max(1, LOOKED_INTO // block.shape[1])):
        part = block[some]
        line, place = (part >= threshold if above else part <= threshold).nonzero(as_tuple=True)
        counts = torch.bincount(line, minlength=len(some))
        yield _Piece(some + row, counts, (place + column).int(), part[line, place])


def _in_order(pieces: list[_Piece], count: int, found: int, neurons: Neurons) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs by first, then second neuron. A row's pieces come from left to right, so each goes behind the last."""
    device = neurons.rows.device
    in_row = torch.zeros(count, dtype=torch.int64, device=device)
    for piece in pieces:
        in_row[piece.rows] += piece.counts
    end = in_row.cumsum(0) - in_row
    second = torch.empty(found, dtype=torch.int64, device=device)
    cosine = torch.empty(found, dtype=neurons.dtype, device=device)
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        before = piece.counts.cumsum(0) - piece.counts
        place = (end[piece.rows] - before).repeat_interleave(piece.counts)
        place += torch.arange(len(place), device=device)
        second[place] = piece.second.long()
        cosine[place] = piece.cosine
        end[piece.rows] += piece.counts
    first = torch.arange(count, device=device).repeat_interleave(in_row, output_size=found)
    return first, second, cosine


def _largest_block(limit: int) -> tuple[int, int]:
    """BLOCK, or what is left of it when float32 cosines may take `limit` bytes: the rest is for what is found."""
    height, width = BLOCK
    while height * width * 4 > limit and max(height, width) > SMALLEST_SIDE:
        height, width = (height // 2, width) if height > width else (height, width // 2)
    return height, width
