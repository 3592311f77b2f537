"""Cosine matrix of neurons in Triton: one pass for the norms, then the upper triangle of tiles, stored twice.

    C[i, j] = (a_i · a_j) · (r_i r_j),    a_i = (x_i − mean_i) · s_i,    r_i = 1 / ‖a_i‖

x_i is neuron i over all samples, mean_i is 0 unless the call centres, s_i is a power of two (so it rounds nothing).

Shapes: rows (N, OUTER, INNER) with any three strides, read where it lies; sample k is (k // INNER, k % INNER).
The vectors mean, scale, inverse_norm (N,) are float32, out_of_range (N,) is int8, out (N, N) is float32 or half.

- `_row_norms_kernel`: one program owns BLOCK_NEURONS neurons and walks all their samples.
- `_cosine_matrix_kernel`: one program owns one BLOCK_NEURONS² tile on or above the diagonal, walks all samples, and
  writes the tile and its mirror image, so the result is symmetric bit for bit and half the products are computed.

Raw float32 products of neurons at 1e25 overflow and those at 1e-25 vanish. The first pass flags such neurons; a second
launch of the matrix kernel redoes only tiles that hold one, with every operand scaled on load. Where nothing is
flagged its programs read two flag vectors and leave; no scratch and no synchronisation with the host are needed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._aot import GFX942, SM80, SM90, SM100, AotCase, aligned
from .._backend import interpreting
from . import config

LARGEST_SQUARE = tl.constexpr(2.0**120)
SMALLEST_SQUARE = tl.constexpr(2.0**-80)
"""Raw products serve while ‖x‖² is in this range: r_i r_j stays normal, and so do all products that matter."""


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
def _row_norms_kernel(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    inverse_norm_ptr,
    out_of_range_ptr,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
    CENTER: tl.constexpr,
    ZERO_AS_NAN: tl.constexpr,
    NESTED: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr,
):
    neuron = tl.program_id(0) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    live = neuron < neurons
    neuron_offset = neuron.to(tl.int64) * stride_neuron
    lanes = tl.arange(0, BLOCK_SAMPLES)
    one = tl.full((BLOCK_NEURONS,), 1.0, tl.float32)

    mean = tl.zeros((BLOCK_NEURONS,), tl.float32)
    if CENTER:
        # Sums of x − x_0 are as small as the spread, so a mean far from zero costs no digits,
        # and a constant neuron has exactly the mean x_0 and becomes exactly zero.
        first = tl.load(rows_ptr + neuron_offset, mask=live, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
        for start in range(0, samples, BLOCK_SAMPLES):
            sample = start + lanes
            tile = _load_tile(rows_ptr, neuron_offset, live, sample, samples, inner, stride_outer, stride_inner, NESTED)
            total += _shift_and_scale(tile, first, one, sample, samples, True)
        mean = first + tl.sum(total, axis=1) / samples

    squares = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
    largest = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
    for start in range(0, samples, BLOCK_SAMPLES):
        sample = start + lanes
        tile = _load_tile(rows_ptr, neuron_offset, live, sample, samples, inner, stride_outer, stride_inner, NESTED)
        tile = _shift_and_scale(tile, mean, one, sample, samples, CENTER)
        squares += tile * tile
        largest = tl.maximum(largest, tl.abs(tile))
    square = tl.sum(squares, axis=1)
    peak = tl.max(largest, axis=1)
    scale = _power_of_two_scale(peak)
    # A NaN shows in the sum of squares (a maximum may drop it), an infinity in the maximum (a sum may overflow to it).
    finite = (square == square) & (peak < float("inf"))
    out_of_range = finite & (peak > 0) & ((square < SMALLEST_SQUARE) | (square > LARGEST_SQUARE))
    scaled_square = square * scale * scale
    if tl.max(out_of_range.to(tl.int32), axis=0) > 0:
        squares = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float32)
        for start in range(0, samples, BLOCK_SAMPLES):
            sample = start + lanes
            tile = _load_tile(rows_ptr, neuron_offset, live, sample, samples, inner, stride_outer, stride_inner, NESTED)
            tile = _shift_and_scale(tile, mean, scale, sample, samples, CENTER)
            squares += tile * tile
        scaled_square = tl.where(out_of_range, tl.sum(squares, axis=1), scaled_square)

    inverse_norm = 1.0 / tl.sqrt_rn(scaled_square)
    inverse_norm = tl.where(peak > 0, inverse_norm, float("nan") if ZERO_AS_NAN else 0.0)
    inverse_norm = tl.where(finite, inverse_norm, float("nan"))
    tl.store(mean_ptr + neuron, mean, mask=live)
    tl.store(scale_ptr + neuron, scale, mask=live)
    tl.store(inverse_norm_ptr + neuron, inverse_norm, mask=live)
    tl.store(out_of_range_ptr + neuron, out_of_range.to(tl.int8), mask=live)


@triton.jit
def _triangle_tile(program, tiles, GROUP: tl.constexpr):
    """(tile row, tile column, wanted) of a program; programs below the diagonal or beyond the end are not wanted.

    GROUP tile rows share the column panels they load. A group of rows has fewer columns the lower it lies, so group g
    is joined with the g-th from the bottom: all pairs are equally long and integer division finds the place.
    """
    groups = (tiles + GROUP - 1) // GROUP
    pair = program // ((groups + 1) * GROUP * GROUP)
    within = program % ((groups + 1) * GROUP * GROUP)
    step = within // GROUP
    upper_steps = (groups - pair) * GROUP
    lower = step >= upper_steps
    group = tl.where(lower, groups - 1 - pair, pair)
    column = group * GROUP + tl.where(lower, step - upper_steps, step)
    row = group * GROUP + within % GROUP
    own_partner = lower & (2 * pair == groups - 1)
    return row, column, (row <= column) & (column < tiles) & (own_partner == 0)


@triton.jit
def _dot(accumulator, a, b, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """accumulator + a bᵀ with operands rounded as PRECISION says; "native" multiplies halves as they are."""
    if PRECISION == "bf16":
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
    if INTERPRET:
        # The interpreter's dot on bfloat16 returns garbage, and float32 holds every half exactly.
        return tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), accumulator, input_precision="ieee")
    elif PRECISION == "bf16" or PRECISION == "native":
        return tl.dot(a, tl.trans(b), accumulator)
    else:
        return tl.dot(a.to(tl.float32), tl.trans(b.to(tl.float32)), accumulator, input_precision=PRECISION)


@triton.jit
def _cosine_matrix_kernel(
    rows_ptr,
    mean_ptr,
    scale_ptr,
    inverse_norm_ptr,
    out_of_range_ptr,
    out_ptr,
    neurons,
    samples,
    inner,
    stride_neuron,
    stride_outer,
    stride_inner,
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
    tile_row, tile_column, wanted = _triangle_tile(tl.program_id(0), tl.cdiv(neurons, BLOCK_NEURONS), GROUP)
    if wanted == 0:
        return
    row = tile_row * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    column = tile_column * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    row_mask = row < neurons
    column_mask = column < neurons
    if ONLY_OUT_OF_RANGE:
        flags = tl.load(out_of_range_ptr + row, mask=row_mask, other=0).to(tl.int32)
        flags += tl.load(out_of_range_ptr + column, mask=column_mask, other=0).to(tl.int32)
        if tl.max(flags, axis=0) == 0:
            return
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

    row_inverse = tl.load(inverse_norm_ptr + row, mask=row_mask, other=0.0)
    column_inverse = tl.load(inverse_norm_ptr + column, mask=column_mask, other=0.0)
    if not SCALE:
        row_inverse *= tl.load(scale_ptr + row, mask=row_mask, other=1.0)
        column_inverse *= tl.load(scale_ptr + column, mask=column_mask, other=1.0)
    # r_i r_j first: multiplying by one and then by the other would depend on which neuron comes first.
    cosine = accumulator * (row_inverse[:, None] * column_inverse[None, :])
    # Plain min and max return the bound for NaN on NVIDIA GPUs.
    cosine = tl.minimum(cosine, 1.0, propagate_nan=tl.PropagateNan.ALL)
    cosine = tl.maximum(cosine, -1.0, propagate_nan=tl.PropagateNan.ALL)
    # 1 for a live neuron, else what stands for the inverse norm of a neuron without direction: 0 or NaN.
    on_diagonal = tl.where(row_inverse > 0, 1.0, row_inverse)
    cosine = tl.where(row[:, None] == column[None, :], on_diagonal[:, None], cosine)
    if tile_row == tile_column:
        # The two halves of a tf32x3 product differ in the last bit: keep the upper one.
        cosine = tl.where(row[:, None] <= column[None, :], cosine, tl.trans(cosine))
    cosine = cosine.to(out_ptr.dtype.element_ty)

    row_start = row.to(tl.int64) * neurons
    tl.store(out_ptr + row_start[:, None] + column[None, :], cosine, mask=row_mask[:, None] & column_mask[None, :])
    column_start = column.to(tl.int64) * neurons
    tl.store(
        out_ptr + column_start[:, None] + row[None, :],
        tl.trans(cosine),
        mask=column_mask[:, None] & row_mask[None, :],
    )


def triangle_programs(tiles: int, group: int) -> int:
    """How many programs `_triangle_tile` spreads a triangle of `tiles` × `tiles` tiles over."""
    groups = triton.cdiv(tiles, group)
    return triton.cdiv(groups, 2) * (groups + 1) * group * group


def launch_cosine_matrix(
    rows: Tensor, *, precision: str, out_dtype: torch.dtype, zero: str, center: bool
) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER), float32 or half, and its inverse norms (N,): 0 or NaN if dead."""
    neurons, outer, inner = rows.shape
    samples = outer * inner
    stride_neuron, stride_outer, stride_inner = rows.stride()
    nested = outer > 1
    shape = (neurons, samples, inner, stride_neuron, stride_outer, stride_inner)
    mean, scale, inverse_norm = rows.new_empty((3, neurons), dtype=torch.float32)
    out_of_range = rows.new_empty(neurons, dtype=torch.int8)
    vectors = (mean, scale, inverse_norm, out_of_range)
    # The kernel's float32 result holds every digit it has; float64 is a cast.
    out = rows.new_empty((neurons, neurons), dtype=torch.float32 if out_dtype == torch.float64 else out_dtype)

    norms = config.norms_config(samples_adjacent=abs(stride_inner) <= abs(stride_neuron))
    _row_norms_kernel[(triton.cdiv(neurons, norms.block_neurons),)](
        rows,
        *vectors,
        *shape,
        CENTER=center,
        ZERO_AS_NAN=zero == "nan",
        NESTED=nested,
        BLOCK_NEURONS=norms.block_neurons,
        BLOCK_SAMPLES=norms.block_samples,
        num_warps=norms.num_warps,
    )

    arch = config.architecture(rows.device)
    dot = config.dot_precision(precision, rows.dtype, center=center, arch=arch)
    choice = config.matrix_config(arch, dot, neurons)
    grid = (triangle_programs(triton.cdiv(neurons, choice.block_neurons), choice.group),)

    def launch(scale_operands: bool, only_out_of_range: bool) -> None:
        _cosine_matrix_kernel[grid](
            rows,
            *vectors,
            out,
            *shape,
            PRECISION=dot,
            CENTER=center,
            SCALE=scale_operands,
            ONLY_OUT_OF_RANGE=only_out_of_range,
            NESTED=nested,
            INTERPRET=interpreting(),
            BLOCK_NEURONS=choice.block_neurons,
            BLOCK_SAMPLES=choice.block_samples,
            GROUP=choice.group,
            num_warps=choice.num_warps,
            num_stages=choice.num_stages,
        )

    # Centring changes the operands on load anyway, and the scale comes with it.
    launch(scale_operands=center, only_out_of_range=False)
    # float16 has no values whose squares leave float32.
    if not center and rows.dtype != torch.float16:
        launch(scale_operands=True, only_out_of_range=True)
    return out.to(out_dtype), inverse_norm


