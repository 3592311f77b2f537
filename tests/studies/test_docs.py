"""The study that docs/studies.md builds, as it stands there, and the tables that `sdsd claims` fills."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from sdsd.studies.catalogue import CATALOGUE
from sdsd.studies.claims import UNTESTABLE, Claims
from sdsd.studies.claims_page import MARKED, fill
from sdsd.studies.engine import VERDICTS, Progress, run_study

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def test_the_study_that_is_built(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "studies.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec("\n".join(blocks), names)
    (study,) = names["STUDIES"]
    result = run_study(study, tmp_path, Progress(), seeds=(0, 1), quick=True)
    (verdict,) = result.verdicts
    assert verdict.verdict == "refuted"
    assert 100 < verdict.our_figure.value < 700


def test_the_tables_are_of_studies_that_there_are():
    page = (DOCS / "claims.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\| `([a-z0-9-]+)` \|$", page, re.MULTILINE))
    absent = re.search(r"No results yet from: (.*)\.$", page, re.MULTILINE)
    assert named
    assert not named - set(CATALOGUE)
    assert not named & set(absent[1].split(", ") if absent else [])
    rows = re.findall(r"^\| .* \| \*\*(.*?)\*\* \|", page, re.MULTILINE)
    assert set(rows) <= set(VERDICTS)
    assert all(f"| {verdict.claim} |" in page for verdict in UNTESTABLE)
    for path in DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert len(MARKED.findall(text)) == text.count("<!-- claims:")
        fill(text, Claims((), ()))  # every mark names something


def test_the_summary_says_what_the_claims_say():
    """Every line of the executive summary is a claim of claims.md, under its verdict, with its figure."""
    page = (DOCS / "claims.md").read_text(encoding="utf-8").replace(r"\|", "|")
    rows = re.findall(r"^\| (.*) \| (.*?) \| \*\*(.*?)\*\* \| (.*?) \|$", page, re.MULTILINE)
    known: dict[tuple[str, str], set[str]] = {}
    for head, figure, word, _ in rows:
        known.setdefault((head.rsplit(" | ", 1)[0], word), set()).add(figure)
    verdict, lines = "", 0
    for line in (DOCS / "executive-summary.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            verdict = line[3:].lower()
        if not line.startswith("- "):
            continue
        lines += 1
        claims = [claim for claim, word in known if word == verdict and line[2:].startswith(claim)]
        assert claims, line
        rest = re.sub(r" \((`.*`|\d+ networks)\)$", "", line[2 + len(max(claims, key=len)) :])
        assert rest == "" or rest.removeprefix(": ") in known[max(claims, key=len), verdict], line
    assert lines == len(known)
