"""What of the passes over pairs is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from .._aot import AotCase, compiled_ahead
from .._device import DeviceRecord
from ..pairwise.aot import cases_of, neurons
from .kernel import (
    histogram_kernel,
    launch_cosine_histogram,
    launch_cosine_pairs,
    launch_cosine_row_sums,
    past_threshold_kernel,
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
    options: dict[str, Any] = {"center": False, "max_bytes": 2**40, "progress": None, "record": record}
    for kernel, call in (
        (histogram_kernel, partial(launch_cosine_histogram, rows, bins=500, **options)),
        (row_sums_kernel, partial(launch_cosine_row_sums, rows, kind="distance", **options)),
        (past_threshold_kernel, partial(launch_cosine_pairs, rows, threshold=0.5, above=True, **options)),
    ):
        yield from cases_of(record, call, kernel, thorough=thorough)
