"""What kernels of pairs share: which tile a program takes, the products of its neurons, and storing them.

All functions run on the device; HOW is config.How. Operands are halves, neurons by samples, or, where adjacent, samples
by neurons. A tensor descriptor reads them, or, where there is no copy engine, pointers. With three terms a second set
of as many neurons follows the first in the same memory, the low parts. `pair` is what products are taken of: (rows,
columns, neurons, others, samples, pitch, column_pitch).
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
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
def tile_place(index, neurons, GROUP: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """(first row, first column) of a tile: BLOCK_ROWS rows of a square of BLOCK_COLUMNS²."""
    PARTS: tl.constexpr = BLOCK_COLUMNS // BLOCK_ROWS
    square_row, square_column = _triangle_tile(index // PARTS, tl.cdiv(neurons, BLOCK_COLUMNS), GROUP)
    return square_row * BLOCK_COLUMNS + (index % PARTS) * BLOCK_ROWS, square_column * BLOCK_COLUMNS


@triton.jit
def _panel(operands, first, count, start, sample, samples, pitch, BLOCK: tl.constexpr, HOW: tl.constexpr):
    """BLOCK neurons from `start` on, of `count` from `first` on, by samples from `sample` on; 0 beyond the ends."""
    if HOW.pointers:
        neuron = start + tl.arange(0, BLOCK)
        lanes = sample + tl.arange(0, HOW.samples)
        mask = (neuron < count)[:, None] & (lanes < samples)[None, :]
        if HOW.adjacent:
            place = (first + neuron)[:, None] + lanes.to(tl.int64)[None, :] * pitch
        else:
            place = (first + neuron).to(tl.int64)[:, None] * pitch + lanes[None, :]
        return tl.load(operands + place, mask=mask, other=0.0)
    elif HOW.adjacent:
        return tl.trans(operands.load([sample, start]))
    else:
        return operands.load([first + start, sample])


@triton.jit
def _dot(a, b, total, HOW: tl.constexpr):
    if HOW.interpret:
        # The interpreter's dot on bfloat16 returns garbage, and float32 holds every half exactly.
        return tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), total, input_precision="ieee")
    else:
        return tl.dot(a, tl.trans(b), total)


@triton.jit
def _step(pair, row, column, sample, total, HOW: tl.constexpr):
    """`total` plus the products of one step of samples."""
    rows, columns, neurons, others, samples, pitch, column_pitch = pair
    a = _panel(rows, 0, neurons, row, sample, samples, pitch, HOW.rows, HOW)
    b = _panel(columns, 0, others, column, sample, samples, column_pitch, HOW.columns, HOW)
    if HOW.three:
        low = _panel(rows, neurons, neurons, row, sample, samples, pitch, HOW.rows, HOW)
        total = _dot(low, b, total, HOW)
        low = _panel(columns, others, others, column, sample, samples, column_pitch, HOW.columns, HOW)
        total = _dot(a, low, total, HOW)
    return _dot(a, b, total, HOW)


@triton.jit
def tile_products(pair, row, column, first, last, HOW: tl.constexpr):
    """Products of a tile of neurons from `row` on with those from `column` on, over samples `first` to `last`."""
    ROWS: tl.constexpr = HOW.rows
    COLUMNS: tl.constexpr = HOW.columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if HOW.every == 0:
        for sample in range(first, last, HOW.samples):
            total = _step(pair, row, column, sample, total, HOW)
    elif HOW.every == 1:
        for sample in range(first, last, HOW.samples):
            nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
            total += _step(pair, row, column, sample, nothing, HOW)
    else:
        for start in range(first, last, HOW.every * HOW.samples):
            part = tl.zeros((ROWS, COLUMNS), tl.float32)
            for sample in range(start, tl.minimum(start + HOW.every * HOW.samples, last), HOW.samples):
                part = _step(pair, row, column, sample, part, HOW)
            total += part
    return total


@triton.jit
def _scaled(panel, scale, HOW: tl.constexpr):
    """A power of two rounds nothing, so scaled halves are halves again."""
    if HOW.interpret:
        return (panel.to(tl.float32) * scale[:, None]).to(panel.dtype)
    else:
        return panel * scale.to(panel.dtype)[:, None]


@triton.jit
def any_marked(inverse_ptr, start, neurons, BLOCK: tl.constexpr):
    """Whether one of BLOCK neurons is to be scaled before its products are taken."""
    neuron = start + tl.arange(0, BLOCK)
    marked = tl.load(inverse_ptr + neuron, mask=neuron < neurons, other=0.0) < 0
    return tl.max(marked.to(tl.int32), axis=0) > 0


@triton.jit
def scaled_products(operands, scale_ptr, row, column, neurons, first, last, samples, pitch, HOW: tl.constexpr):
    """As `tile_products`, of pairs of one set of neurons times their scales; one term."""
    ROWS: tl.constexpr = HOW.rows
    COLUMNS: tl.constexpr = HOW.columns
    down = row + tl.arange(0, ROWS)
    across = column + tl.arange(0, COLUMNS)
    row_scale = tl.load(scale_ptr + down, mask=down < neurons, other=1.0)
    column_scale = tl.load(scale_ptr + across, mask=across < neurons, other=1.0)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for sample in tl.range(first, last, HOW.samples, num_stages=1):
        a = _panel(operands, 0, neurons, row, sample, samples, pitch, ROWS, HOW)
        b = _panel(operands, 0, neurons, column, sample, samples, pitch, COLUMNS, HOW)
        products = _dot(_scaled(a, row_scale, HOW), _scaled(b, column_scale, HOW), products, HOW)
    return products


@triton.jit
def inverse_norms(inverse_ptr, neuron, neurons):
    """1 / ‖a‖ of scaled operands; 0 or NaN for a neuron without direction, 0 beyond the end."""
    return tl.abs(tl.load(inverse_ptr + neuron, mask=neuron < neurons, other=0.0))


@triton.jit
def cosines(products, row_inverse, column_inverse):
    """Products as cosines in [−1, 1]; NaN where a neuron has one."""
    # r_i r_j first: multiplying by one and then by the other would depend on which neuron comes first.
    cosine = products * (row_inverse[:, None] * column_inverse[None, :])
    # Plain min and max return the bound for NaN on NVIDIA GPUs.
    cosine = tl.minimum(cosine, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.maximum(cosine, -1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def split_columns(tile):
    """The left and the right half of a tile."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (rows, 2, columns)), (0, 2, 1)))


