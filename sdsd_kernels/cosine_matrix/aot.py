"""What of the symmetric products is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from typing import Any

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .._device import DeviceRecord
from . import config
from .norms_kernel import _diagonal_norms_kernel, _row_norms_kernel
from .product_kernel import _descriptor_product_kernel, _pointer_product_kernel, _reduce_kernel

CLAMP = ("min.NaN.f32", "max.NaN.f32")
"""In PTX: the plain instructions turn NaN into a bound."""
ONE_IS = {"samples adjacent": "stride_inner", "neurons adjacent": "stride_neuron"}


def aot_cases() -> list[AotCase]:
    """Every kernel, shipped configuration and target, for float32 and bfloat16 neurons in both memory layouts.

    Not `thorough` are those that take the most registers or shared memory, one for each kernel and target, and for
    sm_90 one for each way into the matrix unit.
    """
    cases = []
    for record in compiled_ahead():
        arch = record.family
        for layout in ONE_IS:
            cases += [_aot_norms(record, layout, center) for center in (False, True)]
        cases += [_aot_diagonal_norms(record), aot_reduce(record)]
        for dot, choices in config.POINTER[arch].items():
            exact = dot in ("tf32x3", "ieee")
            for choice in choices:
                brief = choice is choices[0] and (exact or dot in ("native", "bf16x3"))
                cases.append(aot_pointer(record, dot, choice, thorough=not brief))
            if not exact and dot != "native":
                continue  # other roundings of operands change little
            # What differs in the loop is compiled with the short end of a tile.
            short: dict[str, Any] = {"store": "partial", "thorough": True}
            cases.append(aot_pointer(record, dot, choices[0], layout="neurons adjacent", **short))
            cases.append(aot_pointer(record, dot, choices[0], nested=True, **short))
            if exact:
                short["thorough"] = arch != "sm_90"
                cases.append(aot_pointer(record, dot, choices[0], center=True, **short))
            cases.append(aot_pointer(record, dot, config.redo_config(arch, dot), redo=True, thorough=True))
        for dot in config.DESCRIPTOR.get(arch, {}):
            for choice in config.descriptor_configs(arch, dot):
                brief = choice is config.DESCRIPTOR_WIDE or dot == "tf32x3"
                cases.append(aot_descriptor(record, dot, choice, thorough=not brief))
        if arch in config.DESCRIPTOR:
            for layout in ONE_IS:
                brief = layout == "neurons adjacent" and arch == "sm_90"
                wide: dict[str, Any] = {"layout": layout, "store": "partial", "thorough": not brief}
                cases.append(aot_descriptor(record, "native", config.DESCRIPTOR_WIDE, **wide))
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
        thorough=not (center and layout == "neurons adjacent"),
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
    )


def aot_reduce(record: DeviceRecord, *, store: str = "cosine", out: str = "fp32", thorough: bool = False) -> AotCase:
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
        f"reduce {store}", _reduce_kernel, record, known, constants, options, expect_ptx=clamp, thorough=thorough
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
    thorough: bool = False,
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
        thorough=thorough,
    )


def aot_descriptor(
    record: DeviceRecord,
    dot: str,
    choice: config.MatrixConfig,
    *,
    layout: str = "samples adjacent",
    store: str = "cosine",
    out: str = "fp32",
    thorough: bool = False,
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
        thorough=thorough,
    )


def _shape(choice: config.MatrixConfig) -> str:
    tile = f"{choice.block_rows}×{choice.block_columns}×{choice.block_samples}"
    return f"{tile} w{choice.num_warps} s{choice.num_stages}"
