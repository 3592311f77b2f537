"""Passes over the upper triangle of cosines in Triton, each keeping little of it.

    c[i, j] = (a_i · a_j) · (r_i r_j),  i < j        as ../pairwise/prepare_kernel.py defines a and r

Only pairs of two neurons with a direction (r > 0) are looked at.

- `histogram_kernel`: one program owns one tile on or above the diagonal and adds its counts to counts (BINS,), int64.
  Sums of integers are exact in any order, so these atomics leave nothing to chance.
- `row_sums_kernel`: one program owns one such tile. Its sums over columns go to row_partials (ROWS OF THE BAND, TILES)
  and its sums over rows to column_partials (TILE ROWS OF THE BAND, N), each into a place no other program writes.
- `past_threshold_kernel`: one program owns BLOCK rows and a chunk of CHUNK tile columns, which it walks from left to
  right. It runs twice: first it counts, counts (N, CHUNKS); then, with the offsets that a running sum over the counts
  gives, it writes every pair to its place, ordered by first and second neuron.

Launches go over bands of tile rows, which bounds scratch memory and lets the host report progress between them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._device import DeviceRecord, device_record
from .._launch import Launch, device_of, kept
from .._progress import Progress
from ..pairwise.config import Tile
from ..pairwise.launch import Pairing, Preparation, bands, key_of
from ..pairwise.tile_kernel import cosines, inverse_norms, tile_products
from . import config
from .budget import check_count


# fmt: off
@triton.jit
def _cosine_tile(rows, inverse_ptr, tile_row, tile_column, neurons, samples, pitch, HOW: tl.constexpr):
    """Cosines of a square tile, and where they are of pairs: the row's neuron first, and both with a direction."""
    BLOCK: tl.constexpr = HOW.rows
    products = tile_products(
        rows, rows, tile_row * BLOCK, tile_column * BLOCK, neurons, neurons, 0, samples, samples, pitch, pitch, HOW
    )
    row = tile_row * BLOCK + tl.arange(0, BLOCK)
    column = tile_column * BLOCK + tl.arange(0, BLOCK)
    row_inverse = inverse_norms(inverse_ptr, row, neurons)
    column_inverse = inverse_norms(inverse_ptr, column, neurons)
    # NaN is not > 0.
    is_pair = (row[:, None] < column[None, :]) & (row_inverse > 0)[:, None] & (column_inverse > 0)[None, :]
    return cosines(products, row_inverse, column_inverse), is_pair


@triton.jit
def _band_tile(program, first_row, end_row, tiles, GROUP: tl.constexpr):
    """(tile row, tile column, wanted) of a program; GROUP tile rows walk their columns together."""
    width = tiles - first_row
    group = program // (GROUP * width)
    within = program % (GROUP * width)
    row = first_row + group * GROUP + within % GROUP
    column = first_row + within // GROUP
    return row, column, (row <= column) & (row < end_row)


@triton.jit(do_not_specialize=["first_row", "end_row"])
def histogram_kernel(
    rows, inverse_ptr, counts_ptr, first_row, end_row, neurons, samples, pitch, bins,
    BINS: tl.constexpr, GROUP: tl.constexpr, HOW: tl.constexpr,
):
    tiles = tl.cdiv(neurons, HOW.rows)
    tile_row, tile_column, wanted = _band_tile(tl.program_id(0), first_row, end_row, tiles, GROUP)
    if wanted == 0:
        return
    cosine, is_pair = _cosine_tile(rows, inverse_ptr, tile_row, tile_column, neurons, samples, pitch, HOW)
    position = (cosine + 1.0) * (bins * 0.5)
    # One tensor changes its layout, not two: a mask of its own costs the registers of another tile.
    index = tl.ravel(tl.where(is_pair, tl.minimum(position.to(tl.int32), bins - 1), -1))
    counted = tl.histogram(index, BINS, mask=index >= 0)
    bin_index = tl.arange(0, BINS)
    tl.atomic_add(counts_ptr + bin_index, counted.to(tl.int64), mask=(bin_index < bins) & (counted > 0))


