"""Passes over the upper triangle of cosines in Triton, each keeping little of it.

    c[i, j] = (a_i · a_j) · (r_i r_j),  i < j        as ../pairwise/prepare_kernel.py defines a and r

Only pairs of two neurons with a direction (r > 0) are looked at.

- `totals_kernel`: one program owns one tile on or above the diagonal and adds integers: its counts to a histogram, or
  its sums over columns and over rows to those of the neurons.
- `past_threshold_kernel`: one program owns BLOCK rows and a chunk of CHUNK tile columns, walked from left to right. It
  runs twice: first it counts, counts (N, CHUNKS); then it writes every pair to its place. README.md says more.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._device import DeviceRecord
from .._launch import Launch, device_of
from ..pairwise.config import Request
from ..pairwise.kernel import banded_place
from ..pairwise.launch import Pairing, planned, shares
from ..pairwise.tile_kernel import cosines, inverse_norms, tile_place, tile_products
from . import config

UNIT = 2.0**-38
"""What sums of rows are counted in: less than float32 resolves of all but the smallest, and 16 million neurons fit."""
_A_UNIT = tl.constexpr(1 / UNIT)


# fmt: off
@triton.jit
def _cosine_tile(rows, inverse_ptr, row_start, column_start, neurons, samples, pitch, HOW: tl.constexpr):
    """Cosines of a tile, and where they are of pairs: the row's neuron first, and both with a direction."""
    pair = (rows, rows, neurons, neurons, samples, pitch, pitch)
    products = tile_products(pair, row_start, column_start, 0, samples, HOW)
    row = row_start + tl.arange(0, HOW.rows)
    column = column_start + tl.arange(0, HOW.columns)
    row_inverse = inverse_norms(inverse_ptr, row, neurons)
    column_inverse = inverse_norms(inverse_ptr, column, neurons)
    # NaN is not > 0.
    is_pair = (row[:, None] < column[None, :]) & (row_inverse > 0)[:, None] & (column_inverse > 0)[None, :]
    return cosines(products, row_inverse, column_inverse), is_pair


@triton.jit
def _add_units(totals_ptr, start, neurons, sums):
    neuron = start + tl.arange(0, sums.shape[0])
    tl.atomic_add(totals_ptr + neuron, (sums * _A_UNIT).to(tl.int64), mask=neuron < neurons)


@triton.jit(do_not_specialize=["first"])
def totals_kernel(
    rows, inverse_ptr, totals_ptr, first: tl.int64, neurons, samples, pitch, bins,  # totals: (bins,) or (N,), int64
    KIND: tl.constexpr, BINS: tl.constexpr, GROUP: tl.constexpr, HOW: tl.constexpr,
):
    row, column = tile_place(first + tl.program_id(0), neurons, GROUP, HOW.rows, HOW.columns)
    row = row.to(tl.int32)  # of more than 2³¹ tiles
    column = column.to(tl.int32)
    cosine, is_pair = _cosine_tile(rows, inverse_ptr, row, column, neurons, samples, pitch, HOW)
    if KIND == "histogram":
        position = (cosine + 1.0) * (bins * 0.5)
        # One tensor changes its layout, not two: a mask of its own costs the registers of another tile.
        index = tl.ravel(tl.where(is_pair, tl.minimum(position.to(tl.int32), bins - 1), -1))
        counted = tl.histogram(index, BINS, mask=index >= 0)
        bin_index = tl.arange(0, BINS)
        tl.atomic_add(totals_ptr + bin_index, counted.to(tl.int64), mask=(bin_index < bins) & (counted > 0))
    else:
        if KIND == "absolute":
            cosine = tl.abs(cosine)
        elif KIND == "distance":
            cosine = tl.sqrt_rn(2.0 - 2.0 * cosine)
        term = tl.where(is_pair, cosine, 0.0)
        _add_units(totals_ptr, row, neurons, tl.sum(term, axis=1))
        _add_units(totals_ptr, column, neurons, tl.sum(term, axis=0))


@triton.jit(do_not_specialize=["first"])
def past_threshold_kernel(
    rows, inverse_ptr,
    counts_ptr, offsets_ptr, second_ptr, cosine_ptr, strayed_ptr,  # those of the other pass are None
    threshold, first, neurons, samples, pitch,
    FILL: tl.constexpr, ABOVE: tl.constexpr, CHUNK: tl.constexpr, BAND: tl.constexpr, HOW: tl.constexpr,
):
    ROWS: tl.constexpr = HOW.rows
    tiles = tl.cdiv(neurons, ROWS)
    chunks = tl.cdiv(tiles, CHUNK)
    # Programs side by side share a chunk of columns, not of rows: it is the larger of the two.
    tile_row, chunk = banded_place(first + tl.program_id(0), tiles, chunks, BAND)
    row = tile_row * ROWS + tl.arange(0, ROWS)
    cell = row.to(tl.int64) * chunks + chunk
    place = tl.zeros((ROWS,), tl.int32)
    if FILL:
        # Places relative to the first row's fit int32: a program's rows hold less than ROWS · N pairs.
        start = tl.load(offsets_ptr + tile_row.to(tl.int64) * ROWS * chunks + chunk)
        place = (tl.load(offsets_ptr + cell, mask=row < neurons, other=start) - start).to(tl.int32)
        end = (tl.load(offsets_ptr + cell + 1, mask=row < neurons, other=start) - start).to(tl.int32)
        if tl.max(end - place, axis=0) == 0:
            return
    for tile_column in range(tl.maximum(chunk * CHUNK, tile_row), tl.minimum((chunk + 1) * CHUNK, tiles)):
        column_start = tile_column * ROWS
        cosine, is_pair = _cosine_tile(rows, inverse_ptr, tile_row * ROWS, column_start, neurons, samples, pitch, HOW)
        past = cosine >= threshold if ABOVE else cosine <= threshold
        past = (past & is_pair).to(tl.int32)
        if FILL:
            column = column_start + tl.arange(0, ROWS)
            to = place[:, None] + tl.cumsum(past, axis=1) - past
            # Never beyond the row's own places, whatever the second pass finds.
            keep = (past > 0) & (to < end[:, None])
            tl.store(second_ptr + start + to, tl.broadcast_to(column[None, :], to.shape), mask=keep)
            tl.store(cosine_ptr + start + to, cosine, mask=keep)
        place += tl.sum(past, axis=1)
    if FILL:
        if tl.max((place != end).to(tl.int32), axis=0) > 0:
            tl.store(strayed_ptr, 1)
    else:
        tl.store(counts_ptr + cell, place, mask=row < neurons)
