"""The cases of `benchmarks.gpu`, one after another in one process, by worth, each with time for what it has to move.

Started by benchmarks.gpu, which replaces this process where a case breaks or hangs.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from . import harness
from .cases import OURS, Case, cases_for
from .gpu_tests import by_turns, device_is_lost
from .gpu_work import DEVICE_LOST, Place, die_with_parent, one_line

CEILINGS = "ceilings"
BY_WORTH = ("gamma_stats", "weight_grad_stats", "gamma_monitor", "cosine_matrix", "neuron_neighbors", "neuron_pairs")
SLOW_TO_BUILD = ("torch.compile",)
"""Providers that take seconds to be made: every case is measured without them first."""
BUILT = " with torch.compile"
FIXED_SECONDS = 1.5
"""What a case takes however small it is: making and checking it, and compiling its kernels."""
ROUNDS = 60
ROUNDS_SHARE = 0.4
"""The part of a case's time that its timed rounds may take."""
SHORTEST, LONGEST = 0.2, 3.0
"""Seconds of timed rounds; five rounds are made whatever they take."""


def ops() -> list[str]:
    """The ops with a bench_<op>.py, by worth."""
    found = [path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")]
    return sorted(found, key=lambda op: (BY_WORTH.index(op) if op in BY_WORTH else len(BY_WORTH), op))


def cases_of(device: str, chosen: Sequence[str] = (), quick: bool = False) -> dict[str, Case]:
    """The cases by name in the order in which they are measured: the first of every op, then the second …"""
    groups = [cases_for(op, device) for op in ops() if not chosen or op in chosen]
    found = by_turns([[small(case) for case in group] if quick else list(group) for group in groups])
    return {f"{case.op} {case}": case for case in found}


def small(case: Case) -> Case:
    """The case at a size for trying out the machinery; models stay as they are."""
    if case.op == "gamma_monitor":
        return case
    limits = (2048, 512) if len(case.shape) == 2 else (32,) * len(case.shape)
    return replace(case, shape=tuple(min(size, limit) for size, limit in zip(case.shape, limits, strict=True)))


def expected_seconds(case: Case) -> float:
    """About what one round of all providers takes on a large GPU: bytes at 0.5 TB/s, operations at 10 TFLOP/s."""
    size = case.torch_dtype.itemsize
    if case.op == "weight_grad_stats":
        samples, positions, d, p = case.shape
        moved, operations = size * samples * positions * (d + p) + 4 * d * p, 2 * case.elements
    elif case.op in ("gamma_stats", "gamma_monitor"):
        moved, operations = size * case.elements, 0
    else:
        neurons, samples = case.shape
        moved, operations = size * case.elements + 4 * neurons * neurons, neurons * neurons * samples
    return moved / 5e11 + operations / 1e13


def seconds_of_rounds(case: Case, later: Sequence[Case], left: float) -> float:
    """How long the timed rounds of `case` may take, of the `left` seconds that it and the `later` ones have."""
    most = LONGEST / ROUNDS_SHARE
    weights = [min(most, FIXED_SECONDS + ROUNDS * expected_seconds(each)) for each in (case, *later)]
    return min(LONGEST, max(SHORTEST, ROUNDS_SHARE * left * weights[0] / sum(weights)))


def median_seconds(function: Callable[[], Any], runs: int = 20) -> float:
    """The median time of `function` on the GPU, after a warm-up."""
    clock = harness.CudaClock()
    function()
    return statistics.median(clock.round([("it", function, 1)])["it"][0] for _ in range(runs))


def matmul_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """Floating-point operations a second of one square matrix product."""
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: left @ right)


def ceilings() -> dict[str, float]:
    """What the memory and the matrix units of this GPU reach in the simplest use of them."""
    words = 1 << 30
    while words * 8 > torch.cuda.mem_get_info()[0] // 2:
        words //= 2
    source = torch.randn(words, device="cuda")
    target = torch.empty_like(source)
    return {
        "copy_bytes_per_second": 2 * source.nbytes / median_seconds(lambda: target.copy_(source)),
        "read_bytes_per_second": source.nbytes / median_seconds(source.sum),
        "bfloat16_matmul_flops_per_second": matmul_rate(torch.bfloat16),
        "float32_matmul_flops_per_second": matmul_rate(torch.float32),
    }


