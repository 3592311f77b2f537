"""Weight gradient and squared norms of per-sample gradients in one matrix product.

For inputs a (N, T, d) and output gradients b (N, T, p), g_n = b_nᵀ a_n (p, d):

    weight gradient = Σ_n g_n        square norm = Σ_n ‖D ∘ g_n‖²

One program owns a tile of the (p, d) result and a range of samples. It accumulates g_n's tile over the positions of
sample n; at the last of them it squares it, adds it to the total and starts anew. Two accumulators, no g_n in memory,
the multiply-adds of the weight gradient alone. The grid covers the tiles and, where they are too few to fill the
device, ranges of samples; each range then has a total of its own, in float32, and torch adds these up. Every program
writes its share of the square norm, float64, and torch adds those up too: fixed order, no atomics.

Samples and positions are one loop, not two. Loads of the next sample then run ahead while the last one is finished, and
the compiler needs fewer registers: nested, two accumulators of 128 × 128 spilt on sm_90 in float32.

b is loaded as (BLOCK_P, BLOCK_T), transposed on the way: loaded the other way round, float32 came in 4 bytes a thread.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .._backend import interpreting
from .._device import DeviceRecord, device_record
from . import config
from .config import Config


@triton.jit
def _finish_sample(
    sample, total, squares, scale_ptr, row, column, inside, stride_scale_p, stride_scale_d,
    SCALED: tl.constexpr, WEIGHT_GRAD: tl.constexpr,
):  # fmt: skip
    """Total and squares with g_n's tile `sample` (P, D) added to both; squares (P,) are float64."""
    if WEIGHT_GRAD:
        total += sample
    if SCALED:
        offsets = row.to(tl.int64)[:, None] * stride_scale_p + column.to(tl.int64)[None, :] * stride_scale_d
        sample = sample * tl.load(scale_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    squares += tl.sum(sample * sample, 1).to(tl.float64)
    return total, squares


@triton.jit
def _weight_grad_stats_kernel(
    inputs_ptr,  # (N, T, d)
    output_grads_ptr,  # (N, T, p)
    scale_ptr,  # (p, d), read only if SCALED
    total_ptr,  # (ranges, p, d), written only if WEIGHT_GRAD
    squares_ptr,  # (ranges, tiles) float64
    samples, positions, d, p, samples_each,
    stride_input_n, stride_input_t, stride_input_d,
    stride_grad_n, stride_grad_t, stride_grad_p,
    stride_scale_p, stride_scale_d,
    PRECISION: tl.constexpr, SCALED: tl.constexpr, WEIGHT_GRAD: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One program owns tile `program_id(0)` of the weight gradient, and samples_each samples from program_id(1) on."""
    tile = tl.program_id(0)
    tiles_d = tl.cdiv(d, BLOCK_D)
    row = tile // tiles_d * BLOCK_P + tl.arange(0, BLOCK_P)
    column = tile % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (row < p)[:, None] & (column < d)[None, :]
    first = tl.program_id(1) * samples_each
    count = tl.minimum(samples_each, samples - first)
    steps_each = tl.cdiv(positions, BLOCK_T)
    lanes = tl.arange(0, BLOCK_T)
    grads = output_grads_ptr + row.to(tl.int64)[:, None] * stride_grad_p
    inputs = inputs_ptr + column.to(tl.int64)[None, :] * stride_input_d

    sample = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    squares = tl.zeros((BLOCK_P,), tl.float64)
    for step in range(0, count * steps_each):
        n = (first + step // steps_each).to(tl.int64)
        part = step % steps_each
        position = part * BLOCK_T + lanes
        live = position < positions
        position = position.to(tl.int64)
        b = tl.load(
            grads + (n * stride_grad_n + position * stride_grad_t)[None, :],
            mask=(row < p)[:, None] & live[None, :], other=0.0,
        )  # fmt: skip
        a = tl.load(
            inputs + (n * stride_input_n + position * stride_input_t)[:, None],
            mask=live[:, None] & (column < d)[None, :], other=0.0,
        )  # fmt: skip
        if INTERPRET:
            # The interpreter's dot on bfloat16 returns garbage, and float32 holds every half exactly.
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        sample = tl.dot(b, a, sample, input_precision=PRECISION)
        if part == steps_each - 1:
            total, squares = _finish_sample(
                sample, total, squares, scale_ptr, row, column, inside, stride_scale_p, stride_scale_d,
                SCALED, WEIGHT_GRAD,
            )  # fmt: skip
            sample = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)

    samples_range = tl.program_id(1).to(tl.int64)
    tl.store(squares_ptr + samples_range * tl.num_programs(0) + tile, tl.sum(squares, 0))
    if WEIGHT_GRAD:
        offsets = (samples_range * p + row)[:, None] * d + column[None, :]
        tl.store(total_ptr + offsets, total.to(total_ptr.dtype.element_ty), mask=inside)


def launch_weight_grad_stats(
    inputs: Tensor, output_grads: Tensor, scale: Tensor | None, weight_grad: bool, max_bytes: int
) -> tuple[Tensor | None, Tensor]:
    """Weight gradient (p, d) or None, and square norm (), of inputs (N, T, d) and output gradients (N, T, p)."""
    samples, positions, d = inputs.shape
    p = output_grads.shape[2]
    record = device_record(inputs.device)
    arch = record.family
    choice = config.choose_config(inputs.dtype, arch, p=p, d=d, scaled=scale is not None)
    tiles = triton.cdiv(p, choice.block_p) * triton.cdiv(d, choice.block_d)
    samples_each = _samples_each(samples, tiles, choice, p * d if weight_grad else 0, max_bytes, record.multiprocessors)
    ranges = triton.cdiv(samples, samples_each)
    squares = torch.empty(ranges, tiles, dtype=torch.float64, device=inputs.device)
    total = squares
    if weight_grad:
        dtype = inputs.dtype if ranges == 1 else torch.float32
        total = torch.empty(ranges, p, d, dtype=dtype, device=inputs.device)
    _weight_grad_stats_kernel[(tiles, ranges)](
        inputs, output_grads, squares if scale is None else scale, total, squares,
        samples, positions, d, p, samples_each,
        *inputs.stride(), *output_grads.stride(), *((0, 0) if scale is None else scale.stride()),
        **_constexprs(inputs.dtype, arch, choice, scale is not None, weight_grad),
        num_warps=choice.num_warps, num_stages=choice.num_stages,
    )  # fmt: skip
    square_norm = squares.sum()
    if not weight_grad:
        return None, square_norm
    return (total[0] if ranges == 1 else total.sum(0).to(inputs.dtype)), square_norm


def _samples_each(
    samples: int, tiles: int, choice: Config, elements: int, max_bytes: int, multiprocessors: int
) -> int:  # fmt: skip
    """Samples a program walks: all, unless the tiles leave multiprocessors idle and partial totals fit in max_bytes."""
    ranges = max(1, min(samples, multiprocessors * choice.resident // tiles))
    if elements:
        ranges = max(1, min(ranges, max_bytes // (elements * 4)))
    return triton.cdiv(samples, ranges)


def _constexprs(dtype: torch.dtype, arch: str, choice: Config, scaled: bool, weight_grad: bool) -> dict[str, object]:
    return {
        "PRECISION": config.dot_precision(dtype, arch),
        "SCALED": scaled,
        "WEIGHT_GRAD": weight_grad,
        "INTERPRET": interpreting(),
        "BLOCK_P": choice.block_p,
        "BLOCK_D": choice.block_d,
        "BLOCK_T": choice.block_t,
    }


def aot_cases() -> Iterator[AotCase]:
    """Every configuration and target, for bfloat16 and float32, the small tile with a scale."""
    for record in compiled_ahead():
        arch = record.family
        for dtype, kind in ((torch.bfloat16, config.HALF), (torch.float32, config.FLOAT32)):
            small = config.small_config(kind, arch)
            yield _aot_case(record, dtype, small, scaled=True)
            yield _aot_case(record, dtype, config.LARGE[arch][kind], scaled=False)


def _aot_case(
    record: DeviceRecord, dtype: torch.dtype, choice: Config, scaled: bool
) -> AotCase:  # fmt: skip
    arch, stored = record.family, {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    sizes = (
        "samples", "positions", "d", "p", "samples_each", "stride_input_n", "stride_input_t", "stride_input_d",
        "stride_grad_n", "stride_grad_t", "stride_grad_p", "stride_scale_p", "stride_scale_d",
    )  # fmt: skip
    signature = {
        "inputs_ptr": stored, "output_grads_ptr": stored, "scale_ptr": "*fp32", "total_ptr": stored,
        "squares_ptr": "*fp64", **dict.fromkeys(sizes, "i32"),
    }  # fmt: skip
    # Arguments of value 1 are compiled in as constants.
    constants = {"stride_input_d": 1, "stride_grad_p": 1, "stride_scale_d": 1}
    constants |= {**_constexprs(dtype, arch, choice, scaled, True), "INTERPRET": False}
    free = ("samples", "positions", "samples_each")
    divisible = [name for name in signature if name not in constants and name not in free]
    signature |= dict.fromkeys(constants, "constexpr")
    precision = config.dot_precision(dtype, arch)
    shape = f"{choice.block_p}x{choice.block_d}x{choice.block_t} w{choice.num_warps} s{choice.num_stages}"
    return AotCase(
        name=f"{stored[1:]} {precision} {shape}{' scaled' if scaled else ''}",
        function=_weight_grad_stats_kernel,
        signature=signature,
        constexprs=constants,
        target=target_of(record),
        options={"num_warps": choice.num_warps, "num_stages": choice.num_stages},
        expect_mma=record.matrix_instruction,
        attrs=aligned(signature, *divisible),
    )
