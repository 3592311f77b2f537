"""k nearest neurons in torch: blocks of cosines, each offered to the running top k of its rows and of its columns.

README.md says how few cosines are looked at twice, and how threads share the lists. Where a row meets its columns in
ascending order, stable sorts keep them so, and "better" is strictly greater: that is all it takes for equal cosines to
come out by index. A row that another thread has taken further takes equal ones too, and is sorted by index first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Lock

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._precision import exact_float32
from .._workers import run_tasks
from ..pairwise.blocks import block_places, block_sides, blocks_of, normalized, prepare, stable_topk
from ..pairwise.config import Request

GROUP = 32
"""Cosines of a row whose maximum is compared at once: 16 reduce four times slower, 64 leave more to look at."""
COLUMN_GROUP = 16
"""The same of a column, where every cosine that is looked into is a cache line of its own. 8 are 1.03 times as slow."""
BLOCK = (1024, 2048)
"""8 MiB of cosines. From 1024² to 2048² speeds are within 10 %, at 5000 × 512, 20,000 × 512 and 20,000 × 64; 512² is
1.15 times as slow at the first."""
UNIT_BYTES = 2**23
"""Neurons of so many bytes, which most often have few samples, are copied as rows of unit length: 1.06 times as fast at
20,000 × 64, where products are a third of the work."""
WHOLE_ROWS_FROM = 16
"""Whole rows are selected from where k is more than a WHOLE_ROWS_FROM-th of the neurons."""
STRIP_ELEMENTS = {"cpu": 2**21, "cuda": 2**25}
"""Cosines of whole rows held at a time."""
PAIR_COPIES = 10
"""What a pair in a block may take, in cosines: one itself, and up to nine where one row learns of a whole block of
better ones while every other row learns of one. Random neurons take two."""
SHARED_SAMPLES = 2**12
"""Up to so many samples threads take blocks each for itself. Products of more keep all threads busy, and would let an
interruption wait for longer than half a second."""
SHARED_BLOCKS = 4
"""So many blocks a thread at least: with fewer some threads would wait at the end."""


def cosine_topk_torch(
    rows: Tensor, others: Tensor | None, k: int, farthest: bool, request: Request
) -> tuple[Tensor, Tensor]:
    """The k best cosines, and whose, of `rows` (N, OUTER, INNER) among themselves or `others` (M, OUTER, INNER)."""
    left = prepare(rows, center=request.center)
    right = left if others is None else prepare(others, center=request.center)
    largest = max(left.rows.numel(), right.rows.numel()) * left.dtype.itemsize
    if request.max_bytes is None and largest <= UNIT_BYTES:
        left = normalized(left)
        right = left if others is None else normalized(right)
    neighbors, device = right.rows.shape[0], "cpu" if rows.device.type == "cpu" else "cuda"
    whole_rows = device == "cuda" or k * WHOLE_ROWS_FROM > neighbors
    preferred = (max(1, STRIP_ELEMENTS[device] // neighbors), neighbors) if whole_rows else BLOCK
    size, max_bytes = PAIR_COPIES * left.dtype.itemsize, request.max_bytes
    sides = block_sides(left, right, preferred, pair_bytes=size, max_bytes=max_bytes, whole_rows=whole_rows)
    triangle = others is None and not whole_rows
    with torch.inference_mode(False):  # threads that are not in that mode write, too
        best = TopK(rows.shape[0], k, left.inverse_norm)

    def start() -> Callable[[tuple[int, int]], None]:
        own = replace(left, rooms={})  # memory of this thread
        own_right = own if others is None else replace(right, rooms={})
        fill = torch.inf if farthest else -torch.inf
        block_at = blocks_of(own, own_right, sides, fill=fill, once=False, group=GROUP)

        def look_into(place: tuple[int, int]) -> None:
            row, column = place
            scores = block_at(row, column)
            if farthest:
                scores.neg_()
            some = scores[: min(sides[0], rows.shape[0] - row)]
            if whole_rows:
                best.take(row, some)
                return
            best.offer(row, some, column)
            if triangle:
                # Columns that are rows of this block have met it already.
                first = max(0, row + sides[0] - column)
                best.offer(column + first, scores.T[first : min(sides[1], neighbors - column)], row)

        return look_into

    places = block_places(left, right, sides, triangle=triangle)
    threads = torch.get_num_threads()
    alone = device == "cuda" or request.max_bytes is not None or rows[0].numel() > SHARED_SAMPLES
    if alone or len(places) < threads * SHARED_BLOCKS:
        threads = 1  # one block after the other, by as many threads as torch has
    with exact_float32():
        run_tasks(places, start, threads=threads, progress=request.progress)
    return cosines_of(best.values, best.indices, farthest)


class TopK:
    """The k best scores of every row so far, best first, equal ones by place; -inf and -1 where there are fewer.

    Several threads may offer scores, in any order: what a row ends with depends on the scores alone.
    """

    def __init__(self, rows: int, k: int, like: Tensor) -> None:
        self.k, self.lock = k, Lock()
        self.values = like.new_full((rows, k), -torch.inf)
        self.indices = torch.full((rows, k), -1, dtype=torch.int64, device=like.device)

    def take(self, first_row: int, scores: Tensor) -> None:
        """Set rows from `first_row` on to the best of all their scores."""
        which = slice(first_row, first_row + scores.shape[0])
        self.values[which], self.indices[which] = stable_topk(scores, self.k)

    def offer(self, first_row: int, scores: Tensor, first_column: int) -> None:
        """Let rows from `first_row` on take what is better among `scores` (rows, a whole number of groups of columns).

        No row is offered a column twice.
        """
        if not len(scores):
            return
        which = slice(first_row, first_row + scores.shape[0])
        with self.lock:
            threshold = self.values[which, -1:].clone()
            last = self.indices[which, -1:].clone()
        # An equal score is better where it lies further left than the k-th best.
        threshold = torch.where(last > first_column, _next_below(threshold), threshold)
        by_column = scores.stride(0) < scores.stride(1)
        size = COLUMN_GROUP if by_column else GROUP
        # Read in the order of memory.
        maxima = scores.T.unflatten(0, (-1, size)).amax(1).T if by_column else scores.unflatten(1, (-1, size)).amax(2)
        wanted = maxima > threshold
        if 4 * int(wanted.count_nonzero()) > wanted.numel():
            if maxima.shape[1] > self.k:
                # k scores of a row reach the k-th best of its maxima, so what is below it is out.
                threshold = torch.maximum(threshold, _next_below(maxima.topk(self.k, dim=1).values[:, -1:]))
                wanted = maxima > threshold
            if int(wanted.count_nonzero()) > min(2 * self.k, maxima.shape[1] - 1) * len(threshold):
                self._merge_all(which, first_column, scores)
                return
        # Of columns' groups nonzero takes two and a half times as long as they lie.
        row, group = wanted.contiguous().nonzero(as_tuple=True)
        offered = scores.unflatten(1, (-1, size))[row, group]
        hit, lane = (offered > threshold[row]).nonzero(as_tuple=True)
        if len(hit):
            column = first_column + group[hit] * size + lane
            self._merge(first_column, first_row + row[hit], column, offered[hit, lane])

    def _merge(self, first_column: int, row: Tensor, column: Tensor, value: Tensor) -> None:
        """Merge single scores, given in ascending order of row and column."""
        touched, line, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
        width = self.k + int(counts.max())
        values = self.values.new_full((len(touched), width), -torch.inf)
        indices = self.indices.new_full((len(touched), width), -1)
        # The c-th new score of a row goes behind its k old ones.
        first = (counts.cumsum(0) - counts).index_select(0, line)
        place = line * width + self.k + torch.arange(len(row), device=row.device) - first
        values.view(-1).scatter_(0, place, value)
        indices.view(-1).scatter_(0, place, column)
        self._keep_best(touched, first_column, values, indices)

    def _merge_all(self, which: slice, first_column: int, scores: Tensor) -> None:
        values, places = stable_topk(scores, min(self.k, scores.shape[1]))
        rows = torch.arange(which.start, which.stop, device=scores.device)
        values, indices = pad(values, (self.k, 0)), pad(places.add_(first_column), (self.k, 0))
        self._keep_best(rows, first_column, values, indices)

    def _keep_best(self, rows: Tensor, first_column: int, values: Tensor, indices: Tensor) -> None:
        """Merge new scores, equal ones by place, that lie behind room for the k old ones."""
        with self.lock:
            values[:, : self.k] = self.values.index_select(0, rows)
            indices[:, : self.k] = self.indices.index_select(0, rows)
            if bool((indices[:, : self.k] > first_column).any()):  # another thread was ahead
                indices, order = indices.sort(dim=1)
                values = values.gather(1, order)
            best, order = values.sort(dim=1, descending=True, stable=True)
            self.values.index_copy_(0, rows, best[:, : self.k])
            self.indices.index_copy_(0, rows, indices.gather(1, order[:, : self.k]))


def cosines_of(scores: Tensor, places: Tensor, farthest: bool) -> tuple[Tensor, Tensor]:
    """Cosines and places of the best scores; NaN and -1 where a row has none."""
    missing = scores == -torch.inf
    if farthest:
        scores.neg_()
    return scores.masked_fill_(missing, torch.nan), places.masked_fill_(missing, -1)


def _next_below(values: Tensor) -> Tensor:
    return values.nextafter(values.new_full((), -torch.inf))
