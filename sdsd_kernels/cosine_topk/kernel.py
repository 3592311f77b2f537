"""The k nearest neurons in Triton: tiles of cosines that never leave the chip, and a list for every row that does.

    c[i, j] = (a_i · b_j) · (r_i r_j)        as ../cosine_matrix/kernel.py defines a and r; negated for the farthest

Shapes: rows (N, OUTER, INNER) and others (M, OUTER, INNER) with any three strides each, read where they lie; `others`
is `rows` where neurons are compared with themselves. The vectors mean, scale, inverse_norm come from
`_row_norms_kernel`. The lists values and indices are (SPLITS, N, K), float32 and int32.

`_cosine_topk_kernel`: one program owns BLOCK_ROWS neurons and one of SPLITS ranges of column tiles, which it walks from
left to right. A tile is left at once where no cosine beats the worst entry of its row's list. Else the best cosine of
every row is taken out of the tile and replaces the worst entry, until none is better. Among equals the lower column
comes first and a later one never replaces it, so equal cosines come out by index.

The lists of several splits are merged by two stable sorts in torch: of columns, then of cosines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._backend import interpreting
from .._device import device_record
from ..cosine_matrix.config import dot_precision, norms_config
from ..cosine_matrix.norms_kernel import _row_norms_kernel
from ..cosine_matrix.tile_kernel import _dot, _sample_offsets, _shift_and_scale
from . import config

PROGRESS_STEPS = 16
"""Launches of a call that reports progress."""
MERGED_ROWS = 2**15
"""Rows whose lists are merged together, which bounds what the sorts take."""


@triton.jit
def _cosine_topk_kernel(
    rows_ptr,
    row_mean_ptr,
    row_scale_ptr,
    row_inverse_ptr,
    others_ptr,
    other_mean_ptr,
    other_scale_ptr,
    other_inverse_ptr,
    values_ptr,
    indices_ptr,
    k,
    neurons,
    others,
    samples,
    inner,
    row_stride_neuron,
    row_stride_outer,
    row_stride_inner,
    other_stride_neuron,
    other_stride_outer,
    other_stride_inner,
    tiles_per_split,
    first_row_tile,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    SCALE: tl.constexpr,
    NESTED: tl.constexpr,
    SAME: tl.constexpr,
    FARTHEST: tl.constexpr,
    INTERPRET: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    row = (first_row_tile + tl.program_id(0)) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    split = tl.program_id(1)
    row_mask = row < neurons
    row_offset = row.to(tl.int64) * row_stride_neuron
    row_inverse = tl.load(row_inverse_ptr + row, mask=row_mask, other=0.0)
    row_scale = tl.load(row_scale_ptr + row, mask=row_mask, other=1.0)
    row_mean = row_scale
    if CENTER:
        row_mean = tl.load(row_mean_ptr + row, mask=row_mask, other=0.0)
    lanes = tl.arange(0, BLOCK_SAMPLES)

    # Lanes from k on hold infinity, so the worst entry is always the k-th. Empty lanes have columns of their own, all
    # negative, so that one of them at a time is replaced.
    lane = tl.arange(0, LANES)
    best = tl.where(lane < k, float("-inf"), float("inf"))[None, :] + tl.zeros((BLOCK_ROWS, LANES), tl.float32)
    best_column = (-1 - lane)[None, :] + tl.zeros((BLOCK_ROWS, LANES), tl.int32)

    first_tile = split * tiles_per_split
    last_tile = tl.minimum(first_tile + tiles_per_split, tl.cdiv(others, BLOCK_COLUMNS))
    for tile in range(first_tile, last_tile):
        column = tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        column_mask = column < others
        column_offset = column.to(tl.int64) * other_stride_neuron
        column_inverse = tl.load(other_inverse_ptr + column, mask=column_mask, other=0.0)
        column_scale = tl.load(other_scale_ptr + column, mask=column_mask, other=1.0)
        column_mean = column_scale
        if CENTER:
            column_mean = tl.load(other_mean_ptr + column, mask=column_mask, other=0.0)

        row_pointers = rows_ptr + (row_offset[:, None] + (lanes.to(tl.int64) * row_stride_inner)[None, :])
        column_pointers = others_ptr + (column_offset[:, None] + (lanes.to(tl.int64) * other_stride_inner)[None, :])
        accumulator = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        for start in range(0, samples, BLOCK_SAMPLES):
            sample = start + lanes
            if NESTED:
                row_place = _sample_offsets(sample, inner, row_stride_outer, row_stride_inner, True)
                row_pointers = rows_ptr + (row_offset[:, None] + row_place[None, :])
                column_place = _sample_offsets(sample, inner, other_stride_outer, other_stride_inner, True)
                column_pointers = others_ptr + (column_offset[:, None] + column_place[None, :])
            inside = (sample < samples)[None, :]
            a = tl.load(row_pointers, mask=row_mask[:, None] & inside, other=0.0)
            b = tl.load(column_pointers, mask=column_mask[:, None] & inside, other=0.0)
            if SCALE:
                stored_as = a.dtype
                a = _shift_and_scale(a, row_mean, row_scale, sample, samples, CENTER)
                b = _shift_and_scale(b, column_mean, column_scale, sample, samples, CENTER)
                if PRECISION == "native":
                    # A power of two rounds nothing, so scaled halves are halves again.
                    a = a.to(stored_as)
                    b = b.to(stored_as)
            accumulator = _dot(accumulator, a, b, PRECISION, INTERPRET)
            if not NESTED:
                row_pointers += tl.cast(row_stride_inner, tl.int64) * BLOCK_SAMPLES
                column_pointers += tl.cast(other_stride_inner, tl.int64) * BLOCK_SAMPLES

        if SCALE:
            factor = row_inverse[:, None] * column_inverse[None, :]
        else:
            factor = (row_inverse * row_scale)[:, None] * (column_inverse * column_scale)[None, :]
        cosine = tl.minimum(tl.maximum(accumulator * factor, -1.0), 1.0)
        if FARTHEST:
            cosine = -cosine
        # False for NaN too: what has no direction, self and what overruns is nobody's neighbour.
        neighbor = (row_inverse > 0)[:, None] & (column_inverse > 0)[None, :]
        if SAME:
            neighbor = neighbor & (row[:, None] != column[None, :])
        cosine = tl.where(neighbor, cosine, float("-inf"))

        top = tl.max(cosine, axis=1)
        worst = tl.min(best, axis=1)
        while tl.max((top > worst).to(tl.int32), axis=0) > 0:
            top_column = tl.min(tl.where(cosine == top[:, None], column[None, :], 2147483647), axis=1)
            is_worst = best == worst[:, None]
            worst_column = tl.max(tl.where(is_worst, best_column, -2147483648), axis=1)
            replaced = (top > worst)[:, None] & is_worst & (best_column == worst_column[:, None])
            best = tl.where(replaced, top[:, None], best)
            best_column = tl.where(replaced, top_column[:, None], best_column)
            cosine = tl.where(column[None, :] == top_column[:, None], float("-inf"), cosine)
            top = tl.max(cosine, axis=1)
            worst = tl.min(best, axis=1)

    place = (split.to(tl.int64) * neurons + row) * LANES
    tl.store(values_ptr + place[:, None] + lane[None, :], best, mask=row_mask[:, None])
    tl.store(indices_ptr + place[:, None] + lane[None, :], best_column, mask=row_mask[:, None])


class _Norms(NamedTuple):
    """What `_row_norms_kernel` finds out about neurons; shape of each: (N,)."""

    mean: Tensor
    scale: Tensor
    inverse_norm: Tensor
    out_of_range: Tensor


def _norms(rows: Tensor, center: bool) -> _Norms:
    neurons, outer, inner = rows.shape
    mean, scale, inverse_norm = rows.new_empty((3, neurons), dtype=torch.float32)
    found = _Norms(mean, scale, inverse_norm, rows.new_empty(neurons, dtype=torch.int8))
    choice = norms_config(rows)
    _row_norms_kernel[(triton.cdiv(neurons, choice.block_neurons),)](
        rows,
        *found,
        neurons,
        outer * inner,
        inner,
        *rows.stride(),
        CENTER=center,
        ZERO_AS_NAN=False,
        NESTED=outer > 1,
        BLOCK_NEURONS=choice.block_neurons,
        BLOCK_SAMPLES=choice.block_samples,
        num_warps=choice.num_warps,
    )
    return found


def launch_cosine_topk(
    rows: Tensor,
    others: Tensor | None,
    k: int,
    *,
    farthest: bool,
    precision: str,
    center: bool,
    max_bytes: int | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Tensor]:
    """The k best cosines, and whose, of `rows` (N, OUTER, INNER) among themselves or `others` (M, OUTER, INNER)."""
    same = others is None
    left = _norms(rows, center)
    right = left if others is None else _norms(others, center)
    others = rows if others is None else others
    scale_operands = center or _leave_the_range(left, right, rows.dtype)
    record = device_record(rows.device)
    dot = dot_precision(precision, rows.dtype, center=center, arch=record.family)
    choice = config.topk_config(record.family, dot)
    lanes = config.lanes(k)
    row_tiles = triton.cdiv(rows.shape[0], choice.block_rows)
    column_tiles = triton.cdiv(others.shape[0], choice.block_columns)
    splits = config.splits(row_tiles, column_tiles, record.multiprocessors)
    splits = _splits_within(max_bytes, splits, rows.shape[0], others.shape[0], lanes)
    values = rows.new_empty((splits, rows.shape[0], lanes), dtype=torch.float32)
    indices = rows.new_empty((splits, rows.shape[0], lanes), dtype=torch.int32)

    band = row_tiles if progress is None else triton.cdiv(row_tiles, PROGRESS_STEPS)
    for first in range(0, row_tiles, band):
        last = min(first + band, row_tiles)
        _cosine_topk_kernel[(last - first, splits)](
            rows,
            left.mean,
            left.scale,
            left.inverse_norm,
            others,
            right.mean,
            right.scale,
            right.inverse_norm,
            values,
            indices,
            k,
            rows.shape[0],
            others.shape[0],
            rows.shape[1] * rows.shape[2],
            rows.shape[2],
            *rows.stride(),
            *others.stride(),
            triton.cdiv(column_tiles, splits),
            first,
            PRECISION=dot,
            CENTER=center,
            SCALE=scale_operands,
            NESTED=rows.shape[1] > 1,
            SAME=same,
            FARTHEST=farthest,
            INTERPRET=interpreting(),
            LANES=lanes,
            BLOCK_ROWS=choice.block_rows,
            BLOCK_COLUMNS=choice.block_columns,
            BLOCK_SAMPLES=choice.block_samples,
            num_warps=choice.num_warps,
            num_stages=choice.num_stages,
        )
        if progress is not None:
            if rows.is_cuda:
                torch.cuda.synchronize(rows.device)
            progress(last, row_tiles)
    return _merged(values, indices, k, farthest)


def _leave_the_range(left: _Norms, right: _Norms, dtype: torch.dtype) -> bool:
    """Whether squares leave float32's range, which takes another kernel. Waits for the device; float16 has none."""
    return dtype != torch.float16 and bool(left.out_of_range.any() | right.out_of_range.any())


