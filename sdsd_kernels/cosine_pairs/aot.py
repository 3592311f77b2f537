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
    """Every kernel and shipped tile for every target. Not `thorough` is what takes the most registers of each.

    What reads by pointers has one tile for halves and for three terms, which take more of everything, so that is what
    is compiled. Neurons are adjacent for all kernels in the same way: that is left to the one with most registers.
    """
    cases: list[AotCase] = []
    for record in compiled_ahead():
        if record.family in ("sm_90", "sm_100"):
            cases += _cases(record, torch.float16, thorough=False)
        cases += _cases(record, torch.float32, thorough=False)
        cases += _adjacent(record)
    return cases


def _adjacent(record: DeviceRecord) -> Iterator[AotCase]:
    cases = _cases(record, torch.float16, "neurons adjacent")
    return (case for case in cases if case.function is past_threshold_kernel)


def _cases(record: DeviceRecord, dtype: torch.dtype, layout: str = "", *, thorough: bool = True) -> Iterator[AotCase]:
    rows = neurons(16384, 1024, dtype, layout)
    options: dict[str, Any] = {"center": False, "max_bytes": 2**40, "progress": None, "record": record}
    for kernel, call in (
        (histogram_kernel, partial(launch_cosine_histogram, rows, bins=500, **options)),
        (row_sums_kernel, partial(launch_cosine_row_sums, rows, kind="distance", **options)),
        (past_threshold_kernel, partial(launch_cosine_pairs, rows, threshold=0.5, above=True, **options)),
    ):
        yield from cases_of(record, call, kernel, thorough=thorough)
