"""Everything worth knowing from a machine with an NVIDIA GPU, in under eight minutes, with nothing installed.

    python -m benchmarks.gpu --out out/gpu

1. what the machine is (environment.json) and its two ceilings, memory bandwidth and matrix rate;
2. the tests, kernels compiled on the device (tests.txt);
3. every benchmark (<op>.json, and tables.txt for people), held against committed results of such a GPU.

Every part runs in a process of its own under a time limit, so one that fails or hangs leaves the others standing.
Exit status 1 where a test failed, our result was wrong, or a part did not finish.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import harness, regressions, tables
from .cases import OURS, cases_for

TOTAL_SECONDS = 450
TESTS_SECONDS = 200
CEILINGS_SECONDS = 60
SECONDS_A_CASE = 0.8


def ops() -> list[str]:
    """The ops with a bench_<op>.py."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


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


def environment() -> dict[str, Any]:
    """What the machine is."""
    properties = torch.cuda.get_device_properties(0)
    try:
        driver = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        driver = "nvidia-smi did not answer"
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "platform": platform.platform(),
        "versions": harness.versions(),
        "commit": harness.commit(),
        "nvidia_smi": driver.splitlines(),
    }


def run_ceilings(out: Path) -> int:
    found = {**environment(), "ceilings": ceilings()}
    (out / "environment.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['device']}, {found['multiprocessors']} multiprocessors, {found['versions']}")
    for name, value in found["ceilings"].items():
        print(f"  {name:34s} {value / 1e12:8.2f} × 10¹²")
    return 0


def run_op(out: Path, op: str, seconds: float) -> int:
    """Measure every case of one op, writing after each; status 1 where ours was wrong or a case was left out."""
    module = importlib.import_module(f"benchmarks.bench_{op}")
    deadline, status = time.monotonic() + seconds, 0
    for case in cases_for(op, "cuda"):
        if time.monotonic() > deadline:
            print(f"{op} {case}: left out, the time for this op is over")
            status = 1
            continue
        try:
            rows = harness.measure(module.prepare, case, "cuda", seconds=SECONDS_A_CASE)
        except torch.cuda.OutOfMemoryError as error:
            print(f"{op} {case}: left out, {str(error).splitlines()[0]}")
            continue
        finally:
            torch.cuda.empty_cache()
        harness.write_rows(rows, out)
        print(tables.plain_table(rows), "\n", flush=True)
        status |= next(row for row in rows if row.provider == OURS).status != "ok"
    return status


def part(name: str, command: Sequence[str], seconds: float, log: Path | None = None) -> bool:
    """Run one part in a process of its own; whether it finished in time and with status 0."""
    print(f"== {name}, at most {seconds:.0f} s", flush=True)
    start = time.monotonic()
    variables = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "SDSD_BACKEND")}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(harness.ROOT), os.environ.get("PYTHONPATH")]))
    stream = log.open("w", encoding="utf-8") if log else None
    process = subprocess.Popen(
        command,
        cwd=harness.ROOT,
        env=variables,
        stdout=stream,
        stderr=subprocess.STDOUT if stream else None,
        start_new_session=True,
    )
    try:
        status = process.wait(timeout=seconds)
        outcome = "done" if status == 0 else f"exit status {status}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        status, outcome = process.wait(), "not finished in time"
    finally:
        if stream:
            stream.close()
    if log:
        print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]))
    print(f"== {name}: {outcome} after {time.monotonic() - start:.0f} s\n", flush=True)
    return status == 0 and outcome == "done"


def test_command() -> list[str]:
    """The tests that a GPU has something to say about; in several processes where pytest-xdist is installed.

    Compiling takes most of their time, so there is a process for every two cores.
    """
    folders = ["tests/kernels", "tests/gamma", "tests/geometry", "tests/test_validate.py"]
    command = [sys.executable, "-m", "pytest", *folders, "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(max(1, (os.cpu_count() or 2) // 2)), "--dist", "worksteal"]
    return command


def run_all(out: Path) -> int:
    start = time.monotonic()
    again = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out)]
    passed = {"ceilings": part("machine and ceilings", [*again, "--part", "ceilings"], CEILINGS_SECONDS)}
    passed["tests"] = part("tests", test_command(), TESTS_SECONDS, out / "tests.txt")
    for position, op in enumerate(ops()):
        left = TOTAL_SECONDS - (time.monotonic() - start)
        share = max(20.0, left / (len(ops()) - position))
        command = [*again, "--part", op, "--seconds", str(share * 0.85)]
        passed[op] = part(f"benchmark {op}", command, share)
    with (out / "tables.txt").open("w", encoding="utf-8") as file:
        for op in ops():
            if (path := out / f"{op}.json").exists():
                for group in tables.comparisons(harness.read_rows(path)):
                    print(tables.plain_table(group), end="\n\n", file=file)
    committed = harness.results_folder("cuda", save=True)
    if committed.exists():
        regressions.main([str(out), "--against", str(committed)])
    print(f"{time.monotonic() - start:.0f} s in all; results in {out}")
    for name, good in passed.items():
        print(f"  {name}: {'ok' if good else 'FAILED'}")
    return 0 if all(passed.values()) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Tests, then benchmarks, on an NVIDIA GPU.")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--part", choices=("ceilings", *ops()), help="only this part, in this process")
    parser.add_argument("--seconds", type=float, default=120.0, help="the time of one op, with --part")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs an NVIDIA GPU that torch can see, and torch.cuda.is_available() is False here.")
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.part == "ceilings":
        return run_ceilings(out)
    if options.part:
        return run_op(out, options.part, options.seconds)
    return run_all(out)


if __name__ == "__main__":
    sys.exit(main())
