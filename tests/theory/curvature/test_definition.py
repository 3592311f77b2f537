"""Every number by its definition, with an explicit Hessian; what a step does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sdsd.theory import curvature_gamma
from sdsd.theory.derivatives import Hessian, undisturbed

from .bowls import Bowl, bowl, cross_entropy, explicit, mean_of_outputs, network, samples, take


def halves_of(count, size):
    """Index ranges of the samples of the even and of the odd gradients."""
    rows = [torch.arange(start, start + size) for start in range(0, count, size)]
    return torch.cat(rows[::2]), torch.cat(rows[1::2])


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("population", [None, 100, 24])
@pytest.mark.parametrize("scaled", [False, True])
def test_every_number_equals_its_definition_with_an_explicit_hessian(size, population, scaled):
    """Each half's gradients with the Hessian of the other; of all, where all of the population is there."""
    model, batch = network(), samples(24)
    rows = [slice(start, start + size) for start in range(0, 24, size)]
    gradients, whole = explicit(model, cross_entropy, batch, rows)
    even, odd = (explicit(model, cross_entropy, take(batch, half), rows[:0])[1] for half in halves_of(24, size))
    n, rate, batch_size = len(rows), 0.3, 5
    width = gradients.shape[1]
    scale = torch.rand(width).double() + 0.5 if scaled else torch.ones(width).double()
    pieces = scale.split([p.numel() for p in model.parameters()])
    names = dict(model.named_parameters())
    precondition = {name: piece.view_as(p) for (name, p), piece in zip(names.items(), pieces, strict=True)}
    stats = curvature_gamma(
        model,
        cross_entropy,
        batch,
        learning_rate=rate,
        batch_size=batch_size,
        samples_per_gradient=size,
        population=population,
        precondition=precondition if scaled else None,
        chunk_size=7,
    )
    mean, covariance = gradients.mean(0), gradients.T.cov()
    P = torch.diag(scale)
    seen = size / population if population else 0.0
    share = size * (1 / batch_size - (1 / population if population else 0))
    signal = mean @ P @ mean - (1 / n - seen) * (P @ covariance).trace()
    own = n / 2 * seen  # a half's part of the population
    folds = [(gradients[::2], own * even + (1 - own) * odd), (gradients[1::2], own * odd + (1 - own) * even)]
    if population == 24:
        folds = [(gradients, whole)]
    curved = trace = 0.0
    for part, hessian in folds:
        bent = (P @ hessian @ P @ part.T.cov()).trace()
        curved += (part.mean(0) @ P @ hessian @ P @ part.mean(0) - (1 / len(part) - seen) * bent) / len(folds)
        trace += share * bent / len(folds)
    noise = share * (P @ covariance @ P).trace()
    wanted = {
        "signal": signal,
        "noise": noise,
        "curvature_signal": curved,
        "curvature_noise": trace,
        "curvature_noise_error": torch.tensor(0.0),
        "drift": signal,
        "diffusion": rate / 2 * trace,
        "diffusion_published": rate / 2 * noise,
        "lyapunov": rate / 2 * trace - signal,
        "lyapunov_published": rate / 2 * noise - signal,
        "expected_change": -rate * signal + rate**2 / 2 * (curved + trace),
        "gamma_h": signal / (rate / 2 * trace),
        "gamma_star": (signal - rate / 2 * curved) / (rate / 2 * trace),
        "gamma_published": signal / noise,
        "gamma_published_diffusion": signal / (rate / 2 * noise),
        "learning_rate_max": 2 * signal / (curved + trace),
        "b_simple": size * (P @ covariance @ P).trace() / signal,
        "b_noise": size / share * trace / curved,
    }
    got = stats.to_dict()
    for name, value in wanted.items():
        wrong_side = {"b_simple": signal, "b_noise": curved, "learning_rate_max": curved + trace}.get(name, trace)
        expected = (
            math.nan if name.startswith(("gamma_h", "gamma_star", "b_", "learning")) and wrong_side <= 0 else value
        )
        assert got[name] == pytest.approx(float(expected), rel=1e-9, abs=1e-14, nan_ok=True), name
    assert (stats.n, stats.lowers_loss) == (n, stats.expected_change < 0)


def test_products_equal_the_explicit_hessian():
    model, batch = network(), samples(10)
    _, hessian = explicit(model, cross_entropy, batch, [slice(0, 1)])
    vector = torch.randn(len(hessian)).double()
    for chunk in (None, 1, 3):
        with undisturbed(model):
            assert torch.allclose(Hessian(model, cross_entropy, batch, chunk).product(vector), hessian @ vector)
    single = network(torch.float32)
    single.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    with undisturbed(single):
        got = Hessian(single, cross_entropy, (batch[0].float(), batch[1])).product(vector)
    assert (got - hessian @ vector).norm() < 1e-5 * (hessian @ vector).norm()


def test_the_hessian_can_come_from_other_samples():
    model, batch, other = network(), samples(12), samples(9)
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=1, curvature_batch=other)
    gradients, _ = explicit(model, cross_entropy, batch, [slice(i, i + 1) for i in range(12)])
    _, hessian = explicit(model, cross_entropy, other, [slice(0, 1)])
    assert stats.curvature_noise == pytest.approx((hessian @ gradients.T.cov()).trace().item(), rel=1e-9)


