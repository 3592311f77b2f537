"""Passes over the upper triangle of cosines in Triton, each keeping little of it.

    c[i, j] = (a_i · a_j) · (r_i r_j),  i < j        as ../cosine_matrix/kernel.py defines a and r

Shapes: rows (N, OUTER, INNER) with any three strides, read where it lies; sample k is (k // INNER, k % INNER).
The vectors mean, scale, inverse_norm (N,) are float32 and come from `_row_norms_kernel`. Only pairs of two neurons
with a direction (inverse_norm > 0) are looked at.

- `_histogram_kernel`: one program owns one tile on or above the diagonal and adds its counts to counts (BINS,), int64.
  Sums of integers are exact in any order, so these atomics leave nothing to chance.
- `_row_sums_kernel`: one program owns one such tile. Its sums over columns go to row_partials (ROWS OF THE BAND, TILES)
  and its sums over rows to column_partials (TILE ROWS OF THE BAND, N), each into a place no other program writes.
- `_past_threshold_kernel`: one program owns BLOCK_NEURONS rows and a chunk of CHUNK tile columns, which it walks from
  left to right. It runs twice: first it counts, counts (N, CHUNKS); then, with the offsets that a running sum over the
  counts gives, it writes every pair to its place, ordered by first and second neuron.

Launches go over bands of tile rows, which bounds scratch memory and lets the host report progress between them. Where
some neuron's squares leave the range of float32, all operands are scaled by powers of two on load: that rounds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

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
from .budget import check_count

Progress = Callable[[int, int], None]


@triton.jit
def _cosine_tile(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    row,
    column,
    row_inverse,
    column_inverse,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    SCALE: tl.constexpr,
    NESTED: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    """Cosines of the neurons `row` with the neurons `column`, in [−1, 1]; meaningless where one has no direction."""
    row_mask = row < neurons
    column_mask = column < neurons
    row_offset = row.to(tl.int64) * stride_neuron
    column_offset = column.to(tl.int64) * stride_neuron
    if SCALE:
        row_scale = tl.load(scale_ptr + row, mask=row_mask, other=1.0)
        column_scale = tl.load(scale_ptr + column, mask=column_mask, other=1.0)
        row_mean = row_scale
        column_mean = column_scale
    if CENTER:
        row_mean = tl.load(mean_ptr + row, mask=row_mask, other=0.0)
        column_mean = tl.load(mean_ptr + column, mask=column_mask, other=0.0)

    lanes = tl.arange(0, BLOCK_SAMPLES)
    row_pointers = rows_ptr + (row_offset[:, None] + (lanes.to(tl.int64) * stride_inner)[None, :])
    column_pointers = rows_ptr + (column_offset[:, None] + (lanes.to(tl.int64) * stride_inner)[None, :])
    step = tl.cast(stride_inner, tl.int64) * BLOCK_SAMPLES
    accumulator = tl.zeros((BLOCK_NEURONS, BLOCK_NEURONS), tl.float32)
    for start in range(0, samples, BLOCK_SAMPLES):
        sample = start + lanes
        if NESTED:
            offset = _sample_offsets(sample, inner, stride_outer, stride_inner, True)
            row_pointers = rows_ptr + (row_offset[:, None] + offset[None, :])
            column_pointers = rows_ptr + (column_offset[:, None] + offset[None, :])
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
            row_pointers += step
            column_pointers += step
    # r_i r_j first, as the cosine matrix does, so that values agree with it.
    cosine = accumulator * (row_inverse[:, None] * column_inverse[None, :])
    return tl.minimum(tl.maximum(cosine, -1.0), 1.0)


@triton.jit
def _inverse_norms(inverse_norm_ptr, scale_ptr, neuron, neurons, SCALE: tl.constexpr):
    """What turns products into cosines, for raw or for scaled operands; 0 beyond the end."""
    inverse = tl.load(inverse_norm_ptr + neuron, mask=neuron < neurons, other=0.0)
    if not SCALE:
        inverse *= tl.load(scale_ptr + neuron, mask=neuron < neurons, other=1.0)
    return inverse


@triton.jit
def _is_pair(row, column, row_inverse, column_inverse):
    """Where the row's neuron comes before the column's and both have a direction; NaN is not > 0."""
    return (row[:, None] < column[None, :]) & (row_inverse > 0)[:, None] & (column_inverse > 0)[None, :]


@triton.jit
def _band_tile(program, first_row, end_row, tiles, GROUP: tl.constexpr):
    """(tile row, tile column, wanted) of a program; GROUP tile rows walk their columns together."""
    width = tiles - first_row
    group = program // (GROUP * width)
    within = program % (GROUP * width)
    row = first_row + group * GROUP + within % GROUP
    column = first_row + within // GROUP
    return row, column, (row <= column) & (row < end_row)


@triton.jit
def _histogram_kernel(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    inverse_norm_ptr,
    counts_ptr,
    bins,
    first_row,
    end_row,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    SCALE: tl.constexpr,
    NESTED: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    GROUP: tl.constexpr,
    BINS: tl.constexpr,
):
    tiles = tl.cdiv(neurons, BLOCK_NEURONS)
    tile_row, tile_column, wanted = _band_tile(tl.program_id(0), first_row, end_row, tiles, GROUP)
    if wanted == 0:
        return
    row = tile_row * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    column = tile_column * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    row_inverse = _inverse_norms(inverse_norm_ptr, scale_ptr, row, neurons, SCALE)
    column_inverse = _inverse_norms(inverse_norm_ptr, scale_ptr, column, neurons, SCALE)
    cosine = _cosine_tile(
        rows_ptr, mean_ptr, scale_ptr, row, column, row_inverse, column_inverse, neurons, samples, inner,
        stride_neuron, stride_outer, stride_inner, PRECISION, CENTER, SCALE, NESTED, INTERPRET,
        BLOCK_NEURONS, BLOCK_SAMPLES,
    )  # fmt: skip
    is_pair = _is_pair(row, column, row_inverse, column_inverse)
    position = (cosine + 1.0) * (bins * 0.5)
    # One tensor changes its layout, not two: a mask of its own costs the registers of another tile.
    index = tl.ravel(tl.where(is_pair, tl.minimum(position.to(tl.int32), bins - 1), -1))
    counted = tl.histogram(index, BINS, mask=index >= 0)
    bin_index = tl.arange(0, BINS)
    tl.atomic_add(counts_ptr + bin_index, counted.to(tl.int64), mask=(bin_index < bins) & (counted > 0))


@triton.jit
def _row_sums_kernel(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    inverse_norm_ptr,
    row_partials_ptr,
    column_partials_ptr,
    first_row,
    end_row,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    SCALE: tl.constexpr,
    NESTED: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles = tl.cdiv(neurons, BLOCK_NEURONS)
    tile_row, tile_column, wanted = _band_tile(tl.program_id(0), first_row, end_row, tiles, GROUP)
    if wanted == 0:
        return
    row = tile_row * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    column = tile_column * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    row_inverse = _inverse_norms(inverse_norm_ptr, scale_ptr, row, neurons, SCALE)
    column_inverse = _inverse_norms(inverse_norm_ptr, scale_ptr, column, neurons, SCALE)
    cosine = _cosine_tile(
        rows_ptr, mean_ptr, scale_ptr, row, column, row_inverse, column_inverse, neurons, samples, inner,
        stride_neuron, stride_outer, stride_inner, PRECISION, CENTER, SCALE, NESTED, INTERPRET,
        BLOCK_NEURONS, BLOCK_SAMPLES,
    )  # fmt: skip
    if KIND == "absolute":
        term = tl.abs(cosine)
    elif KIND == "distance":
        term = tl.sqrt_rn(2.0 - 2.0 * cosine)
    else:
        term = cosine
    term = tl.where(_is_pair(row, column, row_inverse, column_inverse), term, 0.0)
    band_row = (row - first_row * BLOCK_NEURONS).to(tl.int64)
    tl.store(row_partials_ptr + band_row * tiles + tile_column, tl.sum(term, axis=1), mask=row < neurons)
    band_tile = (tile_row - first_row).to(tl.int64)
    tl.store(column_partials_ptr + band_tile * neurons + column, tl.sum(term, axis=0), mask=column < neurons)


@triton.jit
def _past_threshold_kernel(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    inverse_norm_ptr,
    counts_ptr,
    offsets_ptr,
    second_ptr,
    cosine_ptr,
    strayed_ptr,
    threshold,
    first_row,
    end_row,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    FILL: tl.constexpr,
    ABOVE: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    SCALE: tl.constexpr,
    NESTED: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    tiles = tl.cdiv(neurons, BLOCK_NEURONS)
    chunks = tl.cdiv(tiles, CHUNK)
    # Programs side by side share a chunk of columns, not of rows: it is the larger of the two.
    tile_row = first_row + tl.program_id(0) % (end_row - first_row)
    chunk = tl.program_id(0) // (end_row - first_row)
    row = tile_row * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    row_inverse = _inverse_norms(inverse_norm_ptr, scale_ptr, row, neurons, SCALE)
    cell = row.to(tl.int64) * chunks + chunk
    place = tl.zeros((BLOCK_NEURONS,), tl.int32)
    if FILL:
        # Places relative to the first row's fit int32: a program's rows hold less than BLOCK_NEURONS · N pairs.
        start = tl.load(offsets_ptr + tile_row.to(tl.int64) * BLOCK_NEURONS * chunks + chunk)
        place = (tl.load(offsets_ptr + cell, mask=row < neurons, other=start) - start).to(tl.int32)
        end = (tl.load(offsets_ptr + cell + 1, mask=row < neurons, other=start) - start).to(tl.int32)
        if tl.max(end - place, axis=0) == 0:
            return
    for tile_column in range(tl.maximum(chunk * CHUNK, tile_row), tl.minimum((chunk + 1) * CHUNK, tiles)):
        column = tile_column * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
        column_inverse = _inverse_norms(inverse_norm_ptr, scale_ptr, column, neurons, SCALE)
        cosine = _cosine_tile(
            rows_ptr, mean_ptr, scale_ptr, row, column, row_inverse, column_inverse, neurons, samples, inner,
            stride_neuron, stride_outer, stride_inner, PRECISION, CENTER, SCALE, NESTED, INTERPRET,
            BLOCK_NEURONS, BLOCK_SAMPLES,
        )  # fmt: skip
        past = cosine >= threshold if ABOVE else cosine <= threshold
        past = (past & _is_pair(row, column, row_inverse, column_inverse)).to(tl.int32)
        if FILL:
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


@dataclass(frozen=True)
class _Pass:
    """Everything that launches over the same neurons share."""

    rows: Tensor
    vectors: tuple[Tensor, Tensor, Tensor]
    """mean, scale, inverse_norm.  # shape: (N,) each"""
    center: bool
    scale: bool
    arch: str
    dot: str

    def arguments(self) -> tuple[int, ...]:
        neurons, outer, inner = self.rows.shape
        return (neurons, outer * inner, inner, *self.rows.stride())

    def options(self, choice: config.PairsConfig) -> dict[str, Any]:
        return {
            "PRECISION": self.dot,
            "CENTER": self.center,
            "SCALE": self.scale,
            "NESTED": self.rows.shape[1] > 1,
            "INTERPRET": interpreting(),
            "BLOCK_NEURONS": choice.block_neurons,
            "BLOCK_SAMPLES": choice.block_samples,
            "num_warps": choice.num_warps,
            "num_stages": choice.num_stages,
        }


