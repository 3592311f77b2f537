"""What of the nearest neurons' kernel is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from typing import Any

import torch

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .._device import DeviceRecord
from ..cosine_matrix.config import dot_precision
from . import config
from .kernel import _cosine_topk_kernel


def aot_cases() -> list[AotCase]:
    """Every shipped configuration and target with the longest list, both memory layouts, and the side paths.

    Not `thorough` are those that take the most registers or shared memory, and what multiplies halves on sm_90.
    """
    cases = []
    longest = config.lanes(config.MOST_NEIGHBORS)
    for record in compiled_ahead():
        arch = record.family
        exact = dot_precision("float32", torch.float32, center=False, arch=arch)
        brief = {"sm_90": ("native", "tf32"), "sm_100": ("bf16",)}.get(arch, ())
        for dot in config.LARGE[arch]:
            cases.append(_aot_case(record, dot, longest, thorough=dot not in brief))
        for dot in (exact, "native"):
            cases.append(_aot_case(record, dot, longest, layout="neurons adjacent", thorough=dot == "native"))
            cases.append(_aot_case(record, dot, longest, scale=True))
        cases.append(_aot_case(record, exact, longest, scale=True, center=True, thorough=arch != "sm_90"))
        cases.append(_aot_case(record, exact, longest, nested=True))
        cases.append(_aot_case(record, exact, config.lanes(10), farthest=True))
    return cases


def _aot_case(
    record: DeviceRecord,
    dot: str,
    lanes: int,
    *,
    layout: str = "samples adjacent",
    scale: bool = False,
    center: bool = False,
    nested: bool = False,
    farthest: bool = False,
    thorough: bool = True,
) -> AotCase:
    stored = "bf16" if dot == "native" else "fp32"
    choice = config.LARGE[record.family][dot]
    signature: dict[str, str] = {}
    for side, pointer in (("row", "rows_ptr"), ("other", "others_ptr")):
        signature[pointer] = f"*{stored}"
        signature |= dict.fromkeys((f"{side}_mean_ptr", f"{side}_scale_ptr", f"{side}_inverse_ptr"), "*fp32")
    signature |= {"values_ptr": "*fp32", "indices_ptr": "*i32"}
    signature |= dict.fromkeys(("k", "neurons", "others", "samples", "inner"), "i32")
    for side in ("row", "other"):
        signature |= dict.fromkeys((f"{side}_stride_{of}" for of in ("neuron", "outer", "inner")), "i32")
    signature |= dict.fromkeys(("tiles_per_split", "first_row_tile"), "i32")
    # The stride of what is adjacent is the constant 1.
    adjacent = "inner" if layout == "samples adjacent" else "neuron"
    constants: dict[str, Any] = {f"{side}_stride_{adjacent}": 1 for side in ("row", "other")}
    constants |= {"PRECISION": dot, "CENTER": center, "SCALE": scale, "NESTED": nested, "SAME": True}
    constants |= {"FARTHEST": farthest, "INTERPRET": False, "LANES": lanes, "BLOCK_ROWS": choice.block_rows}
    constants |= {"BLOCK_COLUMNS": choice.block_columns, "BLOCK_SAMPLES": choice.block_samples}
    signature |= dict.fromkeys(constants, "constexpr")
    counts = ("k", "tiles_per_split", "first_row_tile")
    divisible = [name for name, kind in signature.items() if kind != "constexpr" and name not in counts]
    paths = {"scaled": scale and not center, "center": center, "4-D": nested, "farthest": farthest}
    marks = [layout, *(mark for mark, on in paths.items() if on)]
    shape = f"{choice.block_rows}×{choice.block_columns}×{choice.block_samples}"
    return AotCase(
        f"{dot} {stored} {shape} w{choice.num_warps} s{choice.num_stages} k{lanes}, {', '.join(marks)}",
        _cosine_topk_kernel,
        signature,
        constants,
        target_of(record),
        {"num_warps": choice.num_warps, "num_stages": choice.num_stages},
        expect_mma=record.matrix_instruction if dot != "ieee" else None,
        attrs=aligned(signature, *divisible),
        thorough=thorough,
    )
