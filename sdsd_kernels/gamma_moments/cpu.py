"""The torch path: blocks that stay in cache, shared out among threads, with float64 sums across blocks.

A block is read from memory once, by whatever comes first; the rest finds it in cache. Σ‖g_i − ḡ‖² is Σ‖g_i‖² − N‖ḡ‖²,
and ‖g_i − ḡ‖² is ‖g_i‖² − 2 g_i·ḡ + ‖ḡ‖², where N‖ḡ‖² is no larger than the difference, so that rounding errors at
most treble; else the block is centred first.

How a matrix is cut depends on its size alone, operations on a block run on one thread, and blocks are added in their
order: the result is the same, bit for bit, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .._workers import run_tasks
from .layout import as_matrices

BLOCK_BYTES = 2 * 2**20
"""The largest block. Time is flat from here to 8 MB where the third level of cache is fast, as on AMD (within a tenth);
below, fixed costs and short rows show. Larger blocks would leave the second level where the third is slow: 2 MB a core
on Intel's servers."""
SMALLEST_BLOCK_BYTES = 2**20
BLOCKS_AT_LEAST = 2
"""Matrices of fewer than this many of the largest blocks are cut into smaller ones, so that two threads have something
to do. Below SMALLEST_BLOCK_BYTES a block's fixed costs, some 15 µs of Python, would weigh more than that gains."""
NARROWEST = 512
"""Columns of such a smaller block at least: below, short rows show."""
PIECES_AT_MOST = 128
"""Pieces of consecutive blocks that a matrix is cut into; a thread takes one at a time and returns its sums."""
MAX_RESIDENT_ROWS = 1024
"""Blocks of more rows would be too narrow to stream. They are read in chunks of so many rows, and again where they are
centred or per-sample moments are wanted."""
WIDEST = 65_536
"""Columns of a block at most: longer sums lose digits in float32 (2e-6 of a norm, in the worst of twenty)."""
WIDEST_BY_COLUMNS = 8192
"""The same where columns are contiguous, not rows: a row is then summed one number after the other."""
LONG_ROW = 16_384
"""Whichever reads a block first reads memory. The norms read one row after the other, which memory serves fastest where
rows are long; the product for the mean reads several rows at once, and does not mind short ones. Each first where it
is the faster: a tenth to a seventh of the time."""
INLINE_ELEMENTS = 32_768
"""torch runs operations of no more elements on one thread; inputs of no more stay in the calling thread."""
TASK_ELEMENTS = 2**17
"""A thread takes at least so many elements at a time, but for the last, if they lie in several pieces."""
ACCURATE_MEAN = 0.99
"""Where N‖ḡ‖² is a larger share of Σ‖g_i‖², the float32 mean is refined, lest its rounding show."""
SAFE_SQUARES = (1e-20, 1e30)
"""Sums of squares outside this range may have lost terms to float32 underflow or overflow: redone in float64."""


class Piece(NamedTuple):
    """Columns `start` to `stop` of one matrix of entry `entry`, to be taken `width` at a time."""

    entry: int
    matrix: Tensor
    start: int
    stop: int
    width: int

    @property
    def elements(self) -> int:
        return self.matrix.shape[0] * (self.stop - self.start)


@dataclass(slots=True)
class Sums:
    """‖mean‖², Σ‖g_i − mean‖² and, where wanted, [a_i, q_i, c_j] of some columns."""

    signal: float = 0.0
    squares: float = 0.0
    samples: Tensor | None = None

    def add(self, other: Sums) -> None:
        self.signal += other.signal
        self.squares += other.squares
        if other.samples is not None:
            self.samples = other.samples if self.samples is None else self.samples.add_(other.samples)


