"""Squared norms of per-sample gradients without the gradients: by products of positions, or of one position a sample.

With inputs a_n (T, d) and output gradients b_n (T, p) of sample n, ‖b_nᵀ a_n‖² = ⟨a_n a_nᵀ, b_n b_nᵀ⟩: products of
(T, T) matrices, and of two numbers for T = 1.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit
def gram_kernel(
    a, b,  # inputs (N, T, d) and output gradients (N, T, p): descriptors, or pointers if POINTERS
    squares_ptr,  # (N, programs a sample) float64
    positions, d, p, tiles,
    a_n, a_t, a_d, b_n, b_t, b_p,  # strides, read only if POINTERS
    POINTERS: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, EVERY: tl.constexpr,
):
    """Σ⟨a_n a_nᵀ, b_n b_nᵀ⟩: a program takes one tile of a sample's (T, T) triangle.

    Both products stay on chip, are multiplied and summed. Tiles off the diagonal count twice. The matrix
    unit's truncated sums are added to a float32 total every EVERY features; 0 is never.
    """
    triangle = tiles * (tiles + 1) // 2
    n = tl.program_id(0) // triangle
    row = 0
    left = tl.program_id(0) % triangle
    while left >= tiles - row:
        left -= tiles - row
        row += 1
    column = row + left
    inner_a = _product(a, n, row * BLOCK_T, column * BLOCK_T, positions, d, a_n, a_t, a_d, POINTERS, PRECISION,
                       INTERPRET, BLOCK_T, BLOCK_K, EVERY)
    inner_b = _product(b, n, row * BLOCK_T, column * BLOCK_T, positions, p, b_n, b_t, b_p, POINTERS, PRECISION,
                       INTERPRET, BLOCK_T, BLOCK_K, EVERY)
    # Row by row, Triton 3.7 cannot compile the sum for sm_100.
    products = (inner_a * inner_b).reshape([BLOCK_T * BLOCK_T])
    value = tl.sum(products, 0).to(tl.float64) * tl.where(row == column, 1.0, 2.0)
    tl.store(squares_ptr + tl.program_id(0), value)


@triton.jit
def _product(
    x, n, row_start, column_start, positions, features, x_n, x_t, x_f,
    POINTERS: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, EVERY: tl.constexpr,
):
    """Products of positions row_start… and column_start… of sample n over all features."""
    products = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    if EVERY == 0:
        products = _partial_product(
            x, n, row_start, column_start, positions, features, 0, features, x_n, x_t, x_f, products,
            POINTERS, PRECISION, INTERPRET, BLOCK_T, BLOCK_K,
        )
    else:
        for first in range(0, features, EVERY):
            products += _partial_product(
                x, n, row_start, column_start, positions, features, first, tl.minimum(first + EVERY, features),
                x_n, x_t, x_f, tl.zeros((BLOCK_T, BLOCK_T), tl.float32),
                POINTERS, PRECISION, INTERPRET, BLOCK_T, BLOCK_K,
            )
    return products


@triton.jit
def _partial_product(
    x, n, row_start, column_start, positions, features, first, last, x_n, x_t, x_f, products,
    POINTERS: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """`products` and those over features `first` to `last`."""
    if POINTERS:
        lanes = tl.arange(0, BLOCK_K)
        row = row_start + tl.arange(0, BLOCK_T)
        column = column_start + tl.arange(0, BLOCK_T)
        rows = x + tl.cast(n, tl.int64) * x_n + row.to(tl.int64)[:, None] * x_t
        columns = x + tl.cast(n, tl.int64) * x_n + column.to(tl.int64)[None, :] * x_t
    for start in range(first, last, BLOCK_K):
        if POINTERS:
            feature = start + lanes
            held = feature < features
            offset = feature.to(tl.int64) * x_f
            left = tl.load(rows + offset[None, :], mask=(row < positions)[:, None] & held[None, :], other=0.0)
            right = tl.load(columns + offset[:, None], mask=held[:, None] & (column < positions)[None, :], other=0.0)
        else:
            left = x.load([n, row_start, start]).reshape([BLOCK_T, BLOCK_K])
            right = x.load([n, column_start, start]).reshape([BLOCK_T, BLOCK_K]).T
        if INTERPRET:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        products = tl.dot(left, right, products, input_precision=PRECISION)
    return products


@triton.jit
def rank1_kernel(
    a, b, squares_ptr,  # (N, d), (N, p), (programs,) float64
    samples, d, p, a_n, a_d, b_n, b_p, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Σ‖a_n‖²‖b_n‖² over BLOCK_N samples."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    left = _row_squares(a, row, samples, d, a_n, a_d, BLOCK_N, BLOCK_K)
    right = _row_squares(b, row, samples, p, b_n, b_p, BLOCK_N, BLOCK_K)
    tl.store(squares_ptr + tl.program_id(0), tl.sum(left * right, 0))


@triton.jit
def _row_squares(x, row, samples, features, x_n, x_f, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    squares = tl.zeros((BLOCK_N, BLOCK_K), tl.float64)
    for start in range(0, features, BLOCK_K):
        feature = start + tl.arange(0, BLOCK_K)
        offsets = row.to(tl.int64)[:, None] * x_n + feature.to(tl.int64)[None, :] * x_f
        value = tl.load(x + offsets, mask=(row < samples)[:, None] & (feature < features)[None, :], other=0.0)
        value = value.to(tl.float64)
        squares += value * value
    return tl.sum(squares, 1)
