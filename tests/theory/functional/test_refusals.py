"""What the functional refuses, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sdsd.theory.functional import (
    geometric_functional,
    log_orbit_count,
    log_volume,
    orbit_entropy,
    participation_ratio,
    realized_volume,
)

from .rows import NORMED, Named, network


@pytest.mark.parametrize("lam", [-0.1, math.nan, math.inf])
def test_negative_lambda(lam):
    with pytest.raises(ValueError, match=r"lam: expected λ ≥ 0, got"):
        geometric_functional(network(), lam)


@pytest.mark.parametrize("angle", [0, -0.1, 1.6, 45, math.nan])
def test_angles(angle):
    for measure in (log_orbit_count, realized_volume):
        with pytest.raises(ValueError, match=r"angle: expected radians in \(0, π/2\]"):
            measure(torch.eye(3), angle)
    with pytest.raises(ValueError, match=r"angle: expected radians"):
        geometric_functional(network(), 0.1, volume="union", angle=angle)


@pytest.mark.parametrize(
    ("rows", "mass", "error", "match"),
    [
        ([[1.0]], None, TypeError, "rows: expected a floating-point torch.Tensor, got list"),
        (torch.ones(2, 2, dtype=torch.int64), None, TypeError, "got torch.int64"),
        (torch.ones(2), None, ValueError, r"expected shape \(neurons, dimensions\)"),
        (torch.ones(0, 2), None, ValueError, "neither 0"),
        (torch.tensor([[1.0, math.nan]]), None, ValueError, "expected finite numbers, got 1 that are not"),
        (torch.zeros(2, 2), None, ValueError, "at least one neuron with mass and a direction"),
        (torch.eye(2), torch.zeros(2), ValueError, "at least one neuron with mass and a direction"),
        (torch.eye(2), torch.ones(3), ValueError, r"one number a row, 2, got shape \(3,\)"),
        (torch.eye(2), torch.tensor([1.0, -1.0]), ValueError, "mass: expected finite numbers ≥ 0"),
        (torch.eye(2), torch.tensor([1, 1]), TypeError, "mass: expected a floating-point"),
    ],
)
def test_rows_and_masses(rows, mass, error, match):
    for measure in (orbit_entropy, participation_ratio):
        with pytest.raises(error, match=match):
            measure(rows, mass)
    if mass is None:
        for measure in (log_volume, lambda r: realized_volume(r, 0.5), lambda r: log_orbit_count(r, 0.5)):
            with pytest.raises(error, match=match):
                measure(rows)


def test_other_numbers_out_of_range():
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        realized_volume(torch.eye(2), 0.5, samples=0)
    with pytest.raises(ValueError, match="at least two dimensions a row"):
        realized_volume(torch.ones(3, 1), 0.5)
    with pytest.raises(ValueError, match="epsilon: expected a number above 0, got 0"):
        log_volume(torch.eye(2), 0)
    with pytest.raises(ValueError, match="volume: expected one of 'log', 'union', got 'sum'"):
        geometric_functional(network(), 0.1, volume="sum")


GROUPED = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2))


@pytest.mark.parametrize(
    ("model", "layers", "error", "match"),
    [
        (nn.Sequential(nn.Linear(3, 2)), None, ValueError, "no hidden layer whose neurons can be rescaled"),
        (Named(), None, ValueError, r"layers=\[\('fc1', 'fc2'\)\].*Tanh"),
        (NORMED, None, ValueError, "a norm stands between the weights and the activation of '1'"),
        (Named(), [], ValueError, "layers: expected at least one pair"),
        (Named(), [("fc1", "fc3")], ValueError, "has no layer 'fc3'. It has: fc1, fc2"),
        (Named(), [("fc1", "act")], TypeError, "got 'act', which is none"),
        (Named(), [("fc2", "fc1")], ValueError, "expected 'fc1' to read the 2 neurons of 'fc2', got 3 inputs"),
        (GROUPED, [("0", "2")], ValueError, "convolution of groups"),
    ],
)
def test_models(model, layers, error, match):
    with pytest.raises(error, match=match):
        geometric_functional(model, 0.1, layers=layers)