# fmt: on


def _totals(
    rows: Tensor, _: None, record: DeviceRecord, center: bool, kind: str, bins: int
) -> tuple[Pairing, Launch, int]:
    tile_of = partial(config.tile, record.family, kind)
    pairing = Pairing(rows, None, record, tile_of, center=center)
    places = triton.next_power_of_2(max(bins, config.LEAST_BINS))
    tiles = pairing.tiles[0]
    return pairing, pairing.launch(totals_kernel, KIND=kind, bins=bins, BINS=places), tiles * (tiles + 1) // 2


def launch_cosine_totals(rows: Tensor, kind: str, bins: int, request: Request) -> tuple[Tensor, Tensor]:
    """Counts (BINS,) int64 of the cosines of `rows` (N, OUTER, INNER), for a "histogram", or row sums (N,) float64 of
    what `kind` makes of them; and inverse norms (N,)."""
    pairing, launch, work = planned(_totals, rows, None, center=request.center, kind=kind, bins=bins)
    with device_of(rows):
        operands, _, inverse, _ = pairing.operands(rows, None)
        totals = torch.zeros(bins or len(rows), dtype=torch.int64, device=rows.device)
        for first, end in shares(work, request.progress, rows.device):
            launch(operands, inverse, totals, first, grid=(end - first, 1, 1))
    return totals if kind == "histogram" else totals.double() * UNIT, inverse


def _past_threshold(
    rows: Tensor, _: None, record: DeviceRecord, center: bool, above: bool
) -> tuple[Pairing, list[Launch], int]:
    """Launches that count and fill, and into how many chunks the columns are cut."""
    tile_of = partial(config.tile, record.family, "pairs")
    pairing = Pairing(rows, None, record, tile_of, center=center)
    chunk = config.chunk(pairing.tiles[0])
    own = {"ABOVE": above, "CHUNK": chunk, "BAND": config.BAND}
    launches = [pairing.launch(past_threshold_kernel, FILL=fill, **own) for fill in (False, True)]
    return pairing, launches, -(-pairing.tiles[0] // chunk)


def launch_cosine_pairs(rows: Tensor, threshold: float, above: bool, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of `rows` (N, OUTER, INNER) past a threshold: first, second (int64) and cosine (float32), in order.

    TooManyPairsError, before anything is allocated for them, where they take more than max_bytes.
    """
    pairing, (count_pairs, fill), chunks = planned(_past_threshold, rows, None, center=request.center, above=above)
    neurons, device, work = len(rows), rows.device, pairing.tiles[0] * chunks
    tell = request.progress
    with device_of(rows):
        operands, _, inverse, _ = pairing.operands(rows, None)
        counts = torch.empty((neurons, chunks), dtype=torch.int32, device=device)
        strayed = torch.zeros((), dtype=torch.int32, device=device)
        for first, end in shares(work, tell and (lambda done, total: tell(done, 2 * total)), device):
            places = counts, None, None, None, None
            count_pairs(operands, inverse, *places, threshold, first, grid=(end - first, 1, 1))
        offsets = torch.zeros(neurons * chunks + 1, dtype=torch.int64, device=device)
        torch.cumsum(counts.flatten(), 0, dtype=torch.int64, out=offsets[1:])
        # Tensors without data are for aot.py.
        count = 0 if device.type == "meta" else int(offsets[-1])
        scratch = pairing.left.scratch + config.pairs_bytes(neurons, pairing.tile.rows)
        config.check_room(count, 4, scratch, request.max_bytes)
        second = torch.empty(count, dtype=torch.int32, device=device)
        cosine = torch.empty(count, dtype=torch.float32, device=device)
        for first, end in shares(work, tell and (lambda done, total: tell(total + done, 2 * total)), device):
            places = None, offsets, second, cosine, strayed
            fill(operands, inverse, *places, threshold, first, grid=(end - first, 1, 1))
        assert device.type == "meta" or not strayed.item(), "the second pass found other pairs than the first counted"
        in_row = counts.sum(1, dtype=torch.int64)
        first = torch.arange(neurons, device=device).repeat_interleave(in_row, output_size=count)
    return first, second.long(), cosine
