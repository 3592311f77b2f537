"""`make gpu`, tried on a CPU: what fails, dies, hangs or gets no time is named, at once and in the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_summary, gpu_tests, gpu_work, harness, regressions
from benchmarks.cases import CASES, OURS, Case

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="make gpu is for Linux")

ROOT = harness.ROOT
H100 = harness.RESULTS / "nvidia-h100"
COMMITTED = (H100, harness.RESULTS / "nvidia-h200", harness.RESULTS / "cpu-amd-epyc")

TESTS = """
import os, time
from pathlib import Path
import pytest, torch

HERE = Path(__file__).parent
OUT = Path(os.environ["OUT_OF_THE_RUN"])

def test_wrong():
    assert 1 + 1 == 3, "arithmetic is off"

def test_it_was_named_before_the_next_began():
    assert "test_wrong: AssertionError: arithmetic is off" in (OUT / "failures.txt").read_text()

def test_waits_until_the_name_was_seen_on_the_terminal():
    end = time.time() + 60
    while not (HERE / "seen").exists():
        assert time.time() < end, "nobody saw it"
        time.sleep(0.05)

def test_loses_the_device():
    (HERE / "process").write_text(str(os.getpid()))
    torch.cuda.is_available = lambda: True
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.synchronize = synchronize
    raise RuntimeError("an illegal memory access")

def test_in_another_process():
    assert int((HERE / "process").read_text()) != os.getpid()

def test_dies():
    os.abort()

def test_is_skipped():
    pytest.skip("no reason at all")

def test_fine():
    pass
"""
HANGING = """
import os, time
from pathlib import Path

def test_wrong():
    raise ValueError("first\\nsecond")

def test_hangs():
    Path(__file__).with_name("process").write_text(str(os.getpid()))
    time.sleep(1000)

def test_never_reached():
    pass
