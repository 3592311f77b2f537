"""What of the passes over pairs is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .._aot import AotCase, compiled_ahead
from ..pairwise.aot import cases_of, neurons
from ..pairwise.config import Request
from .kernel import launch_cosine_pairs, launch_cosine_totals, past_threshold_kernel, totals_kernel


def aot_cases() -> Iterator[AotCase]:
    """Every kernel and shipped tile for every target. Not `thorough` is what takes the most registers of each.

    Neurons are adjacent for all kernels in the same way: that is left to the one with most registers.
    """
    half, every = torch.float16, (totals_kernel, past_threshold_kernel)
    for record in compiled_ahead():
        for dtype, layout, kernels in (
            (half, "", every),
            (torch.float32, "", every),
            (half, "neurons adjacent", every[1:]),
        ):
            # By pointers halves take a tile of three terms, which takes more of everything.
            thorough = bool(layout) or (dtype == half and record.family in ("sm_80", "hip"))
            passes = partial(_passes, neurons(16384, 1024, dtype, layout))
            yield from cases_of(record, passes, *kernels, thorough=thorough)


def _passes(rows: Tensor) -> None:
    request = Request(center=False, max_bytes=2**40)
    launch_cosine_totals(rows, "histogram", 500, request)
    launch_cosine_totals(rows, "distance", 0, request)
    launch_cosine_pairs(rows, 0.5, True, request)
