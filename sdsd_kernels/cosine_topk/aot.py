"""What of the nearest neurons' kernel is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .._aot import AotCase, compiled_ahead
from ..pairwise.aot import cases_of, neurons
from ..pairwise.config import Request
from . import config
from .kernel import launch_cosine_topk, topk_kernel


def aot_cases() -> Iterator[AotCase]:
    """Every shipped tile and target with its longest list; not `thorough` are those that take the most registers."""
    for record in compiled_ahead():
        request = Request(center=False)
        tables = (torch.float16, config.ONE_TERM), (torch.float32, config.THREE_TERMS)
        shipped = [(dtype, places, "") for dtype, table in tables for places, _ in table[record.family]]
        for dtype, k, layout in (*shipped, (torch.float16, 32, "neurons adjacent")):
            call = partial(launch_cosine_topk, neurons(64000, 1024, dtype, layout), None, k, False, request)
            yield from cases_of(record, call, topk_kernel, thorough=bool(layout) and record.family != "sm_90")
        if record.family == "sm_90":  # a shorter list than the longest, and a sign
            rows = neurons(64000, 1024, torch.float32)
            yield from cases_of(record, partial(launch_cosine_topk, rows, rows, 10, True, request), topk_kernel)
