"""What of the passes over pairs is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from typing import Any

import torch

from .._aot import AotCase, compiled_ahead
from .._device import DeviceRecord
from ..pairwise.aot import case_of, panels_type
from ..pairwise.config import reads_boxes
from . import config
from .kernel import histogram_kernel, past_threshold_kernel, plan_pass, row_sums_kernel

_BANDS = ("i32", "i32")
_PASSES: dict[str, tuple[Any, int, tuple[str | None, ...], dict[str, Any]]] = {
    "histogram": (histogram_kernel, 0, ("*i64", *_BANDS), {"bins": 500, "BINS": config.MOST_BINS}),
    "row sums": (row_sums_kernel, 0, ("*fp32", "*fp32", *_BANDS), {"KIND": "distance"}),
    "count": (past_threshold_kernel, 0, ("*i32", None, None, None, None, "fp32", *_BANDS), {"ABOVE": True}),
    "fill": (past_threshold_kernel, 1, (None, "*i64", "*i32", "*fp32", "*i32", "fp32", *_BANDS), {"ABOVE": True}),
}
"""Kernel, number of its launch, types of its own tensors, constants of its own."""


def aot_cases() -> list[AotCase]:
    """Every kernel and shipped tile for every target. Not `thorough` is what takes the most registers of each."""
    return [
        _aot_case(name, record, dtype, thorough=dtype == torch.float16 and record.family not in ("sm_90", "sm_100"))
        for record in compiled_ahead()
        for name in _PASSES
        for dtype in (torch.float16, torch.float32)
    ] + [_aot_case(name, record, torch.float16, adjacent=True) for record in compiled_ahead() for name in _PASSES]


def _aot_case(
    name: str, record: DeviceRecord, dtype: torch.dtype, *, adjacent: bool = False, thorough: bool = True
) -> AotCase:
    kernel, number, types, own = _PASSES[name]
    rows = torch.empty((16384, 1, 1024), dtype=dtype, device="meta")
    if adjacent:
        rows = torch.empty((1, 1024, 16384), dtype=dtype, device="meta").permute(2, 0, 1)
    plan = plan_pass(rows, kernel, False, record=record, **own)
    tile = config.tile(kernel.__name__, record.family, three=plan.prepare.three)
    terms = "three terms" if plan.prepare.three else "one term"
    shape = f"{tile.rows}²×{tile.samples} w{tile.num_warps} s{tile.num_stages}"
    return case_of(
        f"{name} {terms} {shape}{', neurons adjacent' if adjacent else ''}",
        plan.launches[number],
        record,
        panels_type(plan.prepare, tile.rows, tile.samples),
        "*fp32",
        *types,
        expect_mma=record.matrix_instruction,
        expect_tma=reads_boxes(record),
        thorough=thorough,
    )
