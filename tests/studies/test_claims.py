"""One table of every claim: read from results.json, filled into docs, and an HTML page."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("matplotlib")

from sdsd import cli
from sdsd.studies import claims
from sdsd.studies.claims import UNTESTABLE, Claims, fill, new_page, read_claims, write_claims
from sdsd.studies.engine import Progress, run_study

from .engine.test_study import MEASURED, toy


@pytest.fixture
def groups(monkeypatch):
    studies = {"theory": (toy("one"), toy("two")), "other": (toy("three"),)}
    monkeypatch.setattr(claims, "GROUPS", studies)
    monkeypatch.setattr("sdsd.studies.catalogue.GROUPS", studies)
    everything = {study.name: study for group in studies.values() for study in group}
    monkeypatch.setattr("sdsd.studies.catalogue.CATALOGUE", everything)
    MEASURED.clear()
    return everything


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_they_are_what_the_studies_found(groups, tmp_path):
    result = run_study(groups["one"], tmp_path / "one", Progress(), seeds=(0, 1))
    run_study(toy("three", interrupt_at=1), tmp_path / "three", Progress())
    found = read_claims(tmp_path)
    assert found.missing == ("two", "three")
    first, *others = found.claims
    assert (first.group, first.study, first.seeds) == ("theory", "one", 2)
    assert first.command == "sdsd study one --seeds 2"
    assert [first.verdict] == result.verdicts
    assert [other.verdict for other in others] == list(UNTESTABLE)


def test_marked_parts_are_written_anew(groups, tmp_path):
    run_study(groups["one"], tmp_path / "one", Progress(), quick=True)
    found = read_claims(tmp_path)
    text = "before\n<!-- claims: theory -->\nold\n<!-- end of claims -->\nafter\n"
    once = fill(text, found)
    assert "old" not in once
    assert "| c | 1 | 1 | **refuted** | `one` |" in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert fill(once, found) == once
    whole = fill(new_page(), found)
    assert f"{1 + len(UNTESTABLE)} claims: 1 refuted, {len(UNTESTABLE)} untestable here." in whole
    assert "No results yet from: two, three." in whole
    assert "1 seed: `sdsd study one --seeds 1 --quick`" in whole
    for verdict in UNTESTABLE:
        assert f"| {verdict.claim} | {verdict.seed_figure} | – | **untestable here** | – |" in whole
    with pytest.raises(ValueError, match="claims: 'theroy' is none of theory, other, without a study, details"):
        fill("<!-- claims: theroy -->\n<!-- end of claims -->", found)


def test_in_short_each_claim_stands_once_under_its_verdict(groups, tmp_path):
    for name in ("one", "three"):  # the same claim of two studies
        run_study(groups[name], tmp_path / name, Progress(), quick=True)
    text = fill("<!-- claims: in short -->\n<!-- end of claims -->", read_claims(tmp_path))
    assert text.count("- c (`one`, `three`)") == 1
    assert text.index("## Refuted") < text.index("- c (")
    assert text.count(f"- {UNTESTABLE[0].claim}\n") == 1
    (tmp_path / "three" / "results.json").unlink()
    assert "- c: 1 (`one`)" in fill(text, read_claims(tmp_path))


def test_results_of_another_format_are_named(groups, tmp_path):
    run_study(groups["one"], tmp_path / "one", Progress(), quick=True)
    path = tmp_path / "one" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    for broken in (json.dumps({**results, "schema": 1}), "{", "{}"):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"results\.json: expected the results of a study .*; run the study again"):
            read_claims(tmp_path)


def test_the_page(groups, tmp_path):
    run_study(groups["three"], tmp_path / "three", Progress(), quick=True)
    written = write_claims(read_claims(tmp_path), tmp_path / "docs", tmp_path / "claims.html")
    assert [path.name for path in written] == ["claims.md", "claims.html"]
    page = (tmp_path / "claims.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Other", "Without a study"]
    assert '<a href="three/report.html">three</a>' in page
    assert "<strong>refuted</strong>: i" in page
    assert "src=" not in page
    assert isinstance(read_claims(tmp_path), Claims)


@pytest.mark.usefixtures("groups")
def test_the_command_runs_what_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "claims", "--read")
    assert (status, err.count("\n")) == (2, 1)
    assert "out/studies holds no finished study" in err
    run(capsys, "study", "two", "--quiet")
    assert MEASURED == [0, 1, 2]
    assert run(capsys, "claims", "--read")[0] == 0
    assert "No results yet from: one, three." in (tmp_path / "docs/claims.md").read_text(encoding="utf-8")
    status, out, _ = run(capsys, "claims")
    assert status == 0
    assert MEASURED == [0, 1, 2] * 3
    assert "written: docs/claims.md" in out
    assert "written: out/studies/claims.html" in out
    text = (tmp_path / "docs/claims.md").read_text(encoding="utf-8")
    assert "No results" not in text
    assert text.count("**refuted**") == 3
    assert run(capsys, "claims", "--quick", "--quiet")[:2] == (0, "")
    assert "--quick" in (tmp_path / "out/quick/claims.md").read_text(encoding="utf-8")
    assert (tmp_path / "docs/claims.md").read_text(encoding="utf-8") == text
