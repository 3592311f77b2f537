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
BLOCK = (992, 2112)
"""8 MiB of cosines. Sides are no powers of two, which would put the cosines of a column into a few places of the cache.
From 1024² to 2048² speeds are within 10 %, at 5000 × 512, 20,000 × 512 and 20,000 × 64; 512² is 1.15 times as slow at
the first."""
UNIT_BYTES = 2**23
"""Neurons of so many bytes, which most often have few samples, are copied as rows of unit length: 1.06 times as fast at
20,000 × 64, where products are a third of the work."""
WHOLE_ROWS_FROM = 16
"""Whole rows are selected from where k is more than a WHOLE_ROWS_FROM-th of the neurons."""
STRIP_ELEMENTS = {"cpu": 2**21, "cuda": 2**25}
"""Cosines of whole rows held at a time."""
PAIR_COPIES = 8
"""What a pair in a block may take, in cosines: one itself, and up to seven where just so many are better that they are
not yet selected from at once. Random neurons take two."""
SHARED_SAMPLES = 2**12
"""Up to so many samples threads take blocks each for itself. Products of more keep all threads busy, and would let an
interruption wait for longer than half a second."""
SHARED_BLOCKS = 4
"""So many blocks a thread at least: with fewer some threads would wait at the end."""
WAITING = 2**13
"""So many better scores wait, of several blocks, before they are merged: what merging takes is mostly a matter of how
often. That lets a few more through."""
AT_ONCE = 32
"""New scores of a row merged at once, beside k: memory is bound where one row learns of a whole block."""
PLACE_BITS = 32
PLACES = 2**PLACE_BITS
"""More than there are columns, so that row · PLACES + column is one number to sort by."""


