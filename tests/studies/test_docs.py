"""The study that docs/studies.md builds, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from sdsd.studies._progress import Progress
from sdsd.studies.registry import run_study

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