def gamma_moments(grads: list[Tensor], per_sample: bool) -> Tensor:
    """Result rows for `grads`; shape: (L, row_width), float64. On any device torch serves."""
    device = grads[0].device
    pieces = [
        piece
        for index, entry in enumerate(grads)
        for matrix in as_matrices(entry)
        for piece in _pieces_of(matrix, index)
    ]
    alone = device.type != "cpu" or sum(entry.numel() for entry in grads) <= INLINE_ELEMENTS
    tasks = [pieces] if alone else _tasks_of(pieces)

    def start() -> Callable[[list[Piece]], list[Sums]]:
        return Blocks(per_sample).sums_of_pieces

    done = run_tasks(tasks, start, threads=1 if alone else torch.get_num_threads())
    totals = [Sums() for _ in grads]
    for piece, sums in zip(pieces, (sums for task in done for sums in task), strict=True):
        totals[piece.entry].add(sums)
    two = [(total.signal, total.squares) for total in totals]
    table = torch.tensor(two, dtype=torch.float64, device=device)
    samples = [total.samples for total in totals if total.samples is not None]
    return torch.cat([table, torch.stack(samples)], 1) if samples else table


def _working_dtype(matrix: Tensor) -> torch.dtype:
    return torch.float64 if matrix.dtype == torch.float64 else torch.float32


def _by_columns(matrix: Tensor) -> bool:
    return matrix.stride(0) < matrix.stride(1)


