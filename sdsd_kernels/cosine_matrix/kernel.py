"""Cosine matrix of neurons in Triton: norms, then the upper triangle of tiles, stored twice.

    C[i, j] = (a_i · a_j) · (r_i r_j),    a_i = (x_i − mean_i) · s_i,    r_i = 1 / ‖a_i‖

x_i is neuron i over all samples, mean_i is 0 unless the call centres, s_i is a power of two (so it rounds nothing).

Shapes: rows (N, OUTER, INNER) with any three strides, read where it lies; sample k is (k // INNER, k % INNER).
The vectors mean, scale, inverse_norm (N,) are float32, out_of_range (N,) is int8, out (N, N) is float32 or half.

Two ways, between which `waves.py` chooses:

1. norms from the input, then products that finish their tiles themselves (`product_kernel.py`);
2. where samples are split, or a library takes the whole product: partial sums, norms from their diagonal, and a
   finishing pass that adds up, scales and mirrors.

Raw float32 products of neurons at 1e25 overflow and those at 1e-25 vanish. The norms flag such neurons; a last launch
redoes only tiles that hold one, with every operand scaled on load. Where nothing is flagged its programs read two flag
vectors a tile and leave; no synchronisation with the host is needed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .._device import DeviceRecord, device_record
from . import autotune, config, waves
from .norms_kernel import _diagonal_norms_kernel, _row_norms_kernel
from .product_kernel import (
    descriptors_can_read,
    launch_products,
    launch_redo,
    launch_reduce,
)


def launch_cosine_matrix(
    rows: Tensor, *, precision: str, out_dtype: torch.dtype, zero: str, center: bool, plan: waves.Plan | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER), float32 or half, and its inverse norms (N,): 0 or NaN if dead.

    `plan` None leaves the choice to the wave model, or to measurements where SDSD_AUTOTUNE=1 asks for them.
    """
    record = device_record(rows.device)
    dot = config.dot_precision(precision, rows.dtype, center=center, arch=record.family)
    # The kernels' float32 result holds every digit it has; float64 is a cast.
    kept = torch.float32 if out_dtype == torch.float64 else out_dtype

    def compute(plan: waves.Plan) -> tuple[Tensor, Tensor]:
        return _by_plan(rows, plan, dot, kept, zero == "nan", center)

    if plan is None:
        problem = problem_of(rows, record, dot, "cosine", scaled=config.scales_operands(dot, center=center))
        plan = autotune.choose("cosine_matrix", problem, compute, rows.device)
    out, inverse_norm = compute(plan)
    return out.to(out_dtype), inverse_norm


def problem_of(rows: Tensor, record: DeviceRecord, dot: str, writes: str, *, scaled: bool) -> waves.Problem:
    """What the wave model has to know of a call; `scaled` where operands change on their way to the product."""
    neurons, outer, inner = rows.shape
    readable = not scaled and descriptors_can_read(rows)
    return waves.Problem(
        arch=record.name,
        dot=dot,
        neurons=neurons,
        samples=outer * inner,
        item_bytes=rows.element_size(),
        descriptor=readable,
        # Rows a library can take are rows a descriptor can read. ROCm's product has no float32 result of halves.
        dense=readable and writes == "cosine" and dot == "native" and record.family.startswith("sm_"),
        writes=writes,
        multiprocessors=record.multiprocessors,
    )


def _by_plan(
    rows: Tensor, plan: waves.Plan, dot: str, dtype: torch.dtype, zero_as_nan: bool, center: bool
) -> tuple[Tensor, Tensor]:
    neurons = rows.shape[0]
    mean, scale, inverse_norm = rows.new_empty((3, neurons), dtype=torch.float32)
    out_of_range = rows.new_empty(neurons, dtype=torch.int8)
    out = rows.new_empty((neurons, neurons), dtype=dtype)
    scaled = config.scales_operands(dot, center=center)
    vectors = {"scale": scale, "inverse_norm": inverse_norm}
    if scaled or not plan.finishes:
        _norms(rows, mean, scale, inverse_norm, out_of_range, center, zero_as_nan)
    if plan.finishes:
        partial = _partial_sums(rows, plan, dot, mean, scale, center, scaled)
        if not scaled:
            _norms_of_diagonal(rows, partial, scale, inverse_norm, out_of_range, zero_as_nan)
        launch_reduce(partial, "cosine", out, raw=not scaled, **vectors)
    else:
        options: dict[str, Any] = {"center": center, "scale_operands": scaled}
        launch_products(rows, plan, dot, "cosine", out, mean=mean, **vectors, **options)
    # float16 has no values whose squares leave float32.
    if not scaled and rows.dtype != torch.float16:
        launch_redo(rows, dot, out, scale, inverse_norm, out_of_range)
    return out, inverse_norm


def _partial_sums(
    rows: Tensor, plan: waves.Plan, dot: str, mean: Tensor, scale: Tensor, center: bool, scaled: bool
) -> Tensor:
    """Products on and above the diagonal, a plane for every split.  # shape: (SPLITS, N, N)"""
    neurons, outer, inner = rows.shape
    if plan.launch is None:
        return _dense_products(rows[:, 0]).unsqueeze(0)
    splits = waves.split_count(outer * inner, plan.splits, plan.launch.block_samples)
    partial = rows.new_empty((splits, neurons, neurons), dtype=torch.float32)
    options: dict[str, Any] = {"center": center, "scale_operands": scaled}
    launch_products(rows, plan, dot, "partial", partial, mean=mean, scale=scale, **options)
    return partial


def _dense_products(halves: Tensor) -> Tensor:
    """The whole product of (N, SAMPLES) halves, summed and kept in float32."""
    if halves.device.type == "cuda":
        return torch.mm(halves, halves.T, out_dtype=torch.float32)
    return halves.float() @ halves.float().T


def _norms(
    rows: Tensor,
    mean: Tensor,
    scale: Tensor,
    inverse_norm: Tensor,
    out_of_range: Tensor,
    center: bool,
    zero_as_nan: bool,
) -> None:
    neurons, outer, inner = rows.shape
    choice = config.norms_config(rows)
    _row_norms_kernel[(triton.cdiv(neurons, choice.block_neurons),)](
        rows,
        mean,
        scale,
        inverse_norm,
        out_of_range,
        neurons,
        outer * inner,
        inner,
        *rows.stride(),
        CENTER=center,
        ZERO_AS_NAN=zero_as_nan,
        NESTED=outer > 1,
        BLOCK_NEURONS=choice.block_neurons,
        BLOCK_SAMPLES=choice.block_samples,
        num_warps=choice.num_warps,
    )


def _norms_of_diagonal(
    rows: Tensor, partial: Tensor, scale: Tensor, inverse_norm: Tensor, out_of_range: Tensor, zero_as_nan: bool
) -> None:
    neurons, outer, inner = rows.shape
    choice = config.norms_config(rows)
    _diagonal_norms_kernel[(triton.cdiv(neurons, choice.block_neurons),)](
        rows,
        partial,
        scale,
        inverse_norm,
        out_of_range,
        partial.shape[0],
        neurons,
        outer * inner,
        inner,
        *rows.stride(),
        ZERO_AS_NAN=zero_as_nan,
        NESTED=outer > 1,
        BLOCK_NEURONS=choice.block_neurons,
        BLOCK_SAMPLES=choice.block_samples,
        num_warps=choice.num_warps,
    )
