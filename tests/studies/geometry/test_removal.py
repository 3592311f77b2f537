"""The first biopsy, which took neurons out: what is measured, and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.geometry import evaluating, remove_neurons
from sdsd.studies.catalogue import CATALOGUE
from sdsd.studies.engine import Progress, run_study
from sdsd.studies.geometry import removal
from sdsd.studies.geometry.subject import digits_mlp


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study(CATALOGUE["removal-mlp"], tmp_path_factory.mktemp("removal"), Progress(), seeds=(0, 1), quick=True)


def test_taking_out_does_not_tell_near_from_far(result):
    """It costs what a neuron carries, and near neurons are the louder ones; averaging the same pairs tells them."""
    apart = removal.ratios(result)
    assert max(apart["removed"]) < 1 < min(apart["averaged"])
    assert min(removal.correlations(result, "carried")) > 0.4
    assert max(removal.correlations(result, "angle")) < 0.2
    (verdict,) = result.verdicts
    assert verdict.our_figure.value > 2


def test_a_neuron_taken_out_is_removed():
    subject = digits_mlp(0, 3)
    run = removal._measure(subject, 0, Progress(), 3)
    with evaluating(subject.model):
        before = float(subject.sensitivity(subject.model))
    pairs = removal.disjoint_pairs(
        None, 3, "random", seed=0, cosine=torch.eye(128), alive=_alive(subject)
    )  # the draw depends on who is alive alone
    expected = []
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        for gone in (second, first):
            smaller, _ = remove_neurons(subject.model, subject.layer, [gone], example_input=subject.example_input)
            with evaluating(smaller):
                expected.append(abs(float(subject.sensitivity(smaller)) - before))
    assert run["single"]["cost"] == pytest.approx(expected, abs=1e-6)


def _alive(subject):
    return removal.collect_activations(subject.model, subject.batches, subject.layer)[subject.layer].alive


def _with_far(result, way, factor):
    """The same result with far pairs dearer by `factor` in one way."""
    series = [{**run, "far": {**run["far"], way: [factor * cost for cost in run["far"][way]]}} for run in result.series]
    return removal.judge(replace(result, series=series))[0].verdict


def test_verdicts_that_could_have_been(result):
    steady = [
        {
            **run,
            "near": {way: [1.0 + 0.01 * place] for way in removal.WAYS},
            "far": {way: [1.0] for way in removal.WAYS},
        }
        for place, run in enumerate(result.series)
    ]
    alike = replace(result, series=steady)
    assert removal.judge(alike)[0].verdict == "no effect"
    assert _with_far(alike, "averaged", 3.0) == "reproduced"
    assert _with_far(alike, "removed", 3.0) == "opposite"
    both = replace(
        alike,
        series=[{**run, "far": {"removed": [2.0], "absorbed": [1.0], "averaged": [6.0]}} for run in alike.series],
    )
    assert removal.judge(both)[0].verdict == "direction only"