def _splits_within(max_bytes: int | None, splits: int, rows: int, others: int, lanes: int) -> int:
    """The most splits, at most `splits`, whose lists fit into `max_bytes`."""

    def needed(count: int) -> int:
        return 16 * (rows + others) + count * lanes * (8 * rows + 40 * min(rows, MERGED_ROWS))

    if max_bytes is None or needed(splits) <= max_bytes:
        return splits
    if needed(1) > max_bytes:
        raise ValueError(
            f"max_bytes: expected at least {needed(1):,} for this input, which the lists of {rows} neurons take, "
            f"got {max_bytes:,}. Allow more, or leave max_bytes out."
        )
    return max(count for count in range(1, splits) if needed(count) <= max_bytes)


def _merged(values: Tensor, indices: Tensor, k: int, farthest: bool) -> tuple[Tensor, Tensor]:
    """One list of k from each row's lists (SPLITS, N, LANES), best first, equals by index; NaN and -1 where empty."""
    rows = values.shape[1]
    best = values.new_empty((rows, k))
    places = values.new_empty((rows, k), dtype=torch.int64)
    for first in range(0, rows, MERGED_ROWS):
        which = slice(first, first + MERGED_ROWS)
        column, order = indices[:, which, :k].transpose(0, 1).flatten(1).sort(dim=1)
        value = values[:, which, :k].transpose(0, 1).flatten(1).gather(1, order)
        value, order = value.sort(dim=1, descending=True, stable=True)
        best[which] = value[:, :k]
        places[which] = column.gather(1, order[:, :k])
    missing = best == -torch.inf
    if farthest:
        best.neg_()
    return best.masked_fill_(missing, torch.nan), places.masked_fill_(missing, -1)
