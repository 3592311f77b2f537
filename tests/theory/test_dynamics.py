"""Euler–Maruyama against closed forms: bowls, multiplicative noise, a well that ends, and what u·v = 1 conserves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sdsd.theory.dynamics import (
    CASES,
    Case,
    NoiseRoot,
    decay_rate,
    hyperbola,
    imbalance,
    local_terms,
    loss_sign_change,
    mean_square_factor,
    multiplicative_noise,
    ornstein_uhlenbeck,
    path_mean,
    path_ratio,
    phase_diagram,
    saturating_well,
    simulate,
    stationary_gamma,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quartic(s: torch.Tensor) -> torch.Tensor:
    return (s**4).sum(1) / 4 + s[:, 0] * s[:, 1]


# --- one step


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


# --- Γ_H and the document's Γ


def test_local_terms_against_derivatives_by_hand():
    states = normal(7, 2)
    factor = normal(2, 2, seed=1)
    matrix = factor @ factor.T
    x, y = states.unbind(1)
    gradient = torch.stack((x**3 + y, y**3 + x), 1)
    for diffusion, per_state in (
        (0.3, 0.3 * torch.eye(2, dtype=torch.float64).expand(7, 2, 2)),
        (matrix, matrix.expand(7, 2, 2)),
        (lambda s: s[:, 0] ** 2, x.square()[:, None, None] * torch.eye(2, dtype=torch.float64)),
        (lambda s: NoiseRoot(s[:, :, None]), torch.einsum("pi,pj->pij", states, states) / 2),
    ):
        terms = local_terms(quartic, diffusion, states)
        hessian = torch.stack((torch.stack((3 * x**2, torch.ones(7)), 1), torch.stack((torch.ones(7), 3 * y**2), 1)), 1)
        assert torch.allclose(terms.gradient_square, gradient.square().sum(1))
        assert torch.allclose(terms.trace_d, per_state.diagonal(dim1=1, dim2=2).sum(1))
        assert torch.allclose(terms.trace_dh, (per_state * hessian).sum((1, 2)))
        assert torch.allclose(terms.drift, -gradient.square().sum(1) + (per_state * hessian).sum((1, 2)))
        positive = terms.trace_dh > 0
        assert torch.allclose(terms.gamma_h[positive], (gradient.square().sum(1) / terms.trace_dh)[positive])
        assert terms.gamma_h[~positive].isnan().all()


def test_the_loss_changes_at_the_rate_ito_says():
    start = torch.tensor([[0.7, -0.4]]).expand(200_000, 2)
    drift = local_terms(quartic, 0.9, start[:1]).drift.item()
    ran = simulate(quartic, 0.9, start, step_size=1e-3, steps=1)
    change = (ran.losses[1] - ran.losses[0]) / 1e-3
    assert abs(change.mean().item() - drift) < 4 * change.std().item() / math.sqrt(len(start)) + 1e-2
    assert abs(drift) > 0.5


@pytest.mark.parametrize("k", [0.2, 1.0, 5.0])
def test_the_loss_turns_at_gamma_h_of_one_and_the_documents_gamma_of_k(k):
    found = loss_sign_change(k, 0.1, seed=int(10 * k))
    assert found.gamma_h.value == pytest.approx(1, abs=0.1)
    assert found.gamma_h.standard_error < 0.02
    assert found.gamma_published.value == pytest.approx(k, rel=0.1)


@pytest.mark.parametrize("k", [0.2, 1.0, 5.0])
def test_a_bowl_at_rest(k):
    case, step_size = ornstein_uhlenbeck(k, 0.1), 0.02 / k
    start = normal(500, 3, seed=int(10 * k)) * math.sqrt(0.1 / k)
    ran = simulate(*case, start, step_size=step_size, steps=400, every=10, seed=int(100 * k))
    found = stationary_gamma(case, ran, burn_in=0.0)
    euler = 1 / (1 - k * step_size / 2)
    for estimate, wanted in (
        (found.gamma_h, euler),
        (found.gamma_published, k * euler),
        (found.loss, 3 * 0.1 / 2 * euler),
    ):
        assert abs(estimate.value - wanted) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.03 * wanted


def test_stationary_state_forgets_its_start():
    case = ornstein_uhlenbeck(1.0, 0.1)
    ran = simulate(*case, torch.full((300, 2), 9.0), step_size=0.05, steps=400, every=10)
    assert stationary_gamma(case, ran, 0.5).gamma_h.value == pytest.approx(1.025, abs=0.1)
    assert stationary_gamma(case, ran, 0.0).gamma_h.value > 2
    with pytest.raises(ValueError, match=r"burn_in: expected a share in \[0, 1\), got 1"):
        stationary_gamma(case, ran, 1)


def test_error_bars_are_the_spread_over_repetitions():
    def repeated(seed: int) -> tuple[float, float, float, float]:
        draw = np.random.default_rng(seed)
        below = torch.from_numpy(draw.normal(3, 1, (4, 50)) + draw.normal(0, 1, 50))
        above = 2 * below + torch.from_numpy(draw.normal(1, 2, (4, 50)))
        return *path_mean(below), *path_ratio(above, below)

    means, mean_errors, ratios, ratio_errors = np.array([repeated(seed) for seed in range(400)]).T
    assert means.std() == pytest.approx(mean_errors.mean(), rel=0.12)
    assert ratios.std() == pytest.approx(ratio_errors.mean(), rel=0.12)
    assert means.mean() == pytest.approx(3, abs=0.05)
    assert ratios.mean() == pytest.approx(7 / 3, abs=0.05)


def test_phase_diagram_has_its_boundary_at_gamma_h():
    k, d = torch.logspace(-1, 1, 9, dtype=torch.float64), torch.logspace(-1, 1, 12, dtype=torch.float64)
    calls: list[tuple[int, int]] = []
    found = phase_diagram(k, d, radius=2, paths=100, progress=lambda *at: calls.append(at))
    assert torch.allclose(found.gamma_h, k[:, None] / d)
    assert torch.allclose(found.gamma_published, k[:, None] ** 2 / d)
    clear = (found.growth.abs() > 4 * found.standard_error) & ((found.gamma_h.log()).abs() > 0.06)
    assert clear.double().mean() > 0.8
    assert torch.equal((found.growth < 0)[clear], (found.gamma_h > 1)[clear])
    disagree = clear & ((found.gamma_h > 1) != (found.gamma_published > 1))
    assert disagree.sum() >= 5  # and there the paths side with Γ_H, by the line above
    assert calls


# --- multiplicative noise


def test_mean_square_recursion_is_exact():
    k, sigma, step_size = 1.3, 0.9, 0.1
    ran = simulate(*multiplicative_noise(k, sigma), torch.ones(400_000, 1), step_size=step_size, steps=3)
    square = ran.states[:, :, 0].square()
    for step in range(1, 4):
        wanted = mean_square_factor(k, sigma, step_size) ** step
        assert abs(square[step].mean().item() - wanted) < 4 * square[step].std().item() / math.sqrt(400_000)


@pytest.mark.parametrize("k", [0.2, 1.0, 5.0])
def test_mean_square_turns_at_gamma_h(k):
    step_size = 0.02 / k
    case = multiplicative_noise(k, 1.0)
    assert local_terms(*case, torch.ones(1, 1)).gamma_h.item() == pytest.approx(2 * k)
    for gamma_h, grows in ((0.9, True), (1.0, True), (1.02, False), (1.1, False)):
        sigma = math.sqrt(2 * k / gamma_h)
        assert (mean_square_factor(k, sigma, step_size) > 1) == grows
    at_the_edge = math.sqrt(2 * k * (1 - k * step_size / 2))
    assert mean_square_factor(k, at_the_edge, step_size) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("gamma_h", [2.0, 0.67, 0.5])
def test_almost_every_path_converges_on_both_sides(gamma_h):
    k, step_size, steps = 1.0, 0.01, 4000
    sigma = math.sqrt(2 * k / gamma_h)
    ran = simulate(*multiplicative_noise(k, sigma), torch.ones(400, 1), step_size=step_size, steps=steps, every=steps)
    size = ran.states[-1, :, 0].abs()
    assert size.max() < 1e-6
    rate = -(size.log() / ran.times[-1])
    z, weight = np.linspace(-9, 9, 200_001), 18 / 200_000 / math.sqrt(2 * math.pi)
    factor = np.abs(1 - k * step_size + sigma * math.sqrt(step_size) * z)
    wanted = -(np.log(factor) * np.exp(-(z**2) / 2)).sum() * weight / step_size  # Euler's own rate
    assert abs(rate.mean().item() - wanted) < 4 * rate.std().item() / math.sqrt(400)
    assert decay_rate(k, sigma) == pytest.approx(wanted, rel=0.1)
    if gamma_h < 1:
        log_mean_square = steps * math.log(mean_square_factor(k, sigma, step_size))
        assert log_mean_square > 10
        assert size.square().mean().log() < -20  # the mean over paths misses what the exact moment does


# --- a well that ends


def test_paths_leave_a_saturating_well_as_diffusion_grows():
    paths = 600
    diffusion = torch.tensor([0.1, 0.2, 0.4]).repeat_interleave(paths)
    start = torch.zeros(3 * paths, 2)
    start[:, 0] = 1
    case = saturating_well(diffusion)
    assert local_terms(*case, start).gamma_h[paths].item() == pytest.approx(3.03, abs=0.01)
    ran = simulate(*case, start, step_size=0.1, steps=2000, every=2000)
    inside = (ran.states[-1].norm(dim=1) < 3).double().view(3, paths).mean(1)
    assert inside.tolist() == pytest.approx([1.0, 0.55, 0.06], abs=0.06)


def test_leaving_is_a_matter_of_time():
    start = torch.zeros(600, 2)
    start[:, 0] = 1
    ran = simulate(*saturating_well(0.15), start, step_size=0.2, steps=5000, every=100)
    inside = (ran.states.norm(dim=2) < 3).double().mean(1)
    assert inside[[1, 10, 50]].tolist() == pytest.approx([0.98, 0.85, 0.60], abs=0.06)


# --- what u · v = 1 conserves


def off_the_manifold(paths: int = 50) -> torch.Tensor:
    return 1.3 * normal(paths, 2, seed=11)


def steps_of_q(ran, step_size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q of each step, r of each step read off the first coordinate's change: u' = u − ηrv)."""
    u, v = ran.states.unbind(2)
    return imbalance(ran.states), (u[:-1] - u[1:]) / (step_size * v[:-1])


