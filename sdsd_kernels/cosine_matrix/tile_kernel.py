"""What the kernels of this folder share: reading a tile of neurons, multiplying two, and storing the products.

All functions run on the device. Rows are (N, OUTER, INNER) with any three strides; sample k is (k // INNER, k % INNER).
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST_SQUARE = tl.constexpr(2.0**120)
SMALLEST_SQUARE = tl.constexpr(2.0**-80)
"""Raw products serve while ‖x‖² is in this range: r_i r_j stays normal, and so do all products that matter."""
STRIP = tl.constexpr(64)
"""Columns of a tile that are finished together: with more, addresses and products of wide tiles spill."""


@triton.jit
def _sample_offsets(sample, inner, stride_outer, stride_inner, NESTED: tl.constexpr):
    """Memory offset (int64) of each sample of a neuron; NESTED where the samples do not share one stride."""
    if NESTED:
        return (sample // inner).to(tl.int64) * stride_outer + (sample % inner).to(tl.int64) * stride_inner
    else:
        return sample.to(tl.int64) * stride_inner


@triton.jit
def _load_tile(rows_ptr, neuron_offset, neuron_mask, sample, samples, inner, stride_outer, stride_inner, NESTED):
    """A (neurons, samples) tile in the dtype it is stored in; 0 beyond the ends."""
    offset = _sample_offsets(sample, inner, stride_outer, stride_inner, NESTED)
    mask = neuron_mask[:, None] & (sample < samples)[None, :]
    return tl.load(rows_ptr + neuron_offset[:, None] + offset[None, :], mask=mask, other=0.0)


@triton.jit
def _shift_and_scale(tile, mean, scale, sample, samples, CENTER: tl.constexpr):
    """(tile − mean) · scale in float32; samples beyond the end stay 0."""
    tile = tile.to(tl.float32)
    if CENTER:
        tile = tl.where((sample < samples)[None, :], tile - mean[:, None], 0.0)
    return tile * scale[:, None]


@triton.jit
def _power_of_two_scale(largest):
    """The power of two that brings `largest` into [1, 2), as far as float32 has one; 1 for 0."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    inverse = tl.minimum(tl.maximum(254 - exponent, 1), 254) << 23
    return tl.where(largest > 0, inverse.to(tl.float32, bitcast=True), 1.0)


