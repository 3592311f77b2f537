"""`pytest benchmarks`: the interleaved comparison, and pytest-benchmark's record of our provider."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch

from . import harness, tables
from .cases import OURS, Case


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--save",
        action="store_true",
        default=os.environ.get("BENCH_SAVE", "") not in ("", "0"),
        help="write results to the committed folder benchmarks/results/<device>, not to benchmarks/results/local",
    )
    parser.addoption("--seconds", type=float, default=4.0, help="about how long one comparison's rounds may take")
    parser.addoption("--no-memory", action="store_true", help="leave out peak memory")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=(None,) if torch.cuda.is_available() else (1, 2), ids=lambda threads: f"threads={threads}")
def threads(request: pytest.FixtureRequest) -> int | None:
    if request.param is not None and request.param > (os.cpu_count() or 1):
        pytest.skip(f"this machine has fewer than {request.param} cores")
    return request.param


@pytest.fixture
def compare(
    request: pytest.FixtureRequest,
    benchmark: Any,
    device: torch.device,
    threads: int | None,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[harness.Prepare, Case], list[harness.Row]]:
    """Run one comparison: print its table, save its rows, hand our provider to pytest-benchmark.

    The test fails where our own result is wrong; a missed goal shows in the table and fails nothing.
    """

    def run(prepare: harness.Prepare, case: Case) -> list[harness.Row]:
        option = request.config.getoption
        memory = not option("--no-memory") and threads in (None, 1)
        rows = harness.measure(prepare, case, device, threads, seconds=option("--seconds"), memory=memory)
        harness.write_rows(rows, harness.results_folder(device.type, save=option("--save")))
        with capsys.disabled():
            print("\n\n" + tables.plain_table(rows))
        ours = next(row for row in rows if row.provider == OURS)
        assert ours.status == "ok", f"{OURS} on {case}: {ours.note}"
        benchmark.group = f"{case.op} {case}"
        benchmark.extra_info["rows"] = [asdict(row) for row in rows]
        with harness.limited_threads(threads):
            provider = prepare(case, device).providers[OURS]
            assert not isinstance(provider, harness.Unavailable)

            def synchronised() -> None:
                provider()
                if device.type == "cuda":
                    torch.cuda.synchronize()

            benchmark.pedantic(synchronised, rounds=5, warmup_rounds=1)
        return rows

    return run
