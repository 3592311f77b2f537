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

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .._device import DeviceRecord, device_record
from . import autotune, config, waves
from .norms_kernel import _diagonal_norms_kernel, _row_norms_kernel
from .product_kernel import (
    _descriptor_product_kernel,
    _pointer_product_kernel,
    _reduce_kernel,
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


CLAMP = ("min.NaN.f32", "max.NaN.f32")
"""In PTX: the plain instructions turn NaN into a bound."""
ONE_IS = {"samples adjacent": "stride_inner", "neurons adjacent": "stride_neuron"}


def aot_cases() -> list[AotCase]:
    """Every kernel, shipped configuration and target, for float32 and bfloat16 neurons in both memory layouts."""
    cases = []
    for record in compiled_ahead():
        arch = record.family
        for layout in ONE_IS:
            cases += [_aot_norms(record, layout, center) for center in (False, True)]
        cases += [_aot_diagonal_norms(record), aot_reduce(record)]
        for dot, choices in config.POINTER[arch].items():
            # Other roundings of operands change little: `make aot` compiles them for every target, the suite for one.
            usual = dot in ("bf16", "fp16", "tf32", "bf16x3")
            cases += [aot_pointer(record, dot, choice, variant=usual) for choice in choices]
            if usual:
                continue
            # What differs in the loop is compiled with the short end of a tile.
            short: dict[str, Any] = {"store": "partial", "variant": True}
            cases.append(aot_pointer(record, dot, choices[0], layout="neurons adjacent", **short))
            cases.append(aot_pointer(record, dot, choices[0], nested=True, **short))
            if dot != "native":
                cases.append(aot_pointer(record, dot, choices[0], center=True, **short))
            cases.append(aot_pointer(record, dot, config.redo_config(arch, dot), redo=True, variant=True))
        for dot in config.DESCRIPTOR.get(arch, {}):
            for choice in config.descriptor_configs(arch, dot):
                cases.append(aot_descriptor(record, dot, choice, variant=dot not in ("native", "tf32x3")))
        if arch in config.DESCRIPTOR:
            wide = config.DESCRIPTOR_WIDE
            cases.append(aot_descriptor(record, "native", wide, store="partial", variant=True))
            cases.append(
                aot_descriptor(record, "native", wide, layout="neurons adjacent", store="partial", variant=True)
            )
    return cases


def aot_case(
    name: str,
    function: Any,
    record: DeviceRecord,
    known: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, int],
    **expected: Any,
) -> AotCase:
    """A case whose arguments are of the `known` types or `constants`; sizes and pointers are divisible by 16."""
    types = known | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in function.arg_names}
    divisible = [name for name, kind in known.items() if name not in ("tiles", "splits") and "tensordesc" not in kind]
    return AotCase(
        name,
        function,
        signature,
        constants,
        target_of(record),
        options,
        attrs=aligned(signature, *divisible),
        **expected,
    )