def _pieces_of(matrix: Tensor, entry: int) -> Iterator[Piece]:
    n, columns = matrix.shape
    itemsize = _working_dtype(matrix).itemsize
    share = n * columns * itemsize // BLOCKS_AT_LEAST
    column_bytes = min(n, MAX_RESIDENT_ROWS) * itemsize
    smallest = max(SMALLEST_BLOCK_BYTES, NARROWEST * column_bytes)
    widest = WIDEST_BY_COLUMNS if _by_columns(matrix) else WIDEST
    width = max(1, min(columns, widest, min(max(smallest, share), BLOCK_BYTES) // column_bytes))
    step = width * -(-columns // (width * PIECES_AT_MOST))
    for start in range(0, columns, step):
        yield Piece(entry, matrix, start, min(start + step, columns), width)


def _tasks_of(pieces: list[Piece]) -> list[list[Piece]]:
    """Consecutive pieces together until there are enough to be worth a thread's while."""
    tasks: list[list[Piece]] = []
    size = TASK_ELEMENTS
    for piece in pieces:
        if size >= TASK_ELEMENTS:
            tasks.append([])
            size = 0
        tasks[-1].append(piece)
        size += piece.elements
    return tasks


@dataclass
class Blocks:
    """Moments of blocks of N rows, one after the other, with the memory that takes, kept from block to block."""

    per_sample: bool
    weights: dict[torch.dtype, Tensor] = field(default_factory=dict)
    """1 / N for every row of a chunk."""
    buffers: dict[str, Tensor] = field(default_factory=dict)

    def sums_of_pieces(self, pieces: list[Piece]) -> list[Sums]:
        totals = []
        for _, matrix, first, stop, width in pieces:
            total = Sums()
            dtype = _working_dtype(matrix)
            for start in range(first, stop, width):
                block = matrix[:, start : min(start + width, stop)]
                sums = self._sums(block, dtype) or self._sums(block, torch.float64)
                assert sums is not None
                total.add(sums)
            totals.append(total)
        return totals

    def _memory(self, purpose: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Unset values of `like`'s shape in its order in memory, until the next call for this purpose."""
        words = -(-like.numel() * dtype.itemsize // 8)
        buffer = self.buffers.get(purpose)
        if buffer is None or buffer.numel() < words:
            buffer = self.buffers[purpose] = torch.empty(words, dtype=torch.float64, device=like.device)
        flat = buffer.view(dtype)[: like.numel()]
        rows, columns = like.shape
        return flat.view(columns, rows).t() if _by_columns(like) else flat.view(rows, columns)

    def _widened(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values if values.dtype == dtype else self._memory("widened", values, dtype).copy_(values)

    def _sums(self, block: Tensor, dtype: torch.dtype) -> Sums | None:
        """The moments of one block; None where sums in `dtype` cannot be trusted with them."""
        n = block.shape[0]
        chunks = block.split(MAX_RESIDENT_ROWS) if n > MAX_RESIDENT_ROWS else (self._widened(block, dtype),)
        weights = self.weights.get(dtype)
        if weights is None:
            weights = torch.full((min(n, MAX_RESIDENT_ROWS),), 1 / n, dtype=dtype, device=block.device)
            self.weights[dtype] = weights
        together, means, lengths, products = 0.0, [], [], []
        for chunk in chunks:
            values = self._widened(chunk, dtype)
            share, length = self._mean_and_lengths(values, weights)
            together += _squared_norm(length)
            means.append(share)
            if self.per_sample:
                lengths.append(length)
                if values.shape[0] >= 4:
                    products.append(self._products(values))
        if not _trusted(together, dtype):
            return None
        mean = means[0] if len(means) == 1 else torch.stack(means).sum(0, dtype=torch.float64)
        signal = _squared_norm(mean)
        if n * signal > together / 2:
            sums = self._centred(chunks, mean, weights, products, refine=n * signal > ACCURATE_MEAN * together)
        else:
            sums = Sums(signal, together - n * signal)
            if self.per_sample:
                mean = mean.to(dtype)
                along = _joined([torch.mv(self._widened(chunk, dtype), mean) for chunk in chunks]).double()
                deviations = _joined(lengths).double().square_().add_(along, alpha=-2).add_(signal).clamp_(min=0)
                sums.samples = torch.cat([deviations, along.sub_(signal), *products])
        return sums if _trusted(sums.squares, dtype) else None

    @staticmethod
    def _mean_and_lengths(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of rows, each times its weight, and every row's norm."""
        rows, columns = values.shape
        weights = weights if weights.shape[0] == rows else weights[:rows]
        if columns >= LONG_ROW:
            lengths = torch.linalg.vector_norm(values, dim=1)
            return torch.mv(values.t(), weights), lengths
        share = torch.mv(values.t(), weights)
        return share, torch.linalg.vector_norm(values, dim=1)

    def _products(self, values: Tensor) -> Tensor:
        """c_j of some rows, the first of them a multiple of four."""
        end = values.shape[0] // 4 * 4
        differences = self._memory("worked on", values[: end // 2], values.dtype)
        torch.sub(values[0:end:2], values[1:end:2], out=differences)
        return differences[0::2].mul_(differences[1::2]).sum(1).double().mul_(0.5)

    def _centred(
        self, chunks: tuple[Tensor, ...], mean: Tensor, weights: Tensor, products: list[Tensor], refine: bool
    ) -> Sums:
        """The moments of a block whose mean is about `mean`, exactly that unless `refine`; `products` are its c_j."""
        dtype = weights.dtype

        def centred(chunk: Tensor, *means: Tensor) -> Tensor:
            values = torch.sub(self._widened(chunk, dtype), means[0], out=self._memory("worked on", chunk, dtype))
            for rest in means[1:]:
                values.sub_(rest)
            return values

        means: tuple[Tensor, ...] = (mean.to(dtype),)
        if refine:
            mean = means[0].double()
            for chunk in chunks:
                mean = mean + torch.mv(centred(chunk, *means).t(), weights[: chunk.shape[0]])
            # The mean's rounding error would be common to all rows; its low half takes it out.
            means = (mean.to(dtype), (mean - mean.to(dtype)).to(dtype))
        sums = Sums(_squared_norm(mean))
        deviations, projections = [], []
        for chunk in chunks:
            values = centred(chunk, *means)
            lengths = torch.linalg.vector_norm(values, dim=1)
            sums.squares += _squared_norm(lengths)
            if self.per_sample:
                deviations.append(lengths.double().square_())
                projections.append(torch.mv(values, means[0]).double())
        if self.per_sample:
            sums.samples = torch.cat([*deviations, *projections, *products])
        return sums


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _squared_norm(vector: Tensor) -> float:
    """By an operation that stays on one thread up to INLINE_ELEMENTS, which torch.dot does not."""
    return torch.linalg.vector_norm(vector).item() ** 2


def _trusted(squares: float, dtype: torch.dtype) -> bool:
    return dtype == torch.float64 or SAFE_SQUARES[0] < squares < SAFE_SQUARES[1]
