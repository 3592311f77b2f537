"""Entropy, effective numbers and orbit counts of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdsd.theory.functional import (
    log_orbit_count,
    log_volume,
    orbit_entropy,
    participation_ratio,
    realized_volume,
)

from .rows import mass_of, normal

SHAPES = [(1, 1), (1, 5), (5, 1), (4, 7), (6, 6), (9, 4), (30, 8)]


def mixture(rows: torch.Tensor, mass: torch.Tensor) -> np.ndarray:
    """M by its definition, entry by entry in NumPy."""
    r, p = rows.double().numpy(), mass.double().numpy() / mass.double().numpy().sum()
    norms = np.sqrt((r * r).sum(1))
    return np.sqrt(np.outer(p, p)) * (r @ r.T) / np.outer(norms, norms)


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_is_that_of_the_matrix_it_is_defined_by(shape):
    rows, mass = normal(*shape), mass_of(shape[0])
    eigenvalues = np.linalg.eigvalsh(mixture(rows, mass)).clip(1e-300)
    wanted = -(eigenvalues * np.log(eigenvalues)).sum()
    assert orbit_entropy(rows, mass).item() == pytest.approx(wanted, abs=1e-12)
    assert orbit_entropy(rows.float(), mass.float()).item() == pytest.approx(wanted, abs=3e-6 * math.sqrt(max(shape)))
    assert participation_ratio(rows, mass).item() == pytest.approx(1 / (mixture(rows, mass) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_entropy_of_sets_that_need_no_computing(n):
    square = torch.eye(n, dtype=torch.float64)
    assert orbit_entropy(square).item() == pytest.approx(math.log(n), abs=1e-12)
    assert participation_ratio(square).item() == pytest.approx(n)
    one_way = normal(1, 7) * torch.linspace(-2, 3, n, dtype=torch.float64)[:, None]
    assert orbit_entropy(one_way).item() == pytest.approx(0, abs=1e-12)
    assert participation_ratio(one_way).item() == pytest.approx(1)


@pytest.mark.parametrize(("n", "d"), [(3, 9), (12, 5)])
def test_splitting_a_neuron_changes_nothing(n, d):
    rows, mass = normal(n, d), mass_of(n)
    split = torch.cat((rows, 4 * rows[:1]))
    shared = torch.cat((mass, 0.75 * mass[:1]))
    shared[0] *= 0.25
    assert orbit_entropy(split, shared).item() == pytest.approx(orbit_entropy(rows, mass).item(), abs=1e-12)


def test_neurons_without_mass_or_direction_do_not_count():
    rows, mass = normal(6, 4), mass_of(6)
    more = torch.cat((rows, torch.zeros(1, 4), normal(1, 4, seed=5)))
    with_absent = torch.cat((mass, torch.tensor([3.0, 0.0])))
    for measure in (orbit_entropy, participation_ratio):
        assert measure(more, with_absent).item() == pytest.approx(measure(rows, mass).item(), abs=1e-13)
    assert log_volume(more[:7]).item() == pytest.approx(log_volume(rows).item())
    assert realized_volume(more[:7], 0.5) == realized_volume(rows, 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(-30, 30))
def test_bounds_and_independence_of_scale(n, d, seed, exponent):
    rows, mass = normal(n, d, seed=seed), mass_of(n, seed=seed)
    entropy = orbit_entropy(rows, mass).item()
    ratio = participation_ratio(rows, mass).item()
    assert -1e-12 <= entropy <= math.log(min(n, d)) + 1e-12
    assert 1 - 1e-12 <= ratio <= math.exp(entropy) * (1 + 1e-12)  # Rényi's entropies fall with their order
    scaled = rows * 10.0**exponent * (1 + torch.arange(n, dtype=torch.float64))[:, None]
    assert orbit_entropy(scaled, 7 * mass).item() == pytest.approx(entropy, abs=1e-11)
    assert log_volume(scaled).item() == pytest.approx(log_volume(rows).item(), abs=1e-11)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (6, 3)])
def test_gradients(shape):
    rows, mass = normal(*shape).requires_grad_(), mass_of(shape[0]).requires_grad_()
    assert torch.autograd.gradcheck(orbit_entropy, (rows, mass))
    assert torch.autograd.gradcheck(participation_ratio, (rows, mass))
    assert torch.autograd.gradcheck(log_volume, (rows,))


def test_gradients_stay_finite_where_eigenvalues_vanish_or_coincide():
    for rows in (torch.eye(4), torch.ones(3, 6), torch.cat((torch.eye(3), torch.eye(3))), torch.ones(1, 1)):
        rows = rows.double().requires_grad_()
        mass = torch.ones(len(rows), dtype=torch.float64, requires_grad=True)
        (orbit_entropy(rows, mass) + log_volume(rows)).backward()
        assert rows.grad.isfinite().all()
        assert mass.grad.isfinite().all()


@pytest.mark.parametrize(("n", "d"), [(5, 12), (12, 5)])
def test_log_volume_is_its_determinant(n, d):
    rows, epsilon = normal(n, d), 0.3
    unit = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)
    wanted = 0.5 * np.linalg.slogdet(np.eye(n) + d / (n * epsilon**2) * unit @ unit.T)[1]
    assert log_volume(rows, epsilon).item() == pytest.approx(wanted, rel=1e-12)
    assert log_volume(torch.ones(n, d)).item() < log_volume(rows).item()


def test_orbit_count_of_clusters():
    rows = torch.eye(3, dtype=torch.float64).repeat_interleave(torch.tensor([1, 2, 4]), 0)
    rows += 1e-3 * normal(7, 3)
    wanted = math.log(math.factorial(7) / (math.factorial(2) * math.factorial(4))) / 7
    assert log_orbit_count(rows[torch.randperm(7)], 0.1) == pytest.approx(wanted)
    assert log_orbit_count(rows, 1e-6) == pytest.approx(math.log(math.factorial(7)) / 7)
    assert log_orbit_count(rows, math.pi / 2) == pytest.approx(0, abs=1e-12)


def test_orbit_count_joins_chains():
    angles = torch.arange(0, 1.5, 0.1, dtype=torch.float64)
    chain = torch.stack((angles.cos(), angles.sin()), 1)[torch.randperm(15)]
    assert log_orbit_count(chain, 0.1001) == pytest.approx(0, abs=1e-12)
    assert log_orbit_count(chain, 0.0999) == pytest.approx(math.lgamma(16) / 15)
