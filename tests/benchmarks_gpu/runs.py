"""Runs of `benchmarks.gpu`, and rows as they leave them."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import harness
from benchmarks.cases import OURS

ROOT = harness.ROOT

H100 = harness.RESULTS / "nvidia-h100"

COMMITTED = (H100, harness.RESULTS / "nvidia-h200", harness.RESULTS / "cpu-amd-epyc")


def stand_in(name: str, ratio: float = 2.0, status: str = "ok") -> list[harness.Row]:
    """The rows of a measured case, as a committed file has them."""
    op, shape, *_ = name.split(" ")
    rows = [row for folder in COMMITTED for row in harness.read_folder(folder) if row.op == op]
    case = [row for row in rows if row.same_case() == rows[0].same_case()]
    sizes = tuple(int(size) for size in shape.split("-")[0].split("x"))
    found = []
    for row in case:
        row = replace(row, shape=sizes, variant=shape)
        if (row.provider, row.metric) == (OURS, "time"):
            failed = {"median": None, "ratio": None, "note": "off by 1"} if status != "ok" else {"ratio": ratio}
            row = replace(row, status=status, **failed)
        found.append(row)
    return found
