"""The harness: a wrong provider gets no timing, ratios are taken pair by pair, rows carry what a reader needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import harness, regressions, tables
from benchmarks.cases import CASES, OURS, READ_FLOOR, Case, Goal, cases_for

CASE = Case(
    "stand_in",
    (64, 65_536),
    goals=(
        Goal("sdsd", "other", 1e-6, faster=True),
        Goal("sdsd", "other", 1e-9, faster=False),
        Goal("sdsd", "other", 1.0, faster=True, threads=2),
        Goal("sdsd", "wrong", 1.0, faster=True),
        Goal("sdsd", "other", 0.75, faster=False, metric="memory"),
    ),
)


NEEDS_PEAKS = pytest.mark.skipif(
    not hasattr(harness.os, "sched_getaffinity"), reason="peak memory is read from Linux's /proc"
)


def prepare(case: Case, device: torch.device) -> harness.Comparison:
    values = torch.ones(case.shape, device=device)

    def check(provider: str, result: torch.Tensor) -> None:
        assert torch.equal(result, values + 1), f"{provider} is off by {(result - values - 1).abs().max():g}"

    def broken() -> torch.Tensor:
        raise RuntimeError("no such instruction\nand more")

    providers = {
        "sdsd": lambda: values + 1,
        "other": lambda: (values + 1).clone(),
        "wrong": lambda: values + 2,
        "broken": broken,
        "absent": harness.Unavailable("needs a compiler"),
    }
    return harness.Comparison(providers, check, baseline="other", work=values.numel() * 4)


@pytest.fixture(scope="module")
def rows() -> list[harness.Row]:
    return harness.measure(prepare, CASE, "cpu", 1, seconds=0.05)


def time_row(rows: list[harness.Row], provider: str) -> harness.Row:
    (row,) = (row for row in rows if (row.provider, row.metric) == (provider, "time"))
    return row


def test_wrong_provider_gets_no_timing(rows):
    row = time_row(rows, "wrong")
    assert (row.status, row.median, row.spread, row.ratio, row.rounds) == ("wrong", None, None, None, 0)
    assert "off by 1" in row.note
    assert [other.metric for other in rows if other.provider == "wrong"] == ["time"]


@pytest.mark.parametrize(("provider", "note"), [("broken", "no such instruction"), ("absent", "needs a compiler")])
def test_unavailable_provider_says_why(rows, provider, note):
    row = time_row(rows, provider)
    assert (row.status, row.median) == ("unavailable", None)
    assert note in row.note


def test_rows_carry_what_a_reader_needs(rows):
    row = time_row(rows, "sdsd")
    assert (row.op, row.shape, row.dtype, row.threads, row.unit) == ("stand_in", (64, 65_536), "float32", 1, "s")
    assert row.median > 0
    assert row.spread >= 0
    assert row.rounds >= 5
    assert row.rate == pytest.approx(64 * 65_536 * 4 / row.median)
    assert {"python", "torch", "triton", "numpy"} <= set(row.versions)
    assert row.device
    assert row.commit
    assert row.time.endswith("+00:00")
    assert {row.metric for row in rows if row.provider == "sdsd"} == {"time", "cpu_time", "peak_memory"}


def test_goals_of_other_thread_counts_and_of_untimed_peers_are_not_claimed(rows):
    easy, hard, untimed = time_row(rows, "sdsd").goals
    assert easy["met"] is True
    assert hard["met"] is False
    assert untimed["met"] is None


@NEEDS_PEAKS
def test_peak_memory_is_what_a_call_adds_to_its_inputs(rows):
    peaks = {row.provider: row.median for row in rows if row.metric == "peak_memory"}
    output = 64 * 65_536 * 4
    assert peaks["sdsd"] == pytest.approx(output, rel=0.1)
    assert peaks["other"] == pytest.approx(2 * output, rel=0.1)


@NEEDS_PEAKS
def test_a_goal_for_memory_stays_with_the_memory_it_judges(rows, tmp_path):
    (weight,) = (row for row in rows if (row.provider, row.metric) == ("sdsd", "peak_memory"))
    (goal,) = weight.goals
    assert goal["met"] is True
    assert goal["measured"] == pytest.approx(0.5, rel=0.1)
    harness.write_rows(rows, tmp_path)
    (path,) = harness.write_rows([row for row in rows if row.metric != "peak_memory"], tmp_path)
    again = harness.read_rows(path)
    assert "memory of other: 0.5" in tables.plain_table(again)
    assert "memory of other: 0.5" in tables.markdown_summary(again)


def test_ratio_is_the_median_of_pairs_not_the_ratio_of_medians():
    ours, other = [1.0, 2.0, 9.0], [2.0, 4.0, 3.0]
    assert harness.paired_ratio(ours, other) == 0.5


def test_every_provider_runs_once_a_round_and_the_order_rotates():
    calls: list[str] = []
    clock = harness.CpuClock()
    clock.shortest = 0.0
    functions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timings = harness.interleave(functions, clock, seconds=0.0)
    assert all(len(timing.wall) == len(timing.cpu) == 5 for timing in timings.values())
    rounds = ["".join(calls[start : start + 3]) for start in range(3, len(calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca"]


def test_threads_are_set_for_the_measurement_and_put_back():
    before = torch.get_num_threads()
    with harness.limited_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_files_keep_other_cases_and_replace_the_same(rows, tmp_path):
    (path,) = harness.write_rows(rows, tmp_path)
    assert path.name == "stand_in.json"
    assert harness.read_rows(path) == rows
    two_threads = [replace(row, threads=2) for row in rows]
    harness.write_rows(two_threads, tmp_path)
    harness.write_rows([replace(row, commit="later") for row in rows], tmp_path)
    found = harness.read_rows(path)
    assert len(found) == 2 * len(rows)
    assert {row.commit for row in found if row.threads == 1} == {"later"}
    assert [row for row in found if row.threads == 2] == two_threads


def test_a_case_timed_again_without_memory_keeps_its_memory(rows, tmp_path):
    (path,) = harness.write_rows(rows, tmp_path)
    memory = [row for row in rows if row.metric == "peak_memory"]
    assert memory
    times = [replace(row, commit="later") for row in rows if row.metric != "peak_memory"]
    harness.write_rows(times, tmp_path)
    assert harness.read_rows(path) == times + memory
    harness.write_rows(rows, tmp_path)
    assert harness.read_rows(path) == rows


def test_table_shows_goals_and_withholds_wrong_numbers(rows):
    text = tables.plain_table(rows)
    (line,) = (line for line in text.splitlines() if line.startswith("wrong"))
    assert "WRONG" in line
    assert " ms" not in line
    assert "MISSED" in text
    assert "met" in text


def test_readme_tables_are_filled_from_results_and_stale_ones_are_found(rows, tmp_path):
    harness.write_rows(rows, tmp_path / "cpu-x")
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table: cpu-x/stand_in -->\nold\n<!-- end table -->\nafter\n")
    arguments = ["--results", str(tmp_path), str(page)]
    assert tables.main(["--check", *arguments]) == 1
    assert "old" in page.read_text()
    assert tables.main(arguments) == 0
    assert tables.main(["--check", *arguments]) == 0
    text = page.read_text()
    assert "64 × 65,536" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_a_table_named_by_its_op_alone_has_every_device(rows, tmp_path):
    assert "No results" in tables.table_named("stand_in", tmp_path)
    for device in ("cpu-x", "gpu-y"):
        harness.write_rows([replace(row, device=device) for row in rows], tmp_path / device)
    harness.write_rows(rows, tmp_path / "local" / "cpu-x")
    text = tables.table_named("stand_in", tmp_path)
    assert text.count("| shape |") == 2
    assert text.index("cpu-x;") < text.index("gpu-y;")


def test_the_overview_names_the_best_and_the_worst_case(rows, tmp_path):
    ours = replace(time_row(rows, OURS), op="gamma_stats", threads=None)
    peer = replace(ours, provider=READ_FLOOR)
    cases = {(8, 100): 0.5, (8, 200): 2.0, (8, 300): 4.0}
    measured = [
        replace(row, shape=shape, ratio_to_ours=1.0 if row is ours else factor)
        for shape, factor in cases.items()
        for row in (ours, peer)
    ]
    measured.append(replace(peer, shape=(8, 400), ratio_to_ours=0.01, status="wrong"))
    measured.append(replace(ours, shape=(8, 400), ratio_to_ours=1.0))
    harness.write_rows(measured, tmp_path / "cpu-x")
    text = tables.table_named("overview:cpu-x", tmp_path)
    (line,) = (line for line in text.splitlines() if "gamma_stats" in line)
    assert "| 0.25 (8 × 300 float32) to 2.00 (8 × 100 float32) |" in line
    (line,) = (line for line in text.splitlines() if "GammaMonitor" in line)
    assert line.endswith("| – |")


def test_committed_tables_match_committed_results():
    assert tables.main(["--check"]) == 0


def committed_files():
    folders = [folder for folder in harness.RESULTS.glob("*") if folder.name != "local"]
    found = [path for folder in folders for path in harness.result_files(folder)]
    assert found
    return found


def test_committed_results_can_be_read():
    for path in committed_files():
        for row in harness.read_rows(path):
            assert (row.median is None) == (row.status != "ok"), path


def stamped(rows, ratio=1.0, memory=64 << 20, spread=0.0, status="ok"):
    """Rows as another run might have had them: our ratio, our memory and how much times varied."""
    found = []
    for row in rows:
        if (row.provider, row.metric) == ("sdsd", "time"):
            row = replace(row, median=1.0, ratio=ratio, spread=spread, status=status)
        elif (row.provider, row.metric) == ("sdsd", "peak_memory"):
            row = replace(row, median=float(memory))
        elif row.metric == "time":
            row = replace(row, ratio=row.ratio and 9 * row.ratio)  # what others need is not ours to answer for
        found.append(row)
    return found


@pytest.mark.parametrize(
    ("before", "after", "time", "memory"),
    [
        ({}, {}, "", ""),
        ({}, {"ratio": 1.14}, "", ""),
        ({}, {"ratio": 1.16}, "slower", ""),
        ({"spread": 0.1}, {"ratio": 1.3, "spread": 0.1}, "", ""),
        ({"spread": 0.1}, {"ratio": 1.36, "spread": 0.1}, "slower", ""),
        ({}, {"ratio": 0.5}, "faster", ""),
        ({}, {"memory": 80 << 20}, "", "heavier"),
        ({}, {"memory": 16 << 20}, "", "lighter"),
        ({"memory": 0}, {"memory": 100_000}, "", ""),
        ({}, {"status": "wrong"}, "failed", ""),
        ({"status": "wrong"}, {"status": "wrong"}, "", ""),
    ],
)
def test_a_run_is_held_against_an_earlier_one(rows, before, after, time, memory):
    found = regressions.changes(stamped(rows, **before), stamped(rows, **after))
    assert {change.row.metric: change.found for change in found} == {"time": time, "peak_memory": memory}
    worse = sum(word in regressions.BAD for word in (time, memory))
    assert regressions.report(found).endswith(f"2 numbers compared, {worse} worse.")


def test_the_command_compares_what_both_folders_have(rows, tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    command = [str(new), "--against", str(old)]
    assert regressions.main(command) == 2
    assert "Run make bench first" in capsys.readouterr().out
    harness.write_rows(stamped(rows), old)
    harness.write_rows([replace(row, threads=2) for row in stamped(rows, ratio=9.0)], new)
    assert regressions.main(command) == 2  # another number of threads is another case
    harness.write_rows(stamped(rows, ratio=1.2), new)
    assert regressions.main(command) == 1
    assert "slower" in capsys.readouterr().out
    assert regressions.main([*command, "--tolerance", "0.3"]) == 0


def test_committed_results_do_not_differ_from_themselves():
    for path in committed_files():
        found = regressions.changes(harness.read_rows(path), harness.read_rows(path))
        assert found
        assert {change.found for change in found} == {""}


def test_device_folder_is_a_plain_name(monkeypatch):
    names = {
        ("cuda", "NVIDIA H100 80GB HBM3"): "nvidia-h100",
        ("cpu", "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz"): "cpu-intel-xeon-platinum-8488c",
        ("cpu", "AMD EPYC"): "cpu-amd-epyc",
    }
    for (kind, name), slug in names.items():
        monkeypatch.setattr(harness, "device_name", lambda _, name=name: name)
        assert harness.device_slug(kind) == slug


def test_every_case_is_asked_for_by_a_benchmark():
    ops = {path.stem.removeprefix("bench_") for path in (harness.ROOT / "benchmarks").glob("bench_*.py")}
    assert {case.op for cases in CASES.values() for case in cases} <= ops
    assert all(cases_for("gamma_stats", device) for device in CASES)
