"""Running studies: resumed, interrupted, on several processes; the result's format, progress and the command."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import pickle
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from sdsd import cli
from sdsd._extras import MissingExtraError
from sdsd.studies import catalogue
from sdsd.studies.catalogue import CATALOGUE, GROUPS, choose_studies
from sdsd.studies.engine import (
    Measured,
    Progress,
    Runner,
    Study,
    Verdict,
    find_study,
    fraction_interval,
    geometric_interval,
    mean_interval,
    run_study,
)
from sdsd.studies.engine import progress as _progress

from ..strict_json import RESULT, strict_json

MEASURED: list[int] = []
"""seeds that `measure` was called for"""


def measure(seed, progress, *, size=10, interrupt_at=None):
    if seed == interrupt_at:
        raise KeyboardInterrupt
    MEASURED.append(seed)
    return {"numbers": [seed, size], "nothing": math.nan, "endless": math.inf, "pair": (1, 2)}


def judge(result):
    return [Verdict("c", "s", "refuted", "r", "1", Measured(float(sum(result.pooled("numbers")))), "i")]


def draw(result):
    from sdsd.report import figures

    figure, axes = figures.new_figure(3, 2)
    axes.plot(result.pooled("numbers"))
    return figure


def toy(name: str = "toy", interrupt_at: int | None = None, **changes) -> Study:
    settings = {} if interrupt_at is None else {"interrupt_at": interrupt_at}
    fields = {"settings": settings, "quick": {"size": 1}, "measure": measure, "judge": judge, "draw": draw}
    return Study(name, "counts", "it counts", "nobody", **{**fields, "expected_seconds": 1, **changes})


@pytest.fixture(autouse=True)
def forget():
    MEASURED.clear()


def test_what_a_run_leaves(tmp_path):
    result = run_study(toy(), tmp_path, Progress())
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "toy.png", "report.html", "seeds"}
    found = strict_json(tmp_path / "results.json")
    assert set(found) == RESULT
    assert (found["schema"], found["study"], found["status"], found["seeds"]) == (4, "toy", "complete", [0, 1, 2])
    assert found["config"] == {"quick": False, "size": 10, "interrupt_at": None}
    assert found["series"][1] == {
        "seed": 1,
        "numbers": [1, 10],
        "nothing": None,
        "endless": None,
        "endless_is": "inf",
        "pair": [1, 2],
    }
    (verdict,) = found["verdicts"]
    assert set(verdict) == {
        "claim",
        "source",
        "verdict",
        "rule",
        "fixed",
        "replaced",
        "published",
        "our_figure",
        "corrected",
        "effect",
    }
    assert verdict["our_figure"]["value"] == 33
    assert result.series[2]["endless"] == math.inf
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("<h1>Toy</h1>", "Refuted: c", "sdsd study toy --seed 0 --seeds 3", "<svg"):
        assert text in page


def test_finished_seeds_are_not_measured_again(tmp_path):
    first = run_study(toy(), tmp_path, Progress(), seeds=(0, 1))
    assert MEASURED == [0, 1]
    more = run_study(toy(), tmp_path, Progress(), seeds=(0, 1, 2))
    assert MEASURED == [0, 1, 2]
    assert more.series[:2] == first.series
    run_study(toy(), tmp_path, Progress(), quick=True)
    assert MEASURED == [0, 1, 2, 0]  # other settings: nothing is taken over
    again = run_study(toy(), tmp_path, Progress(), seeds=(0, 1, 2))
    assert MEASURED == [0, 1, 2, 0]  # and nothing was lost
    assert again.series == more.series
    run_study(toy(), tmp_path, Progress(), seeds=(1,), fresh=True)
    assert MEASURED == [0, 1, 2, 0, 1]


def test_another_version_is_measured_again(tmp_path, monkeypatch):
    run_study(toy(), tmp_path, Progress(), seeds=(0,))
    monkeypatch.setattr("sdsd.studies.engine.seeds.versions", lambda: {"sdsd": "99", "torch": "1"})
    run_study(toy(), tmp_path, Progress(), seeds=(0,))
    assert MEASURED == [0, 0]


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    result = run_study(toy(interrupt_at=2), tmp_path, Progress())
    assert result.interrupted
    found = strict_json(tmp_path / "results.json")
    assert (found["status"], found["seeds"]) == ("interrupted", [0, 1])
    assert [series["numbers"] for series in found["series"]] == [[0, 10], [1, 10]]
    assert found["verdicts"] == found["figures"] == []
    assert not (tmp_path / "toy.png").exists()
    assert len(list((tmp_path / "seeds").iterdir())) == 2


def test_an_interrupt_while_it_is_drawn_leaves_no_verdict(tmp_path):
    def interrupt(result):
        raise KeyboardInterrupt

    run_study(toy(draw=interrupt), tmp_path, Progress())
    found = strict_json(tmp_path / "results.json")
    assert (found["status"], found["seeds"], found["verdicts"]) == ("interrupted", [0, 1, 2], [])


def test_a_broken_seed_file_is_named(tmp_path):
    run_study(toy(), tmp_path, Progress(), seeds=(0,))
    (file,) = (tmp_path / "seeds").iterdir()
    file.write_text("{")
    with pytest.raises(ValueError, match=r"0-[0-9a-f]{8}\.json: expected a finished seed of the study; delete"):
        run_study(toy(), tmp_path, Progress(), seeds=(0,))


def test_what_measure_returns_must_be_json(tmp_path):
    with pytest.raises(TypeError, match="study 'toy': measure must return what JSON can hold, but .*set"):
        run_study(toy(measure=lambda seed, progress: {"numbers": {1}}, quick={}), tmp_path, Progress())
    assert not (tmp_path / "seeds").exists()


def test_a_study_leaves_torch_as_it_was(tmp_path):
    import torch

    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_study(CATALOGUE["selection"], tmp_path, Progress(), seeds=(1,), quick=True)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_several_processes_give_the_same_numbers(tmp_path):
    study = CATALOGUE["selection"]
    alone = run_study(study, tmp_path / "alone", Progress(), seeds=(0, 1), quick=True)
    ((_, together),) = Runner(tmp_path, Progress(), count=2, quick=True, jobs=2).run([study])
    assert together.series == alone.series
    assert len(list((tmp_path / "selection" / "seeds").iterdir())) == 2


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_study_can_be_sent_to_another_process(name):
    measure = CATALOGUE[name].measure
    assert pickle.loads(pickle.dumps(measure)) is measure


def test_seeds_are_repetitions():
    study = toy()
    assert study.seed_numbers() == (0, 1, 2)
    assert study.seed_numbers(quick=True) == (0,)
    assert study.seed_numbers(5, 2) == (5, 6)
    for bad in ({"first": -1}, {"count": 0}):
        with pytest.raises(ValueError, match="expected a seed ≥ 0 and at least one"):
            study.seed_numbers(**bad)


def test_studies_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match="name: expected lower-case words joined by hyphens, got 'Two words'"):
        toy("Two words")
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy().name = "other"


@pytest.mark.parametrize("given", ["settings", "quick"])
def test_a_setting_that_nothing_reads_is_refused(given):
    with pytest.raises(
        ValueError, match=rf"{given}: expected keyword-only .* \(size, interrupt_at\), got 'sizes', which nothing reads"
    ):
        toy(**{given: {"sizes": 1}})


def test_settings_are_the_parameters_of_measure(tmp_path):
    study = toy(settings={"size": 7})
    assert study.config() == {"quick": False, "size": 7, "interrupt_at": None}
    assert study.config(quick=True) == {"quick": True, "size": 1, "interrupt_at": None}
    seen = {}

    def keep(seed, progress, *, size=10, steps=(1, 2)):
        seen.update(size=size, steps=steps)
        return {"numbers": [seed]}

    result = run_study(toy(measure=keep, quick={"steps": (1,)}, settings={"size": 3}), tmp_path, Progress(), quick=True)
    assert {"quick": True, **seen} == result.config == {"quick": True, "size": 3, "steps": (1,)}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">size</t" in page
    assert strict_json(tmp_path / "results.json")["config"] == {"quick": True, "size": 3, "steps": [1]}


def unread(seed, progress, *, size=10, depth=3):
    return {"numbers": [seed, size]}


def read_inside(seed, progress, *, size=10, depth=3):
    return {"numbers": [each + depth for each in range(size)], "more": [each + seed for each in [1]]}


def overwritten(seed, progress, *, size=10):
    size = seed  # noqa: F841
    return {"numbers": [seed]}


def without_default(seed, progress, *, size):
    return {"numbers": [seed, size]}


def takes_anything(seed, progress, **settings):
    return {"numbers": [settings["size"]]}


def in_the_old_way(config, seed, progress):
    return {"numbers": [config["size"]]}


def called_quick(seed, progress, *, quick=False):
    return {"numbers": [quick]}


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (unread, "unread takes 'depth' and never reads it"),
        (overwritten, "overwritten takes 'size' and never reads it"),
        (takes_anything, r"expected the parameters \(seed, progress, \*, settings …\), got takes_anything"),
        (in_the_old_way, r"got in_the_old_way\(config, seed, progress\)"),
        (called_quick, "'quick' is no setting"),
        (functools.partial(measure, size=1), "expected a function of a module, got partial"),
    ],
)
def test_a_measure_says_what_it_reads(measure, message):
    with pytest.raises(TypeError, match=f"measure: .*{message}"):
        toy(measure=measure, quick={})


def test_settings_read_inside_a_comprehension_are_read():
    assert toy(measure=read_inside).config() == {"quick": False, "size": 10, "depth": 3}


def test_a_setting_without_a_default_has_to_be_given():
    with pytest.raises(ValueError, match="settings: expected a value for 'size', which has no default"):
        toy(measure=without_default)
    assert toy(measure=without_default, settings={"size": 2}).config()["size"] == 2


def test_the_catalogue():
    names = [study.name for studies in GROUPS.values() for study in studies]
    assert len(names) == len(set(names))
    assert not {"all", *GROUPS} & set(names)
    assert list(CATALOGUE) == names
    for study in CATALOGUE.values():
        assert study.expected_seconds > 0
        assert study.summary
        assert study.claim
        assert study.source
        assert not study.claim.endswith(".")
        assert not study.summary.endswith(".")


def test_names_of_studies_and_groups():
    rank, well = CATALOGUE["rank"], CATALOGUE["well"]
    assert choose_studies(["rank", "well", "rank"]) == [rank, well]
    assert choose_studies(["theory"]) == choose_studies(["all"], group="theory") == list(GROUPS["theory"])
    assert choose_studies(["all"]) == list(CATALOGUE.values())
    assert find_study("rank", CATALOGUE) is rank
    with pytest.raises(ValueError, match=r"there is no study 'sensig'\. Did you mean 'sensing'\?"):
        choose_studies(["sensig"])
    with pytest.raises(ValueError, match="There are: orbit, regulariser"):
        choose_studies(["xyzzy"], group="theory")


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
    assert str(Measured(1.0, 0.9987, 1.0)) == "1 [0.9987, 1]"
    assert str(Measured(-0.5402, -0.5411, -0.5391)) == "−0.5402 [−0.5411, −0.5391]"
    assert str(Measured(2.0, 2.0, 2.0)) == "2 [2, 2]"


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
    studies = (toy("one"), toy("two", interrupt_at=1), toy("three"))
    monkeypatch.setattr(catalogue, "GROUPS", {"theory": studies})
    monkeypatch.setattr(catalogue, "CATALOGUE", {study.name: study for study in studies})


def test_the_list(capsys):
    status, out, _ = run(capsys, "study", "--list")
    assert status == 0
    assert len(out.splitlines()) == len(CATALOGUE) + len(GROUPS)
    for study in CATALOGUE.values():
        assert f"  {study.name} " in out
        assert study.claim in out
    status, out, _ = run(capsys, "theory", "--list")
    assert out.startswith(f"theory ({len(GROUPS['theory'])} studies, ")
    assert len(out.splitlines()) == len(GROUPS["theory"]) + 1


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("command", ["study", "theory"])
def test_the_command_runs_what_is_named(command, capsys, tmp_path):
    status, out, err = run(capsys, command, "one", "three", "--out", tmp_path, "--seed", 4, "--seeds", 2)
    assert (status, err) == (0, "")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one", "three"]
    assert strict_json(tmp_path / "three" / "results.json")["seeds"] == [4, 5]
    for line in (
        "one: counts",
        "claim      c (s)",
        "  there    1",
        "  here     29",
        "  verdict  REFUTED",
        "  instead  i",
    ):
        assert line in out
    assert f"written to {tmp_path / 'three'}: three.png, report.html, results.json" in out
    status, out, _ = run(capsys, command, "one", "--out", tmp_path, "--quiet")
    assert (status, out) == (0, "")


@pytest.mark.usefixtures("toys")
def test_ctrl_c_ends_all_and_keeps_what_is_finished(capsys, tmp_path):
    status, out, err = run(capsys, "study", "all", "--out", tmp_path)
    assert status == 130
    assert err == f"interrupted; kept in {tmp_path / 'two'}: results.json\n"
    assert "1 of two's seeds are finished and kept; the same command goes on." in out
    assert [path.name for path in sorted(tmp_path.iterdir()) if any((path / "seeds").glob("*"))] == ["one", "two"]


def without_a_package(seed, progress, *, size=10):
    raise MissingExtraError(f"this needs nothing-of-the-kind, {size} times")


def test_a_study_that_lacks_a_package_is_left_out_of_several(capsys, monkeypatch, tmp_path):
    studies = (toy("one"), toy("two", measure=without_a_package), toy("three"))
    monkeypatch.setattr(catalogue, "GROUPS", {"theory": studies})
    monkeypatch.setattr(catalogue, "CATALOGUE", {study.name: study for study in studies})
    for jobs in (1, 2):
        status, out, _ = run(capsys, "study", "all", "--out", tmp_path, "--jobs", jobs)
        assert status == 1
        assert "two is left out: this needs nothing-of-the-kind, 10 times" in out
        assert not (tmp_path / "two" / "results.json").exists()
        assert (tmp_path / "three" / "results.json").exists()
    status, _, err = run(capsys, "study", "two", "--out", tmp_path)
    assert (status, err) == (2, "error: this needs nothing-of-the-kind, 10 times\n")


@pytest.mark.usefixtures("toys")
def test_where_it_writes_by_itself(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run(capsys, "study", "one")
    run(capsys, "study", "one", "--quick")
    assert strict_json(tmp_path / "out/studies/one/results.json")["config"]["quick"] is False
    assert strict_json(tmp_path / "out/quick/one/results.json")["config"]["quick"] is True


def test_mistakes_end_in_one_line(capsys, monkeypatch, tmp_path):
    for arguments, message in (
        (("theory",), "name a study, or all. See: sdsd theory --list"),
        (("study", "rnk"), "there is no study 'rnk'. Did you mean 'rank'?"),
        (("study", "rank", "--seeds", 0), "at least 1, got '0'"),
        (("study", "rank", "--quik"), "Did you mean --quick"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    (tmp_path / "file").write_text("")
    assert "is a file" in run(capsys, "theory", "rank", "--out", tmp_path / "file", "--quiet")[2]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "[report]" in run(capsys, "theory", "rank", "--out", tmp_path, "--quiet")[2]


@pytest.mark.usefixtures("toys")
def test_nothing_runs_before_all_names_are_known(capsys, tmp_path):
    assert run(capsys, "study", "one", "nope", "--out", tmp_path)[0] == 2
    assert MEASURED == []


def test_an_interval_ends_where_its_values_must():
    assert mean_interval([0.9, 1.0, 1.0], within=(-1, 1)).high == 1
    assert mean_interval([0.9, 1.0, 1.0]).high > 1
    assert mean_interval([-0.9, -1.0, -1.0], within=(-1, 1)).low == -1
