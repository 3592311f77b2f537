"""One table of every claim: read from results.json, filled into docs, and an HTML page."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("matplotlib")

from sdsd import cli
from sdsd.studies import claims, claims_page
from sdsd.studies.claims import UNTESTABLE, Claim, Claims, Row, read_claims
from sdsd.studies.claims_page import fill, new_page, write_claims
from sdsd.studies.engine import Effect, Measured, Progress, Verdict, geometric_interval, run_study
from sdsd.studies.rules import RULES

from .engine.toys import MEASURED, toy


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
    assert f"| orbit | {RULES['orbit'].fixed} | {RULES['orbit'].text} | {RULES['orbit'].replaced} |" in whole
    assert "What decides (undated): r." in whole
    assert "No results yet from: two, three." in whole
    assert "1 seed: `sdsd study one --seeds 1 --quick`" in whole
    for verdict in UNTESTABLE:
        assert f"| {verdict.claim} | {verdict.published} | – | **untestable here** | – |" in whole
    with pytest.raises(ValueError, match="claims: 'theroy' is none of theory, other, without a study, details"):
        fill("<!-- claims: theroy -->\n<!-- end of claims -->", found)


def test_in_short_each_claim_stands_once_under_its_verdict(groups, tmp_path):
    for name in ("one", "two"):  # the same claim of two studies
        run_study(groups[name], tmp_path / name, Progress(), quick=True)
    text = fill("<!-- claims: in short -->\n<!-- end of claims -->", read_claims(tmp_path))
    assert text.count("- c (2 networks)") == 1
    assert text.index("## Refuted") < text.index("- c (")
    assert text.count(f"- {UNTESTABLE[0].claim}\n") == 1
    (tmp_path / "two" / "results.json").unlink()
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
    assert text.count("**refuted**") == 4  # two rows, for one and two make the same claim, and those two by themselves
    assert run(capsys, "claims", "--quick", "--quiet")[:2] == (0, "")
    assert "--quick" in (tmp_path / "out/quick/claims.md").read_text(encoding="utf-8")
    assert (tmp_path / "docs/claims.md").read_text(encoding="utf-8") == text


def on_networks(tmp_path, monkeypatch, ratios, *, document=5.0):
    """Claims of one study a network, each with the ratios of its seeds."""
    effect = Effect(nothing=1.0, published=document, negligible=1.25)

    def judge(result):
        ours = geometric_interval(ratios[result.study], "×", against=1.0)
        word = effect.verdict(ours)
        return [Verdict("near is cheap", "s", word, "r", "5 ×", ours, "i", "2026-11-26", "another", effect)]

    studies = {"geometry": tuple(toy(name, judge=judge) for name in ratios)}
    monkeypatch.setattr(claims, "GROUPS", studies)
    for study in studies["geometry"]:
        run_study(study, tmp_path / study.name, Progress())
    return read_claims(tmp_path)


def test_a_claim_on_several_networks_is_one_row(tmp_path, monkeypatch):
    ratios = {"a": [4.0, 5.0, 6.0], "b": [5.0, 6.0, 7.0], "c": [3.0, 3.3, 3.6]}
    found = on_networks(tmp_path, monkeypatch, ratios)
    (row,) = found.rows("geometry")
    # The networks are the units: 3 geometric means, not 9 ratios.
    means = [geometric_interval(each).value for each in ratios.values()]
    assert row.verdict.our_figure == geometric_interval(means, "×", against=1.0)
    assert row.verdict.verdict == "reproduced"
    assert "Over 3 networks, each with the same weight. Single ones: 3 reproduced" in row.verdict.corrected
    text = fill(new_page(), found)
    assert text.count("| near is cheap | 5 × |") == 1
    assert text.count("| near is cheap | `") == 3
    assert f"{1 + len(UNTESTABLE)} claims: 1 reproduced, {len(UNTESTABLE)} untestable here. 1 of them were" in text
    assert "3 times in all" in text
    page = tmp_path / "page.html"
    write_claims(found, tmp_path / "docs", page)
    assert page.read_text(encoding="utf-8").count("near is cheap") == 1


def test_p_values_of_the_networks_are_corrected_for_their_number(tmp_path, monkeypatch):
    weak = [2.0, 2.6, 3.4]
    alone = geometric_interval(weak, against=1.0)
    assert 0.02 < alone.p < 0.05
    found = on_networks(tmp_path, monkeypatch, {"a": weak, "b": [0.9, 1.0, 1.2], "c": [0.8, 1.0, 1.1]})
    first = found.claims[0]
    assert first.corrected_p == pytest.approx(3 * alone.p)
    assert first.verdict.verdict == "inconclusive"
    (row,) = found.rows("geometry")
    assert row.verdict.verdict == "inconclusive"


def test_networks_that_contradict_each_other_reproduce_nothing(tmp_path, monkeypatch):
    strong = {name: [9.0, 9.1, 9.2] for name in "abcde"}
    assert on_networks(tmp_path / "1", monkeypatch, strong).rows("geometry")[0].verdict.verdict == "reproduced"
    mixed = {**strong, "f": [0.90, 0.901, 0.902]}
    found = on_networks(tmp_path / "2", monkeypatch, mixed)
    assert found.claims[5].verdict.verdict == "opposite"
    assert found.rows("geometry")[0].verdict.verdict == "direction only"


def test_every_rule_has_its_day():
    for name, rule in RULES.items():
        assert re.fullmatch(r"2026-\d\d-\d\d", rule.fixed), name
        assert len(rule.text) > 30, name
        assert any(word in rule.text for word in ("reproduced", "refuted", "untestable")), name


def test_one_family_of_p_values_leaves_fewer_effects():
    def row(name, p, verdict="reproduced"):
        figure = Measured(2.0, 1.1, 3.0, "×", p)
        made = Verdict(name, "a document", verdict, "a rule", "2 ×", figure, "", effect=Effect(nothing=1.0))
        return Row(made, (Claim("theory", name, made),))

    rows = [row("one", 0.001), row("two", 0.03), row("three", 0.9, "inconclusive")]
    said = claims_page._family(rows)
    assert said.startswith("3 claims are judged by an interval that has a p-value, and 2 of them are said to have")
    assert "1 stay below 0.05, and 1 do not: two (0.06)." in said
    assert claims_page._family([row("alone", 0.03)]).endswith("1 stay below 0.05.")
    assert claims_page._family([]) == "No effect was found by an interval that has a p-value."
