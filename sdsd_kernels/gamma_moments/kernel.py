"""Moments of per-sample gradients in one read of memory.

For G of shape (N, P), ḡ its mean row, d_i = g_i − ḡ:

    signal = ‖ḡ‖²   squares = Σ‖d_i‖²   a_i = ‖d_i‖²   q_i = d_i·ḡ   c_j = (g_4j − g_4j+1)·(g_4j+2 − g_4j+3) / 2

Each of them is a sum over columns, so columns can be shared out freely. A program owns column blocks of one matrix and
writes one row of partial results; a second kernel adds the rows of each matrix in a fixed order. No atomics.

Signal and squares alone (`stream_kernel`): a thread owns columns and rows stream by. Values are shifted by the first
row and summed in float64, Σd² = Σ(g − g_0)² − (Σ(g − g_0))² / N; g_0 is no further from the mean than the root of Σd²,
so at most a factor of N + 1 of float64's precision is lost. Where float64 is slow, or N large, chunks of rows are
centred in float32 and merged in float64 (Chan, Golub & LeVeque 1983).

With per-sample sums (`samples_kernel`): a tile holds all rows of a column block, as four sets (rows 4j, 4j + 1,
4j + 2, 4j + 3), so that c_j needs no exchange between threads. Every thread keeps its own part of a_i, q_i and c_j over
the walk; they are added up once, at the end. Above `RESIDENT_ROWS` rows `two_walks_kernel` reads a column block twice.

float64 holds squares of all float32 values. In float32 a chunk's columns are each divided by a power of two before they
are squared; a tile is not, and a program whose sums show that products left float32 walks its columns again in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ELEMENTS = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


# fmt: off
@triton.jit
def _matrix(
    x, pieces, owners, count, row_stride, column_stride,
    ELEMENT: tl.constexpr, ORDER: tl.constexpr, ALIGNED: tl.constexpr,
):
    """The matrix this program works on: address, columns, strides; which of its programs it is, and of how many."""
    program = tl.program_id(0)
    if pieces is None:
        base = x
        first = program
        step = tl.num_programs(0)
    else:
        piece = pieces + tl.load(owners + program).to(tl.int64) * 8
        base = tl.load(piece).to(tl.pointer_type(ELEMENT))
        row_stride = tl.load(piece + 1)
        column_stride = tl.load(piece + 2)
        count = tl.load(piece + 3)
        first = program - tl.load(piece + 4).to(tl.int32)
        step = tl.load(piece + 5).to(tl.int32)
        if ALIGNED:
            base = tl.multiple_of(base, 16)
            row_stride = tl.multiple_of(row_stride, 16)
            count = tl.multiple_of(count, 16)
    row_stride = tl.cast(row_stride, tl.int64)
    column_stride = tl.cast(column_stride, tl.int64)
    if ORDER == "columns":
        column_stride = 1
    if ORDER == "rows":
        row_stride = 1
    return base, tl.cast(count, tl.int64), row_stride, column_stride, first, step


@triton.jit
def _row(pieces, owners):
    """The program's row of partial results; asked for when it is written, to hold no register until then."""
    program = tl.program_id(0)
    row = tl.cast(program, tl.int64)
    if pieces is not None:
        piece = pieces + tl.load(owners + program).to(tl.int64) * 8
        row = tl.load(piece + 6) + program - tl.load(piece + 4)
    return row


