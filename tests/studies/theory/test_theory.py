"""The studies of the theory, small: verdicts, numbers, files."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.studies.catalogue import GROUPS
from sdsd.studies.engine import Progress, run_study

from ..strict_json import strict_json

THEORY = {study.name: study for study in GROUPS["theory"]}
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
    "connectivity": ["reproduced"],
    "learning-coefficient": ["reproduced"],
    "flatness": ["reproduced"],
    "volume": ["direction only"],
    "volume-sgd": ["direction only"],
    "basin": ["inconclusive"],
    "occam": ["direction only", "reproduced", "reproduced"],
    "least-norm": ["reproduced", "reproduced"],
    "tangent-kernel": ["reproduced", "inconclusive"],
    "goldstone": ["reproduced"],
    "two-wells": ["reproduced"],
    "kakeya": ["inconclusive"],
}
OUR_FIGURE = {
    "quotient": (2, 10_000),
    "prediction": (0, 0.6),
    "phase": (4.5, 5.5),
    "multiplicative": (0.99, 1),
    "well": (0.4, 0.7),
    "conservation": (0, 0.05),
    "selection": (0.3, 0.7),
    "rank": (0.84, 0.84),
    "sensing": (1, 2),
    "connectivity": (0.1, 0.6),
    "learning-coefficient": (0, 0.5),
    "flatness": (3, 1000),
    "volume": (-1, -0.7),
    "volume-sgd": (0.2, 0.7),
    "least-norm": (0, 1e-4),
    "tangent-kernel": (-1, -0.3),
    "goldstone": (0.9, 1.1),
    "two-wells": (0.03, 0.1),
    "kakeya": (0.8, 1.2),
}


def test_all_experiments_are_here():
    assert set(THEORY) == set(EXPECTED)
    for study in THEORY.values():
        assert "§" in study.source or "," in study.source


@pytest.mark.parametrize("name", EXPECTED)
def test_each_experiment_reaches_its_verdict(name, tmp_path):
    result = run_study(THEORY[name], tmp_path, Progress(), quick=True)
    assert [verdict.verdict for verdict in result.verdicts] == EXPECTED[name]
    low, high = OUR_FIGURE.get(name, (-math.inf, math.inf))
    assert low <= result.verdicts[0].our_figure.value <= high
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", f"{name}.png", "report.html", "seeds"}
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    found = strict_json(tmp_path / "results.json")
    assert (found["study"], found["status"], found["seeds"]) == (name, "complete", [0])
    assert found["config"]["quick"] is True
    for verdict in found["verdicts"]:
        assert verdict["verdict"].split()[0] in verdict["rule"]
        assert not any("nan" in text.lower().split() for text in (verdict["corrected"], verdict["rule"]))


@pytest.mark.parametrize("name", ["selection", "phase"])
def test_same_seeds_same_numbers(name):
    study = THEORY[name]
    first, again, other = (json.dumps(study.measure(seed, Progress(), **study.quick)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