"""


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`make gpu` with the tests of `folder` on a CPU."""
    variables = {"PYTHONPATH": str(ROOT), "OUT_OF_THE_RUN": str(folder / "out"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "benchmarks.gpu", "--out", str(folder / "out"), "--device", "cpu", "--quick"]
    return subprocess.Popen(
        [*line, "--workers", "1", "--tests", str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The first line with `text`; fails where the output ends without."""
    assert process.stdout is not None
    read = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return line
    raise AssertionError("".join(read))


def test_a_run_names_what_fails_as_it_happens_and_ends_with_a_table(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    process = command(tmp_path, "--ops", "gram_accumulator", "--seconds", "240")
    assert read_until(process, "FAILED").endswith("test_some.py::test_wrong: AssertionError: arithmetic is off\n")
    (tmp_path / "seen").touch()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    record = gpu_work.Record.of(tmp_path / "out" / "tests.jsonl")
    outcomes = {name.split("::")[1].removeprefix("test_"): event["outcome"] for name, event in record.ended.items()}
    assert outcomes == {
        "wrong": "failed",
        "it_was_named_before_the_next_began": "passed",
        "waits_until_the_name_was_seen_on_the_terminal": "passed",
        "loses_the_device": "failed",
        "in_another_process": "passed",
        "dies": "failed",
        "is_skipped": "skipped",
        "fine": "passed",
    }
    assert record.ended[next(name for name in record.ended if "dies" in name)]["reason"] == "killed by signal 6"
    failures = (tmp_path / "out" / "failures.txt").read_text()
    assert len(re.findall("^FAILED ", failures, re.MULTILINE)) == 3
    assert "    E   " in failures  # the traceback of test_wrong
    assert "Fatal Python error: Aborted" in failures
    cases = gpu_work.Record.of(tmp_path / "out" / "cases.jsonl")
    assert cases.planned == list(gpu_cases.cases_of("cpu", ["gram_accumulator"], quick=True))
    assert {event["outcome"] for event in cases.ended.values()} == {"ok"}
    assert len(cases.ended) == len(cases.planned)
    table = text[text.index("gram_accumulator") :]
    assert all(f"batches of {batch}" in table for batch in ("128", "1,024", "4,096"))
    assert "tests, of 8: 3 failed, 4 passed, 1 skipped, 0 not reached" in table
    assert "test_is_skipped: skipped: Skipped: no reason at all" in (tmp_path / "out" / "left_out.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_cut_off_has_told_what_it_knew(tmp_path, number):
    (tmp_path / "test_some.py").write_text(HANGING)
    process = command(tmp_path, "--seconds", "400")
    read_until(process, "FAILED")
    while not (tmp_path / "process").exists() or not (tmp_path / "process").read_text():
        time.sleep(0.05)
    hanging = int((tmp_path / "process").read_text())
    process.send_signal(number)
    try:
        text, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        os.kill(hanging, signal.SIGKILL)
        pytest.fail("a worker outlived the run")
    assert "test_some.py::test_wrong: ValueError: first\n" in (tmp_path / "out" / "failures.txt").read_text()
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert "still running when the time was over" in (tmp_path / "out" / "left_out.txt").read_text()
    else:
        summary = command(tmp_path, "--summary")
        text, _ = summary.communicate()
        assert summary.returncode == 1
        assert "test_hangs: began and was never heard of" in (tmp_path / "out" / "left_out.txt").read_text()
    assert "test_some.py::test_wrong: ValueError: first\n" in text
    assert "tests, of 3: 1 failed" in text
    assert "2 not reached" in text
    assert "test_never_reached: not reached" in (tmp_path / "out" / "left_out.txt").read_text()
    assert "no case was planned: its part never began" in text


WORKER = """
import os, sys, time
from benchmarks.gpu_work import DEVICE_LOST, Place
place = Place.from_environment()
log, queue = place.log(), place.queue()
queue.agree([["fine"], ["aborts"], ["exits"], ["hangs"], ["loses"], ["last"]])
while unit := queue.claim():
    for item in unit:
        log.write("begin", item=item)
        if item == "aborts": os.abort()
        if item == "exits": print("a last word"); sys.exit(3)
        if item == "hangs": time.sleep(1000)
        log.write("end", item=item, outcome="ok", seconds=0.0, reason="")
        if item == "loses": os._exit(DEVICE_LOST)
"""


def crew(code: str, out: Path, seconds: float = 60.0, limit: float = 1.0) -> gpu_work.Record:
    """What became of the work of processes that run `code`."""
    (out / "failures.txt").touch()
    line = [sys.executable, "-c", code]
    deadline = time.time() + seconds
    gpu_work.Crew("part", line, os.environ, out, folder=ROOT, workers=1, deadline=deadline, limit=limit).run()
    return gpu_work.Record.of(out / "part.jsonl")


def test_whoever_dies_or_hangs_is_named_and_replaced(tmp_path, capfd):
    record = crew(WORKER, tmp_path)
    reasons = {item: (event["outcome"], event["reason"]) for item, event in record.ended.items()}
    assert reasons == {
        "fine": ("ok", ""),
        "aborts": ("failed", "killed by signal 6"),
        "exits": ("failed", "the process ended with status 3"),
        "hangs": ("failed", "not finished after 1 s"),
        "loses": ("ok", ""),
        "last": ("ok", ""),
    }
    assert {event["worker"] for event in record.ended.values()} == {1, 2, 3, 4, 5}
    assert record.left_out() == []
    told = capfd.readouterr().out
    assert all(f"FAILED {item}: " in told for item in ("aborts", "exits", "hangs"))
    assert "a last word" in (tmp_path / "failures.txt").read_text()


def test_what_the_time_did_not_reach_is_left_out_with_a_reason(tmp_path):
    record = crew(WORKER.replace('["fine"], ["aborts"], ["exits"], ', ""), tmp_path, seconds=1.5, limit=100)
    assert record.left_out() == [
        ("hangs", "still running when the time was over"),
        ("loses", "not reached"),
        ("last", "not reached"),
    ]


def test_a_part_that_cannot_begin_says_why_and_is_not_tried_for_ever(tmp_path, capfd):
    record = crew("raise SystemExit('no such module')", tmp_path)
    assert record.lost == ["the process ended with status 1: no such module"]
    assert "FAILED part, process 1: the process ended with status 1: no such module" in capfd.readouterr().out
    assert gpu_summary.summarise(tmp_path).status == 1


def test_a_line_torn_by_a_death_costs_only_itself(tmp_path):
    log = gpu_work.Log(tmp_path / "log")
    log.write("planned", items=["a", "b"])
    with log.path.open("a") as file:
        file.write('{"event": "end", "item": "a", "outc')
    log.write("end", item="b", outcome="ok")
    record = gpu_work.Record.of(log.path)
    assert record.planned == ["a", "b"]
    assert list(record.ended) == ["b"]


# Order


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


# Cases


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


# The summary


def finished(out: Path, rows: dict[str, list[harness.Row]], failed: int = 0, left: int = 0) -> Path:
    """The files of a run with these measured cases, so many failed tests and so many that were not reached."""
    out.mkdir(exist_ok=True)
    (out / "environment.json").write_text((H100 / "environment.json").read_text(encoding="utf-8"), encoding="utf-8")
    for path in out.glob("*.jsonl"):
        path.unlink()
    tests, cases = gpu_work.Log(out / "tests.jsonl"), gpu_work.Log(out / "cases.jsonl")
    name = "tests/kernels/test_cosine_matrix.py::test_matches_the_definition_of_it[{}-triton-torch.float32-(1, 2, 3)]"
    tests.write("planned", items=[name.format(n) for n in range(100 + failed + left)])
    with (out / "tests.jsonl").open("a") as file:
        for n in range(100 + failed):
            outcome, reason = ("failed", "AssertionError: off by one " * 9) if n < failed else ("passed", "")
            event = {"event": "end", "worker": 1, "time": 0.0, "item": name.format(n), "outcome": outcome}
            file.write(json.dumps({**event, "seconds": 0.1, "reason": reason}) + "\n")
    cases.write("planned", items=list(rows))
    for item, group in rows.items():
        cases.write("end", item=item, outcome="ok", seconds=1.0, reason="", rows=[vars(row) for row in group])
    return out


def h100_rows() -> dict[str, list[harness.Row]]:
    return rows_of(H100)


def rows_of(folder: Path) -> dict[str, list[harness.Row]]:
    rows = harness.read_folder(folder)
    found: dict[str, list[harness.Row]] = {}
    for row in rows:
        found.setdefault(f"{row.op} {row.shape} {row.dtype} {row.variant}", []).append(row)
    return found


def test_a_run_is_held_against_the_committed_results_of_its_device(tmp_path):
    same = gpu_summary.summarise(finished(tmp_path, h100_rows()))
    assert same.status == 0
    assert "0 worse" in same.text
    assert re.search(r"32 × 30,000,000 float32\s+1.25 ms\s+1.00\s+1.00\n", same.text)
    slower = {
        item: [replace(row, ratio=None if row.ratio is None else 1.3 * row.ratio) for row in group]
        for item, group in h100_rows().items()
    }
    found = gpu_summary.summarise(finished(tmp_path, slower))
    assert found.status == 1
    assert re.search(r"32 × 30,000,000 float32\s+1.25 ms\s+1.30\s+1.00\s+slower", found.text)
    elsewhere = gpu_summary.summarise(finished(tmp_path, h100_rows()), results=tmp_path / "none")
    assert "nothing to be held against" in elsewhere.text
    assert elsewhere.status == 0


def test_a_missed_goal_shows(tmp_path):
    rows = rows_of(harness.RESULTS / "nvidia-h200")
    text = gpu_summary.summarise(finished(tmp_path, rows)).text
    assert re.search(r"1,024 × 1,024 bfloat16 neurons first .* matmul: 0.09 MISSED; .* matmul: 0.44 MISSED", text)


def test_what_was_left_out_shows_in_the_exit_status(tmp_path):
    assert gpu_summary.summarise(finished(tmp_path, h100_rows(), left=1)).status == 3
    assert gpu_summary.summarise(finished(tmp_path, h100_rows(), failed=1, left=1)).status == 1
    gpu_work.Log(tmp_path / "cases.jsonl").write("planned", items=["gamma_stats 1x1"])
    found = gpu_summary.summarise(finished(tmp_path, h100_rows()))
    assert found.status == 0
    gpu_work.Log(tmp_path / "cases.jsonl").write("planned", items=["gamma_stats 1x1"])
    found = gpu_summary.summarise(tmp_path)
    assert found.status == 3
    assert "gamma_stats 1x1: not reached" in found.text
    (tmp_path / "cases.jsonl").unlink()
    assert gpu_summary.summarise(tmp_path).status == 1  # the benchmarks never began


def test_the_summary_of_a_bad_day_fits_where_it_is_read(tmp_path):
    names = [name for name in gpu_cases.cases_of("cuda") if not name.startswith("gamma_monitor")]
    rows = {name: stand_in(name) for name in names}
    found = gpu_summary.summarise(finished(tmp_path, rows, failed=300, left=900))
    assert len(found.text) <= gpu_summary.SHOWN
    assert found.text.startswith("NVIDIA H100")  # nothing was cut away
    assert all(f"\n{op}  " in found.text for op in {name.split()[0] for name in names})
    assert found.text.count("FAILED tests/kernels") == gpu_summary.NAMES
    assert "… and 280 more, in failures.txt" in found.text
    assert "100 passed, 900 not reached" in found.text
    assert len(found.left_out["tests not reached"]) == 900


def test_results_of_a_run_are_kept_beside_what_it_did_not_measure(tmp_path):
    out = finished(tmp_path / "out", h100_rows())
    assert gpu.save(out, tmp_path) == 0
    assert (tmp_path / "nvidia-h100" / "environment.json").read_bytes() == (H100 / "environment.json").read_bytes()
    old = harness.read_folder(H100)
    assert sorted(map(str, harness.read_folder(tmp_path / "nvidia-h100"))) == sorted(map(str, old))
    one = {"gamma_stats": [replace(row, commit="later") for row in old if row.op == "gamma_stats"][:2]}
    assert gpu.save(finished(tmp_path / "out", one), tmp_path) == 0
    commits = [row.commit for row in harness.read_folder(tmp_path / "nvidia-h100")]
    assert commits.count("later") == 2
    assert {row.op for row in harness.read_folder(tmp_path / "nvidia-h100")} == {row.op for row in old}
    assert gpu.save(tmp_path, tmp_path) == 2


def test_the_first_results_of_a_gpu_can_be_compared(capsys):
    assert regressions.main([str(H100), "--against", str(H100)]) == 0
    assert "0 worse" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_gpu_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().out