@triton.jit
def _power_of_two(value):
    """(1 / p, p) with p = 2^⌊log2 value⌋ for a non-negative float32, p kept normal for zero, NaN and infinity."""
    exponent = (value.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True), (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _columns_of(
    base, columns, live, n, row_stride, column_stride,
    R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, SPREAD: tl.constexpr,
):
    """Mean and Σd² of `columns` (C,) over n rows, float64; zero where not `live`.

    SPREAD: the rows of a tile lie in several warps, each of which keeps sums of its own until the end.
    """
    pointers = base + columns * column_stride
    if SPREAD:
        shift = tl.load(pointers, mask=live, other=0.0).to(tl.float64)
        totals = tl.zeros((R, C), tl.float64)
        all_squares = tl.zeros((R, C), tl.float64)
        for start in range(0, n, R):
            rows = start + tl.arange(0, R)
            held = (rows < n)[:, None]
            tile = pointers[None, :] + rows.to(tl.int64)[:, None] * row_stride
            x = tl.load(tile, mask=held & live[None, :], other=0.0)
            d = tl.where(held, x.to(tl.float64) - shift[None, :], 0.0)
            totals += d
            all_squares += d * d
        total = tl.sum(totals, 0)
        left = total / n
        mean = shift + left
        squares = tl.sum(all_squares, 0) - total * left
    elif ACC == tl.float64:
        shift = tl.load(pointers, mask=live, other=0.0).to(tl.float64)
        total = tl.zeros((C,), tl.float64)
        squares = tl.zeros((C,), tl.float64)
        for start in range(0, n, R):
            rows = start + tl.arange(0, R)
            held = (rows < n)[:, None]
            tile = pointers[None, :] + rows.to(tl.int64)[:, None] * row_stride
            x = tl.load(tile, mask=held & live[None, :], other=0.0)
            d = tl.where(held, x.to(tl.float64) - shift[None, :], 0.0)
            total += tl.sum(d, 0)
            squares += tl.sum(d * d, 0)
        left = total / n
        mean = shift + left
        squares -= total * left
    else:
        mean = tl.zeros((C,), tl.float64)
        squares = tl.zeros((C,), tl.float64)
        for start in range(0, n, R):
            rows = start + tl.arange(0, R)
            held = (rows < n)[:, None]
            tile = pointers[None, :] + rows.to(tl.int64)[:, None] * row_stride
            x = tl.load(tile, mask=held & live[None, :], other=0.0).to(tl.float32)
            scale, power = _power_of_two(tl.max(tl.abs(x), 0))
            x *= scale[None, :]
            rows_here = tl.minimum(n - start, R).to(tl.float32)
            middle = tl.sum(x, 0) / rows_here
            d = tl.where(held, x - middle[None, :], 0.0)
            # What rounding left of the mean; Σ(d − left)² = Σd² − left Σd.
            rest = tl.sum(d, 0)
            left = rest / rows_here
            wide = power.to(tl.float64)
            step = (middle.to(tl.float64) + left) * wide - mean
            share = rows_here.to(tl.float64) / (start + rows_here)
            squares += (tl.sum(d * d, 0) - left * rest).to(tl.float64) * wide * wide + step * step * share * start
            mean += step * share
    return mean, squares


@triton.jit
def stream_kernel(
    x,  # the matrix; None where `pieces` lists many
    pieces,  # (K, 8) int64: address, row stride, column stride, columns, first program, programs, first partial row, –
    owners,  # (programs,) int32: the piece a program works on
    partials,  # (rows, 2) float64
    n, count, row_stride, column_stride,
    ELEMENT: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, C: tl.constexpr, SPREAD: tl.constexpr,
    ORDER: tl.constexpr, ALIGNED: tl.constexpr,
):
    """Signal and squares of this program's column blocks."""
    base, count, row_stride, column_stride, first, step = _matrix(
        x, pieces, owners, count, row_stride, column_stride, ELEMENT, ORDER, ALIGNED
    )
    signal = tl.zeros((), tl.float64)
    noise = tl.zeros((), tl.float64)
    for block in range(first, tl.cdiv(count, C), step):
        columns = tl.cast(block, tl.int64) * C + tl.arange(0, C)
        mean, squares = _columns_of(base, columns, columns < count, n, row_stride, column_stride, R, C, ACC, SPREAD)
        signal += tl.sum(mean * mean, 0)
        noise += tl.sum(squares, 0)
    out = partials + _row(pieces, owners) * 2
    tl.store(out, signal)
    tl.store(out + 1, noise)


@triton.jit
def _lanes(x, y, V: tl.constexpr):
    """Sums of V neighbouring products of a tile (Q, C), all of one thread; shape: (Q, C // V), float64."""
    Q: tl.constexpr = x.shape[0]
    C: tl.constexpr = x.shape[1]
    return tl.sum(tl.reshape(x * y, (Q, C // V, V)), 2).to(tl.float64)


@triton.jit
def _load_quads(base, first, columns, live, n, row_stride, column_stride, Q: tl.constexpr, ACC: tl.constexpr):
    """Rows first + 4j + k, k = 0 … 3, of `columns` as four tiles (Q, C) in ACC; zero outside the matrix."""
    rows = first + 4 * tl.arange(0, Q)
    p = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :] * column_stride
    x0 = tl.load(p, mask=(rows < n)[:, None] & live, other=0.0).to(ACC)
    x1 = tl.load(p + row_stride, mask=(rows + 1 < n)[:, None] & live, other=0.0).to(ACC)
    x2 = tl.load(p + 2 * row_stride, mask=(rows + 2 < n)[:, None] & live, other=0.0).to(ACC)
    x3 = tl.load(p + 3 * row_stride, mask=(rows + 3 < n)[:, None] & live, other=0.0).to(ACC)
    return x0, x1, x2, x3


@triton.jit
def _subtract(x0, x1, x2, x3, row, first, n, Q: tl.constexpr, EXACT: tl.constexpr):
    """The four tiles minus `row` (C,), zero past the last row; EXACT: there is no row past the last."""
    x0 -= row[None, :]
    x1 -= row[None, :]
    x2 -= row[None, :]
    x3 -= row[None, :]
    if not EXACT:
        rows = first + 4 * tl.arange(0, Q)
        x0 = tl.where((rows < n)[:, None], x0, 0.0)
        x1 = tl.where((rows + 1 < n)[:, None], x1, 0.0)
        x2 = tl.where((rows + 2 < n)[:, None], x2, 0.0)
        x3 = tl.where((rows + 3 < n)[:, None], x3, 0.0)
    return x0, x1, x2, x3


@triton.jit
def _walk(
    base, n, count, row_stride, column_stride, first, step,
    ACC: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, V: tl.constexpr, PARTS: tl.constexpr,
    EXACT: tl.constexpr, STAGES: tl.constexpr,
):
    """Signal, squares, and a_4j+k, q_4j+k, c_j, each (Q,), of the column blocks `first`, `first` + `step`, …

    A block is PARTS tiles of C columns.
    """
    ELEMENT: tl.constexpr = base.dtype.element_ty
    # Where values have no more digits than sums, a mean far above the deviation would take the deviation's digits.
    SHIFTED: tl.constexpr = ACC == tl.float32 or ELEMENT == ACC
    share = (1.0 / tl.cast(n, tl.float64)).to(ACC)
    signal = tl.zeros((C,), tl.float64)
    a0 = tl.zeros((Q, C // V), tl.float64)
    a1 = tl.zeros((Q, C // V), tl.float64)
    a2 = tl.zeros((Q, C // V), tl.float64)
    a3 = tl.zeros((Q, C // V), tl.float64)
    q0 = tl.zeros((Q, C // V), tl.float64)
    q1 = tl.zeros((Q, C // V), tl.float64)
    q2 = tl.zeros((Q, C // V), tl.float64)
    q3 = tl.zeros((Q, C // V), tl.float64)
    c = tl.zeros((Q, C // V), tl.float64)
    start = first
    end = tl.cdiv(count, C * PARTS)
    stride = step
    if PARTS > 1:
        start = 0
        end = tl.cdiv(end - first, step) * PARTS
        stride = 1
    for tile in tl.range(start, end, stride, num_stages=STAGES):
        number = tl.cast(tile, tl.int64)
        if PARTS > 1:
            number = (first + number // PARTS * step) * PARTS + number % PARTS
        columns = number * C + tl.arange(0, C)
        live = (columns < count)[None, :]
        x0, x1, x2, x3 = _load_quads(base, 0, columns, live, n, row_stride, column_stride, Q, ACC)
        if SHIFTED:
            shift = tl.load(base + columns * column_stride, mask=columns < count, other=0.0).to(ACC)
            x0, x1, x2, x3 = _subtract(x0, x1, x2, x3, shift, 0, n, Q, EXACT)
        mean = tl.sum((x0 + x1) + (x2 + x3), 0) * share
        x0, x1, x2, x3 = _subtract(x0, x1, x2, x3, mean, 0, n, Q, EXACT)
        if SHIFTED:
            mean += shift
        signal += mean.to(tl.float64) * mean
        a0 += _lanes(x0, x0, V)
        a1 += _lanes(x1, x1, V)
        a2 += _lanes(x2, x2, V)
        a3 += _lanes(x3, x3, V)
        q0 += _lanes(x0, mean[None, :], V)
        q1 += _lanes(x1, mean[None, :], V)
        q2 += _lanes(x2, mean[None, :], V)
        q3 += _lanes(x3, mean[None, :], V)
        c += _lanes(x0 - x1, x2 - x3, V)
    return (
        tl.sum(signal, 0), tl.sum(tl.sum((a0 + a1) + (a2 + a3), 1), 0),
        tl.sum(a0, 1), tl.sum(a1, 1), tl.sum(a2, 1), tl.sum(a3, 1),
        tl.sum(q0, 1), tl.sum(q1, 1), tl.sum(q2, 1), tl.sum(q3, 1), tl.sum(c, 1) * 0.5,
    )


@triton.jit
def samples_kernel(
    x, pieces, owners,  # as in stream_kernel
    partials,  # (rows, width) float64
    n, count, row_stride, column_stride, width,
    ELEMENT: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    ORDER: tl.constexpr, ALIGNED: tl.constexpr, V: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr,
):
    """All moments of this program's column blocks; a tile holds R ≥ n rows, as four sets of R / 4."""
    base, count, row_stride, column_stride, first, step = _matrix(
        x, pieces, owners, count, row_stride, column_stride, ELEMENT, ORDER, ALIGNED
    )
    Q: tl.constexpr = R // 4
    signal, squares, a0, a1, a2, a3, q0, q1, q2, q3, c = _walk(
        base, n, count, row_stride, column_stride, first, step, ACC, Q, C, V, 1, EXACT, STAGES
    )
    if ACC == tl.float32:
        # Within these bounds no product overflowed, and what underflowed is nothing beside the sum. Where there is
        # doubt the same columns are walked again, a narrow tile at a time for the registers' sake.
        if not ((squares > 1e-22) & (squares < 1e36) & (signal < 1e36)):
            signal, squares, a0, a1, a2, a3, q0, q1, q2, q3, c = _walk(
                base, n, count, row_stride, column_stride, first, step, tl.float64, Q, C // 4, V // 4, 4, EXACT, 1
            )
    out = partials + _row(pieces, owners) * width
    tl.store(out, signal)
    tl.store(out + 1, squares)
    rows = 4 * tl.arange(0, Q)
    a = out + 2 + rows
    tl.store(a, a0, mask=rows < n)
    tl.store(a + 1, a1, mask=rows + 1 < n)
    tl.store(a + 2, a2, mask=rows + 2 < n)
    tl.store(a + 3, a3, mask=rows + 3 < n)
    q = a + n
    tl.store(q, q0, mask=rows < n)
    tl.store(q + 1, q1, mask=rows + 1 < n)
    tl.store(q + 2, q2, mask=rows + 2 < n)
    tl.store(q + 3, q3, mask=rows + 3 < n)
    tl.store(out + 2 + 2 * n + tl.arange(0, Q), c, mask=rows + 3 < n)


@triton.jit
def _add_to(pointers, values, mask, started):
    """Add to what the program wrote before, if it `started`. The row is the program's own, so no other adds to it."""
    before = tl.load(pointers, mask=mask & started, other=0.0)
    tl.store(pointers, before + values, mask=mask)


@triton.jit
def two_walks_kernel(
    x, pieces, owners,  # as in stream_kernel
    partials,  # (rows, width) float64
    n, count, row_stride, column_stride, width,
    ELEMENT: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    ORDER: tl.constexpr, ALIGNED: tl.constexpr,
):
    """All moments of this program's column blocks, any n: a block's mean in one walk, sums of rows in a second."""
    base, count, row_stride, column_stride, first, step = _matrix(
        x, pieces, owners, count, row_stride, column_stride, ELEMENT, ORDER, ALIGNED
    )
    Q: tl.constexpr = R // 4
    out = partials + _row(pieces, owners) * width
    signal = tl.zeros((), tl.float64)
    noise = tl.zeros((), tl.float64)
    for block in range(first, tl.cdiv(count, C), step):
        columns = tl.cast(block, tl.int64) * C + tl.arange(0, C)
        live = columns < count
        mean, squares = _columns_of(base, columns, live, n, row_stride, column_stride, R, C, ACC, ACC == tl.float64)
        signal += tl.sum(mean * mean, 0)
        noise += tl.sum(squares, 0)
        started = block != first
        for start in range(0, n, R):
            x0, x1, x2, x3 = _load_quads(
                base, start, columns, live[None, :], n, row_stride, column_stride, Q, tl.float64
            )
            x0, x1, x2, x3 = _subtract(x0, x1, x2, x3, mean, start, n, Q, False)
            rows = start + 4 * tl.arange(0, Q)
            a = out + 2 + rows
            _add_to(a, tl.sum(x0 * x0, 1), rows < n, started)
            _add_to(a + 1, tl.sum(x1 * x1, 1), rows + 1 < n, started)
            _add_to(a + 2, tl.sum(x2 * x2, 1), rows + 2 < n, started)
            _add_to(a + 3, tl.sum(x3 * x3, 1), rows + 3 < n, started)
            q = a + n
            _add_to(q, tl.sum(x0 * mean[None, :], 1), rows < n, started)
            _add_to(q + 1, tl.sum(x1 * mean[None, :], 1), rows + 1 < n, started)
            _add_to(q + 2, tl.sum(x2 * mean[None, :], 1), rows + 2 < n, started)
            _add_to(q + 3, tl.sum(x3 * mean[None, :], 1), rows + 3 < n, started)
            c = out + 2 + 2 * n + start // 4 + tl.arange(0, Q)
            _add_to(c, tl.sum((x0 - x1) * (x2 - x3), 1) * 0.5, rows + 3 < n, started)
    tl.store(out, signal)
    tl.store(out + 1, noise)


@triton.jit
def finish_kernel(
    partials,  # (rows, width) float64
    bounds,  # (L + 1,) int64: rows bounds[l] … bounds[l + 1] belong to matrix l; None where all belong to one
    table,  # (L, width) float64
    rows, width,
    R: tl.constexpr, C: tl.constexpr,
):
    """One program owns C columns of one row of the result and adds that matrix's partial rows in order, R at a time."""
    matrix = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * C + tl.arange(0, C)
    live = (columns < width)[None, :]
    start = tl.cast(0, tl.int64)
    end = tl.cast(rows, tl.int64)
    if bounds is not None:
        start = tl.load(bounds + matrix)
        end = tl.load(bounds + matrix + 1)
    total = tl.zeros((R, C), tl.float64)
    for first in range(start, end, R):
        row = first + tl.arange(0, R)
        total += tl.load(
            partials + row[:, None] * width + columns[None, :], mask=(row < end)[:, None] & live, other=0.0
        )
    tl.store(table + matrix * width + columns, tl.sum(total, 0), mask=columns < width)