@triton.jit(do_not_specialize=["first_row", "end_row"])
def row_sums_kernel(
    rows, inverse_ptr, row_partials_ptr, column_partials_ptr, first_row, end_row, neurons, samples, pitch,
    KIND: tl.constexpr, GROUP: tl.constexpr, HOW: tl.constexpr,
):
    ROWS: tl.constexpr = HOW.rows
    tiles = tl.cdiv(neurons, ROWS)
    tile_row, tile_column, wanted = _band_tile(tl.program_id(0), first_row, end_row, tiles, GROUP)
    if wanted == 0:
        return
    cosine, is_pair = _cosine_tile(rows, inverse_ptr, tile_row, tile_column, neurons, samples, pitch, HOW)
    if KIND == "absolute":
        term = tl.abs(cosine)
    elif KIND == "distance":
        term = tl.sqrt_rn(2.0 - 2.0 * cosine)
    else:
        term = cosine
    term = tl.where(is_pair, term, 0.0)
    row = tl.arange(0, ROWS)
    band_row = ((tile_row - first_row) * ROWS + row).to(tl.int64)
    tl.store(
        row_partials_ptr + band_row * tiles + tile_column, tl.sum(term, axis=1), mask=tile_row * ROWS + row < neurons
    )
    column = tile_column * ROWS + row
    band_tile = (tile_row - first_row).to(tl.int64)
    tl.store(column_partials_ptr + band_tile * neurons + column, tl.sum(term, axis=0), mask=column < neurons)


@triton.jit(do_not_specialize=["first_row", "end_row"])
def past_threshold_kernel(
    rows, inverse_ptr,
    counts_ptr, offsets_ptr, second_ptr, cosine_ptr, strayed_ptr,  # those of the other pass are None
    threshold, first_row, end_row, neurons, samples, pitch,
    FILL: tl.constexpr, ABOVE: tl.constexpr, CHUNK: tl.constexpr, HOW: tl.constexpr,
):
    ROWS: tl.constexpr = HOW.rows
    tiles = tl.cdiv(neurons, ROWS)
    chunks = tl.cdiv(tiles, CHUNK)
    # Programs side by side share a chunk of columns, not of rows: it is the larger of the two.
    tile_row = first_row + tl.program_id(0) % (end_row - first_row)
    chunk = tl.program_id(0) // (end_row - first_row)
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
        cosine, is_pair = _cosine_tile(rows, inverse_ptr, tile_row, tile_column, neurons, samples, pitch, HOW)
        past = cosine >= threshold if ABOVE else cosine <= threshold
        past = (past & is_pair).to(tl.int32)
        if FILL:
            column = tile_column * ROWS + tl.arange(0, ROWS)
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


class Pass(NamedTuple):
    """Everything about a pass over neurons like these but tensors and bands."""

    pairing: Pairing
    launches: tuple[Launch, ...]
    """One; for pairs two, which count and fill."""
    tiles: int
    """On a side."""
    chunk: int
    """Tile columns that a program of the threshold pass walks."""


_plans: dict[tuple[Any, ...], Pass] = {}


def _planned(rows: Tensor, record: DeviceRecord | None, kernel: Any, center: bool, **own: Any) -> Pass:
    """A pass of `kernel`, which takes constants of its `own`; `record`: what is taken to be at hand, None what is."""
    key = key_of(rows, kernel, center, record, *own.values())
    plan = _plans.get(key)
    if plan is None:
        card = record or device_record(rows.device)

        def tile_of(neurons: Preparation) -> Tile:
            return config.tile(kernel.__name__, card.family, three=neurons.three)

        pairing = Pairing(rows, None, card, tile_of, precision="float32", center=center)
        own["CHUNK"] = chunk = config.chunk(pairing.tiles[0])
        steps = ({"FILL": False}, {"FILL": True}) if kernel is past_threshold_kernel else ({},)
        launches = tuple(pairing.launch(kernel, **own, **step) for step in steps)
        plan = kept(_plans, key, Pass(pairing, launches, pairing.tiles[0], chunk))
    return plan


def _triangle_tiles(tiles: int, end: int | None = None) -> int:
    """Tiles on and above the diagonal, of the first `end` rows of them."""
    end = tiles if end is None else end
    return end * tiles - end * (end - 1) // 2


def _in_tiles(progress: Progress | None, before: int = 0, passes: int = 1) -> Progress | None:
    """Told of rows of tiles, tells of tiles; `before`: passes done, of so many."""
    if progress is None:
        return None
    tell = progress

    def told(end: int, tiles: int) -> None:
        whole = _triangle_tiles(tiles)
        tell(before * whole + _triangle_tiles(tiles, end), passes * whole)

    return told


