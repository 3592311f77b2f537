"""What examinations say to each claim, and that it could come out otherwise."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("plotly")
pytest.importorskip("plyfile")


from sdsd.geometry import NeuronMap
from sdsd.studies.geometry.arc import describe
from sdsd.studies.geometry.subject import (
    TRAINED_SHUFFLED,
    UNTRAINED,
)
from sdsd.studies.geometry.verdicts import judge_network


def run_of(batch=5.0, single=14.0, mass=1.8, near=2.0, pruned=2.0, silhouettes=(0.3, 0.1), points=0.0, wide=False):
    """A made-up run; intervals are ±10%, or reach below 1; `near`: how often as much near pairs by weights cost."""

    def cohort(mean):
        return {"cosine": 0.5, "mean": mean, "sd": 0.1, "changes": [mean]}

    def ratios(value, near=1.0):
        interval = [0.5, value * 2] if wide else [0.9 * value, 1.1 * value]
        cohorts = {"near": cohort(0.01 * near), "random": cohort(0.02), "far": cohort(0.01 * value)}
        cohorts["far"]["changes"][0] = 0.01 * single
        return {**cohorts, "ratio": value, "interval": interval, "single ratio": single}

    interval = [0.5, 2 * mass] if wide else [0.9 * mass, 1.1 * mass]
    random = [0.01, 1.0] if wide else [0.1 * mass, 0.11 * mass]
    at_once = {
        "pairs": 3,
        "change": 0.1,
        "random": random,
        "ratio": mass,
        "interval": interval,
    }
    ways = {
        "nearest activations, averaged": 0.1,
        "nearest activations, absorbed": 0.05,
        "nearest weights, averaged": 0.2,
        "smallest weights, pruned": 0.1 * pruned,
    }
    return {
        "network": "made up",
        "measure": "loss",
        "map": {"compared": silhouettes[0], "effective_rank": 5.0},
        "biopsy": {"activations": ratios(batch), "weights": ratios(batch, near)},
        "consolidation": {"activations": at_once, "weights": {**at_once, "change": 0.2}},
        "equal size": {
            "removed": 3,
            "neurons": [16, 13],
            "ways": {name: {"change": value} for name, value in ways.items()},
        },
        "controls": {UNTRAINED: {"compared": silhouettes[1], "effective_rank": 9.0}},
        "plasticity": {
            "difference": points / 100,
            "geometry": [0.9 + points / 100],
            "random": [0.9],
            "untouched": [0.9],
        },
    }


def verdict_of(part: str, *runs):
    (found,) = [verdict for verdict in judge_network(runs) if part in verdict.claim]
    return found.verdict


@pytest.mark.parametrize(
    ("claim", "changed", "verdict"),
    [
        ("about 5 times", {}, "reproduced"),
        ("about 5 times", {"batch": 2.0}, "direction only"),
        ("about 5 times", {"batch": 11.0}, "direction only"),
        ("about 5 times", {"batch": 0.7}, "opposite"),
        ("about 5 times", {"wide": True}, "inconclusive"),
        ("1.8 times", {}, "reproduced"),
        ("1.8 times", {"mass": 20.0}, "direction only"),
        ("1.8 times", {"mass": 0.5}, "opposite"),
        ("1.8 times", {"wide": True}, "inconclusive"),
        ("geometry of activations", {}, "inconclusive"),
        ("outperforms naive", {}, "inconclusive"),
        ("differ sharply", {}, "inconclusive"),
        ("peaks lower", {"points": -2.1}, "inconclusive"),
        ("farthest pair", {}, "untestable here"),
    ],
)
def test_each_verdict_can_come_out_otherwise(claim, changed, verdict):
    assert verdict_of(claim, run_of(**changed)) == verdict


@pytest.mark.parametrize(
    ("claim", "changed", "verdict"),
    [
        ("geometry of activations", {}, "reproduced"),
        ("geometry of activations", {"near": 0.5}, "opposite"),
        ("geometry of activations", {"near": 1.0}, "no effect"),
        ("outperforms naive", {}, "reproduced"),
        ("outperforms naive", {"pruned": 0.5}, "opposite"),
        ("outperforms naive", {"pruned": 1.0}, "no effect"),
        ("differ sharply", {}, "reproduced"),
        ("differ sharply", {"silhouettes": (0.3, 0.25)}, "direction only"),
        ("differ sharply", {"silhouettes": (0.3, 0.4)}, "opposite"),
        ("peaks lower", {}, "no effect"),
        ("peaks lower", {"points": -2}, "reproduced"),
        ("peaks lower", {"points": 2}, "opposite"),
    ],
)
def test_what_a_single_run_leaves_open_several_decide(claim, changed, verdict):
    assert verdict_of(claim, *[run_of(**changed)] * 2) == verdict


def test_controls_are_compared_in_the_runs_that_have_them():
    def with_third(compared):
        run = run_of(silhouettes=(0.3, 0.1))
        run["controls"][TRAINED_SHUFFLED] = {"compared": compared, "effective_rank": 3.0}
        return run

    runs = [with_third(None), with_third(0.4), with_third(0.1)]
    (found,) = [verdict for verdict in judge_network(runs) if "differ sharply" in verdict.claim]
    assert found.verdict == "inconclusive"
    assert found.our_figure.value == pytest.approx((0.2 - 0.1 + 0.2) / 3)
    assert "0.25 trained on shuffled inputs" in found.corrected
    assert "in 2 of 3 runs" in found.corrected
    assert verdict_of("differ sharply", with_third(None), with_third(0.1)) == "reproduced"
    assert verdict_of("differ sharply", run_of(silhouettes=(0.3, None)), run_of()) == "untestable here"


def test_too_few_neurons_have_no_ten_clusters():
    def compared(neurons):
        torch.manual_seed(0)
        return describe(NeuronMap.from_activations(torch.rand(50, neurons)))["compared"]

    assert compared(19) is None
    assert -1 < compared(20) < 1


def test_several_seeds_are_judged_by_their_spread():
    assert verdict_of("farthest pair", *[run_of(single=value) for value in (13.0, 14.0, 15.0)]) == "reproduced"
    assert verdict_of("farthest pair", *[run_of(single=value) for value in (0.5, 14.0, 300.0)]) == "inconclusive"
    assert verdict_of("farthest pair", *[run_of(single=value) for value in (20.0, 60.0, 300.0)]) == "direction only"
    assert verdict_of("about 5 times", *[run_of(batch=value, wide=True) for value in (4.0, 5.0, 6.0)]) == "reproduced"
    runs = [run_of(near=value) for value in (0.5, 1.1, 3.0)]
    assert verdict_of("geometry of activations", *runs) == "inconclusive"
    mean = math.exp(sum(math.log(value) for value in (4.0, 5.0, 6.0)) / 3)
    (found,) = [
        each for each in judge_network([run_of(batch=value) for value in (4.0, 5.0, 6.0)]) if "5 times" in each.claim
    ]
    assert found.our_figure.value == pytest.approx(mean)
    # A run in which near merges changed nothing has no ratio, and no verdict is made of the others alone.
    runs[0]["biopsy"]["activations"]["ratio"] = None
    assert verdict_of("about 5 times", *runs) == "untestable here"
    assert verdict_of("differ sharply", run_of(), run_of(silhouettes=(0.02, -0.18))) == "direction only"
    assert verdict_of("differ sharply", run_of(), run_of(silhouettes=(0.2, -0.01))) == "reproduced"
