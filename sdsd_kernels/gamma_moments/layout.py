"""How gradients lie in memory, and how one row of results is laid out. Shared by every backend."""

from __future__ import annotations

import functools
import itertools

from torch import Tensor

MAX_VIEWS = 64
"""Above this many strided pieces a tensor is copied instead: it is a slice of a slice that no layer returns."""


def row_width(n: int, per_sample: bool) -> int:
    """Columns of the result row [signal, squares, a_0…a_N−1, q_0…q_N−1, c_0…c_N//4−1]."""
    return 2 + 2 * n + n // 4 if per_sample else 2


@functools.lru_cache(maxsize=4096)
def _pieces(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]] | None:
    """Columns, their stride, and where each piece of a row starts; None where there would be more than MAX_VIEWS.

    The order of a row's elements does not matter to the moments, so dimensions are sorted by stride and joined where
    they are contiguous.
    """
    joined: list[tuple[int, int]] = []
    for size, stride in sorted(zip(shape, strides, strict=True), key=lambda pair: -pair[1]):
        if size == 1:
            continue
        if joined and joined[-1][1] == size * stride:
            joined[-1] = (joined[-1][0] * size, stride)
        else:
            joined.append((size, stride))
    columns, column_stride = joined.pop() if joined else (1, 1)
    pieces = 1
    for size, _ in joined:
        pieces *= size
    if pieces > MAX_VIEWS:
        return None
    places = itertools.product(*(range(size) for size, _ in joined))
    starts = (sum(index * stride for index, (_, stride) in zip(place, joined, strict=True)) for place in places)
    return columns, column_stride, tuple(starts)


def is_one_matrix(entry: Tensor) -> bool:
    """Whether one view of shape (N, P), without a copy, holds all of `entry` (N, *shape)."""
    pieces = _pieces(entry.shape[1:], entry.stride()[1:])
    return pieces is not None and len(pieces[2]) == 1


def as_matrices(entry: Tensor) -> list[Tensor]:
    """Views of shape (N, P_k) that together hold every element of `entry` (N, *shape) once, rows kept, without a copy.

    Per-sample gradients from vmap(grad), transposed or not, give one view.
    """
    n = entry.shape[0]
    pieces = _pieces(entry.shape[1:], entry.stride()[1:])
    if pieces is None:
        return [entry.reshape(n, -1)]
    columns, column_stride, starts = pieces
    origin = entry.storage_offset()
    return [entry.as_strided((n, columns), (entry.stride(0), column_stride), origin + start) for start in starts]