def _prepare(rows: Tensor, center: bool) -> _Pass:
    """Run the norms pass; one answer from the device says whether operands have to be scaled."""
    neurons, outer, inner = rows.shape
    mean, scale, inverse_norm = rows.new_empty((3, neurons), dtype=torch.float32)
    out_of_range = rows.new_empty(neurons, dtype=torch.int8)
    norms = norms_config(rows)
    _row_norms_kernel[(triton.cdiv(neurons, norms.block_neurons),)](
        rows,
        mean,
        scale,
        inverse_norm,
        out_of_range,
        neurons,
        outer * inner,
        inner,
        *rows.stride(),
        CENTER=center,
        ZERO_AS_NAN=False,
        NESTED=outer > 1,
        BLOCK_NEURONS=norms.block_neurons,
        BLOCK_SAMPLES=norms.block_samples,
        num_warps=norms.num_warps,
    )
    arch = device_record(rows.device).family
    dot = dot_precision("float32", rows.dtype, center=center, arch=arch)
    # Centring changes the operands on load anyway, and the scale comes with it.
    scaled = center or bool(out_of_range.any())
    return _Pass(rows, (mean, scale, inverse_norm), center, scaled, arch, dot)


def _bands(tiles: int, most: int, progress: Progress | None, device: torch.device) -> Iterator[tuple[int, int]]:
    """(first, end) of bands of at most `most` tile rows; `progress` hears of the tiles that the device has done."""
    for first in range(0, tiles, most):
        end = min(first + most, tiles)
        yield first, end
        if progress is not None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            progress(end * tiles - end * (end - 1) // 2, _triangle_tiles(tiles))


def _triangle_tiles(tiles: int) -> int:
    return tiles * (tiles + 1) // 2


def _programs(first: int, end: int, tiles: int, group: int) -> int:
    """How many programs `_band_tile` spreads a band over."""
    return triton.cdiv(end - first, group) * group * (tiles - first)


def launch_cosine_histogram(
    rows: Tensor, *, bins: int, center: bool, max_bytes: int | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Counts (BINS,) int64 of the cosines of `rows` (N, OUTER, INNER), and the inverse norms (N,)."""
    # Vectors of neurons; counts and the edges that op.py adds. Tiles stay in registers.
    needed = 16 * rows.shape[0] + 16 * (bins + 1)
    if max_bytes is not None and needed > max_bytes:
        _refuse(max_bytes, needed)
    this = _prepare(rows, center)
    choice = config.histogram(this.arch, this.dot, scale=this.scale)
    counts = torch.zeros(bins, dtype=torch.int64, device=rows.device)
    tiles = triton.cdiv(rows.shape[0], choice.block_neurons)
    for first, end in _bands(tiles, config.BAND, progress, rows.device):
        _histogram_kernel[(_programs(first, end, tiles, choice.group),)](
            rows,
            *this.vectors,
            counts,
            bins,
            first,
            end,
            *this.arguments(),
            **this.options(choice),
            GROUP=choice.group,
            BINS=triton.next_power_of_2(max(bins, config.LEAST_BINS)),
        )
    return counts, this.vectors[2]


def _row_sums_bytes(neurons: int, tile_rows: int, block: int) -> int:
    """Bytes of the partial sums of a band of `tile_rows`, and of float64 vectors."""
    return tile_rows * (block * triton.cdiv(neurons, block) + neurons) * 4 + neurons * 24


def launch_cosine_row_sums(
    rows: Tensor, *, kind: str, center: bool, max_bytes: int | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Row sums (N,) float64 of what `kind` makes of the cosines of `rows` (N, OUTER, INNER), and inverse norms (N,)."""
    this = _prepare(rows, center)
    choice = config.row_sums(this.arch, this.dot)
    neurons, block = rows.shape[0], choice.block_neurons
    tiles = triton.cdiv(neurons, block)
    most = config.BAND
    while max_bytes is not None and _row_sums_bytes(neurons, most, block) > max_bytes:
        if most == 1:
            _refuse(max_bytes, _row_sums_bytes(neurons, most, block))
        most //= 2
    sums = torch.zeros(neurons, dtype=torch.float64, device=rows.device)
    for first, end in _bands(tiles, most, progress, rows.device):
        row_partials = torch.zeros(((end - first) * block, tiles), dtype=torch.float32, device=rows.device)
        column_partials = torch.zeros((end - first, neurons), dtype=torch.float32, device=rows.device)
        _row_sums_kernel[(_programs(first, end, tiles, choice.group),)](
            rows,
            *this.vectors,
            row_partials,
            column_partials,
            first,
            end,
            *this.arguments(),
            **this.options(choice),
            KIND=kind,
            GROUP=choice.group,
        )
        own = slice(first * block, min(end * block, neurons))
        sums[own] += row_partials[: own.stop - own.start].sum(1, dtype=torch.float64)
        sums += column_partials.sum(0, dtype=torch.float64)
    return sums, this.vectors[2]


def launch_cosine_pairs(
    rows: Tensor, *, threshold: float, above: bool, center: bool, max_bytes: int, progress: Progress | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of `rows` (N, OUTER, INNER) past a threshold: first, second (int64) and cosine (float32), in order.

    TooManyPairsError, before anything is allocated for them, where they take more than `max_bytes`.
    """
    choice = config.past_threshold(device_record(rows.device).family)
    neurons, device = rows.shape[0], rows.device
    tiles = triton.cdiv(neurons, choice.block_neurons)
    chunk = config.chunk(tiles)
    chunks = triton.cdiv(tiles, chunk)
    scratch = neurons * chunks * 12 + neurons * 32
    if scratch > max_bytes:
        _refuse(max_bytes, scratch)
    this = _prepare(rows, center)
    counts = torch.empty((neurons, chunks), dtype=torch.int32, device=device)
    offsets = torch.zeros(neurons * chunks + 1, dtype=torch.int64, device=device)
    second = torch.empty(0, dtype=torch.int32, device=device)
    cosine = torch.empty(0, dtype=torch.float32, device=device)
    strayed = torch.zeros((), dtype=torch.int32, device=device)

    def launch(first_row: int, end_row: int, fill: bool) -> None:
        _past_threshold_kernel[((end_row - first_row) * chunks,)](
            rows,
            *this.vectors,
            counts,
            offsets,
            second,
            cosine,
            strayed,
            float(threshold),
            first_row,
            end_row,
            *this.arguments(),
            **this.options(choice),
            FILL=fill,
            ABOVE=above,
            CHUNK=chunk,
        )

    counting, filling = _halves(progress, _triangle_tiles(tiles))
    for first_row, end_row in _bands(tiles, config.BAND, counting, device):
        launch(first_row, end_row, fill=False)
    torch.cumsum(counts.flatten(), 0, dtype=torch.int64, out=offsets[1:])
    count = int(offsets[-1])
    check_count(count, cosine.itemsize, scratch, max_bytes)
    second, cosine = second.new_empty(count), cosine.new_empty(count)
    for first_row, end_row in _bands(tiles, config.BAND, filling, device):
        launch(first_row, end_row, fill=True)
    assert not strayed.item(), "the second pass found other pairs than the first counted"
    in_row = counts.sum(1, dtype=torch.int64)
    first = torch.arange(neurons, device=device).repeat_interleave(in_row, output_size=count)
    return first, second.long(), cosine


def _halves(progress: Progress | None, steps: int) -> tuple[Progress | None, Progress | None]:
    """What two passes of `steps` steps each report to, as one call of twice as many."""
    if progress is None:
        return None, None
    tell = progress
    return lambda done, _: tell(done, 2 * steps), lambda done, _: tell(steps + done, 2 * steps)


def _refuse(max_bytes: int, needed: int) -> NoReturn:
    raise ValueError(
        f"max_bytes: expected at least {needed:,} for this input, which its smallest pass takes, got {max_bytes:,}. "
        "Allow more, or leave max_bytes out."
    )
