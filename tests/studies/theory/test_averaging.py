"""Γ while it moves: what `averaging_lag` is measured by, small."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd import gamma_stats
from sdsd.studies.catalogue import CATALOGUE
from sdsd.studies.engine import Measured, Progress, run_study
from sdsd.studies.theory import averaging


def test_intervals_miss_what_moves(tmp_path):
    result = run_study(CATALOGUE["averaging"], tmp_path, Progress(), seeds=(0, 1), quick=True)
    points = result.pooled("simulated")
    assert averaging._summed(points, 0.0, "holds") > 0.9 * averaging._summed(points, 0.0, "runs")
    assert averaging._summed(points, 0.0, "short") > 0.5 * averaging._summed(points, 0.0, "runs")
    for move in (-0.2, 0.2):
        assert averaging._summed(points, move, "holds") < 0.7 * averaging._summed(points, move, "runs")
        assert averaging._summed(points, move, "short") < 0.05 * averaging._summed(points, move, "runs")
    assert all(averaging._missing(points, move).value < 0.1 for move in result.config["moves"])
    ratios = {point["move"]: point["ratio"] for point in points}
    assert ratios[0.0] == 0 < ratios[0.05] < ratios[0.2]
    assert result.verdicts[0].our_figure.value > 0.5


def test_gamma_of_all_samples():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    images, labels = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    stacked = torch.stack(rows)
    mean = stacked.mean(0)
    expected = (mean.square().sum() / (stacked - mean).square().sum(1).mean()).item()
    assert averaging._of_all(model, images, labels) == pytest.approx(expected)


def test_simulated_gradients():
    torch.manual_seed(0)
    raw = averaging._gradients(0.25, 4000, 30, 32)
    found = (raw[0], (raw[1] - 32 * raw[0]) / 31)
    assert found[1].mean().item() == pytest.approx(1, abs=0.01)
    assert (found[0] - found[1] / 32).mean().item() == pytest.approx(0.25, abs=0.01)
    rows = torch.randn(32, 30) / 30**0.5 + torch.eye(30)[0] / 2
    assert gamma_stats(rows).noise == pytest.approx(1, abs=0.2)


def test_words():
    sure, unsure = Measured(0.95, 0.92, 0.97), Measured(0.6, 0.5, 0.7)
    few, many = Measured(0.04, 0.03, 0.05), Measured(0.2, 0.15, 0.25)
    assert averaging._word(sure, many) == "reproduced"
    assert averaging._word(unsure, many) == "refuted"
    assert averaging._word(unsure, few) == "direction only"
    assert averaging._word(Measured(0.9, 0.8, 0.95), few) == "inconclusive"
    assert averaging._word(Measured(0.9), few) == "inconclusive"
