"""What of the passes over pairs is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from typing import Any

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .._device import DeviceRecord
from . import config
from .kernel import _histogram_kernel, _past_threshold_kernel, _row_sums_kernel

_SPECIFIC: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "histogram": (_histogram_kernel, {"counts_ptr": "*i64", "bins": "i32"}, {"BINS": config.MOST_BINS}),
    "row sums": (_row_sums_kernel, {"row_partials_ptr": "*fp32", "column_partials_ptr": "*fp32"}, {"KIND": "distance"}),
    **{
        name: (
            _past_threshold_kernel,
            {"counts_ptr": "*i32", "offsets_ptr": "*i64", "second_ptr": "*i32"}
            | {"cosine_ptr": "*fp32", "strayed_ptr": "*i32", "threshold": "fp32"},
            {"FILL": fill, "ABOVE": True, "CHUNK": 16},
        )
        for name, fill in (("count", False), ("fill", True))
    },
}
"""The kernels' own arguments and constants."""


def aot_cases() -> list[AotCase]:
    """Every kernel and shipped configuration for every target; side paths where they take the most registers.

    Not `thorough` are those that take the most registers or shared memory, and what multiplies halves on the GPUs whose
    matrix unit reads shared memory.
    """
    cases = []
    for record in compiled_ahead():
        wide = record.family in ("sm_90", "sm_100")
        for dot in config.HISTOGRAM[record.family]:
            exact = dot != "native"
            cases.append(_aot_case("histogram", record, dot, thorough=not (exact or wide)))
            cases.append(_aot_case("row sums", record, dot, thorough=exact or not wide))
            cases += [_aot_case(name, record, dot) for name in ("count", "fill")]
            cases.append(_aot_case("histogram", record, dot, scale=True))
            if not exact:
                continue  # halves take fewer registers on every side path
            for name in ("histogram", "row sums", "fill"):
                cases.append(_aot_case(name, record, dot, layout="neurons adjacent"))
            cases.append(_aot_case("row sums", record, dot, scale=True, thorough=False))
            cases.append(_aot_case("fill", record, dot, scale=True, thorough=record.family != "sm_90"))
            cases.append(_aot_case("fill", record, dot, center=True, thorough=False))
            cases.append(_aot_case("fill", record, dot, nested=True))
    return cases


def _aot_case(
    name: str,
    record: DeviceRecord,
    dot: str,
    layout: str = "samples adjacent",
    *,
    center: bool = False,
    scale: bool = False,
    nested: bool = False,
    thorough: bool = True,
) -> AotCase:
    function, own, constants = _SPECIFIC[name]
    arch = record.family
    if name == "histogram":
        choice = config.histogram(arch, dot, scale=scale or center)
    else:
        choice = config.row_sums(arch, dot) if name == "row sums" else config.past_threshold(arch)
    stored = "bf16" if dot == "native" else "fp32"
    signature = {"rows_ptr": f"*{stored}", "mean_ptr": "*fp32", "scale_ptr": "*fp32", "inverse_norm_ptr": "*fp32"}
    signature |= own | {"first_row": "i32", "end_row": "i32"}
    sizes = ("neurons", "samples", "inner", "stride_neuron", "stride_outer", "stride_inner")
    signature |= dict.fromkeys(sizes, "i32")
    divisible = [argument for argument, kind in signature.items() if kind.startswith("*") or argument in sizes]
    one = "stride_inner" if layout == "samples adjacent" else "stride_neuron"
    divisible.remove(one)
    constants = constants | {one: 1, "PRECISION": dot, "CENTER": center, "SCALE": scale or center, "NESTED": nested}
    constants |= {"INTERPRET": False, "BLOCK_NEURONS": choice.block_neurons, "BLOCK_SAMPLES": choice.block_samples}
    if name in ("histogram", "row sums"):
        constants["GROUP"] = choice.group
    signature |= dict.fromkeys(constants, "constexpr")
    marks = [mark for mark, on in {"center": center, "scaled": scale, "4-D": nested}.items() if on]
    shape = f"{choice.block_neurons}²×{choice.block_samples} w{choice.num_warps} s{choice.num_stages}"
    return AotCase(
        f"{name} {dot} {stored} {shape}, {', '.join([layout, *marks])}",
        function,
        signature,
        constants,
        target_of(record),
        {"num_warps": choice.num_warps, "num_stages": choice.num_stages},
        expect_mma=record.matrix_instruction if dot != "ieee" else None,
        attrs=aligned(signature, *divisible),
        thorough=thorough,
    )
