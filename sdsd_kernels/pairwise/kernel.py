"""Products of all pairs of neurons, tile by tile, and what becomes of a tile.

    P[i, j] = a_i · b_j,    a, b: operands as prepare_kernel.py leaves them

As many programs as the machine holds; each takes every num_programs-th piece of work, a tile over one range of the
samples. `triangle_kernel` works on tiles on and above the diagonal of one set of neurons: by STORE it stores finished
cosines twice ("matrix"), adds to a running sum ("add"), or stores the plane (N, N) of a range ("partial"), which
`reduce_kernel` adds up in order and finishes. `rectangle_kernel` takes tiles of one set of neurons with another. No
atomics: every entry is written by one program, in one order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .tile_kernel import any_marked, scaled_products, store_cosines, store_sums, tile_place, tile_products

TRITON = triton.__version__


# fmt: off
@triton.jit
def banded_place(index, down, across, BAND: tl.constexpr):
    """(row, column) of the index-th of `down` × `across`: bands of BAND rows walk their columns together."""
    band = index // (BAND * across)
    height = tl.minimum(down - band * BAND, BAND)
    inside = index - band * BAND * across
    return band * BAND + inside % height, inside // height


@triton.jit
def triangle_kernel(
    rows, columns,  # descriptors, or pointers, of one set of neurons, of blocks of rows and of columns; None: as rows
    scale_ptr, inverse_ptr,  # (N,) float32
    weight_ptr, delta_ptr, before_ptr,  # of a sum: factors (N,) float32, δ (N,) float64, what it is added to; or None
    out_ptr,
    tiles, range_samples, neurons, samples, pitch,
    STORE: tl.constexpr, STRIPS: tl.constexpr, STRIP: tl.constexpr, GUARD: tl.constexpr, GROUP: tl.constexpr,
    HOW: tl.constexpr,
):
    ROWS: tl.constexpr = HOW.rows
    COLUMNS: tl.constexpr = HOW.columns
    if columns is None:
        columns = rows
    pair = (rows, columns, neurons, neurons, samples, pitch, pitch)
    for work in range(tl.program_id(0), tiles * tl.cdiv(samples, range_samples), tl.num_programs(0)):
        number = work // tiles
        row, column = tile_place(work - number * tiles, neurons, GROUP, ROWS, COLUMNS)
        first = number * range_samples
        last = tl.minimum(first + range_samples, samples)
        products = tile_products(pair, row, column, first, last, HOW)
        if GUARD:
            if any_marked(inverse_ptr, row, neurons, ROWS) | any_marked(inverse_ptr, column, neurons, COLUMNS):
                products = scaled_products(rows, scale_ptr, row, column, neurons, first, last, samples, pitch, HOW)
        if STORE == "matrix":
            store_cosines(products, row, column, (inverse_ptr, inverse_ptr), out_ptr, neurons, neurons, True, STRIP)
        elif STORE == "add":
            terms = (scale_ptr, weight_ptr, delta_ptr, before_ptr)
            store_sums(products, row, column, terms, out_ptr, neurons, STRIPS, STRIP)
        else:
            plane = out_ptr + tl.cast(number, tl.int64) * neurons * neurons
            store_sums(products, row, column, (None, None, None, None), plane, neurons, 0, STRIP)


@triton.jit
def reduce_kernel(
    partial_ptr,  # (ranges, N, N) float32
    scale_ptr, inverse_ptr, weight_ptr, delta_ptr, before_ptr, out_ptr, ranges, neurons,
    STORE: tl.constexpr, STRIPS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):
    """One program owns a tile of the triangle: it adds up the ranges in order and finishes the tile."""
    row_start, column_start = tile_place(tl.program_id(0), neurons, GROUP, BLOCK, BLOCK)
    row = row_start + tl.arange(0, BLOCK)
    column = column_start + tl.arange(0, BLOCK)
    place = partial_ptr + (row.to(tl.int64)[:, None] * neurons + column[None, :])
    mask = (row < neurons)[:, None] & (column < neurons)[None, :]
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(0, ranges):
        products += tl.load(place, mask=mask, other=0.0)
        place += tl.cast(neurons, tl.int64) * neurons
    if STORE == "matrix":
        inverses = (inverse_ptr, inverse_ptr)
        store_cosines(products, row_start, column_start, inverses, out_ptr, neurons, neurons, True, BLOCK)
    else:
        terms = (scale_ptr, weight_ptr, delta_ptr, before_ptr)
        store_sums(products, row_start, column_start, terms, out_ptr, neurons, STRIPS, BLOCK)


@triton.jit
def rectangle_kernel(
    rows, columns,  # descriptors, or pointers, of two sets of neurons
    row_inverse_ptr, column_inverse_ptr, out_ptr,  # (N,), (M,), (N, M)
    neurons, others, samples, pitch, column_pitch, STRIP: tl.constexpr, GROUP: tl.constexpr, HOW: tl.constexpr,
):
    pair = (rows, columns, neurons, others, samples, pitch, column_pitch)
    down = tl.cdiv(neurons, HOW.rows)
    across = tl.cdiv(others, HOW.columns)
    for work in range(tl.program_id(0), down * across, tl.num_programs(0)):
        tile_row, tile_column = banded_place(work, down, across, GROUP)
        row = tile_row * HOW.rows
        column = tile_column * HOW.columns
        products = tile_products(pair, row, column, 0, samples, HOW)
        inverses = (row_inverse_ptr, column_inverse_ptr)
        store_cosines(products, row, column, inverses, out_ptr, neurons, others, False, STRIP)
# fmt: on


def described(shape: tuple[int, int], pitch: int, box: tuple[int, int], dtype: torch.dtype) -> TensorDescriptor:
    """A descriptor of memory that `placed` puts in: it is checked once."""
    # Where a dimension has one element torch may call its stride anything; a descriptor wants 1.
    return TensorDescriptor(torch.empty(0, dtype=dtype), list(shape), [pitch, 1], list(box))


def placed(panels: TensorDescriptor | None, base: Tensor) -> Any:
    """What kernels read `base` by: a descriptor, or, for None, itself, a pointer."""
    if panels is None:
        return base
    made = TensorDescriptor.__new__(TensorDescriptor)
    made.__dict__.update(panels.__dict__, base=base)
    return made