@pytest.mark.parametrize("rate", [0.1, 2.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_expected_change_is_the_mean_over_all_batches(rate, scaled):
    """In a quadratic bowl the second order is all there is, and all batches of 2 out of 7 can be tried."""
    model, x = bowl(), torch.randn(7, 4).double()
    P = torch.rand(4).double() + 0.5 if scaled else torch.ones(4).double()
    before, changes = model(x).mean().item(), []
    for pair in itertools.combinations(range(7), 2):
        gradient = torch.autograd.grad(model(x[list(pair)]).mean(), model.theta)[0]
        moved = Bowl(model.matrix, model.theta.detach() - rate * P * gradient)
        changes.append(moved(x).mean().item() - before)
    stats = curvature_gamma(
        model,
        mean_of_outputs,
        x,
        learning_rate=rate,
        batch_size=2,
        population=7,
        precondition={"theta": P} if scaled else None,
    )
    assert stats.expected_change == pytest.approx(sum(changes) / len(changes), rel=1e-10)
    assert stats.expected_change_error == pytest.approx(0, abs=1e-12)  # nothing of the population is unseen


@pytest.mark.parametrize("population", [None, 60])
def test_the_largest_learning_rate_and_the_smallest_batch_are_where_the_change_vanishes(population):
    model, x = bowl(), torch.randn(40, 4).double()

    def at(rate, size):
        return curvature_gamma(model, mean_of_outputs, x, learning_rate=rate, batch_size=size, population=population)

    stats = at(0.5, 3)
    edge = at(stats.learning_rate_max, 3)
    assert edge.expected_change == pytest.approx(0, abs=1e-12)
    assert edge.gamma_star == pytest.approx(1)
    assert edge.batch_size_min == pytest.approx(3)
    rate = 1.2 * stats.learning_rate_max
    smallest = at(rate, 3).batch_size_min
    assert smallest > 3
    assert smallest == pytest.approx(at(rate, 7).batch_size_min)
    assert at(rate, math.ceil(smallest)).lowers_loss
    assert not at(rate, math.floor(smallest)).lowers_loss


def test_gamma_star_is_gamma_h_less_the_curvature_of_the_signal():
    stats = curvature_gamma(network(), cross_entropy, samples(30), learning_rate=0.7, batch_size=4)
    difference = stats.curvature_signal / stats.curvature_noise
    assert stats.gamma_star == pytest.approx(stats.gamma_h - difference)
    assert (stats.gamma_star > 1) == stats.lowers_loss


@pytest.mark.parametrize("stiffness", [0.2, 1.0, 5.0])
def test_the_published_form_is_right_where_the_traces_agree(stiffness):
    """For H = k the exact threshold Γ_H = 1 is the published ratio at k (Ornstein–Uhlenbeck bowls)."""
    model, x = Bowl(stiffness * torch.eye(3).double(), torch.randn(3).double()), torch.randn(20, 3).double()
    stats = curvature_gamma(model, mean_of_outputs, x, learning_rate=0.1, batch_size=2, curvature_batch=x)
    assert stats.gamma_published_diffusion == pytest.approx(stiffness * stats.gamma_h)
    assert stats.gamma_published_diffusion == pytest.approx(2 / 0.1 * stats.gamma_published)
    assert (stats.lyapunov == pytest.approx(stats.lyapunov_published)) == (stiffness == 1)
    assert stats.b_noise == pytest.approx(stats.b_simple)  # one curvature in all directions


def test_ratios_are_nan_where_their_denominator_is_not_positive():
    hill = Bowl(-torch.eye(3).double(), torch.ones(3).double())
    stats = curvature_gamma(hill, mean_of_outputs, torch.randn(50, 3).double(), learning_rate=0.1, batch_size=2)
    assert math.isnan(stats.gamma_h)
    assert math.isnan(stats.gamma_star)
    assert math.isnan(stats.learning_rate_max)
    assert "nan" not in str(stats)
    assert "Γ* none   Γ_H none" in str(stats)
    assert stats.batch_size_min == 0
    assert stats.lowers_loss
    assert stats.diffusion < 0 < stats.drift
    assert stats.expected_change == pytest.approx(0.1 * (stats.lyapunov + 0.05 * stats.curvature_signal))
    steep = Bowl(100 * torch.eye(3).double(), torch.ones(3).double())
    stats = curvature_gamma(steep, mean_of_outputs, torch.randn(50, 3).double(), learning_rate=0.1, batch_size=2)
    assert math.isnan(stats.batch_size_min)  # even the full gradient overshoots
    assert not stats.lowers_loss
    plane = Bowl(torch.zeros(3, 3).double(), torch.ones(3).double())
    stats = curvature_gamma(plane, mean_of_outputs, torch.randn(50, 3).double() + 1, learning_rate=0.1, batch_size=2)
    assert stats.curvature_signal == stats.curvature_noise == 0
    assert math.isnan(stats.gamma_h)
    assert stats.expected_change == pytest.approx(-0.1 * stats.signal)