@triton.jit
def _triangle_tile(index, tiles, GROUP: tl.constexpr):
    """(row, column) of the index-th tile on or above the diagonal of `tiles` × `tiles`: one index for every such tile.

    GROUP tile rows make a band and walk their columns together, so that programs side by side share panels. A band is
    shorter the lower it lies: joined with its counterpart from the bottom, all pairs of bands have GROUP (rows + 1)
    tiles, and integer division finds the place. `tiles` % GROUP rows, the first ones, make a band of their own. A
    band begins with the triangle on its diagonal, column by column, and goes on with whole columns.
    """
    index = tl.cast(index, tl.int64)
    tiles = tl.cast(tiles, tl.int64)
    odd = tiles % GROUP
    in_odd_band = index < odd * (2 * tiles - odd + 1) // 2
    rest = index - odd * (2 * tiles - odd + 1) // 2
    rows = tiles - odd
    pair = rest // tl.maximum(GROUP * (rows + 1), 1)
    within = rest - pair * GROUP * (rows + 1)
    in_upper = GROUP * (rows - (pair + 1) * GROUP) + GROUP * (GROUP + 1) // 2
    lower = within >= in_upper
    band = tl.where(lower, rows // GROUP - 1 - pair, pair)
    first = tl.where(in_odd_band, 0, odd + band * GROUP)
    height = tl.where(in_odd_band, odd, GROUP)
    within = tl.where(in_odd_band, index, tl.where(lower, within - in_upper, within)).to(tl.int32)

    corner_column = within * 0
    for column in tl.static_range(1, GROUP):
        corner_column += (within >= column * (column + 1) // 2).to(tl.int32)
    corner_row = within - corner_column * (corner_column + 1) // 2
    height = height.to(tl.int32)
    beyond = within - height * (height + 1) // 2
    column = tl.where(beyond < 0, corner_column, height + beyond // tl.maximum(height, 1))
    row = tl.where(beyond < 0, corner_row, beyond % tl.maximum(height, 1))
    first = first.to(tl.int32)
    return first + row, first + column


@triton.jit
def _tile_place(index, neurons, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """(first row, first column) of a tile: BLOCK_ROWS rows of a square of BLOCK_COLUMNS²."""
    PARTS: tl.constexpr = BLOCK_COLUMNS // BLOCK_ROWS
    square_row, square_column = _triangle_tile(index // PARTS, tl.cdiv(neurons, BLOCK_COLUMNS), GROUP)
    return square_row * BLOCK_COLUMNS + (index % PARTS) * BLOCK_ROWS, square_column * BLOCK_COLUMNS


@triton.jit
def _dot(accumulator, a, b, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """accumulator + a bᵀ with operands rounded as PRECISION says; "native" multiplies halves as they are."""
    if PRECISION == "bf16x3":
        # A float32 is a bfloat16 and the rest, rounded to bfloat16: 16 bits. The product of the two rests is left out.
        a_rest = a - a.to(tl.bfloat16).to(tl.float32)
        b_rest = b - b.to(tl.bfloat16).to(tl.float32)
        accumulator = _dot(accumulator, a_rest, b, "bf16", INTERPRET)
        accumulator = _dot(accumulator, a, b_rest, "bf16", INTERPRET)
        return _dot(accumulator, a, b, "bf16", INTERPRET)
    if PRECISION == "bf16":
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
    if PRECISION == "fp16":
        a = a.to(tl.float16)
        b = b.to(tl.float16)
    if INTERPRET:
        # The interpreter's dot on bfloat16 returns garbage, and float32 holds every half exactly.
        return tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), accumulator, input_precision="ieee")
    elif PRECISION == "bf16" or PRECISION == "fp16" or PRECISION == "native":
        return tl.dot(a, tl.trans(b), accumulator)
    else:
        return tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), accumulator, input_precision=PRECISION)


@triton.jit
def _halves(tile):
    """The left and the right half of a tile."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (rows, 2, columns)), (0, 2, 1)))


@triton.jit
def _store_cosines(products, row_start, column_start, scale_ptr, inverse_norm_ptr, out_ptr, neurons, RAW: tl.constexpr):
    """Turn a tile of products into cosines and store what is on or above the diagonal, and its mirror image.

    RAW where the operands were not scaled. Strips of 64 columns: wider ones spill where addresses join accumulators.
    """
    COLUMNS: tl.constexpr = products.shape[1]
    if COLUMNS > STRIP:
        left, right = _halves(products)
        _store_cosines(left, row_start, column_start, scale_ptr, inverse_norm_ptr, out_ptr, neurons, RAW)
        right_start = column_start + COLUMNS // 2
        _store_cosines(right, row_start, right_start, scale_ptr, inverse_norm_ptr, out_ptr, neurons, RAW)
    else:
        if row_start < column_start + COLUMNS:
            row = row_start + tl.arange(0, products.shape[0])
            column = column_start + tl.arange(0, COLUMNS)
            row_mask = row < neurons
            column_mask = column < neurons
            row_inverse = tl.load(inverse_norm_ptr + row, mask=row_mask, other=0.0)
            column_inverse = tl.load(inverse_norm_ptr + column, mask=column_mask, other=0.0)
            if RAW:
                row_inverse *= tl.load(scale_ptr + row, mask=row_mask, other=1.0)
                column_inverse *= tl.load(scale_ptr + column, mask=column_mask, other=1.0)
            # r_i r_j first: multiplying by one and then by the other would depend on which neuron comes first.
            cosine = products * (row_inverse[:, None] * column_inverse[None, :])
            # Plain min and max return the bound for NaN on NVIDIA GPUs.
            cosine = tl.minimum(cosine, 1.0, propagate_nan=tl.PropagateNan.ALL)
            cosine = tl.maximum(cosine, -1.0, propagate_nan=tl.PropagateNan.ALL)
            # 1 for a live neuron, else what stands for the inverse norm of a neuron without direction: 0 or NaN.
            itself = tl.where(row_inverse > 0, 1.0, row_inverse)
            cosine = tl.where(row[:, None] == column[None, :], itself[:, None], cosine).to(out_ptr.dtype.element_ty)
            mask = row_mask[:, None] & column_mask[None, :]
            if column_start < row_start + products.shape[0]:
                # The two halves of a tf32x3 product differ in the last bit: keep the upper one.
                mask = mask & (row[:, None] <= column[None, :])
            place = row.to(tl.int64)[:, None] * neurons + column[None, :]
            tl.store(out_ptr + place, cosine, mask=mask)
            mirrored = column.to(tl.int64)[:, None] * neurons + row[None, :]
            tl.store(out_ptr + mirrored, tl.trans(cosine), mask=tl.trans(mask))


@triton.jit
def _store_sums(products, row_start, column_start, sum_ptr, neurons, ADD: tl.constexpr):
    """Store a tile of products in a (N, N) matrix, or add it to what is there; below the diagonal anything may be."""
    COLUMNS: tl.constexpr = products.shape[1]
    if COLUMNS > STRIP:
        left, right = _halves(products)
        _store_sums(left, row_start, column_start, sum_ptr, neurons, ADD)
        _store_sums(right, row_start, column_start + COLUMNS // 2, sum_ptr, neurons, ADD)
    else:
        row = row_start + tl.arange(0, products.shape[0])
        column = column_start + tl.arange(0, COLUMNS)
        mask = (row < neurons)[:, None] & (column < neurons)[None, :]
        place = sum_ptr + (row.to(tl.int64)[:, None] * neurons + column[None, :])
        if ADD:
            products = tl.load(place, mask=mask, other=0.0) + products
        tl.store(place, products, mask=mask)
