"""What a run plans: tests by worth, cases in turn, providers that come last."""

from __future__ import annotations

import re
import sys
import time

import pytest
import torch

from benchmarks import gpu_cases, gpu_summary, gpu_tests, gpu_work, harness
from benchmarks.cases import CASES, OURS, Case

from .runs import ROOT, stand_in

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="make gpu is for Linux")


def test_every_kernel_has_tests_of_its_definition_that_come_first():
    for kernel in sorted((ROOT / "sdsd_kernels").glob("*/reference.py")):
        names = []
        for path in (ROOT / "tests" / "kernels").glob(f"test_{kernel.parent.name}*.py"):
            file = path.relative_to(ROOT).as_posix()
            names += [f"{file}::{name}" for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))]
        assert 1 in map(gpu_tests.tier, names), (
            f"no test of the definition of {kernel.parent.name} is known by its name"
        )


def test_tests_come_in_order_of_worth_and_files_take_turns():
    kernel, other = "tests/kernels/test_a.py::test_", "tests/kernels/test_b.py::test_"
    definitions = [f"{kernel}matches_the_definition[triton-{n}]" for n in range(40)]
    rest = [
        f"{other}shapes_and_dtypes[1-triton]",
        f"{other}any_strides[triton-2]",
        f"{other}duplicates[triton]",
        "tests/gamma/test_monitor.py::test_layers[linear]",
        "tests/geometry/test_merge.py::test_merge",
        f"{other}matches_the_definition[torch-1]",
        f"{other}compiles_whole",
    ]
    order = [name for (name,) in gpu_tests.in_order([[name] for name in reversed([*definitions, *rest])])]
    assert sorted(order) == sorted([*definitions, *rest])
    turns = [name for (name,) in gpu_tests.in_order([[name] for name in [*definitions, *rest]])]
    assert turns[:3] == [definitions[0], rest[0], definitions[5]]
    assert set(order[:2]) == {rest[0], definitions[-1]}
    assert [name for name in order if name in rest] == rest
    assert order.index(rest[1]) == 41
    first = order[: gpu_tests.FIRST + 1]
    assert len({int(re.search(r"(\d+)\]", name)[1]) // 5 for name in first if name in definitions}) == gpu_tests.FIRST


def test_units_whose_tests_share_a_fixture_stay_together():
    together = [f"tests/geometry/test_x.py::test_{n}" for n in range(3)]
    assert together in gpu_tests.in_order([["tests/geometry/test_y.py::test_it"], together])


def test_every_case_for_a_gpu_is_planned_and_each_op_gets_its_turn():
    cases = gpu_cases.cases_of("cuda")
    assert sorted(map(str, cases.values())) == sorted(map(str, CASES["cuda"]))
    with_cases = {case.op for case in CASES["cuda"]}
    assert {case.op for case in list(cases.values())[: len(with_cases)]} == with_cases


def test_gigabyte_cases_get_more_time_and_all_of_them_fit():
    cases = list(gpu_cases.cases_of("cuda").values())
    left, given = 150.0, {}
    for place, case in enumerate(cases):
        seconds = gpu_cases.seconds_of_rounds(case, cases[place + 1 :], left)
        given[case] = seconds
        left -= seconds / gpu_cases.ROUNDS_SHARE
    assert left > -1e-6
    assert min(given.values()) >= gpu_cases.SHORTEST
    large, small = Case("gamma_stats", (4096, 600_000)), Case("gamma_stats", (32, 1_000_000))
    assert given[large] > 1.5 * given[small]
    short = [gpu_cases.seconds_of_rounds(case, cases[place + 1 :], 0.0) for place, case in enumerate(cases)]
    assert set(short) == {gpu_cases.SHORTEST}  # fewer rounds, not fewer cases


def test_a_case_that_fails_is_named_one_without_memory_is_left_out_and_slow_peers_come_last(
    tmp_path, monkeypatch, capfd
):
    names = ["gamma_stats 4x8-fine", "gamma_stats 4x9-memory", "gamma_stats 4x7-breaks", "gamma_stats 4x6-wrong"]
    cases = {name: Case("gamma_stats", tuple(map(int, name[12:15].split("x")))) for name in names}
    asked = []

    def measured(case, device, seconds, build, memory):
        name = names[list(cases.values()).index(case)]
        asked.append((name, build))
        if name.endswith("memory"):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        if name.endswith("breaks"):
            raise ValueError("it broke\nhere")
        rows = stand_in(name, status="wrong" if name.endswith("wrong") else "ok")
        return rows, name + gpu_cases.BUILT if name.endswith("fine") and not build else ""

    monkeypatch.setattr(gpu_cases, "cases_of", lambda *_: cases)
    monkeypatch.setattr(gpu_cases, "measured", measured)
    (tmp_path / "work").mkdir()
    place = gpu_work.Place(tmp_path, "cases", tmp_path / "work", 1, time.time() + 60, 1)
    assert gpu_cases.work(place, "cpu", ["gamma_stats", "gamma_monitor"], quick=True) == 0
    assert asked == [*((name, False) for name in names), (names[0], True)]
    record = gpu_work.Record.of(tmp_path / "cases.jsonl")
    assert dict(record.left_out()) == {
        "gamma_stats 4x9-memory": "CUDA out of memory. Tried to allocate 9 GiB",
        "gamma_monitor": "cases.py has no case of it for cpu",
    }
    failed = {event["item"]: event["reason"] for event in record.with_outcome("failed")}
    assert failed == {"gamma_stats 4x7-breaks": "ValueError: it broke", "gamma_stats 4x6-wrong": "off by 1"}
    told = capfd.readouterr().out
    assert all(f"FAILED {name}: {reason}" in told for name, reason in failed.items())
    assert gpu_summary.summarise(tmp_path).status == 1


def test_a_postponed_provider_is_not_run_and_says_why():
    def never() -> None:
        raise AssertionError("it was run")

    def prepare(case: Case, device: torch.device) -> harness.Comparison:
        providers = {OURS: lambda: 1, "slow": never, "absent": harness.Unavailable("needs a compiler")}
        return harness.Comparison(providers, lambda *_: None, baseline=OURS)

    rows = harness.measure(
        prepare, Case("it", (1,)), seconds=0.01, memory=False, postponed={"slow": "later", "absent": "later"}
    )
    notes = {row.provider: (row.status, row.note) for row in rows if row.metric == "time"}
    assert notes == {OURS: ("ok", ""), "slow": ("unavailable", "later"), "absent": ("unavailable", "needs a compiler")}


def test_the_last_good_measurement_of_a_case_counts():
    first, second = ([vars(row) for row in stand_in("gamma_stats 4x8", ratio=ratio)] for ratio in (2.0, 3.0))
    failed = [vars(row) for row in stand_in("gamma_stats 4x8", status="wrong")]

    def ratio(*events: tuple[str, list[dict]]) -> float | None:
        return gpu_cases.rows_of([{"outcome": outcome, "rows": rows} for outcome, rows in events])[0].ratio

    assert ratio(("ok", first), ("ok", second)) == 3.0
    assert ratio(("ok", first), ("failed", failed)) == 2.0
    assert ratio(("failed", failed), ("ok", second)) == 3.0
    assert ratio(("failed", failed)) is None