def _programs(first: int, end: int, tiles: int, group: int) -> int:
    """How many programs `_band_tile` spreads a band over."""
    return -(-(end - first) // group) * group * (tiles - first)


def launch_cosine_histogram(
    rows: Tensor,
    *,
    bins: int,
    center: bool,
    max_bytes: int | None,
    progress: Progress | None,
    record: DeviceRecord | None = None,
) -> tuple[Tensor, Tensor]:
    """Counts (BINS,) int64 of the cosines of `rows` (N, OUTER, INNER), and the inverse norms (N,)."""
    places = triton.next_power_of_2(max(bins, config.LEAST_BINS))
    plan = _planned(rows, record, histogram_kernel, center, bins=bins, BINS=places)
    with device_of(rows):
        operands, _, inverse, _ = plan.pairing.operands(rows, None)
        counts = torch.zeros(bins, dtype=torch.int64, device=rows.device)
        for first, end in bands(plan.tiles, config.BAND, _in_tiles(progress), rows.device):
            grid = (_programs(first, end, plan.tiles, plan.pairing.tile.group), 1, 1)
            plan.launches[0](operands, inverse, counts, first, end, grid=grid)
    return counts, inverse


def launch_cosine_row_sums(
    rows: Tensor,
    *,
    kind: str,
    center: bool,
    max_bytes: int | None,
    progress: Progress | None,
    record: DeviceRecord | None = None,
) -> tuple[Tensor, Tensor]:
    """Row sums (N,) float64 of what `kind` makes of the cosines of `rows` (N, OUTER, INNER), and inverse norms (N,)."""
    plan = _planned(rows, record, row_sums_kernel, center, KIND=kind)
    neurons, tiles, block = rows.shape[0], plan.tiles, plan.pairing.tile.rows
    most = config.BAND
    if max_bytes is not None:
        left = max_bytes - plan.pairing.left.scratch - config.VECTORS * neurons
        most = max(1, min(most, left // config.row_sums_bytes(neurons, block)))
    with device_of(rows):
        operands, _, inverse, _ = plan.pairing.operands(rows, None)
        sums = torch.zeros(neurons, dtype=torch.float64, device=rows.device)
        for first, end in bands(tiles, most, _in_tiles(progress), rows.device):
            row_partials = torch.zeros(((end - first) * block, tiles), dtype=torch.float32, device=rows.device)
            column_partials = torch.zeros((end - first, neurons), dtype=torch.float32, device=rows.device)
            grid = (_programs(first, end, tiles, plan.pairing.tile.group), 1, 1)
            plan.launches[0](operands, inverse, row_partials, column_partials, first, end, grid=grid)
            own = slice(first * block, min(end * block, neurons))
            sums[own] += row_partials[: own.stop - own.start].sum(1, dtype=torch.float64)
            sums += column_partials.sum(0, dtype=torch.float64)
    return sums, inverse


def launch_cosine_pairs(
    rows: Tensor,
    *,
    threshold: float,
    above: bool,
    center: bool,
    max_bytes: int,
    progress: Progress | None,
    record: DeviceRecord | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of `rows` (N, OUTER, INNER) past a threshold: first, second (int64) and cosine (float32), in order.

    TooManyPairsError, before anything is allocated for them, where they take more than `max_bytes`.
    """
    plan = _planned(rows, record, past_threshold_kernel, center, ABOVE=above)
    neurons, device, tiles = rows.shape[0], rows.device, plan.tiles
    chunks = -(-tiles // plan.chunk)
    with device_of(rows):
        operands, _, inverse, _ = plan.pairing.operands(rows, None)
        counts = torch.empty((neurons, chunks), dtype=torch.int32, device=device)
        strayed = torch.zeros((), dtype=torch.int32, device=device)
        for first, end in bands(tiles, config.BAND, _in_tiles(progress, 0, 2), device):
            places = counts, None, None, None, None, threshold, first, end
            plan.launches[0](operands, inverse, *places, grid=((end - first) * chunks, 1, 1))
        offsets = torch.zeros(neurons * chunks + 1, dtype=torch.int64, device=device)
        torch.cumsum(counts.flatten(), 0, dtype=torch.int64, out=offsets[1:])
        # Tensors without data are for aot.py.
        count = 0 if device.type == "meta" else int(offsets[-1])
        scratch = plan.pairing.left.scratch + config.pairs_bytes(neurons, plan.pairing.tile.rows)
        check_count(count, 4, scratch, max_bytes)
        second = torch.empty(count, dtype=torch.int32, device=device)
        cosine = torch.empty(count, dtype=torch.float32, device=device)
        for first, end in bands(tiles, config.BAND, _in_tiles(progress, 1, 2), device):
            places = None, offsets, second, cosine, strayed, threshold, first, end
            plan.launches[1](operands, inverse, *places, grid=((end - first) * chunks, 1, 1))
        assert device.type == "meta" or not strayed.item(), "the second pass found other pairs than the first counted"
        in_row = counts.sum(1, dtype=torch.int64)
        first = torch.arange(neurons, device=device).repeat_interleave(in_row, output_size=count)
    return first, second.long(), cosine