def test_gradient_descent_multiplies_q_by_one_minus_eta_r_squared():
    step_size = 0.05
    ran = simulate(*hyperbola(), off_the_manifold(), step_size=step_size, steps=200)
    q = imbalance(ran.states)
    r = (2 * ran.losses).sqrt()
    product = (1 - (step_size * r[:-1]) ** 2).cumprod(0)
    assert ((q[1:] / q[0]) / product - 1).abs().max() < 1e-10
    assert (product[-1] < 1 - 1e-3).double().mean() > 0.8
    assert ran.losses[-1].max() < 1e-3


def test_gradient_flow_conserves_q():
    kept = {}
    for step_size in (0.04, 0.02, 0.01):
        ran = simulate(*hyperbola(), off_the_manifold(), step_size=step_size, steps=round(8 / step_size))
        q = imbalance(ran.states)
        kept[step_size] = (q[-1] / q[0] - 1).abs().mean().item()
    assert kept[0.01] < 0.02
    assert kept[0.04] / kept[0.02] == pytest.approx(2, rel=0.1)
    assert kept[0.02] / kept[0.01] == pytest.approx(2, rel=0.1)


def test_label_noise_collapses_q_by_the_same_identity():
    step_size, noise = 0.05, 0.5
    case = hyperbola("label", noise, learning_rate=step_size)
    ran = simulate(*case, off_the_manifold(), step_size=step_size, steps=2000, seed=5)
    q, r = steps_of_q(ran, step_size)
    assert (q[1:] / (q[:-1] * (1 - (step_size * r) ** 2)) - 1).abs().max() < 1e-10
    noise_seen = r - (ran.states[:-1].prod(2) - 1)
    assert noise_seen.std().item() == pytest.approx(noise, rel=0.02)
    assert (q[-1].abs() / q[0].abs()).median() < 0.5
    quiet = imbalance(simulate(*hyperbola(), off_the_manifold(), step_size=step_size, steps=2000).states)
    assert (quiet[-1].abs() / quiet[0].abs()).median() > 0.9


