"""The command `sdsd study`."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("matplotlib")

from sdsd import cli
from sdsd._extras import MissingExtraError
from sdsd.studies import catalogue
from sdsd.studies.catalogue import CATALOGUE, GROUPS

from ..strict_json import strict_json
from .toys import MEASURED, toy


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
