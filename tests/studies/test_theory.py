"""The experiments of the theory, small: verdicts, files, what an interrupt leaves, and the command."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd import cli
from sdsd.studies import _progress, registry
from sdsd.studies.registry import Study, StudyConfig, find_study, run_study
from sdsd.studies.result import (
    Measured,
    StudyResult,
    Verdict,
    fraction_interval,
    geometric_interval,
    mean_interval,
)
from sdsd.studies.theory import THEORY

EXPECTED = {
    "orbit": ["reproduced", "direction only"],
    "regulariser": ["refuted"],
    "quotient": ["direction only"],
    "prediction": ["refuted"],
    "phase": ["refuted"],
    "multiplicative": ["refuted"],
    "well": ["direction only"],
    "conservation": ["direction only"],
    "selection": ["direction only"],
    "rank": ["reproduced", "refuted", "direction only"],
    "sensing": ["direction only"],
}
OUR_FIGURE = {
    "quotient": (2, 10_000),
    "prediction": (0, 0.6),
    "phase": (0.9, 1.1),
    "multiplicative": (0.99, 1),
    "well": (0.4, 0.7),
    "conservation": (0, 0.05),
    "selection": (0.3, 0.7),
    "rank": (0.84, 0.84),
    "sensing": (1, 2),
}


def strict_json(path: Path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_all_experiments_are_here():
    assert set(THEORY) == set(EXPECTED)
    for name, study in THEORY.items():
        assert study.name == name
        assert study.expected_seconds > 0
        assert study.claim
        assert "§" in study.source or "," in study.source


@pytest.mark.parametrize("name", EXPECTED)
def test_each_experiment_reaches_its_verdict(name, tmp_path):
    study = THEORY[name]
    result = run_study(study, study.config(quick=True), tmp_path, _progress.Progress())
    assert [verdict.verdict for verdict in result.verdicts] == EXPECTED[name]
    low, high = OUR_FIGURE.get(name, (-math.inf, math.inf))
    assert low <= result.verdicts[0].our_figure.value <= high
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", f"{name}.png"}
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    found = strict_json(tmp_path / "results.json")
    assert set(found) == {
        "schema", "study", "status", "config", "seeds", "versions", "seconds", "series", "verdicts", "figures",
    }  # fmt: skip
    assert (found["schema"], found["study"], found["status"], found["seeds"]) == (1, name, "complete", [0])
    assert found["config"]["quick"] is True
    for verdict in found["verdicts"]:
        assert set(verdict) == {"claim", "source", "verdict", "rule", "seed_figure", "our_figure", "corrected"}
        assert verdict["verdict"].split()[0] in verdict["rule"]
        assert not any("nan" in text.lower().split() for text in (verdict["corrected"], verdict["rule"]))


@pytest.mark.parametrize("name", ["selection", "phase"])
def test_same_seeds_same_numbers(name):
    study = THEORY[name]
    first, again, other = (study.run(study.config(seed, quick=True), _progress.Progress()) for seed in (3, 3, 4))
    assert json.dumps(first.series) == json.dumps(again.series)
    assert json.dumps(first.series) != json.dumps(other.series)
    assert first.seeds == [3]


def test_seeds_are_repetitions():
    study = THEORY["orbit"]
    assert study.config().seeds == (0, 1, 2)
    assert study.config(quick=True).seeds == (0,)
    assert study.config(seed=5, seeds=2).seeds == (5, 6)
    for bad in ({"seed": -1}, {"seeds": 0}):
        with pytest.raises(ValueError, match="expected a seed ≥ 0 and at least one"):
            study.config(**bad)


# --- a study that is interrupted, and one that is not


def toy(name: str = "toy", interrupt_at: int | None = None) -> Study:
    def run(config: StudyConfig, progress: _progress.Progress) -> StudyResult:
        result = StudyResult(name, {"quick": config.quick}, list(config.seeds), {"numbers": []})
        with result.keep_finished():
            for number in progress.each(range(4), "counting"):
                if number == interrupt_at:
                    raise KeyboardInterrupt
                result.series["numbers"].append(number)
            result.verdicts.append(Verdict("c", "s", "refuted", "r", "1", Measured(2.0), "i"))
        return result

    def draw(result: StudyResult):
        from sdsd.report import figures

        figure, axes = figures.new_figure(3, 2)
        axes.plot(result.series["numbers"])
        return figure

    return Study(name, "counts", "it counts", "nobody", 1, run, draw)


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    result = run_study(toy(interrupt_at=2), StudyConfig((0,)), tmp_path, _progress.Progress())
    assert result.interrupted
    found = strict_json(tmp_path / "results.json")
    assert found["status"] == "interrupted"
    assert found["series"] == {"numbers": [0, 1]}
    assert found["verdicts"] == found["figures"] == []
    assert not (tmp_path / "toy.png").exists()
    whole = run_study(toy(), StudyConfig((0,)), tmp_path, _progress.Progress())
    assert whole.series == {"numbers": [0, 1, 2, 3]}
    assert whole.figures == ["toy.png"]


def test_errors_are_no_interrupts(tmp_path):
    result = StudyResult("toy", {}, [0])
    with pytest.raises(ZeroDivisionError), result.keep_finished():
        raise ZeroDivisionError
    assert not result.interrupted


def test_a_study_leaves_torch_as_it_was(tmp_path):
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_study(THEORY["selection"], StudyConfig((1,), quick=True), tmp_path, _progress.Progress())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_names_suggest_the_nearest():
    assert find_study("rank", THEORY) is THEORY["rank"]
    with pytest.raises(ValueError, match=r"there is no experiment 'sensig'\. Did you mean 'sensing'\?"):
        find_study("sensig", THEORY)
    with pytest.raises(ValueError, match="There are: orbit, regulariser"):
        find_study("xyzzy", THEORY)


# --- the result


def test_verdicts_are_of_the_list():
    with pytest.raises(ValueError, match="verdict: expected one of 'reproduced', 'direction only'"):
        Verdict("c", "s", "true", "r", "1", Measured(1.0), "i")


def test_intervals_against_scipy():
    from scipy import stats

    values = [3.1, 2.7, 3.9, 3.3]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    found = geometric_interval(np.exp(values).tolist())
    assert (found.value, found.low, found.high) == pytest.approx(tuple(np.exp((np.mean(values), low, high))))
    for successes, count in ((42, 50), (0, 20), (20, 20), (1, 3)):
        ci = stats.binomtest(successes, count).proportion_ci(method="wilson")
        found = fraction_interval(successes, count)
        assert (found.value, found.low, found.high) == pytest.approx((successes / count, ci.low, ci.high), abs=1e-6)
    assert mean_interval([2.0]) == Measured(2.0)


def test_measured_as_text():
    assert str(Measured(0.84, 0.71, 0.92, "of starts")) == "0.84 [0.71, 0.92] of starts"
    assert str(Measured(79.7, unit="×")) == "80 ×"


# --- progress


def test_plain_progress(capsys):
    progress = _progress.PlainProgress(every=0)
    assert list(progress.each("ab", "reading")) == ["a", "b"]
    assert capsys.readouterr().out == "reading …\nreading · 50%\n"
    hushed = _progress.PlainProgress(every=1000)
    assert list(hushed.each(range(100), "reading")) == list(range(100))
    assert capsys.readouterr().out == "reading …\n"


def test_bars(capsys):
    pytest.importorskip("rich")
    progress = _progress.RichProgress()
    assert list(progress.each(range(3), "reading")) == [0, 1, 2]
    progress.say("done [not markup]")
    progress.stop()
    progress.stop()
    assert "done [not markup]" in capsys.readouterr().out


def test_which_progress(monkeypatch):
    assert type(_progress.choose_progress(quiet=True)) is _progress.Progress
    assert type(_progress.choose_progress()) is _progress.PlainProgress
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rich = importlib.util.find_spec("rich") is not None
    assert type(_progress.choose_progress()) is (_progress.RichProgress if rich else _progress.PlainProgress)


# --- the command


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def toys(monkeypatch):
    studies = {study.name: study for study in (toy("one"), toy("two", interrupt_at=1), toy("three"))}
    for name in list(THEORY):
        monkeypatch.delitem(THEORY, name)
    for name, study in studies.items():
        monkeypatch.setitem(THEORY, name, study)


def test_the_list(capsys):
    status, out, _ = run(capsys, "theory", "--list")
    assert status == 0
    assert len(out.splitlines()) == len(THEORY)
    for study in THEORY.values():
        assert f"{study.expected_seconds:g} s  {study.claim}" in out


@pytest.mark.usefixtures("toys")
def test_the_command_runs_what_is_named(capsys, tmp_path):
    status, out, err = run(capsys, "theory", "one", "three", "--out", tmp_path, "--seed", 4, "--seeds", 2)
    assert (status, err) == (0, "")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one", "three"]
    assert strict_json(tmp_path / "three" / "results.json")["seeds"] == [4, 5]
    for line in (
        "one: counts",
        "claim      c (s)",
        "  there    1",
        "  here     2",
        "  verdict  REFUTED",
        "  instead  i",
    ):
        assert line in out
    assert f"written to {tmp_path / 'three'}: three.png, results.json" in out
    status, out, _ = run(capsys, "theory", "one", "--out", tmp_path, "--quiet")
    assert (status, out) == (0, "")


@pytest.mark.usefixtures("toys")
def test_ctrl_c_ends_all_and_keeps_what_is_finished(capsys, tmp_path):
    status, _, err = run(capsys, "theory", "all", "--out", tmp_path, "--quiet")
    assert status == 130
    assert err == f"interrupted; kept in {tmp_path / 'two'}: results.json\n"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one", "two"]


def test_mistakes_end_in_one_line(capsys, monkeypatch, tmp_path):
    for arguments, message in (
        (("theory",), "name an experiment, or all"),
        (("theory", "rnk"), "there is no experiment 'rnk'. Did you mean 'rank'?"),
        (("theory", "rank", "--seeds", 0), "at least 1, got '0'"),
        (("theory", "rank", "--quik"), "Did you mean --quick"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    (tmp_path / "file").write_text("")
    assert "is a file" in run(capsys, "theory", "rank", "--out", tmp_path / "file", "--quiet")[2]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'sdsd[report]'" in run(capsys, "theory", "rank", "--out", tmp_path, "--quiet")[2]


def test_nothing_runs_before_all_names_are_known(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "run_study", lambda *_: pytest.fail("ran"))
    assert run(capsys, "theory", "rank", "nope", "--out", tmp_path)[0] == 2


def test_entries_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        THEORY["rank"].name = "other"
