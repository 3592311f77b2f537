"""Parts of the small studies, against what is known of them."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.studies.engine import Progress
from sdsd.studies.theory import least_norm
from sdsd.studies.theory.kakeya import area, perron_tree, strips
from sdsd.studies.theory.tangent_kernel import Wide
from sdsd.studies.theory.two_wells import TwoWells, gibbs_share
from sdsd.theory import tangent_kernel


def test_slices_slid_over_each_other():
    assert area(perron_tree(0, 0.7), 1) == pytest.approx(0.5, abs=1e-3)
    assert area(perron_tree(6, 1.0), 64) == pytest.approx(0.5, abs=1e-3)  # an overlap of 1 moves nothing
    for levels in (1, 3, 6):
        for overlap in (0.6, 0.8, 0.9):
            bound = 0.5 * (overlap ** (2 * levels) + 2 * (1 - overlap))
            left = perron_tree(levels, overlap)
            assert area(left, 2**levels) <= bound + 1e-3
            # The triangle common to all, similar to the whole, has a base of overlap^levels, and no base sticks out.
            assert (left.max() - left.min()).item() + 2.0**-levels == pytest.approx(overlap**levels)
    # Two halves of base ½ slid by 1 − α: similar triangles of total base α, less what they share.
    two = area(perron_tree(1, 0.8), 2)
    assert two == pytest.approx(0.5 * (0.8**2 + 2 * 0.2**2), abs=2e-3)


def test_strips():
    draw = torch.Generator().manual_seed(0)
    points = 2 * torch.rand(200_000, 2, generator=draw) - 1
    across, up = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert strips(across, torch.tensor([0.0]), points, 0.1) == pytest.approx(0.1, abs=0.005)
    both = torch.cat((across, up))
    assert strips(both, torch.zeros(2), points, 0.1) == pytest.approx(0.19, abs=0.005)
    assert strips(across, torch.tensor([3.0 * 5]), points, 0.1) == 0


def test_two_wells():
    wells = TwoWells(1.0, 25.0)
    states = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(wells(states).sum(), states)
    assert torch.allclose(wells.gradient(states.detach()), gradient)
    # In the cold each well holds what its Gaussian does: 1/k of the plane.
    assert gibbs_share(wells, 0.02) == pytest.approx(25 / 26, abs=1e-3)
    assert gibbs_share(TwoWells(3.0, 3.0), 0.3) == pytest.approx(0.5, abs=1e-3)


def test_a_wide_network_starts_at_its_kernel():
    """In the limit K = x·x'/d (π − φ)/π + (the arc-cosine kernel of degree 1), φ the angle (Cho and Saul 2009)."""
    draw = torch.Generator().manual_seed(0)
    model = Wide(3, 100_000, draw)
    x = torch.randn(2, 3, generator=draw)
    assert model(x).abs().max() < 1e-6
    found = tangent_kernel(model, x)
    (a, b), norms = x / math.sqrt(3), x.norm(dim=1) / math.sqrt(3)
    angle = math.acos((a @ b / norms.prod()).item())
    value = (a @ b).item() * (math.pi - angle) / math.pi
    value += norms.prod().item() * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
    assert found[0, 1].item() == pytest.approx(value, rel=0.03)


def test_descent_finds_the_least_norm_and_adam_another_solution():
    found = least_norm.measure(0, Progress(), problems=3, steps=3000, learning_rates={"descent": 0.5, "adam": 0.01})
    for name in ("gradient descent", "SGD", "momentum"):
        assert max(found[name]["distance"]) < 1e-4
    for name in ("Adam", "Adam, random start"):
        assert max(found[name]["residual"]) < 0.01
        assert min(found[name]["norm"]) > 1.02
