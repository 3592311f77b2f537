"""The studies of phenomena, small, over two seeds: each phenomenon shows, and its controls do not."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.studies._progress import Progress
from sdsd.studies.catalogue import GROUPS
from sdsd.studies.registry import run_study

from .strict_json import strict_json

PHENOMENA = {study.name: study for study in GROUPS["phenomena"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a study over two seeds, once for all tests."""
    finished = {}

    def result_of(name):
        if name not in finished:
            folder = tmp_path_factory.mktemp(name)
            finished[name] = run_study(PHENOMENA[name], folder, Progress(), seeds=(0, 1), quick=True)
            assert (folder / f"{name}.png").stat().st_size > 10_000
            assert strict_json(folder / "results.json")["status"] == "complete"
        return finished[name]

    return result_of


def shown(result):
    """The verdict on the phenomenon, which the second on its explanation stands on."""
    phenomenon, explanation, *_ = result.verdicts
    for verdict in result.verdicts:
        assert verdict.verdict.split()[0] in verdict.rule
        assert "nan" not in verdict.corrected.lower().split()
    assert explanation.source.startswith("Symmetry-Driven Spatial Density")
    return phenomenon.verdict


def test_a_ticket_learns_and_its_controls_do_not(run):
    result = run("lottery-ticket")
    assert shown(result) in ("reproduced", "direction only")
    for series in result.series:
        assert 0.12 < series["density"] < 0.15
        ends = {arm: (rows["accuracy"][-1], rows["gamma"][-1]) for arm, rows in series["arms"].items()}
        for control in ("other start", "random mask"):
            assert ends["ticket"][0] > ends[control][0] + 0.1
            assert ends["ticket"][1] > 2 * ends[control][1]
