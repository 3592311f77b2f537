"""What of the passes over pairs is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .._aot import AotCase, compiled_ahead
from .._device import DeviceRecord
from ..pairwise.aot import cases_of, neurons
from .kernel import (
    count_by,
    fill_by,
    histogram_by,
    histogram_kernel,
    past_threshold_kernel,
    plan_pass,
    row_sums_by,
    row_sums_kernel,
)


def aot_cases() -> list[AotCase]:
    """Every kernel and shipped tile for every target. Not `thorough` is what takes the most registers of each."""
    cases: list[AotCase] = []
    for record in compiled_ahead():
        brief = record.family in ("sm_90", "sm_100")
        cases += _cases(record, torch.float16, thorough=not brief)
        cases += _cases(record, torch.float32, thorough=False)
        cases += _cases(record, torch.float16, "neurons adjacent")
    return cases


def _cases(record: DeviceRecord, dtype: torch.dtype, layout: str = "", *, thorough: bool = True) -> Iterator[AotCase]:
    rows = neurons(16384, 1024, dtype, layout)
    bins = plan_pass(rows, record, histogram_kernel, False, bins=500, BINS=512)
    yield from cases_of(record, lambda: histogram_by(bins, rows, 500, None), histogram_kernel, thorough=thorough)
    sums = plan_pass(rows, record, row_sums_kernel, False, KIND="distance")
    yield from cases_of(record, lambda: row_sums_by(sums, rows, None, None), row_sums_kernel, thorough=thorough)
    pairs = plan_pass(rows, record, past_threshold_kernel, False, ABOVE=True)

    def count_and_fill() -> None:
        operands, _, inverse, _ = pairs.pairing.operands(rows, None)
        offsets = count_by(pairs, operands, inverse, 0.5, None)[1]
        fill_by(pairs, operands, inverse, 0.5, offsets, 1, None)

    yield from cases_of(record, count_and_fill, past_threshold_kernel, thorough=thorough)