def cosine_topk_torch(
    rows: Tensor, others: Tensor | None, k: int, farthest: bool, request: Request
) -> tuple[Tensor, Tensor]:
    """The k best cosines, and whose, of `rows` (N, OUTER, INNER) among themselves or `others` (M, OUTER, INNER)."""
    sets = [prepare(each, center=request.center) for each in (rows, others) if each is not None]
    largest = max(each.rows.numel() * each.dtype.itemsize for each in sets)
    if request.max_bytes is None and largest <= UNIT_BYTES:
        sets = [normalized(each) for each in sets]
    left, right = sets[0], sets[-1]
    neighbors, device = right.rows.shape[0], "cpu" if rows.device.type == "cpu" else "cuda"
    whole_rows = device == "cuda" or k * WHOLE_ROWS_FROM > neighbors
    preferred = (max(1, STRIP_ELEMENTS[device] // neighbors), neighbors) if whole_rows else BLOCK
    size, max_bytes = PAIR_COPIES * left.dtype.itemsize, request.max_bytes
    sides = block_sides(left, right, preferred, pair_bytes=size, max_bytes=max_bytes, whole_rows=whole_rows)
    triangle = others is None and not whole_rows
    with torch.inference_mode(False):  # threads that are not in that mode write, too
        best = TopK(rows.shape[0], k, left.inverse_norm, WAITING if request.max_bytes is None else 0)

    def start() -> Callable[[tuple[int, ...]], None]:
        own = [replace(each, rooms={}) for each in sets]  # memory of this thread
        fill = torch.inf if farthest else -torch.inf
        block_at = blocks_of(own[0], own[-1], sides, fill=fill, once=False, group=GROUP)

        def look_into(place: tuple[int, ...]) -> None:
            row, column, *shape = place
            scores = block_at(row, column, shape)
            if farthest:
                scores.neg_()
            some = scores[: min(shape[0], rows.shape[0] - row)]
            if whole_rows:
                best.take(row, some)
                return
            looks = [(row, some, column)]
            # Columns that are rows of this block have met it already.
            first, end = len(some) if row == column else 0, min(shape[1], neighbors - column)
            if triangle and first < end:
                looks.append((column + first, scores.T[first:end], row))
            best.offer(*looks)

        return look_into

    apart = [(*place, *sides) for place in block_places(left, right, sides, triangle=False)]
    places = _triangle(neighbors, sides) if triangle else apart
    threads = torch.get_num_threads()
    alone = device == "cuda" or request.max_bytes is not None or rows[0].numel() > SHARED_SAMPLES
    if alone or len(places) < threads * SHARED_BLOCKS:
        threads = 1  # one block after the other, by as many threads as torch has
    with exact_float32():
        run_tasks(places, start, threads=threads, progress=request.progress)
    best.merge()
    return cosines_of(best.values, best.indices, farthest)


def _triangle(neurons: int, sides: tuple[int, int]) -> list[tuple[int, ...]]:
    """First row and column, height and width of blocks on and above the diagonal: wide ones on it, high ones beside.

    Most neurons meet their first others as columns. The more these are at once, the fewer scores get into a list to be
    thrown out again.
    """
    low, high = sides
    places: list[tuple[int, ...]] = []
    for row in range(0, neurons, high):
        end = min(row + high, neurons)
        places += [(top, top, min(low, end - top), end - top) for top in range(row, end, low)]
        places += [(row, column, high, low) for column in range(end, neurons, low)]
    return places


class TopK:
    """The k best scores of every row so far, best first, equal ones by place; -inf and -1 where there are fewer.

    Several threads may offer scores, in any order: what a row ends with depends on the scores alone. Up to `patience`
    better ones wait for others, at the end for `merge`.
    """

    def __init__(self, rows: int, k: int, like: Tensor, patience: int = 0) -> None:
        self.k, self.patience, self.lock = k, patience, Lock()
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.values = like.new_full((rows, k), -torch.inf)
        self.indices = torch.full((rows, k), -1, dtype=torch.int64, device=like.device)

    def take(self, first_row: int, scores: Tensor) -> None:
        """Set rows from `first_row` on to the best of all their scores."""
        which = slice(first_row, first_row + scores.shape[0])
        self.values[which], self.indices[which] = stable_topk(scores, self.k)

    def offer(self, *looks: tuple[int, Tensor, int]) -> None:
        """Let rows take what is better among scores.

        Each look is a first row, scores (rows, a whole number of groups of columns) and their first column. No row is
        offered a column twice.
        """
        # Passes over scores before all else, for they drive everything else out of the cache.
        maxima = [_maxima(scores) for _, scores, _ in looks]
        for look, grouped in zip(looks, maxima, strict=True):
            better = self._better(look, *grouped)
            with self.lock:
                self.waiting.append(better)
                if sum(len(keys) for keys, _ in self.waiting) > self.patience:
                    self.merge()

    def _better(self, look: tuple[int, Tensor, int], maxima: Tensor, axis: int, size: int) -> tuple[Tensor, Tensor]:
        """Keys, row · PLACES + column, and values of the scores that are better than the k-th best of their row."""
        first_row, scores, first_column = look
        which = slice(first_row, first_row + scores.shape[0])
        with self.lock:
            threshold = self.values[which, -1].clone()
            last = self.indices[which, -1].clone()
        if bool((ahead := last > first_column).any()):
            # An equal score is better where it lies further left than the k-th best.
            threshold = torch.where(ahead, _next_below(threshold), threshold)
        wanted = maxima > threshold.unsqueeze(axis)
        if maxima.shape[axis] > self.k and 4 * int(wanted.count_nonzero()) > wanted.numel():
            # k scores of a row reach the k-th best of its maxima, so what is below it is out.
            kth = maxima.movedim(axis, 1).topk(self.k, dim=1).values[:, -1]
            threshold = torch.maximum(threshold, _next_below(kth))
            wanted = maxima > threshold.unsqueeze(axis)
        # As they lie: across memory nonzero takes two and a half times as long.
        places = wanted.nonzero(as_tuple=True)
        row, group = places if axis else places[::-1]
        offered = scores.unflatten(1, (-1, size))[row, group]
        better = offered > threshold.index_select(0, row).unsqueeze(1)
        if len(row) > 2 * self.k * len(threshold) or (
            8 * better.numel() > scores.numel() and 16 * int(better.count_nonzero()) > scores.numel()
        ):
            self._merge_all(which, first_column, scores)
            return row.new_empty(0), offered.new_empty(0)
        hit, lane = better.nonzero(as_tuple=True)
        keys = row.mul_(PLACES).add_(group, alpha=size).index_select(0, hit).add_(lane)
        return keys.add_(first_row * PLACES + first_column), offered[hit, lane]

    def merge(self) -> None:
        """Merge the scores that wait."""
        if not self.waiting:
            return
        keys, value = map(torch.cat, zip(*self.waiting, strict=True))
        self.waiting.clear()
        keys, order = keys.sort(stable=True)  # twice as fast here, where most are in order
        value = value.index_select(0, order)
        while len(keys):
            rows, line, counts = torch.unique_consecutive(keys >> PLACE_BITS, return_inverse=True, return_counts=True)
            # The c-th new score of a row goes behind its k old ones, in the last column where it has to wait.
            width = self.k + min(int(counts.max()), self.k + AT_ONCE)
            first = self.k - counts.cumsum(0).sub_(counts)
            place = torch.arange(len(keys), device=keys.device).add_(first.index_select(0, line))
            late = place >= width
            place.clamp_(max=width).add_(line, alpha=width + 1)
            values = self.values.new_full((len(rows), width + 1), -torch.inf)
            indices = self.indices.new_full((len(rows), width + 1), -1)
            values.view(-1).scatter_(0, place, value)
            indices.view(-1).scatter_(0, place, keys & (PLACES - 1))
            self._keep_best(rows, values[:, :width], indices[:, :width])
            keys, value = keys[late], value[late]

    def _merge_all(self, which: slice, first_column: int, scores: Tensor) -> None:
        values, places = stable_topk(scores.contiguous(), min(self.k, scores.shape[1]))
        rows = torch.arange(which.start, which.stop, device=scores.device)
        values, indices = pad(values, (self.k, 0)), pad(places.add_(first_column), (self.k, 0))
        with self.lock:
            self._keep_best(rows, values, indices)

    def _keep_best(self, rows: Tensor, values: Tensor, indices: Tensor) -> None:
        """Merge new scores, equal ones by place, that lie behind room for the k old ones."""
        values[:, : self.k] = self.values.index_select(0, rows)
        indices[:, : self.k] = self.indices.index_select(0, rows)
        if bool((indices[:, : self.k] > indices[:, self.k : self.k + 1]).any()):  # another thread was ahead
            indices, order = indices.sort(dim=1)
            values = values.gather(1, order)
        best, order = values.sort(dim=1, descending=True, stable=True)
        self.values.index_copy_(0, rows, best[:, : self.k])
        self.indices.index_copy_(0, rows, indices.gather(1, order[:, : self.k]))


def _maxima(scores: Tensor) -> tuple[Tensor, int, int]:
    """Maxima of groups of columns, read in the order of memory, the dimension that counts groups, and their size."""
    axis, size = (0, COLUMN_GROUP) if scores.stride(0) < scores.stride(1) else (1, GROUP)
    lying = scores if axis else scores.T
    return lying.unflatten(axis, (-1, size)).amax(axis + 1), axis, size


def cosines_of(scores: Tensor, places: Tensor, farthest: bool) -> tuple[Tensor, Tensor]:
    """Cosines and places of the best scores; NaN and -1 where a row has none."""
    missing = scores == -torch.inf
    if farthest:
        scores.neg_()
    return scores.masked_fill_(missing, torch.nan), places.masked_fill_(missing, -1)


def _next_below(values: Tensor) -> Tensor:
    return values.nextafter(values.new_full((), -torch.inf))
