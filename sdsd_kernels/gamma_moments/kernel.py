"""Moments of per-sample gradients in one read of memory.

For G of shape (N, P), ḡ its mean row, d_i = g_i − ḡ:

    signal = ‖ḡ‖²   squares = Σ‖d_i‖²   a_i = ‖d_i‖²   q_i = d_i·ḡ   c_j = (g_4j − g_4j+1)·(g_4j+2 − g_4j+3) / 2

Each of them is a sum over columns, so columns can be shared out freely. One program owns a range of columns of one
matrix and all N rows of it; it walks the range a tile at a time, holding the tile in registers as four interleaved
sets of rows (4j, 4j + 1, 4j + 2, 4j + 3), so that c_j needs no exchange between threads. It writes one row of
partial results; a second kernel adds the rows of each matrix in a fixed order, in float64. No atomics.

Numerics: a tile is scaled by a power of two to a largest value in [1, 2) before anything is squared, centred on its
mean, and centred once more on what rounding left; sums over a tile are float32, sums over tiles float64.

Above RESIDENT_ROWS rows a program walks each column tile in chunks of rows, merging means and squares (Chan, Golub &
LeVeque 1983); a_i, q_i and c_j then take a second walk.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .._aot import TARGETS, AotCase
from .config import (
    CHUNKED,
    MAX_PARTIAL_ELEMENTS,
    PROGRAMS_PER_MULTIPROCESSOR,
    RESIDENT,
    RESIDENT_ROWS,
    Config,
    choose_config,
)
from .layout import as_matrices, row_width


@triton.jit
def _load(base, rows, columns, row_stride, column_stride, n, count, ACC: tl.constexpr, RAGGED: tl.constexpr):
    """Tile (R, C) of `rows` × `columns` in ACC precision; zero outside the matrix."""
    mask = (rows < n)[:, None]
    if RAGGED:
        mask = mask & (columns < count)[None, :]
    pointers = base + rows.to(tl.int64)[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(pointers, mask=mask, other=0.0).to(ACC)


@triton.jit
def _power_of_two(value):
    """(1 / p, p) with p = 2^⌊log2 value⌋ for a non-negative float32, p kept normal for zero, NaN and infinity."""
    exponent = (value.to(tl.int32, bitcast=True) >> 23) & 0xFF
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True), (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _load_scaled(
    base, first, columns, row_stride, column_stride, n, count,
    R: tl.constexpr, ACC: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Rows first + 4j + k, k = 0…3, as four tiles (R, C) divided by a power of two, and that power (float64)."""
    rows = first + 4 * tl.arange(0, R)
    x0 = _load(base, rows, columns, row_stride, column_stride, n, count, ACC, RAGGED)
    x1 = _load(base, rows + 1, columns, row_stride, column_stride, n, count, ACC, RAGGED)
    x2 = _load(base, rows + 2, columns, row_stride, column_stride, n, count, ACC, RAGGED)
    x3 = _load(base, rows + 3, columns, row_stride, column_stride, n, count, ACC, RAGGED)
    power = tl.full((), 1.0, tl.float64)
    if ACC == tl.float32:
        largest = tl.maximum(tl.maximum(tl.abs(x0), tl.abs(x1)), tl.maximum(tl.abs(x2), tl.abs(x3)))
        scale, inverse = _power_of_two(tl.max(tl.max(largest, 1), 0))
        x0 *= scale
        x1 *= scale
        x2 *= scale
        x3 *= scale
        power = inverse.to(tl.float64)
    return x0, x1, x2, x3, power


@triton.jit
def _mean(x0, x1, x2, x3, held):
    return (tl.sum(x0, 0) + tl.sum(x1, 0) + tl.sum(x2, 0) + tl.sum(x3, 0)) / held


@triton.jit
def _subtract(x0, x1, x2, x3, mean, first, n, R: tl.constexpr):
    """Rows minus `mean` (C,), zero past the last row."""
    rows = first + 4 * tl.arange(0, R)
    x0 = tl.where((rows < n)[:, None], x0 - mean[None, :], 0.0)
    x1 = tl.where((rows + 1 < n)[:, None], x1 - mean[None, :], 0.0)
    x2 = tl.where((rows + 2 < n)[:, None], x2 - mean[None, :], 0.0)
    x3 = tl.where((rows + 3 < n)[:, None], x3 - mean[None, :], 0.0)
    return x0, x1, x2, x3


