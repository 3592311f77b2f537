"""What the report of `consolidate` foretells, against the networks themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.geometry import consolidate

PAIRS = [(0, 1), (2, 5)]


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4, bias=False)).double(), torch.randn(500, 16)


def pictures():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Tanh(), nn.Conv2d(12, 4, 1, bias=False))
    return layers.double(), torch.randn(9, 3, 6, 6)


@pytest.mark.parametrize("made", [perceptron, pictures])
@pytest.mark.parametrize("how", ["act", "absorb"])
@pytest.mark.parametrize("known", ["activations", "gram"])
def test_what_readers_get_changes_as_foretold(made, how, known):
    model, x = made()
    x = x.double()
    with torch.no_grad():
        values, before = model[:2](x), model(x)
    rows = values.movedim(1, 0).flatten(1)
    given = {"activations": values} if known == "activations" else {"gram": rows @ rows.T}
    smaller, report = consolidate(model, "0", PAIRS, how, remove=how == "absorb", example_input=x[:1], **given)
    with torch.no_grad():
        measured = float((smaller(x) - before).norm() / before.norm())
    assert report.foretold == pytest.approx(measured, rel=1e-9)
    assert f"get values that differ by {measured:.2%}, foretold" in str(report)


def test_averaged_weights_are_foretold_as_averaged_activations():
    model, x = perceptron()
    with torch.no_grad():
        values = model[:2](x.double())
    by_mean = consolidate(model, "0", PAIRS, "mean", activations=values)[1].foretold
    assert by_mean == consolidate(model, "0", PAIRS, "act", remove=False, activations=values)[1].foretold > 0


def test_nothing_is_foretold_where_nothing_is_known():
    model, _ = perceptron()
    report = consolidate(model, "0", PAIRS)[1]
    assert report.foretold is None
    assert "foretold" not in str(report)


def test_equal_neurons_and_a_silent_layer_change_nothing():
    model, x = perceptron()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        values = model[:2](x.double())
    assert consolidate(model, "0", [(0, 1)], "absorb", activations=values)[1].foretold == pytest.approx(0, abs=1e-7)
    assert consolidate(model, "0", [(0, 1)], "absorb", activations=0 * values)[1].foretold == 0
