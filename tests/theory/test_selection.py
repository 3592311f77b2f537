"""The Selection Principle's toy models: what is selected, how fast, and up to what."""

from __future__ import annotations

import math

import pytest
import torch

from sdsd.theory.selection import select_on_hyperbola, select_on_line


def starts(count: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("k", "learning_rate"), [(1.0, 0.1), (0.3, 0.05), (4.0, 0.11)])
def test_the_line_contracts_by_one_minus_four_k_eta(k, learning_rate):
    found = select_on_line(starts(200), k, learning_rate, 20)
    apart = found.weights[..., 0] - found.weights[..., 1]
    assert (apart[1:] / apart[:-1] - (1 - 4 * k * learning_rate)).abs().max() < 1e-6
    off = found.weights.sum(2) - 1
    assert (off[1:8] / off[:7] - (1 - 4 * learning_rate)).abs().max() < 1e-6


def test_the_line_selects_one_half():
    found = select_on_line(starts(500), 1.0, 0.1, 300)
    assert (found.alpha[-1] - 0.5).abs().max() < 1e-12
    assert found.alpha[-1].std() < 1e-14
    assert found.loss[-1].max() < 1e-24


def test_nothing_is_selected_without_the_potential():
    begin = starts(500)
    line = select_on_line(begin, 0.0, 0.1, 300)
    assert line.loss[-1].max() < 1e-24
    assert line.alpha[-1].std() > 0.5
    assert torch.allclose(line.weights[-1, :, 0] - line.weights[-1, :, 1], begin[:, 0] - begin[:, 1])
    curve = select_on_hyperbola(begin, 0.0, 0.02, 1500)
    assert curve.loss[-1].max() < 1e-6
    assert curve.alpha[-1].std() > 0.2


def test_the_edge_of_convergence():
    slow = select_on_line(starts(5), 2.0, 0.2499, 3)
    assert (slow.alpha[-1] - 0.5).abs().max() < (slow.alpha[0] - 0.5).abs().max()
    with pytest.raises(ValueError, match="kη < ½"):
        select_on_line(starts(5), 2.0, 0.25, 3)


@pytest.mark.parametrize("seed", range(3))
def test_the_hyperbola_selects_one_half_at_two_points(seed):
    begin = starts(600, seed)
    found = select_on_hyperbola(begin, 0.2, 0.05, 1500)
    assert (found.alpha[-1] - 0.5).abs().max() < 1e-3
    assert found.alpha[-1].mean().item() == pytest.approx(0.5, abs=2e-4)
    end = found.weights[-1]
    assert (end.abs() - 1).abs().max() < 1e-3
    positive = end[:, 0] > 0
    assert torch.equal(positive, end[:, 1] > 0)
    assert torch.equal(positive, begin.sum(1) > 0)
    assert abs(positive.double().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(600)


def test_the_potential_on_the_hyperbola_is_weight_decay():
    u = torch.linspace(0.2, 3, 50, dtype=torch.float64)
    w = torch.stack((u, 1 / u), 1)
    assert torch.allclose((w[:, 0] - w[:, 1]).square(), w.square().sum(1) - 2)
    selected = select_on_hyperbola(starts(50), 0.2, 0.05, 1500)
    w = starts(50)
    for _ in range(8000):  # weight decay itself, so weak that it hardly moves the points
        residual = 2 * (w.prod(1, keepdim=True) - 1)
        w = w - 0.05 * (residual * w.flip(1) + 2 * 5e-3 * w)
    assert (w - selected.weights[-1]).abs().max() < 5e-3


@pytest.mark.parametrize("select", [select_on_line, select_on_hyperbola])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"start": [[1.0, 2.0]]}, TypeError, "start: expected a floating-point torch.Tensor"),
        ({"start": torch.ones(3)}, ValueError, r"start: expected shape \(starts, 2\), got \(3,\)"),
        ({"start": torch.ones(0, 2)}, ValueError, r"got \(0, 2\)"),
        ({"k": -1.0}, ValueError, "k: expected a number ≥ 0, got -1"),
        ({"k": math.nan}, ValueError, "k: expected a number ≥ 0"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate: expected 0 < η"),
        ({"learning_rate": 0.5}, ValueError, "learning_rate: expected 0 < η"),
        ({"steps": -1}, ValueError, "steps: expected at least 0"),
    ],
)
def test_arguments(select, change, error, match):
    with pytest.raises(error, match=match):
        select(**({"start": torch.ones(2, 2), "k": 1.0, "learning_rate": 0.1, "steps": 1} | change))


def test_a_start_that_runs_away_is_named():
    start = torch.tensor([[1.0, 1.0], [30.0, 30.0]])
    with pytest.raises(ValueError, match="start 1 runs away, not finite at step"):
        select_on_hyperbola(start, 0.1, 0.1, 50)