@triton.jit
def store_cosines(
    products, row_start, column_start, inverses, out_ptr, neurons, others, SAME: tl.constexpr, STRIP: tl.constexpr
):
    """Turn a tile of products into cosines and store it; of one set of neurons (SAME) with its mirror image.

    `inverses`: pointers to the inverse norms of rows and of columns. In strips of STRIP columns: the addresses of more
    take registers that products need.
    """
    COLUMNS: tl.constexpr = products.shape[1]
    if COLUMNS > STRIP:
        left, right = split_columns(products)
        store_cosines(left, row_start, column_start, inverses, out_ptr, neurons, others, SAME, STRIP)
        store_cosines(right, row_start, column_start + COLUMNS // 2, inverses, out_ptr, neurons, others, SAME, STRIP)
    else:
        row = row_start + tl.arange(0, products.shape[0])
        column = column_start + tl.arange(0, COLUMNS)
        row_inverse = inverse_norms(inverses[0], row, neurons)
        cosine = cosines(products, row_inverse, inverse_norms(inverses[1], column, others))
        if SAME:
            # 1 for a live neuron, else what stands for the inverse norm of one without direction: 0 or NaN.
            itself = tl.where(row_inverse > 0, 1.0, row_inverse)
            store_symmetric(cosine, itself, row_start, column_start, out_ptr, neurons)
        else:
            mask = (row < neurons)[:, None] & (column < others)[None, :]
            place = row.to(tl.int64)[:, None] * others + column[None, :]
            tl.store(out_ptr + place, cosine.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_symmetric(value, itself, row_start, column_start, out_ptr, neurons):
    """Store what of a tile is on or above the diagonal, and its mirror image; `itself`, if given, on the diagonal."""
    row = row_start + tl.arange(0, value.shape[0])
    column = column_start + tl.arange(0, value.shape[1])
    inside = (row < neurons)[:, None] & (column < neurons)[None, :]
    if row_start + value.shape[0] <= column_start:
        # A mask that is known to be alike for neighbours lets a thread store 16 bytes at once.
        _store_twice(value, row, column, inside, out_ptr, neurons)
    elif row_start < column_start + value.shape[1]:
        if itself is not None:
            value = tl.where(row[:, None] == column[None, :], itself[:, None], value)
        # high·low + low·high of a pair and of its mirror image are added in another order: keep the upper one.
        _store_twice(value, row, column, inside & (row[:, None] <= column[None, :]), out_ptr, neurons)


@triton.jit
def _store_twice(value, row, column, mask, out_ptr, neurons):
    """A tile and its mirror image."""
    value = value.to(out_ptr.dtype.element_ty)
    place = row.to(tl.int64)[:, None] * neurons + column[None, :]
    tl.store(out_ptr + place, value, mask=mask)
    mirrored = column.to(tl.int64)[:, None] * neurons + row[None, :]
    tl.store(out_ptr + mirrored, tl.trans(value), mask=tl.trans(mask))


@triton.jit
def _unit(weight_ptr, scale_ptr, neuron, neurons):
    """What turns a scaled operand into what is summed: its weight over its scale, float64."""
    unit = tl.full(neuron.shape, 1.0, tl.float64)
    if scale_ptr is not None:
        unit = 1.0 / tl.load(scale_ptr + neuron, mask=neuron < neurons, other=1.0).to(tl.float64)
    if weight_ptr is not None:
        unit *= tl.load(weight_ptr + neuron, mask=neuron < neurons, other=1.0).to(tl.float64)
    return unit


@triton.jit
def sum_places(sum_ptr, row, column, row_start, neurons, STRIPS: tl.constexpr):
    """Where sums lie: in a (N, N) matrix, or, with STRIPS, in strips of so many rows, each from the diagonal on."""
    if STRIPS == 0:
        return sum_ptr + (row.to(tl.int64)[:, None] * neurons + column[None, :])
    else:
        strip = tl.cast(row_start // STRIPS, tl.int64)
        start = strip * STRIPS
        # All strips before have STRIPS rows; strip t has N − t · STRIPS columns.
        offset = STRIPS * (strip * neurons - start * (strip - 1) // 2)
        place = (row - start)[:, None] * (neurons - start) + (column - start)[None, :]
        return sum_ptr + (offset + place)


@triton.jit
def store_sums(products, row_start, column_start, terms, sum_ptr, neurons, STRIPS: tl.constexpr, STRIP: tl.constexpr):
    """Store a tile of products, times weights, plus δ_i δ_j, plus what was before. Below the diagonal anything may be.

    `terms`: pointers to scales, weights, δ and the sums before; each may be None.
    """
    COLUMNS: tl.constexpr = products.shape[1]
    if COLUMNS > STRIP:
        left, right = split_columns(products)
        store_sums(left, row_start, column_start, terms, sum_ptr, neurons, STRIPS, STRIP)
        store_sums(right, row_start, column_start + COLUMNS // 2, terms, sum_ptr, neurons, STRIPS, STRIP)
    elif row_start < column_start + COLUMNS:
        scale_ptr, weight_ptr, delta_ptr, before_ptr = terms
        row = row_start + tl.arange(0, products.shape[0])
        column = column_start + tl.arange(0, COLUMNS)
        mask = (row < neurons)[:, None] & (column < neurons)[None, :]
        value = products
        if weight_ptr is not None or scale_ptr is not None:
            down = _unit(weight_ptr, scale_ptr, row, neurons)
            across = _unit(weight_ptr, scale_ptr, column, neurons)
            value = products.to(tl.float64) * (down[:, None] * across[None, :])
        if delta_ptr is not None:
            down = tl.load(delta_ptr + row, mask=row < neurons, other=0.0)
            across = tl.load(delta_ptr + column, mask=column < neurons, other=0.0)
            value = value.to(tl.float64) + down[:, None] * across[None, :]
        value = value.to(sum_ptr.dtype.element_ty)
        if before_ptr is not None:
            value += tl.load(sum_places(before_ptr, row, column, row_start, neurons, STRIPS), mask=mask, other=0.0)
        tl.store(sum_places(sum_ptr, row, column, row_start, neurons, STRIPS), value, mask=mask)
