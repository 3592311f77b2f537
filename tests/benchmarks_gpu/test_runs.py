"""A run on a GPU, tried on a CPU: what fails, dies or hangs is named, what was not reached said."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_cases, gpu_summary, gpu_work

from .runs import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="make gpu is for Linux")

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