def test_isotropic_noise_conserves_the_mean_of_q_and_spreads_it():
    start = torch.tensor([[1.5, 0.9]]).expand(20_000, 2)
    ran = simulate(*hyperbola("isotropic", 0.02), start, step_size=0.005, steps=400, every=100, seed=2)
    q = imbalance(ran.states)
    change, error = q[-1].mean() - q[0].mean(), q[-1].std() / math.sqrt(20_000)
    assert change.abs() < 4 * error
    assert error < 0.01
    assert torch.all(q.std(1)[1:] > q.std(1)[:-1])
    assert q[-1].std() > 0.3


def test_weight_decay_collapses_q():
    step_size, decay = 0.05, 0.1
    ran = simulate(*hyperbola(weight_decay=decay), off_the_manifold(), step_size=step_size, steps=400)
    q = imbalance(ran.states)
    r = ran.states.prod(2) - 1
    identity = (1 - step_size * decay) ** 2 - (step_size * r[:-1]) ** 2
    assert (q[1:] / (q[:-1] * identity) - 1).abs().max() < 1e-10
    assert (q[-1] / q[0]).abs().max() < 1.05 * math.exp(-2 * decay * 20)


@pytest.mark.parametrize(
    "case",
    [
        ornstein_uhlenbeck(torch.arange(1, 6), 0.1),
        multiplicative_noise(0.7, 0.2),
        saturating_well(0.1),
        hyperbola(weight_decay=0.3),
    ],
)
def test_gradients_that_cases_know_are_those_of_autograd(case):
    start = normal(5, 2)
    known = simulate(*case, start, step_size=0.1, steps=3)
    derived = simulate(lambda s: case.potential(s), case.diffusion, start, step_size=0.1, steps=3)
    assert torch.allclose(known.states, derived.states, atol=1e-15)


def test_cases_are_named():
    assert set(CASES) == {"ornstein-uhlenbeck", "multiplicative-noise", "saturating-well", "hyperbola"}
    assert isinstance(CASES["saturating-well"](0.1), Case)


# --- what it refuses


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
