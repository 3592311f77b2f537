"""What of the nearest neurons' kernel is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

from .._aot import AotCase, compiled_ahead
from .._device import DeviceRecord
from ..pairwise.aot import cases_of, neurons
from . import config
from .kernel import launch_cosine_topk, topk_kernel


def aot_cases() -> list[AotCase]:
    """Every shipped tile and target with its longest list; not `thorough` are those that take the most registers."""
    return [case for record in compiled_ahead() for case in _cases(record)]


def _cases(record: DeviceRecord) -> Iterator[AotCase]:
    for dtype, table in ((torch.float16, config.ONE_TERM), (torch.float32, config.THREE_TERMS)):
        for places, _ in table[record.family]:
            yield from _of(record, dtype, places, thorough=False)
    yield from _of(record, torch.float16, 32, "neurons adjacent", thorough=record.family != "sm_90")
    if record.family == "sm_90":  # a shorter list than the longest, and a sign
        yield from _of(record, torch.float32, 10, farthest=True, others=True)


def _of(
    record: DeviceRecord,
    dtype: torch.dtype,
    k: int,
    layout: str = "",
    *,
    farthest: bool = False,
    others: bool = False,
    thorough: bool = True,
) -> Iterable[AotCase]:
    rows = neurons(64000, 1024, dtype, layout)
    options: dict[str, Any] = {"precision": "float32", "center": False, "max_bytes": None, "progress": None}
    call = partial(launch_cosine_topk, rows, rows if others else None, k, farthest=farthest, record=record, **options)
    return cases_of(record, call, topk_kernel, thorough=thorough)
