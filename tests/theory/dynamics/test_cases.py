"""What cases of the dynamics do: ratios, multiplicative noise, wells, conserved quantities."""

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

from .noises import normal, quartic


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