@triton.jit
def _centred(
    base, first, held, columns, row_stride, column_stride, n, count,
    R: tl.constexpr, ACC: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Mean (C,) of `held` rows from `first` on as a sum of two, the rows minus it, the power they are divided by."""
    x0, x1, x2, x3, power = _load_scaled(
        base, first, columns, row_stride, column_stride, n, count, R, ACC, RAGGED
    )  # fmt: skip
    mean = _mean(x0, x1, x2, x3, held)
    x0, x1, x2, x3 = _subtract(x0, x1, x2, x3, mean, first, n, R)
    left = _mean(x0, x1, x2, x3, held)
    x0, x1, x2, x3 = _subtract(x0, x1, x2, x3, left, first, n, R)
    return mean, left, x0, x1, x2, x3, power


@triton.jit
def _row_dots(x, y, power):
    return tl.sum(x * y, 1).to(tl.float64) * power * power


@triton.jit
def _squares(x0, x1, x2, x3, power):
    rows = _row_dots(x0, x0, power) + _row_dots(x1, x1, power) + _row_dots(x2, x2, power) + _row_dots(x3, x3, power)
    return tl.sum(rows, 0)


@triton.jit
def _add_to(pointers, values, mask):
    tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + values, mask=mask)


@triton.jit
def _add_samples(out, first, n, mean, x0, x1, x2, x3, power, R: tl.constexpr):
    """Add a_i, q_i and c_j of the rows from `first` on. `out` is the program's own, so load, add, store is safe."""
    quads = tl.arange(0, R)
    rows = first + 4 * quads
    a = out + 2 + rows
    _add_to(a, _row_dots(x0, x0, power), rows < n)
    _add_to(a + 1, _row_dots(x1, x1, power), rows + 1 < n)
    _add_to(a + 2, _row_dots(x2, x2, power), rows + 2 < n)
    _add_to(a + 3, _row_dots(x3, x3, power), rows + 3 < n)
    q = a + n
    _add_to(q, _row_dots(x0, mean[None, :], power), rows < n)
    _add_to(q + 1, _row_dots(x1, mean[None, :], power), rows + 1 < n)
    _add_to(q + 2, _row_dots(x2, mean[None, :], power), rows + 2 < n)
    _add_to(q + 3, _row_dots(x3, mean[None, :], power), rows + 3 < n)
    c = out + 2 + 2 * n + first // 4 + quads
    _add_to(c, _row_dots(x0 - x1, x2 - x3, power) * 0.5, rows + 3 < n)


@triton.jit
def _add_column_tile(
    base, start, row_stride, column_stride, n, count, out,
    R: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr, RAGGED: tl.constexpr,
    RESIDENT: tl.constexpr, PER_SAMPLE: tl.constexpr,
):  # fmt: skip
    """Signal and squares of the C columns from `start` on; a_i, q_i, c_j are added to `out`."""
    columns = start + tl.arange(0, C)
    if RESIDENT:
        mean, left, x0, x1, x2, x3, power = _centred(
            base, 0, n, columns, row_stride, column_stride, n, count, R, ACC, RAGGED
        )  # fmt: skip
        mean += left
        signal = tl.sum(mean * mean, 0).to(tl.float64) * power * power
        squares = _squares(x0, x1, x2, x3, power)
        if PER_SAMPLE:
            _add_samples(out, 0, n, mean, x0, x1, x2, x3, power, R)
    else:
        total = tl.zeros((C,), tl.float64)
        squares = tl.zeros((), tl.float64)
        for first in range(0, n, 4 * R):
            held = tl.minimum(n - first, 4 * R)
            mean, left, x0, x1, x2, x3, power = _centred(
                base, first, held, columns, row_stride, column_stride, n, count, R, ACC, RAGGED
            )  # fmt: skip
            share = held.to(tl.float64) / (held + first).to(tl.float64)
            shift = (mean.to(tl.float64) + left.to(tl.float64)) * power - total
            squares += _squares(x0, x1, x2, x3, power) + tl.sum(shift * shift, 0) * share * first
            total += shift * share
        signal = tl.sum(total * total, 0)
        if PER_SAMPLE:
            for first in range(0, n, 4 * R):
                x0, x1, x2, x3, power = _load_scaled(
                    base, first, columns, row_stride, column_stride, n, count, R, ACC, RAGGED
                )  # fmt: skip
                mean = (total / power).to(ACC)
                x0, x1, x2, x3 = _subtract(x0, x1, x2, x3, mean, first, n, R)
                # The mean's rounding error would be common to all rows; its low half takes it out.
                low = (total / power - mean.to(tl.float64)).to(ACC)
                x0, x1, x2, x3 = _subtract(x0, x1, x2, x3, low, first, n, R)
                _add_samples(out, first, n, mean, x0, x1, x2, x3, power, R)
    return signal, squares


@triton.jit
def _gamma_moments_kernel(
    work,  # (W, 5) int64: address, row stride, column stride, columns, row of `partials`
    partials,  # (rows, width) float64, zeroed
    n, width,
    ELEMENT: tl.constexpr, ACC: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    RESIDENT: tl.constexpr, PER_SAMPLE: tl.constexpr, CONTIGUOUS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One program owns one work item: a range of columns of one matrix and row `work[4]` of `partials`."""
    item = work + tl.program_id(0).to(tl.int64) * 5
    base = tl.load(item).to(tl.pointer_type(ELEMENT))
    row_stride = tl.load(item + 1)
    column_stride = 1 if CONTIGUOUS else tl.load(item + 2)
    count = tl.load(item + 3)
    out = partials + tl.load(item + 4) * width
    if ALIGNED:
        base = tl.multiple_of(base, 16)
        row_stride = tl.multiple_of(row_stride, 16)
    signal = tl.zeros((), tl.float64)
    squares = tl.zeros((), tl.float64)
    whole = count // C * C
    for start in range(0, whole, C):
        tile_signal, tile_squares = _add_column_tile(
            base, start, row_stride, column_stride, n, count, out, R, C, ACC, False, RESIDENT, PER_SAMPLE
        )  # fmt: skip
        signal += tile_signal
        squares += tile_squares
    if whole < count:
        tile_signal, tile_squares = _add_column_tile(
            base, whole, row_stride, column_stride, n, count, out, R, C, ACC, True, RESIDENT, PER_SAMPLE
        )  # fmt: skip
        signal += tile_signal
        squares += tile_squares
    tl.store(out, signal)
    tl.store(out + 1, squares)


@triton.jit
def _sum_rows_kernel(
    partials,  # (rows, width) float64
    bounds,  # (L + 1,) int64: rows bounds[l] … bounds[l + 1] belong to matrix l
    table,  # (L, width) float64
    width,
    BLOCK: tl.constexpr,
):
    """One program owns BLOCK columns of one row of the result and adds that matrix's partial rows in order."""
    layer = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for row in range(tl.load(bounds + layer), tl.load(bounds + layer + 1)):
        total += tl.load(partials + row * width + columns, mask=columns < width, other=0.0)
    tl.store(table + layer * width + columns, total, mask=columns < width)


_ELEMENTS = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
FINISH_BLOCK = 128


def launch_gamma_moments(grads: list[Tensor], per_sample: bool) -> Tensor:
    """Result rows for `grads` (N, *shape) each; shape: (L, row_width), float64.

    One launch for each combination of dtype and memory order present, whatever the number of tensors, and one to
    finish. The work table is built on the host and copied over once.
    """
    device, n = grads[0].device, grads[0].shape[0]
    width = row_width(n, per_sample)
    config = choose_config(n)
    # Matrices are kept until the launch: the table holds their addresses alone.
    matrices = [as_matrices(entry) for entry in grads]
    columns_each = _columns_each(sum(m.shape[1] for views in matrices for m in views), width, config, device)

    items: dict[tuple[torch.dtype, bool, bool], list[tuple[int, int, int, int, int]]] = {}
    bounds, rows = [0], 0
    for views in matrices:
        for matrix in views:
            row_stride, column_stride = matrix.stride()
            aligned = column_stride == 1 and matrix.data_ptr() % 16 == 0 and row_stride % 16 == 0
            group = items.setdefault((matrix.dtype, column_stride == 1, aligned), [])
            for start in range(0, matrix.shape[1], columns_each):
                address = matrix.data_ptr() + start * column_stride * matrix.element_size()
                group.append((address, row_stride, column_stride, min(columns_each, matrix.shape[1] - start), rows))
                rows += 1
        bounds.append(rows)

    partials = torch.zeros(rows, width, dtype=torch.float64, device=device)
    table = torch.empty(len(grads), width, dtype=torch.float64, device=device)
    for (dtype, contiguous, aligned), group in items.items():
        work = torch.from_numpy(np.array(group, dtype=np.int64)).to(device)
        _gamma_moments_kernel[(len(group),)](
            work, partials, n, width,
            ELEMENT=_ELEMENTS[dtype],
            **_constexprs(config, dtype, n, per_sample, contiguous, aligned),
            num_warps=config.num_warps,
        )  # fmt: skip
    bounds_on_device = torch.tensor(bounds, dtype=torch.int64).to(device)
    grid = (len(grads), triton.cdiv(width, FINISH_BLOCK))
    _sum_rows_kernel[grid](partials, bounds_on_device, table, width, BLOCK=FINISH_BLOCK)
    return table


def _columns_each(columns: int, width: int, config: Config, device: torch.device) -> int:
    """Columns a program walks: enough programs to fill the device, few enough to bound the partial results."""
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    programs = max(1, min(multiprocessors * PROGRAMS_PER_MULTIPROCESSOR, MAX_PARTIAL_ELEMENTS // width))
    tiles = triton.cdiv(triton.cdiv(columns, config.columns), programs)
    return tiles * config.columns


def _constexprs(
    config: Config, dtype: torch.dtype, n: int, per_sample: bool, contiguous: bool, aligned: bool
) -> dict[str, object]:
    # A float64 tile takes twice the registers, and its sums too: with half the columns 512 rows still spilled.
    wide = dtype == torch.float64
    return {
        "ACC": tl.float64 if wide else tl.float32,
        "R": config.rows // 4,
        "C": config.columns // 4 if wide else config.columns,
        "RESIDENT": n <= RESIDENT_ROWS,
        "PER_SAMPLE": per_sample,
        "CONTIGUOUS": contiguous,
        "ALIGNED": aligned,
    }


def aot_cases() -> Iterator[AotCase]:
    """What is compiled ahead of time: every configuration in float32, three of them in the other dtypes too.

    Registers grow with the tile, so those smaller than the largest are variants.
    """
    for target in TARGETS:
        for config in (*RESIDENT, CHUNKED):
            resident = config is not CHUNKED
            n = config.rows if resident else RESIDENT_ROWS + 1
            dtypes = (torch.float32,)
            if config in (RESIDENT[2], RESIDENT[-1], CHUNKED):
                dtypes = (torch.float32, torch.bfloat16, torch.float64)
            smaller = config in RESIDENT[:-1]
            for dtype in dtypes:
                constexprs = {"ELEMENT": _ELEMENTS[dtype], **_constexprs(config, dtype, n, True, True, True)}
                kind = "resident" if resident else "chunked"
                yield AotCase(
                    name=f"{kind} {config.rows}x{constexprs['C']} {str(dtype).removeprefix('torch.')}",
                    function=_gamma_moments_kernel,
                    signature={
                        "work": "*i64",
                        "partials": "*fp64",
                        "n": "i32",
                        "width": "i32",
                        **dict.fromkeys(constexprs, "constexpr"),
                    },
                    constexprs=constexprs,
                    target=target,
                    options={"num_warps": config.num_warps},
                    variant=smaller or dtype != torch.float32,
                )
        yield AotCase(
            name="sum_rows",
            function=_sum_rows_kernel,
            signature={
                "partials": "*fp64",
                "bounds": "*i64",
                "table": "*fp64",
                "width": "i32",
                "BLOCK": "constexpr",
            },
            constexprs={"BLOCK": FINISH_BLOCK},
            target=target,
            options={"num_warps": 4},
        )
