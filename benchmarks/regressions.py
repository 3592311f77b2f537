"""A new run held against the committed results of the same device.

    python -m benchmarks.regressions                      what `make bench` left, against benchmarks/results/<device>
    python -m benchmarks.regressions out/gpu --tolerance 0.1

Times of two runs do not compare; ratios to the baseline, taken round by round in one process, do. Ours is slower where
its ratio has grown by more than the tolerance and the spread of both runs; heavier where its peak memory has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .cases import OURS
from .harness import Row, read_rows, result_files, results_folder
from .tables import aligned_text, bytes_text, case_text

TOLERANCE = 0.15
SMALL = 1 << 20
"""Bytes of peak memory that come and go with the allocator."""
BAD = ("slower", "heavier", "failed")


@dataclass(frozen=True)
class Change:
    """One of our numbers, then and now, and what has become of it: "", "faster", "lighter" or one of `BAD`."""

    row: Row
    before: str
    after: str
    factor: float | None
    found: str


def key(row: Row) -> tuple[object, ...]:
    """What the same number has in common in two runs."""
    return (*row.same_case(), row.provider, row.metric, row.baseline)


def _noise(row: Row) -> float:
    return row.spread / row.median if row.spread and row.median else 0.0


def _compared(old: Row, new: Row, tolerance: float) -> Change | None:
    if new.status != "ok":
        return Change(new, old.status, new.status, None, "failed" if old.status == "ok" else "")
    if old.status != "ok":
        return None
    if new.metric == "time" and old.ratio and new.ratio:
        factor, allowed = new.ratio / old.ratio, 1 + tolerance + _noise(old) + _noise(new)
        found = "slower" if factor > allowed else "faster" if factor < 1 / allowed else ""
        return Change(new, f"{old.ratio:.2f} × {old.baseline}", f"{new.ratio:.2f}", factor, found)
    if new.metric == "peak_memory" and old.median is not None and new.median is not None:
        factor = (new.median + SMALL) / (old.median + SMALL)
        found = "heavier" if factor > 1 + tolerance else "lighter" if factor < 1 / (1 + tolerance) else ""
        return Change(new, bytes_text(old.median), bytes_text(new.median), factor, found)
    return None


def changes(old: Iterable[Row], new: Iterable[Row], tolerance: float = TOLERANCE) -> list[Change]:
    """Our rows that both runs have, those of `new` in their order."""
    known = {key(row): row for row in old if row.provider.startswith(OURS)}
    pairs = [(known[key(row)], row) for row in new if key(row) in known]
    return [change for pair in pairs if (change := _compared(*pair, tolerance)) is not None]


def report(found: Sequence[Change]) -> str:
    """A line for each number, and how many are worse."""
    lines = [["op", "case", "provider", "before", "after", "factor", ""]]
    for change in found:
        row = change.row
        threads = "" if row.threads is None else f", {row.threads} thread{'s' * (row.threads > 1)}"
        factor = "" if change.factor is None else f"{change.factor:.2f}"
        lines.append(
            [row.op, case_text(row) + threads, row.provider, change.before, change.after, factor, change.found]
        )
    worse = sum(change.found in BAD for change in found)
    return f"{aligned_text(lines, (0, 1, 2, 6))}\n\n{len(found)} numbers compared, {worse} worse."


def main(arguments: Sequence[str] | None = None) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description="Hold new results against the committed ones; status 1 if worse.")
    parser.add_argument("new", nargs="?", type=Path, default=results_folder(device, save=False))
    parser.add_argument("--against", type=Path, default=results_folder(device, save=True))
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"relative; default {TOLERANCE:g}")
    options = parser.parse_args(arguments)
    paths = [path for path in result_files(options.new) if (options.against / path.name).exists()]
    found = [
        change
        for path in paths
        for change in changes(read_rows(options.against / path.name), read_rows(path), options.tolerance)
    ]
    if not found:
        print(f"{options.new}: expected <op>.json with results that {options.against} has too. Run make bench first.")
        return 2
    print(report(found))
    return int(any(change.found in BAD for change in found))


if __name__ == "__main__":
    sys.exit(main())
