"""What of the passes over pairs is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._aot import AotCase, compiled_ahead
from .._device import DeviceRecord
from ..pairwise.aot import cases_of, neurons
from ..pairwise.config import Request
from .kernel import launch_cosine_pairs, launch_cosine_totals, past_threshold_kernel, totals_kernel


def aot_cases() -> list[AotCase]:
    """Every kernel and shipped tile for every target. Not `thorough` is what takes the most registers of each.

    Neurons are adjacent for all kernels in the same way: that is left to the one with most registers.
    """
    return [case for record in compiled_ahead() for case in _cases(record)]


def _cases(record: DeviceRecord) -> Iterator[AotCase]:
    request = Request(center=False, max_bytes=2**40)
    every = (totals_kernel, past_threshold_kernel)
    for dtype, layout, kernels in (
        (torch.float16, "", every),
        (torch.float32, "", every),
        (torch.float16, "neurons adjacent", every[1:]),
    ):
        rows = neurons(16384, 1024, dtype, layout)

        def passes(rows: Tensor = rows) -> None:
            launch_cosine_totals(rows, "histogram", 500, request)
            launch_cosine_totals(rows, "distance", 0, request)
            launch_cosine_pairs(rows, 0.5, True, request)

        # By pointers halves take a tile of three terms, which takes more of everything.
        less = dtype == torch.float16 and record.family in ("sm_80", "hip")
        yield from cases_of(record, passes, *kernels, thorough=bool(layout) or less)
