"""Products of every pair of neurons on and above the diagonal: by pointers, by tensor descriptors, and their sum.

    P[i, j] = Σ_k a[i, k] · a[j, k],    i ≤ j

`_pointer_product_kernel` reads rows with any strides and can shift and scale them on the way. Where the copy engine of
sm_90 and later can read them, `_descriptor_product_kernel` lets it: one dimension adjacent, the other's stride a
multiple of 16 bytes. Both take pieces of work, a tile of the triangle over one split of the samples, and do one of:

- STORE = "cosine": finish the tile and store it twice in the matrix of cosines;
- STORE = "partial": store it in the plane (N, N) of its split, for `_reduce_kernel` to add up in order and finish;
- STORE = "add": add it to a running sum.

No atomics: every entry is written by one program, in one order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._backend import interpreting
from .._device import device_record
from . import config, waves
from .tile_kernel import _dot, _sample_offsets, _shift_and_scale, _store_cosines, _store_sums, _tile_place


@triton.jit
def _tile_products(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    row,
    column,
    first_sample,
    last_sample,
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
    """Products of neurons `row` and `column` over samples first_sample to last_sample, in float32."""
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
    offset = (first_sample + lanes).to(tl.int64) * stride_inner
    row_pointers = rows_ptr + (row_offset[:, None] + offset[None, :])
    column_pointers = rows_ptr + (column_offset[:, None] + offset[None, :])
    step = tl.cast(stride_inner, tl.int64) * BLOCK_SAMPLES
    products = tl.zeros((BLOCK_NEURONS, BLOCK_NEURONS), tl.float32)
    for start in range(first_sample, last_sample, BLOCK_SAMPLES):
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
        products = _dot(products, a, b, PRECISION, INTERPRET)
        if not NESTED:
            row_pointers += step
            column_pointers += step
    return products


@triton.jit
def _pointer_product_kernel(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    inverse_norm_ptr,
    out_of_range_ptr,
    out_ptr,
    tiles,
    split_samples,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    STORE: tl.constexpr,
    PRECISION: tl.constexpr,
    CENTER: tl.constexpr,
    SCALE: tl.constexpr,
    ONLY_OUT_OF_RANGE: tl.constexpr,
    NESTED: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    GROUP: tl.constexpr,
):
    # One program takes every num_programs-th piece of work: a tile of the triangle over one split of the samples.
    for work in range(tl.program_id(0), tiles * tl.cdiv(samples, split_samples), tl.num_programs(0)):
        split = work // tiles
        row_start, column_start = _tile_place(work - split * tiles, neurons, GROUP, BLOCK_NEURONS, BLOCK_NEURONS)
        row = row_start + tl.arange(0, BLOCK_NEURONS)
        column = column_start + tl.arange(0, BLOCK_NEURONS)
        wanted = 1
        if ONLY_OUT_OF_RANGE:
            flags = tl.load(out_of_range_ptr + row, mask=row < neurons, other=0)
            flags |= tl.load(out_of_range_ptr + column, mask=column < neurons, other=0)
            wanted = tl.max(flags.to(tl.int32), axis=0)
        if wanted > 0:
            products = _tile_products(
                rows_ptr,
                mean_ptr,
                scale_ptr,
                row,
                column,
                split * split_samples,
                tl.minimum(split * split_samples + split_samples, samples),
                neurons,
                samples,
                inner,
                stride_neuron,
                stride_outer,
                stride_inner,
                PRECISION,
                CENTER,
                SCALE,
                NESTED,
                INTERPRET,
                BLOCK_NEURONS,
                BLOCK_SAMPLES,
            )
            if STORE == "cosine":
                _store_cosines(
                    products, row_start, column_start, scale_ptr, inverse_norm_ptr, out_ptr, neurons, not SCALE
                )
            else:
                plane = tl.cast(split, tl.int64) * neurons * neurons
                _store_sums(products, row_start, column_start, out_ptr + plane, neurons, STORE == "add")


@triton.jit
def _descriptor_product_kernel(
    row_panels,
    column_panels,
    scale_ptr,
    inverse_norm_ptr,
    out_ptr,
    tiles,
    split_samples,
    neurons,
    samples,
    STORE: tl.constexpr,
    PRECISION: tl.constexpr,
    NEURONS_ADJACENT: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
    GROUP: tl.constexpr,
):
    # As many programs as the machine holds; each takes every num_programs-th piece of work.
    for work in range(tl.program_id(0), tiles * tl.cdiv(samples, split_samples), tl.num_programs(0)):
        split = work // tiles
        row_start, column_start = _tile_place(work - split * tiles, neurons, GROUP, BLOCK_ROWS, BLOCK_COLUMNS)
        first = split * split_samples
        products = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        for start in range(first, tl.minimum(first + split_samples, samples), BLOCK_SAMPLES):
            # Beyond the ends a descriptor reads zeros.
            if NEURONS_ADJACENT:
                a = tl.trans(row_panels.load([start, row_start]))
                b = tl.trans(column_panels.load([start, column_start]))
            else:
                a = row_panels.load([row_start, start])
                b = column_panels.load([column_start, start])
            products = _dot(products, a, b, PRECISION, INTERPRET)
        if STORE == "cosine":
            _store_cosines(products, row_start, column_start, scale_ptr, inverse_norm_ptr, out_ptr, neurons, True)
        else:
            plane = tl.cast(split, tl.int64) * neurons * neurons
            _store_sums(products, row_start, column_start, out_ptr + plane, neurons, STORE == "add")


@triton.jit
def _reduce_kernel(
    partial_ptr,
    scale_ptr,
    inverse_norm_ptr,
    out_ptr,
    splits,
    neurons,
    STORE: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    GROUP: tl.constexpr,
):
    # One program owns a tile of the triangle: it adds up the splits in order and finishes the tile.
    row_start, column_start = _tile_place(tl.program_id(0), neurons, GROUP, BLOCK_NEURONS, BLOCK_NEURONS)
    row = row_start + tl.arange(0, BLOCK_NEURONS)
    column = column_start + tl.arange(0, BLOCK_NEURONS)
    place = partial_ptr + (row.to(tl.int64)[:, None] * neurons + column[None, :])
    mask = (row < neurons)[:, None] & (column < neurons)[None, :]
    products = tl.zeros((BLOCK_NEURONS, BLOCK_NEURONS), tl.float32)
    for _ in range(0, splits):
        products += tl.load(place, mask=mask, other=0.0)
        place += tl.cast(neurons, tl.int64) * neurons
    if STORE == "cosine":
        _store_cosines(products, row_start, column_start, scale_ptr, inverse_norm_ptr, out_ptr, neurons, RAW)
    else:
        _store_sums(products, row_start, column_start, out_ptr, neurons, True)


def descriptors_can_read(rows: Tensor) -> bool:
    """Whether tensor descriptors can read `rows` (N, OUTER, INNER) where they lie."""
    neurons, outer, inner = rows.shape
    stride_neuron, _, stride_inner = rows.stride()
    if outer > 1 or rows.data_ptr() % 16:
        return False
    # Strides are multiples of 16 bytes, but of 16 elements for the interpreter of Triton 3.5.
    multiple = 16 if interpreting() and triton.__version__.startswith("3.5.") else 16 // rows.element_size()
    if stride_inner == 1:
        wide = stride_neuron >= inner and stride_neuron % multiple == 0
    else:
        # Float32 operands of the matrix unit have samples adjacent; halves may have either.
        wide = stride_neuron == 1 and stride_inner >= neurons and stride_inner % multiple == 0
        wide = wide and rows.element_size() == 2
    return wide and max(neurons, inner) < 2**31


def launch_products(
    rows: Tensor,
    plan: waves.Plan,
    dot: str,
    store: str,
    out: Tensor,
    *,
    mean: Tensor | None = None,
    scale: Tensor | None = None,
    inverse_norm: Tensor | None = None,
    center: bool = False,
    scale_operands: bool = False,
) -> None:
    """One product of `rows` (N, OUTER, INNER) by `plan`, its splits and all, into `out` as `store` says.

    `out` is (N, N) for "cosine" and "add", (SPLITS, N, N) for "partial". Vectors are (N,), float32.
    """
    launch = plan.launch
    assert launch is not None
    if plan.kernel == "descriptor":
        assert not scale_operands
        _launch_descriptor(rows, launch, plan.splits, dot, store, out, scale, inverse_norm)
        return
    vectors = (mean, scale, inverse_norm, None)
    _launch_pointer(rows, launch, plan.splits, dot, store, out, *vectors, center, scale_operands)


def launch_redo(rows: Tensor, dot: str, out: Tensor, scale: Tensor, inverse_norm: Tensor, out_of_range: Tensor) -> None:
    """Cosines of the tiles that hold a flagged neuron, operands scaled on load. Costs little where there is none."""
    launch = config.redo_config(device_record(rows.device).family, dot)
    _launch_pointer(rows, launch, 1, dot, "cosine", out, None, scale, inverse_norm, out_of_range, False, True)


def _work(neurons: int, samples: int, launch: config.MatrixConfig, splits: int) -> tuple[int, int, int]:
    """(tiles of the triangle, samples of one split, pieces of work)."""
    tiles = waves.pieces(neurons, launch)
    length = waves.split_length(samples, splits, launch.block_samples)
    return tiles, length, tiles * waves.split_count(samples, splits, launch.block_samples)


def _launch_pointer(
    rows: Tensor,
    launch: config.MatrixConfig,
    splits: int,
    dot: str,
    store: str,
    out: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    inverse_norm: Tensor | None,
    out_of_range: Tensor | None,
    center: bool,
    scale_operands: bool,
) -> None:
    neurons, outer, inner = rows.shape
    samples = outer * inner
    tiles, length, work = _work(neurons, samples, launch, splits)
    # Programs that mostly find nothing to redo look at several tiles each.
    programs = work if out_of_range is None else min(work, 4 * device_record(rows.device).multiprocessors)
    _pointer_product_kernel[(programs,)](
        rows,
        mean,
        scale,
        inverse_norm,
        out_of_range,
        out,
        tiles,
        length,
        neurons,
        samples,
        inner,
        *rows.stride(),
        STORE=store,
        PRECISION=dot,
        CENTER=center,
        SCALE=scale_operands,
        ONLY_OUT_OF_RANGE=out_of_range is not None,
        NESTED=outer > 1,
        INTERPRET=interpreting(),
        BLOCK_NEURONS=launch.block_rows,
        BLOCK_SAMPLES=launch.block_samples,
        GROUP=launch.group,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def _launch_descriptor(
    rows: Tensor,
    launch: config.MatrixConfig,
    splits: int,
    dot: str,
    store: str,
    out: Tensor,
    scale: Tensor | None,
    inverse_norm: Tensor | None,
) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    neurons, _, samples = rows.shape
    flat = rows[:, 0]
    neurons_adjacent = flat.stride(1) != 1
    flat = flat.T if neurons_adjacent else flat

    def panels(block: int) -> Any:
        shape = [launch.block_samples, block] if neurons_adjacent else [block, launch.block_samples]
        # Where a dimension has one element torch may call its stride anything; a descriptor wants 1.
        return TensorDescriptor(flat, list(flat.shape), [flat.stride(0), 1], shape)

    tiles, length, work = _work(neurons, samples, launch, splits)
    _descriptor_product_kernel[(min(work, launch.resident * device_record(rows.device).multiprocessors),)](
        panels(launch.block_rows),
        panels(launch.block_columns),
        scale,
        inverse_norm,
        out,
        tiles,
        length,
        neurons,
        samples,
        STORE=store,
        PRECISION=dot,
        NEURONS_ADJACENT=neurons_adjacent,
        INTERPRET=interpreting(),
        BLOCK_ROWS=launch.block_rows,
        BLOCK_COLUMNS=launch.block_columns,
        BLOCK_SAMPLES=launch.block_samples,
        GROUP=launch.group,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )


def launch_reduce(
    partial: Tensor,
    store: str,
    out: Tensor,
    *,
    scale: Tensor | None = None,
    inverse_norm: Tensor | None = None,
    raw: bool = True,
) -> None:
    """Add up `partial` (SPLITS, N, N) in order, and finish the cosines of `out` (N, N) or add the sum to it."""
    splits, neurons, _ = partial.shape
    _reduce_kernel[(waves.triangle(triton.cdiv(neurons, config.REDUCE_NEURONS)),)](
        partial,
        scale,
        inverse_norm,
        out,
        splits,
        neurons,
        STORE=store,
        RAW=raw,
        BLOCK_NEURONS=config.REDUCE_NEURONS,
        GROUP=8,
        num_warps=4,
    )
