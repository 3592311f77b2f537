"""Everything worth knowing from a machine with an NVIDIA GPU, in under six minutes, with nothing installed.

    python -m benchmarks.gpu --out out/gpu            the run
    python -m benchmarks.gpu --out out/gpu --summary  what a run has left, also one that was cut off
    python -m benchmarks.gpu --out out/gpu --save     keep the results of a run in benchmarks/results/<device>

1. the tests, kernels compiled on the device, by worth, in several processes;
2. the ceilings of the machine, memory bandwidth and matrix rate;
3. every benchmark, the worthiest case of each op first, held against committed results of such a GPU.

A test or case that fails is named the moment it does, on the terminal and in failures.txt. tests.jsonl and cases.jsonl
say what was planned, began and ended; left_out.txt names what was not reached or not measured, and why.

Exit status: 0 all is well; 1 a test or case failed, or a number is worse than the committed one; 2 no GPU;
3 nothing failed, but something was left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import harness
from .gpu_cases import CEILINGS, rows_of
from .gpu_summary import read, summarise, write_left_out
from .gpu_work import Crew, Record

TOTAL_SECONDS = 330.0
"""Of the six minutes; the rest is for starting Python and for what stands in the way."""
TESTS_SHARE = 0.5
SUMMARY_SECONDS = 5.0
CASE_LIMIT, TEST_LIMIT = 60.0, 120.0
"""Seconds after which a case, or a test, counts as hanging."""
TESTS = ("tests/kernels", "tests/gamma", "tests/geometry", "tests/test_validate.py")
"""The tests that a GPU has something to say about."""
FILES = ("tests.jsonl", "cases.jsonl", "failures.txt", "left_out.txt", harness.ENVIRONMENT)


def environment(device: str) -> dict[str, Any]:
    """What the machine is."""
    found: dict[str, Any] = {"device": harness.device_name(device)}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        try:
            driver = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            driver = "nvidia-smi did not answer"
        found |= {
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "nvidia_smi": driver.splitlines(),
        }
    return {**found, "platform": platform.platform(), "versions": harness.versions(), "commit": harness.commit()}


def variables(device: str) -> dict[str, str]:
    """The environment of workers: our packages first, and kernels compiled."""
    found = dict(os.environ)
    if device == "cuda":
        found = {key: value for key, value in found.items() if key not in ("TRITON_INTERPRET", "SDSD_BACKEND")}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(harness.ROOT), os.environ.get("PYTHONPATH")]))
    return found


def test_command(paths: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_tests"]


def case_command(device: str, ops: Sequence[str], quick: bool) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_cases", "--device", device]
    return [*command, *(["--quick"] if quick else []), *(["--ops", *ops] if ops else [])]


def write_environment(out: Path, found: dict[str, Any]) -> None:
    (out / harness.ENVIRONMENT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run_all(options: argparse.Namespace, out: Path) -> None:
    """Tests, then cases, each in processes of their own; files of an earlier run are removed."""
    start = time.time()
    end = start + options.seconds - SUMMARY_SECONDS
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    (out / "failures.txt").touch()
    found = environment(options.device)
    write_environment(out, found)
    shared: dict[str, Any] = {"variables": variables(options.device), "out": out, "folder": harness.ROOT}
    print(f"tests, {options.workers} processes", flush=True)
    tests_end = start + TESTS_SHARE * options.seconds
    command = test_command(options.tests)
    Crew("tests", command, **shared, workers=options.workers, deadline=tests_end, limit=TEST_LIMIT).run()
    print("cases: our time, and its ratio to the baseline", flush=True)
    command = case_command(options.device, options.ops, options.quick)
    Crew("cases", command, **shared, workers=1, deadline=end, limit=CASE_LIMIT).run()


def add_ceilings(out: Path) -> None:
    """Copy the ceilings from the log of cases to the file that says what the machine is."""
    event = Record.of(out / "cases.jsonl").ended.get(CEILINGS, {})
    if "values" in event:
        write_environment(out, {**read(out / harness.ENVIRONMENT), CEILINGS: event["values"]})


def save(out: Path, results: Path = harness.RESULTS) -> int:
    """Keep a run's results and what machine it was; rows of cases it did not measure stay as they were."""
    rows = rows_of(list(Record.of(out / "cases.jsonl").ended.values()))
    if not rows:
        print(f"{out}: expected cases.jsonl with measured cases. Run make gpu first.")
        return 2
    folder = results / harness.plain_name(rows[0].device)
    for path in harness.write_rows(rows, folder):
        print(path)
    (folder / harness.ENVIRONMENT).write_text((out / harness.ENVIRONMENT).read_text(encoding="utf-8"), encoding="utf-8")
    return 0


def conclude(out: Path) -> int:
    """Write what was left out, print the summary; the exit status."""
    add_ceilings(out)
    summary = summarise(out)
    write_left_out(summary.left_out, out / "left_out.txt")
    print(f"\n{summary.text}\nfiles: {out}", flush=True)
    return summary.status


def stop(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description="Tests, then benchmarks, on an NVIDIA GPU.")
    arguments.add_argument("--out", type=Path, default=Path("out/gpu"))
    arguments.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help=f"in all; default {TOTAL_SECONDS:.0f}")
    arguments.add_argument("--summary", action="store_true", help="only show what an earlier run left in --out")
    arguments.add_argument("--save", action="store_true", help="only keep its results in benchmarks/results/<device>")
    # For trying out the machinery where there is no GPU.
    processes = max(2, (os.cpu_count() or 2) - 2)
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    arguments.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--tests", nargs="+", default=TESTS, help=argparse.SUPPRESS)
    arguments.add_argument("--ops", nargs="+", default=(), help=argparse.SUPPRESS)
    arguments.add_argument("--workers", type=int, default=processes, help=argparse.SUPPRESS)
    return arguments


def main() -> int:
    options = parser().parse_args()
    out = options.out.resolve()
    if options.summary:
        return conclude(out)
    if options.save:
        return save(out)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu needs an NVIDIA GPU that torch can see, and torch.cuda.is_available() is False here.")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, stop)
    try:
        run_all(options, out)
    except KeyboardInterrupt:
        print("cut off; what there is so far:", flush=True)
        return conclude(out) or 1
    return conclude(out)


if __name__ == "__main__":
    sys.exit(main())
