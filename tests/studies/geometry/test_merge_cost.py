"""The study of foretold costs, small: directions that hold on every seed looked at."""

from __future__ import annotations

from statistics import fmean

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.studies.engine import Progress, run_study
from sdsd.studies.geometry import STUDIES

STUDY = {study.name: study for study in STUDIES}["merge-cost-mlp"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study(STUDY, tmp_path_factory.mktemp("merge-cost"), Progress(), seeds=(0, 1), quick=True)


def test_near_pairs_by_cost_cost_less(result):
    for run in result.series:
        near = {by: fmean(values) for by, values in run["near"].items()}
        assert near["cost"] < near["cosine"] / 2
        assert near["curvature"] < near["cosine"] / 2
        assert run["correlation"]["cost"] > run["correlation"]["cosine"] + 0.3


def test_smaller_networks(result):
    for run in result.series:
        assert run["neurons"] <= 128
        assert run["removed"] == [round(share * run["neurons"]) for share in (0.125, 0.25, 0.375)]
        for place in range(3):
            sizes = {way: values[place] for way, values in run["smaller"].items()}
            assert sizes["cost"] < sizes["cosine"] < sizes["random"]
            assert sizes["absorb"] < sizes["cosine"]
            assert all(value >= 0 for value in sizes.values())


def test_verdicts(result):
    first, second = result.verdicts
    assert first.our_figure.value > 2
    assert second.our_figure.unit == "× pruned / absorbed by cost"
