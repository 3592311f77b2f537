"""What of the nearest neurons' kernel is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

import torch

from .._aot import AotCase, compiled_ahead
from .._device import DeviceRecord
from .._launch import Launch
from ..pairwise.aot import case_of, neurons_of, panels_type
from ..pairwise.config import reads_boxes
from . import config
from .kernel import plan_topk, topk_kernel


def aot_cases() -> list[AotCase]:
    """Every shipped tile and target with its longest list; not `thorough` are those that take the most registers."""
    cases = []
    for record in compiled_ahead():
        for dtype, table in ((torch.float16, config.ONE_TERM), (torch.float32, config.THREE_TERMS)):
            for places, _ in table[record.family]:
                cases.append(_aot_case(record, dtype, places))
        cases.append(_aot_case(record, torch.float16, 32, adjacent=True, thorough=record.family != "sm_90"))
        cases.append(_aot_case(record, torch.float32, 10, farthest=True, others=True, thorough=True))
    return cases


def _aot_case(
    record: DeviceRecord,
    dtype: torch.dtype,
    k: int,
    *,
    adjacent: bool = False,
    farthest: bool = False,
    others: bool = False,
    thorough: bool = False,
) -> AotCase:
    rows = torch.empty((65536, 1, 1024), dtype=dtype, device="meta")
    if adjacent:
        rows = torch.empty((1, 1024, 65536), dtype=dtype, device="meta").permute(2, 0, 1)
    plan = plan_topk(rows, rows if others else None, k, record, farthest=farthest, precision="float32", center=False)
    launch = Launch(topk_kernel, (1, 1, 1), plan.settled | {"tiles_per_split": 250}, **plan.options)
    prepared = neurons_of(65536, 1024, dtype, record, adjacent=adjacent)
    tile = config.topk_tile(record.family, prepared.three, plan.lanes)
    types = (panels_type(prepared, block, tile.samples) for block in (tile.rows, tile.columns))
    marks = {"neurons adjacent": adjacent, "farthest": farthest, "others": others}
    shape = f"{tile.rows}×{tile.columns}×{tile.samples} w{tile.num_warps} s{tile.num_stages}"
    terms = "three terms" if prepared.three else "one term"
    return case_of(
        f"{terms} {shape} k{plan.lanes}{''.join(f', {mark}' for mark, on in marks.items() if on)}",
        launch,
        record,
        *types,
        "*fp32",
        "*fp32",
        "*fp32",
        "*i32",
        "i32",
        "i32",
        expect_mma=record.matrix_instruction,
        expect_tma=reads_boxes(record),
        thorough=thorough,
    )
