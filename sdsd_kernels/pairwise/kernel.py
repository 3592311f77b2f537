"""Products of all pairs of neurons, tile by tile, and what becomes of a tile.

    P[i, j] = a_i · b_j,    a, b: operands as prepare_kernel.py leaves them

As many programs as the machine holds; each takes every num_programs-th piece of work, a tile over one range of the
samples. `triangle_kernel` works on tiles on and above the diagonal of one set of neurons and does one of:

- STORE = "matrix": finish the cosines of the tile and store them twice;
- STORE = "partial": store the tile in the plane (N, N) of its range, for `reduce_kernel` to add up in order and finish;
- STORE = "add": add it to a running sum.

`rectangle_kernel` takes tiles of one set of neurons with another. No atomics: every entry is written by one program,
in one order. The kernels of ../cosine_topk and ../cosine_pairs take tiles from tile_kernel.py too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .tile_kernel import (
    _tile_place,
    any_marked,
    scaled_products,
    store_matrix,
    store_rectangle,
    store_sums,
    tile_products,
)

TRITON = triton.__version__


# fmt: off
@triton.jit
def triangle_kernel(
    rows, columns,  # descriptors, or pointers, of one set of neurons, of blocks of rows and of columns; None: as rows
    scale_ptr, inverse_ptr,  # (N,) float32
    weight_ptr, delta_ptr, before_ptr,  # of a sum: factors (N,) float32, δ (N,) float64, what it is added to; or None
    out_ptr,
    tiles, range_samples, neurons, samples, pitch,
    STORE: tl.constexpr, STRIPS: tl.constexpr, THREE: tl.constexpr, EVERY: tl.constexpr, ADJACENT: tl.constexpr,
    GUARD: tl.constexpr, POINTERS: tl.constexpr, INTERPRET: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SAMPLES: tl.constexpr, STRIP: tl.constexpr, GROUP: tl.constexpr,
):
    if columns is None:
        columns = rows
    for work in range(tl.program_id(0), tiles * tl.cdiv(samples, range_samples), tl.num_programs(0)):
        number = work // tiles
        row, column = _tile_place(work - number * tiles, neurons, GROUP, ROWS, COLUMNS)
        first = number * range_samples
        last = tl.minimum(first + range_samples, samples)
        products = tile_products(
            rows, columns, row, column, neurons, neurons, first, last, samples, pitch, pitch,
            THREE, EVERY, ADJACENT, POINTERS, INTERPRET, ROWS, COLUMNS, SAMPLES,
        )
        if GUARD:
            if any_marked(inverse_ptr, row, neurons, ROWS) | any_marked(inverse_ptr, column, neurons, COLUMNS):
                products = scaled_products(
                    rows, columns, row, column, neurons, neurons, first, last, samples, pitch, pitch,
                    scale_ptr, scale_ptr, ADJACENT, POINTERS, INTERPRET, ROWS, COLUMNS, SAMPLES,
                )
        if STORE == "matrix":
            store_matrix(products, row, column, inverse_ptr, out_ptr, neurons, STRIP)
        elif STORE == "add":
            store_sums(
                products, row, column, weight_ptr, scale_ptr, delta_ptr, before_ptr, out_ptr, neurons, STRIPS, STRIP
            )
        else:
            plane = out_ptr + tl.cast(number, tl.int64) * neurons * neurons
            store_sums(products, row, column, None, None, None, None, plane, neurons, 0, STRIP)


@triton.jit
def reduce_kernel(
    partial_ptr,  # (ranges, N, N) float32
    scale_ptr, inverse_ptr, weight_ptr, delta_ptr, before_ptr, out_ptr, ranges, neurons,
    STORE: tl.constexpr, STRIPS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):
    """One program owns a tile of the triangle: it adds up the ranges in order and finishes the tile."""
    row_start, column_start = _tile_place(tl.program_id(0), neurons, GROUP, BLOCK, BLOCK)
    row = row_start + tl.arange(0, BLOCK)
    column = column_start + tl.arange(0, BLOCK)
    place = partial_ptr + (row.to(tl.int64)[:, None] * neurons + column[None, :])
    mask = (row < neurons)[:, None] & (column < neurons)[None, :]
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(0, ranges):
        products += tl.load(place, mask=mask, other=0.0)
        place += tl.cast(neurons, tl.int64) * neurons
    if STORE == "matrix":
        store_matrix(products, row_start, column_start, inverse_ptr, out_ptr, neurons, BLOCK)
    else:
        store_sums(
            products, row_start, column_start, weight_ptr, scale_ptr, delta_ptr, before_ptr, out_ptr, neurons, STRIPS,
            BLOCK,
        )


@triton.jit
def rectangle_kernel(
    rows, columns,  # descriptors, or pointers, of two sets of neurons
    row_inverse_ptr, column_inverse_ptr, out_ptr,  # (N,), (M,), (N, M)
    neurons, others, samples, pitch, column_pitch,
    THREE: tl.constexpr, EVERY: tl.constexpr, ADJACENT: tl.constexpr, POINTERS: tl.constexpr, INTERPRET: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SAMPLES: tl.constexpr, GROUP: tl.constexpr,
):
    across = tl.cdiv(others, COLUMNS)
    down = tl.cdiv(neurons, ROWS)
    for work in range(tl.program_id(0), down * across, tl.num_programs(0)):
        # Bands of GROUP tile rows walk their columns together.
        band = work // (GROUP * across)
        height = tl.minimum(down - band * GROUP, GROUP)
        inside = work - band * GROUP * across
        row = (band * GROUP + inside % height) * ROWS
        column = inside // height * COLUMNS
        products = tile_products(
            rows, columns, row, column, neurons, others, 0, samples, samples, pitch, column_pitch,
            THREE, EVERY, ADJACENT, POINTERS, INTERPRET, ROWS, COLUMNS, SAMPLES,
        )
        store_rectangle(products, row, column, row_inverse_ptr, column_inverse_ptr, out_ptr, neurons, others)
# fmt: on


class Panels:
    """A descriptor of neurons without their memory, checked once."""

    __slots__ = ("_fields",)

    def __init__(self, shape: tuple[int, int], pitch: int, box: tuple[int, int], dtype: torch.dtype) -> None:
        # Where a dimension has one element torch may call its stride anything; a descriptor wants 1.
        made = TensorDescriptor(torch.empty(0, dtype=dtype), list(shape), [pitch, 1], list(box))
        self._fields = made.__dict__

    def of(self, base: Tensor) -> TensorDescriptor:
        made = TensorDescriptor.__new__(TensorDescriptor)
        made.__dict__.update(self._fields)
        made.base = base
        return made