def aot_cases() -> list[AotCase]:
    """Every kernel, shipped configuration and target, for float32 and bfloat16 neurons in both memory layouts."""
    cases = []
    for arch, target in {"sm_80": SM80, "sm_90": SM90, "sm_100": SM100, "hip": GFX942}.items():
        for layout in ("samples adjacent", "neurons adjacent"):
            cases += [_aot_norms(target, layout, center) for center in (False, True)]
        for dot in config.LARGE[arch]:
            stored = "bf16" if dot == "native" else "fp32"
            large = config.LARGE[arch][dot]
            cases.append(_aot_matrix(target, dot, stored, large, "samples adjacent"))
            cases.append(_aot_matrix(target, dot, stored, large, "neurons adjacent"))
            cases.append(_aot_matrix(target, dot, stored, large, "samples adjacent", out_of_range=True))
            if dot != "native":
                cases.append(_aot_matrix(target, dot, stored, large, "samples adjacent", center=True))
            if large.block_neurons != config.SMALL.block_neurons:
                cases.append(_aot_matrix(target, dot, stored, config.SMALL, "samples adjacent"))
        exact = config.dot_precision("float32", torch.float32, center=False, arch=arch)
        cases.append(_aot_matrix(target, exact, "fp32", config.LARGE[arch][exact], "samples adjacent", nested=True))
    return cases