def _sizes(layout: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of the sizes and strides of rows; the stride of what is adjacent is the constant 1."""
    names = ["neurons", "samples", "inner", "stride_neuron", "stride_outer", "stride_inner"]
    names.remove(ONE_IS[layout])
    return dict.fromkeys(names, "i32"), {ONE_IS[layout]: 1}


def _aot_norms(record: DeviceRecord, layout: str, center: bool) -> AotCase:
    choice = config.SAMPLES_ADJACENT if layout == "samples adjacent" else config.NEURONS_ADJACENT
    sizes, constants = _sizes(layout)
    known = {"rows_ptr": "*fp32", "mean_ptr": "*fp32", "scale_ptr": "*fp32", "inverse_norm_ptr": "*fp32"}
    constants |= {"CENTER": center, "ZERO_AS_NAN": False, "NESTED": False}
    constants |= {"BLOCK_NEURONS": choice.block_neurons, "BLOCK_SAMPLES": choice.block_samples}
    return aot_case(
        f"norms{' center' if center else ''}, {layout}",
        _row_norms_kernel,
        record,
        known | {"out_of_range_ptr": "*i8"} | sizes,
        constants,
        {"num_warps": choice.num_warps},
        variant=center,
    )


def _aot_diagonal_norms(record: DeviceRecord) -> AotCase:
    choice = config.NEURONS_ADJACENT
    sizes, constants = _sizes("neurons adjacent")
    known = {"rows_ptr": "*bf16", "partial_ptr": "*fp32", "scale_ptr": "*fp32", "inverse_norm_ptr": "*fp32"}
    constants |= {"ZERO_AS_NAN": False, "NESTED": False}
    constants |= {"BLOCK_NEURONS": choice.block_neurons, "BLOCK_SAMPLES": choice.block_samples}
    return aot_case(
        "norms of a diagonal",
        _diagonal_norms_kernel,
        record,
        known | {"out_of_range_ptr": "*i8", "splits": "i32"} | sizes,
        constants,
        {"num_warps": choice.num_warps},
        variant=True,
    )


def aot_reduce(record: DeviceRecord, *, store: str = "cosine", out: str = "fp32") -> AotCase:
    """The finishing pass."""
    known = {"partial_ptr": "*fp32", "out_ptr": f"*{out}", "splits": "i32", "neurons": "i32"}
    constants = {"STORE": store, "RAW": True, "BLOCK_NEURONS": config.REDUCE_NEURONS, "GROUP": 8}
    vectors = ("scale_ptr", "inverse_norm_ptr")
    if store == "cosine":
        known |= dict.fromkeys(vectors, "*fp32")
    else:
        constants |= dict.fromkeys(vectors)
    clamp = CLAMP if record.family != "hip" and store == "cosine" else ()
    options = {"num_warps": 4}
    return aot_case(
        f"reduce {store}", _reduce_kernel, record, known, constants, options, expect_ptx=clamp, variant=True
    )


def aot_pointer(
    record: DeviceRecord,
    dot: str,
    choice: config.MatrixConfig,
    *,
    layout: str = "samples adjacent",
    store: str = "cosine",
    center: bool = False,
    redo: bool = False,
    nested: bool = False,
    out: str = "fp32",
    variant: bool = False,
) -> AotCase:
    """The pointer kernel with one configuration."""
    scaled = redo or config.scales_operands(dot, center=center)
    stored = "bf16" if dot == "native" else "fp32"
    known = {"rows_ptr": f"*{stored}", "out_ptr": f"*{out}", "tiles": "i32", "split_samples": "i32"}
    sizes, constants = _sizes(layout)
    # What a call leaves out is None, a constant too.
    wanted = {
        "mean_ptr": ("*fp32", center),
        "scale_ptr": ("*fp32", scaled or store == "cosine"),
        "inverse_norm_ptr": ("*fp32", store == "cosine"),
        "out_of_range_ptr": ("*i8", redo),
    }
    known |= {name: kind for name, (kind, given) in wanted.items() if given}
    constants |= {name: None for name, (_, given) in wanted.items() if not given}
    constants |= {"STORE": store, "PRECISION": dot, "CENTER": center, "SCALE": scaled, "ONLY_OUT_OF_RANGE": redo}
    constants |= {"NESTED": nested, "INTERPRET": False, "BLOCK_NEURONS": choice.block_rows}
    constants |= {"BLOCK_SAMPLES": choice.block_samples, "GROUP": choice.group}
    marks = {layout: True, store: True, "center": center, "redo": redo, "4-D": nested, f"into {out}": out != "fp32"}
    return aot_case(
        f"pointer {dot} {stored} {_shape(choice)}, {', '.join(mark for mark, on in marks.items() if on)}",
        _pointer_product_kernel,
        record,
        known | sizes,
        constants,
        {"num_warps": choice.num_warps, "num_stages": choice.num_stages},
        expect_mma=record.matrix_instruction if dot != "ieee" else None,
        expect_ptx=CLAMP if store == "cosine" and record.family != "hip" else (),
        variant=variant,
    )


def aot_descriptor(
    record: DeviceRecord,
    dot: str,
    choice: config.MatrixConfig,
    *,
    layout: str = "samples adjacent",
    store: str = "cosine",
    out: str = "fp32",
    variant: bool = False,
) -> AotCase:
    """The descriptor kernel with one configuration."""
    stored = "bf16" if dot == "native" else "fp32"

    def panels(block: int) -> str:
        shape = (block, choice.block_samples) if layout == "samples adjacent" else (choice.block_samples, block)
        return f"tensordesc<{stored}[{shape[0]},{shape[1]}]>"

    known = {"row_panels": panels(choice.block_rows), "column_panels": panels(choice.block_columns)}
    known |= {"out_ptr": f"*{out}"} | dict.fromkeys(("tiles", "split_samples", "neurons", "samples"), "i32")
    constants: dict[str, Any] = {"STORE": store, "PRECISION": dot, "NEURONS_ADJACENT": layout == "neurons adjacent"}
    constants |= {"INTERPRET": False, "BLOCK_ROWS": choice.block_rows, "BLOCK_COLUMNS": choice.block_columns}
    constants |= {"BLOCK_SAMPLES": choice.block_samples, "GROUP": choice.group}
    vectors = ("scale_ptr", "inverse_norm_ptr")
    if store == "cosine":
        known |= dict.fromkeys(vectors, "*fp32")
    else:
        constants |= dict.fromkeys(vectors)
    return aot_case(
        f"descriptor {dot} {stored} {_shape(choice)}, {layout}, {store}{f', into {out}' if out != 'fp32' else ''}",
        _descriptor_product_kernel,
        record,
        known,
        constants,
        {"num_warps": choice.num_warps, "num_stages": choice.num_stages},
        expect_mma=record.matrix_instruction,
        expect_tma=True,
        expect_ptx=CLAMP if store == "cosine" else (),
        variant=variant,
    )


def _shape(choice: config.MatrixConfig) -> str:
    tile = f"{choice.block_rows}×{choice.block_columns}×{choice.block_samples}"
    return f"{tile} w{choice.num_warps} s{choice.num_stages}"
