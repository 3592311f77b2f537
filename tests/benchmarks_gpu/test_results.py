"""What a run leaves: its table, and how it stands against committed results."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_summary, gpu_work, harness, regressions
from benchmarks.cases import OURS

from .runs import H100, stand_in

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="make gpu is for Linux")


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
    groups = [group for item, group in rows.items() if item.startswith("cosine_matrix (1024, 1024) bfloat16")]
    (ours,) = (row for row in groups[0] if row.provider == OURS and row.metric == "time")
    missed = [f"matmul: {goal['measured']:.2f} MISSED" for goal in ours.goals if not goal["met"]]
    assert len(missed) == 2
    assert re.search(f"1,024 × 1,024 bfloat16 neurons first .* {missed[0]}; .* {missed[1]}", text)


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
    assert f"… and {300 - gpu_summary.NAMES} more, in failures.txt" in found.text
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
