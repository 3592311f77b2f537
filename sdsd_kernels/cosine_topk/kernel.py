"""The k nearest neurons in Triton: tiles of cosines that never leave the chip, and a list for every row that does.

    c[i, j] = (a_i · b_j) · (r_i r_j)        as ../pairwise/prepare_kernel.py defines a and r; negated for the farthest

Shapes: operands of N neurons and of M others, which are the same where neurons are compared with themselves; inverse
norms (N,) and (M,). The lists values and indices are (SPLITS, N, LANES), float32 and int32.

`topk_kernel`: one program owns ROWS neurons and one of SPLITS ranges of column tiles, which it walks from left to
right. Among equals the lower column comes first and a later one never replaces it, so equal cosines come out by index.
README.md says more.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._device import DeviceRecord
from .._launch import Launch, device_of
from ..pairwise.config import Request
from ..pairwise.launch import Pairing, planned, shares
from ..pairwise.tile_kernel import cosines, inverse_norms, split_columns, tile_products
from . import config
from .cpu import cosines_of

STRIP = tl.constexpr(128)
"""Columns that are offered together: what a tile of 256 takes beside its products spills."""


# fmt: off
@triton.jit
def _offered(products, column_start, best, best_column, of, SAME: tl.constexpr, FARTHEST: tl.constexpr):
    """The lists of rows after a tile of products, whose first column is `column_start`.

    `of`: rows, their inverse norms, and the pointer to those of the columns, of which there are so many.
    """
    row, row_inverse, column_inverse_ptr, others = of
    COLUMNS: tl.constexpr = products.shape[1]
    if COLUMNS > STRIP:
        left, right = split_columns(products)
        best, best_column = _offered(left, column_start, best, best_column, of, SAME, FARTHEST)
        best, best_column = _offered(right, column_start + COLUMNS // 2, best, best_column, of, SAME, FARTHEST)
    else:
        column = column_start + tl.arange(0, COLUMNS)
        column_inverse = inverse_norms(column_inverse_ptr, column, others)
        cosine = cosines(products, row_inverse, column_inverse)
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
    return best, best_column


@triton.jit(do_not_specialize=["first_row_tile", "k", "tiles_per_split"])
def topk_kernel(
    rows, columns,  # descriptors, or pointers; columns None: as rows
    row_inverse_ptr, column_inverse_ptr, values_ptr, indices_ptr, first_row_tile, k, tiles_per_split,
    neurons, others, samples, pitch, column_pitch,
    SAME: tl.constexpr, FARTHEST: tl.constexpr, LANES: tl.constexpr, HOW: tl.constexpr,
):
    ROWS: tl.constexpr = HOW.rows
    COLUMNS: tl.constexpr = HOW.columns
    if columns is None:
        columns = rows
    pair = (rows, columns, neurons, others, samples, pitch, column_pitch)
    start = (first_row_tile + tl.program_id(0)) * ROWS
    row = start + tl.arange(0, ROWS)
    split = tl.program_id(1)
    row_inverse = inverse_norms(row_inverse_ptr, row, neurons)

    # Lanes from k on hold infinity, so the worst entry is always the k-th. Empty lanes have columns of their own, all
    # negative, so that one of them at a time is replaced.
    lane = tl.arange(0, LANES)
    best = tl.where(lane < k, float("-inf"), float("inf"))[None, :] + tl.zeros((ROWS, LANES), tl.float32)
    best_column = (-1 - lane)[None, :] + tl.zeros((ROWS, LANES), tl.int32)

    first_tile = split * tiles_per_split
    for tile in range(first_tile, tl.minimum(first_tile + tiles_per_split, tl.cdiv(others, COLUMNS))):
        products = tile_products(pair, start, tile * COLUMNS, 0, samples, HOW)
        of = (row, row_inverse, column_inverse_ptr, others)
        best, best_column = _offered(products, tile * COLUMNS, best, best_column, of, SAME, FARTHEST)

    place = (split.to(tl.int64) * neurons + row) * LANES
    tl.store(values_ptr + place[:, None] + lane[None, :], best, mask=(row < neurons)[:, None])
    tl.store(indices_ptr + place[:, None] + lane[None, :], best_column, mask=(row < neurons)[:, None])
# fmt: on


def _planned(
    rows: Tensor, others: Tensor | None, record: DeviceRecord, lanes: int, farthest: bool, **options: Any
) -> tuple[Pairing, Launch, int]:
    """What to do with neurons that lie alike, and the fastest number of splits."""
    tile_of = partial(config.topk_tile, record.family, lanes)
    pairing = Pairing(rows, others, record, tile_of, **options)
    launch = pairing.launch(topk_kernel, SAME=others is None, FARTHEST=farthest, LANES=lanes)
    return pairing, launch, config.splits(*pairing.tiles, record.multiprocessors)


def launch_cosine_topk(
    rows: Tensor, others: Tensor | None, k: int, farthest: bool, request: Request
) -> tuple[Tensor, Tensor]:
    """The k best cosines, and whose, of `rows` (N, OUTER, INNER) among themselves or `others` (M, OUTER, INNER)."""
    lanes, max_bytes = config.lanes(k), request.max_bytes
    pairing, launch, splits = planned(
        _planned, rows, others, lanes=lanes, farthest=farthest, precision=request.precision, center=request.center
    )
    if max_bytes is not None:
        # The most whose lists fit beside the operands; op.py has seen that those of one do.
        splits = max(1, min(splits, (max_bytes - pairing.scratch) // config.list_bytes(len(rows), lanes)))
    with device_of(rows):
        operands = pairing.operands(rows, others)
        values = torch.empty((splits, len(rows), lanes), dtype=torch.float32, device=rows.device)
        indices = torch.empty((splits, len(rows), lanes), dtype=torch.int32, device=rows.device)
        for first, end in shares(pairing.tiles[0], request.progress, rows.device):
            sizes = first, k, -(-pairing.tiles[1] // splits)
            launch(*operands, values, indices, *sizes, grid=(end - first, splits, 1))
        return _merged(values, indices, k, farthest)


def _merged(values: Tensor, indices: Tensor, k: int, farthest: bool) -> tuple[Tensor, Tensor]:
    """One list of k from each row's lists (SPLITS, N, LANES), best first, equals by index; NaN and -1 where empty."""
    rows = values.shape[1]
    best = values.new_empty((rows, k))
    places = values.new_empty((rows, k), dtype=torch.int64)
    for first in range(0, rows, config.MERGED_ROWS):
        which = slice(first, first + config.MERGED_ROWS)
        column, order = indices[:, which, :k].transpose(0, 1).flatten(1).sort(dim=1)
        value = values[:, which, :k].transpose(0, 1).flatten(1).gather(1, order)
        value, order = value.sort(dim=1, descending=True, stable=True)
        best[which] = value[:, :k]
        places[which] = column.gather(1, order[:, :k])
    return cosines_of(best, places, farthest)
