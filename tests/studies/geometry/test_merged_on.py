"""Two studies of merges, small: training on after one, and what foretells the cost of one."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.studies.catalogue import CATALOGUE
from sdsd.studies.engine import Measured, Progress, run_study
from sdsd.studies.geometry import after_merging, redundancy
from sdsd.studies.geometry.verdicts import PLASTICITY_CLAIM


def test_a_network_with_room_to_learn_is_merged_and_trained_on(tmp_path):
    result = run_study(CATALOGUE["after-merging"], tmp_path, Progress(), quick=True)
    assert (tmp_path / "after-merging.png").stat().st_size > 10_000
    for series in result.series:
        assert series["before"] < 0.95  # away from the ceiling
        assert [len(series[name]) for name in after_merging.WAYS] == [3, 3, 3]
        assert series["cost"]["geometry"] < series["cost"]["random"]
    assert [verdict.verdict.split()[0] in verdict.rule for verdict in result.verdicts] == [True, True, True]
    gain, _, peak = result.verdicts
    assert peak.claim == PLASTICITY_CLAIM
    assert peak.our_figure == gain.our_figure
    assert peak.effect is not None


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.1, -0.3, 0.5), "reproduced"), ((1.5, 0.2, 2.8), "refuted"), ((0.5, -0.5, 1.5), "inconclusive")],
)
def test_a_gain_of_a_point_refutes_the_negative_result(interval, word):
    assert after_merging._word(Measured(*interval)) == word
    assert after_merging._word(Measured(0.1)) == "inconclusive"


@pytest.mark.parametrize(
    ("stability", "speed", "word"),
    [
        ((0.6, 0.5, 0.7), (0.1, -0.3, 0.5), "reproduced"),
        ((0.6, 0.5, 0.7), (1.5, 1.1, 1.9), "refuted"),
        ((0.6, 0.5, 0.7), (-1.5, -1.9, -1.1), "refuted"),
        ((0.6, 0.5, 0.7), (0.8, 0.4, 1.2), "inconclusive"),
        ((0.0, -0.05, 0.05), (0.1, -0.3, 0.5), "no effect"),
        ((0.1, -0.2, 0.4), (0.1, -0.3, 0.5), "inconclusive"),
        ((0.6,), (0.1, -0.3, 0.5), "inconclusive"),
    ],
)
def test_stability_and_speed(stability, speed, word):
    assert after_merging._speed_word(Measured(*stability), Measured(*speed)) == word


def test_readers_and_mass_foretell_the_cost_better_than_the_angle(tmp_path):
    result = run_study(CATALOGUE["redundancy"], tmp_path, Progress(), seeds=(0, 1), quick=True)
    found = redundancy.correlations(result)
    assert min(found[redundancy.PRODUCT]) > max(found[redundancy.ANGLE])
    assert min(found[redundancy.PRODUCT]) > 0.2


def test_what_is_known_of_a_pair_before_it_is_merged():
    activations, readers = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    known = redundancy._foretold(activations, readers, torch.tensor([[0, 1]]))
    assert known[redundancy.ANGLE] == [1.0]
    assert known[redundancy.MASS] == [1 * 3 + 2 * 4]
    assert known[redundancy.PRODUCT] == pytest.approx([5**0.5 * 5])