def measured(case: Case, device: str, seconds: float, build: bool, memory: bool) -> tuple[list[harness.Row], str]:
    """The rows of a case, and the name under which it is measured again with providers that are slow to build."""
    module = importlib.import_module(f"benchmarks.bench_{case.op}")
    postponed = {} if build else dict.fromkeys(SLOW_TO_BUILD, "measured after all cases, where time is left")
    rows = harness.measure(
        module.prepare, case, device, None, seconds=seconds, memory=memory and device == "cuda", postponed=postponed
    )
    again = any(row.provider in postponed and row.note == postponed[row.provider] for row in rows)
    return rows, f"{case.op} {case}{BUILT}" if again else ""


def line(rows: Sequence[harness.Row]) -> str:
    """Our result in a line."""
    ours = next(row for row in rows if row.provider == OURS and row.metric == "time")
    if ours.median is None or ours.ratio is None:
        return f"{ours.status}: {ours.note}"
    return f"{ours.median * 1e3:.3f} ms, {ours.ratio:.2f} × {ours.baseline}"


def work(place: Place, device: str, chosen: Sequence[str], quick: bool) -> int:
    queue, log = place.queue(), place.log()
    cases = cases_of(device, chosen, quick)
    first = [CEILINGS] if device == "cuda" else []
    without_cases = [op for op in chosen or ops() if op not in {case.op for case in cases.values()}]
    queue.agree([[name] for name in [*first, *cases, *without_cases]])
    while (unit := queue.claim()) is not None:
        (name,) = unit
        log.write("begin", item=name)
        start = time.time()
        outcome, reason, again = "ok", "", ""
        found: dict[str, Any] = {}
        try:
            if name == CEILINGS:
                found["values"] = ceilings()
            elif name in without_cases:
                outcome, reason = "left out", f"cases.py has no case of it for {device}"
            else:
                case = cases[name.removesuffix(BUILT)]
                waiting = (other.removesuffix(BUILT) for other in queue.waiting())
                later = [cases[other] for other in waiting if other in cases]
                seconds = SHORTEST if quick else seconds_of_rounds(case, later, place.deadline - start)
                rows, again = measured(case, device, seconds, name.endswith(BUILT), memory=not quick)
                ours = next(row for row in rows if row.provider == OURS)
                outcome, reason = "ok" if ours.status == "ok" else "failed", one_line(ours.note) if ours.note else ""
                found["rows"] = [asdict(row) for row in rows]
                place.say(f"  {name}: {line(rows)}")
        except torch.cuda.OutOfMemoryError as error:
            outcome, reason = "left out", one_line(str(error))
        except Exception as error:
            outcome, reason = "failed", one_line(f"{type(error).__name__}: {error}")
        if again:
            queue.add([again])
        log.write("end", item=name, outcome=outcome, seconds=round(time.time() - start, 3), reason=reason, **found)
        if outcome == "failed":
            place.failed(name, reason)
            if device_is_lost():
                os._exit(DEVICE_LOST)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return 0


def rows_of(events: Sequence[dict[str, Any]]) -> list[harness.Row]:
    """The rows of ended items, the last measurement of each case."""
    found: dict[tuple[Any, ...], list[harness.Row]] = {}
    for event in events:
        rows = [harness.Row(**{**row, "shape": tuple(row["shape"])}) for row in event.get("rows", ())]
        if rows and (event["outcome"] == "ok" or rows[0].same_case() not in found):
            found[rows[0].same_case()] = rows
    return [row for rows in found.values() for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description="Started by benchmarks.gpu.")
    parser.add_argument("--device", required=True)
    parser.add_argument("--ops", nargs="*", default=())
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    die_with_parent()
    return work(Place.from_environment(), options.device, options.ops, options.quick)


if __name__ == "__main__":
    raise SystemExit(main())