def _aot_rows(stored: str, layout: str, outputs: dict[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Signature and constants of the arguments both kernels share; the stride of what is adjacent is the constant 1."""
    signature = {"rows_ptr": f"*{stored}", "mean_ptr": "*fp32", "scale_ptr": "*fp32", "inverse_norm_ptr": "*fp32"}
    signature |= {"out_of_range_ptr": "*i8", **outputs}
    sizes = ("neurons", "samples", "inner", "stride_neuron", "stride_outer", "stride_inner")
    signature |= dict.fromkeys(sizes, "i32")
    one = "stride_inner" if layout == "samples adjacent" else "stride_neuron"
    return signature | {one: "constexpr"}, {one: 1}


def _aot_case(
    name: str,
    function: Any,
    target: tuple[str, int | str, int],
    signature: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int],
    expect_mma: str | None = None,
    variant: bool = False,
) -> AotCase:
    divisible = [argument for argument, kind in signature.items() if kind != "constexpr"]
    signature = signature | dict.fromkeys(constants, "constexpr")
    known = aligned(signature, *divisible)
    return AotCase(name, function, signature, constants, target, options, expect_mma, known, variant)


def _aot_norms(target: tuple[str, int | str, int], layout: str, center: bool) -> AotCase:
    choice = config.norms_config(samples_adjacent=layout == "samples adjacent")
    signature, constants = _aot_rows("fp32", layout, {})
    constants |= {"CENTER": center, "ZERO_AS_NAN": False, "NESTED": False}
    constants |= {"BLOCK_NEURONS": choice.block_neurons, "BLOCK_SAMPLES": choice.block_samples}
    name = f"norms{' center' if center else ''}, {layout}"
    options = {"num_warps": choice.num_warps}
    return _aot_case(name, _row_norms_kernel, target, signature, constants, options, variant=center)


def _aot_matrix(
    target: tuple[str, int | str, int],
    dot: str,
    stored: str,
    choice: config.MatrixConfig,
    layout: str,
    *,
    center: bool = False,
    out_of_range: bool = False,
    nested: bool = False,
) -> AotCase:
    signature, constants = _aot_rows(stored, layout, {"out_ptr": "*fp32"})
    constants |= {"PRECISION": dot, "CENTER": center, "SCALE": center or out_of_range}
    constants |= {"ONLY_OUT_OF_RANGE": out_of_range, "NESTED": nested, "INTERPRET": False}
    constants |= {"BLOCK_NEURONS": choice.block_neurons, "BLOCK_SAMPLES": choice.block_samples, "GROUP": choice.group}
    marks = [mark for mark, on in {"center": center, "out of range": out_of_range, "4-D": nested}.items() if on]
    shape = f"{choice.block_neurons}²×{choice.block_samples} w{choice.num_warps} s{choice.num_stages}"
    return _aot_case(
        f"matrix {dot} {stored} {shape}, {', '.join([layout, *marks])}",
        _cosine_matrix_kernel,
        target,
        signature,
        constants,
        {"num_warps": choice.num_warps, "num_stages": choice.num_stages},
        expect_mma="HGMMA" if target == SM90 and dot != "ieee" else None,
        variant=center or out_of_range or nested,
    )
