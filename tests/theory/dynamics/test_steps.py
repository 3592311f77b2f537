"""The simulator: one step of it, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sdsd.theory.dynamics import (
    NoiseRoot,
    hyperbola,
    multiplicative_noise,
    ornstein_uhlenbeck,
    path_mean,
    phase_diagram,
    saturating_well,
    simulate,
)

from .noises import normal, quartic


@pytest.mark.parametrize("kind", ["none", "number", "matrix", "per path", "matrix per path", "root"])
def test_steps_are_euler_maruyama(kind):
    start, step_size, seed = normal(5, 3), 0.03, 7
    factor = normal(3, 3, seed=2)
    matrices = torch.stack([factor @ factor.T * scale for scale in (1.0, 2.0, 0.1, 0.5, 3.0)])
    roots = normal(5, 3, 2, seed=3)
    diffusion = {
        "none": 0.0,
        "number": 0.4,
        "matrix": factor @ factor.T,
        "per path": lambda s: torch.arange(5.0),
        "matrix per path": lambda s: matrices,
        "root": lambda s: NoiseRoot(roots * s[:, :1, None]),
    }[kind]
    ran = simulate(quartic, diffusion, start, step_size=step_size, steps=1, seed=seed)
    gradient = start**3
    gradient[:, 0] += start[:, 1]
    gradient[:, 1] += start[:, 0]
    kick = ran.states[1] - (start - step_size * gradient)
    z = normal(5, 2 if kind == "root" else 3, seed=seed)
    if kind == "none":
        wanted = torch.zeros(5, 3, dtype=torch.float64)
    elif kind == "number":
        wanted = math.sqrt(2 * 0.4 * step_size) * z
    elif kind == "per path":
        wanted = (2 * torch.arange(5.0, dtype=torch.float64) * step_size).sqrt()[:, None] * z
    elif kind == "root":
        wanted = math.sqrt(step_size) * torch.einsum("pik,pk->pi", roots * start[:, :1, None], z)
    else:
        from scipy.linalg import sqrtm

        chosen = [factor @ factor.T] * 5 if kind == "matrix" else list(matrices)
        wanted = torch.stack(
            [
                torch.from_numpy(np.real(sqrtm(2 * step_size * m.numpy()))) @ row
                for m, row in zip(chosen, z, strict=True)
            ]
        )
    assert torch.allclose(kick, wanted, atol=1e-12 if "matrix" in kind else 1e-14)
    assert torch.equal(ran.losses[0], quartic(start))


def test_covariance_of_a_matrix_diffusion():
    matrix = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.3], [0.0, 0.3, 0.5]], dtype=torch.float64)
    ran = simulate(lambda s: 0 * s.sum(1), matrix, torch.zeros(100_000, 3), step_size=0.5, steps=1)
    assert torch.allclose(torch.cov(ran.states[1].T), 2 * matrix * 0.5, atol=0.03)


def test_what_is_kept_and_that_it_repeats_itself():
    calls: list[tuple[int, int]] = []
    case, start = ornstein_uhlenbeck(1.0, 0.2), torch.ones(6, 2)
    ran = simulate(*case, start, step_size=0.1, steps=250, every=100, seed=3, progress=lambda *at: calls.append(at))
    assert ran.times.tolist() == pytest.approx([0, 10, 20])
    assert ran.states.shape == (3, 6, 2)
    assert ran.states.dtype == torch.float64
    assert torch.equal(ran.losses, ran.states.square().sum(2) / 2)
    assert calls[-1] == (250, 250)
    assert 50 <= len(calls) <= 130
    again = simulate(*case, start, step_size=0.1, steps=200, every=200, seed=3)
    assert torch.equal(again.states[-1], ran.states[-1])
    assert not torch.equal(simulate(*case, start, step_size=0.1, steps=1, seed=4).states[1], ran.states[1])


def test_a_potential_that_is_not_finite_names_path_and_step():
    def pole(s: torch.Tensor) -> torch.Tensor:
        return (s[:, 0] - 1).log()

    start = torch.tensor([[5.0], [1.12], [9.0]])
    with pytest.raises(ValueError, match=r"potential: not finite on path 1 at step 1: L = nan at state \(0\.28"):
        simulate(pole, 0.0, start, step_size=0.1, steps=5)
    with pytest.raises(ValueError, match="path 0 at step 0: L = inf"):
        simulate(lambda s: 1 / s[:, 0].square(), 0.0, torch.zeros(1, 1), step_size=0.1, steps=5)
    with pytest.raises(ValueError, match="not finite on path 0 at step .*smaller step_size"):
        simulate(lambda s: (s**4).sum(1), 0.0, torch.full((1, 1), 9.0), step_size=0.1, steps=50)
    with pytest.raises(ValueError, match="not finite on path 0 at step 0: L = 0"):
        simulate(lambda s: s.abs().sqrt().sum(1), 0.0, torch.zeros(1, 1), step_size=0.1, steps=1)  # its gradient is not


INDEFINITE = torch.tensor([[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize(
    ("diffusion", "match"),
    [
        (-0.1, r"expected D ≥ 0, got -0.1\.$"),
        (math.nan, "expected D ≥ 0, got nan"),
        (INDEFINITE, "expected a positive semi-definite D, got the eigenvalue -1$|eigenvalue -1\\."),
        (torch.tensor([[1.0, 0.0], [0.5, 1.0]]), "expected a symmetric D"),
        (torch.full((2, 2), math.inf), "diffusion: not finite"),
        (torch.eye(3), r"a \(2, 2\) matrix or a function, got \(3, 3\)"),
        (lambda s: torch.tensor([1.0, 1.0, -2.0]), "got -2 on path 2 at step 0"),
        (lambda s: torch.stack((torch.eye(2), INDEFINITE, INDEFINITE)), "eigenvalue -1 on path 1 at step 0"),
        (lambda s: torch.ones(3, 2, 2).triu(), "symmetric D, got none on path 0"),
        (lambda s: torch.ones(3, 2), r"expected \(3,\), \(3, 2, 2\) or a NoiseRoot"),
        (lambda s: NoiseRoot(torch.ones(3, 1, 1)), r"root of shape \(3, 2, k\), got \(3, 1, 1\)"),
        (lambda s: NoiseRoot(torch.tensor([0, 0, math.nan]).view(3, 1, 1).expand(3, 2, 1)), "not finite on path 2"),
    ],
)
def test_diffusions(diffusion, match):
    with pytest.raises(ValueError, match=match):
        simulate(quartic, diffusion, torch.ones(3, 2), step_size=0.1, steps=2)


def test_a_diffusion_that_turns_bad_names_the_step():
    with pytest.raises(ValueError, match="got -.* on path 0 at step 3"):
        simulate(lambda s: s.sum(1), lambda s: 1e-12 * (s[:, 0] + 0.25), torch.zeros(1, 1), step_size=0.1, steps=9)


def test_rounding_is_no_reason_to_refuse():
    singular = torch.outer(normal(4), normal(4))
    singular = singular @ singular.T
    assert simulate(lambda s: s.square().sum(1), singular, normal(3, 4), step_size=0.1, steps=2).states.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"start": [[1.0]]}, TypeError, "start: expected a floating-point torch.Tensor"),
        ({"start": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"start": torch.ones(2)}, ValueError, r"expected shape \(paths, dim\)"),
        ({"start": torch.tensor([[math.nan, 1.0]])}, ValueError, "start: expected finite numbers"),
        ({"step_size": 0.0}, ValueError, "step_size: expected a number above 0"),
        ({"steps": -1}, ValueError, "steps: expected at least 0, got -1"),
        ({"every": 0}, ValueError, "every: expected at least 1, got 0"),
        ({"potential": lambda s: s.square()}, ValueError, r"one loss a path, shape \(2,\), got \(2, 2\)"),
        ({"potential": lambda s: torch.ones(len(s))}, TypeError, "got a constant"),
    ],
)
def test_arguments(change, error, match):
    arguments = {
        "potential": quartic,
        "diffusion": 0.1,
        "start": torch.ones(2, 2),
        "step_size": 0.1,
        "steps": 1,
    } | change
    with pytest.raises(error, match=match):
        simulate(**arguments)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: ornstein_uhlenbeck(0, 0.1), "stiffness: expected numbers > 0, got 0"),
        (lambda: ornstein_uhlenbeck(1, torch.tensor([0.1, -1])), "diffusion: expected numbers ≥ 0, got -1"),
        (lambda: multiplicative_noise(1, -1), "sigma: expected numbers ≥ 0"),
        (lambda: saturating_well(math.inf), "diffusion: expected numbers ≥ 0, got inf"),
        (lambda: hyperbola("labels"), "noise: expected one of 'none', 'isotropic', 'label', got 'labels'"),
        (lambda: hyperbola("label", 0.1), "learning_rate: expected the step size"),
        (lambda: hyperbola(weight_decay=-1), "weight_decay: expected numbers ≥ 0"),
        (lambda: phase_diagram(torch.ones(2, 2), torch.ones(2)), "stiffness: expected a list of numbers"),
        (lambda: path_mean(torch.ones(3, 1)), "at least 2 paths"),
    ],
)
def test_cases_out_of_range(build, match):
    with pytest.raises(ValueError, match=match):
        build()
