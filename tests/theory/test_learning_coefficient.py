"""The local learning coefficient: against quadrature, on whole orbits, and where it has to be refused."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from sdsd.theory import (
    LearningCoefficient,
    RefusedEstimateError,
    canonicalize,
    local_learning_coefficient,
    random_representative,
)
from sdsd.theory.landscape.chains import effective_draws, split_r_hat

SAMPLES = torch.zeros(1000)


class Point(nn.Module):
    def __init__(self, dim: int, at: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((dim,), at, dtype=dtype))


def expected(potential, dim: int, weight: float, gamma: float) -> float:
    """E[nβL] under exp(−nβL − γ‖w‖²/2) by the trapezoidal rule on a grid; `dim` 1 or 2."""
    axis = np.linspace(-8, 8, 200_001) if dim == 1 else np.linspace(-6, 6, 3001)
    grid = (axis,) if dim == 1 else np.meshgrid(axis, axis, indexing="ij")
    scaled = weight * potential(*grid)
    density = np.exp(-scaled - gamma / 2 * sum(part**2 for part in grid))
    return float((scaled * density).sum() / density.sum())


CASES = {
    "quadratic": (1, lambda w: w.square().sum() / 2, lambda u: u**2 / 2, 1 / 2),
    "fourth power": (1, lambda w: w.pow(4).sum(), lambda u: u**4, 1 / 4),
    "product": (2, lambda w: w.prod().square(), lambda u, v: (u * v) ** 2, 1 / 2),
}


@pytest.mark.parametrize("case", CASES)
def test_known_cases(case):
    """The chains agree with quadrature within their own errors; so does λ, but for the logarithm of (uv)²."""
    dim, loss, potential, limit = CASES[case]
    found = local_learning_coefficient(
        Point(dim),
        SAMPLES,
        lambda model, x: loss(model.w),
        localization=1.0,
        canonicalize=False,
        draws=6000 if case == "product" else 2000,
    )
    weight = 1000 / math.log(1000)
    exact = expected(potential, dim, weight, 1.0)
    assert found.samples * found.beta == pytest.approx(weight)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.06
    # λ itself: the product's is 1/2 only up to a term of 1/log n, and the chains show .34.
    assert abs(exact - limit) < (0.2 if case == "product" else 0.02)
    assert exact < limit


def test_a_regular_minimum_in_many_dimensions():
    stiffness = torch.logspace(-1, 1, 12, dtype=torch.float64)
    found = local_learning_coefficient(
        Point(12),
        SAMPLES,
        lambda model, x: (stiffness * model.w.square()).sum() / 2,
        localization=2.0,
        canonicalize=False,
        seed=3,
    )
    weight = 1000 / math.log(1000)
    exact = (0.5 * weight * stiffness / (weight * stiffness + 2.0)).sum().item()
    assert abs(found.value - exact) < 4 * found.standard_error
    low, high = found.interval()
    assert low < exact < high
    spread = (1 / (weight * stiffness + 2.0)).sum().item()
    assert found.squared_distances.mean().item() == pytest.approx(spread, rel=0.1)
    assert all(0.4 < rate < 0.75 for rate in found.acceptance)
    assert f"{found.estimate:.4g}" in str(found)


def test_a_step_size_of_any_length_samples_the_same():
    """What Metropolis and Hastings' rule is for: unadjusted steps of this length give over twice d/2."""
    arguments = {"localization": 1.0, "canonicalize": False, "draws": 4000, "beta": 0.1}
    found = [
        local_learning_coefficient(
            Point(4), SAMPLES, lambda model, x: model.w.square().sum() / 2, step_size=step, **arguments
        )
        for step in (0.004, 0.02)
    ]
    assert found[1].step_sizes == (0.02,) * 4
    for each in found:
        assert abs(each.value - 2 * 100 / 101) < 4 * each.standard_error


def digits_like(samples: int = 300) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 6, generator=draw, dtype=torch.float64)
    return x, (x[:, :3] + 0.5 * torch.randn(samples, 3, generator=draw, dtype=torch.float64)).argmax(1)


def loss_of(model: nn.Module, batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        loss_of(model, digits_like()).backward()
        optimizer.step()
    return model


def test_it_does_not_depend_on_the_representative(trained):
    batch = digits_like()
    moved = random_representative(trained, spread=1.5, seed=4)
    assert torch.allclose(moved(batch[0]), trained(batch[0]))
    arguments = {"localization": 100.0, "chains": 3, "draws": 800, "burn_in": 500}
    here = local_learning_coefficient(trained, batch, loss_of, **arguments)
    there = local_learning_coefficient(moved, batch, loss_of, seed=1, **arguments)  # other random numbers
    error = math.hypot(here.standard_error, there.standard_error)
    assert abs(here.value - there.value) < 4 * error
    as_it_is = local_learning_coefficient(moved, batch, loss_of, canonicalize=False, **arguments)
    assert abs(as_it_is.estimate - here.estimate) > 10 * error
    assert as_it_is.canonical is False


def test_batches_of_any_size_are_one_mean(trained):
    x, y = digits_like()
    arguments = {"chains": 2, "draws": 40, "burn_in": 100}
    whole = local_learning_coefficient(trained, (x, y), loss_of, **arguments)
    loader = DataLoader(TensorDataset(x, y), batch_size=128)  # 128, 128, 44
    parts = local_learning_coefficient(trained, loader, loss_of, **arguments)
    assert torch.allclose(whole.losses, parts.losses, rtol=1e-6)
    assert parts.samples == 300
    assert local_learning_coefficient(trained, [x, y], loss_of, **arguments).samples == 300


def test_the_model_stays_as_it_was(trained):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    state, mode = torch.get_rng_state(), trained.training
    calls: list[tuple[int, int]] = []
    local_learning_coefficient(
        trained,
        digits_like(),
        loss_of,
        chains=2,
        draws=20,
        burn_in=100,
        canonicalize=False,
        progress=lambda *at: calls.append(at),
    )
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert trained.training == mode
    assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in trained.parameters())
    assert calls[-1] == (240, 240)
    assert all(done <= total == 240 for done, total in calls)


def test_it_is_refused_where_nothing_is_accepted(trained):
    found = local_learning_coefficient(
        random_representative(trained, spread=3.0, seed=1),
        digits_like(),
        loss_of,
        step_size=0.01,
        chains=2,
        draws=50,
        burn_in=20,
        canonicalize=False,
    )
    assert max(found.acceptance) < 0.05
    assert "accepted 0.0% of its steps" in found.refusals[0]
    with pytest.raises(RefusedEstimateError, match="local learning coefficient refused: a chain accepted"):
        _ = found.value
    with pytest.raises(RefusedEstimateError):
        found.interval()
    assert math.isfinite(found.estimate)
    assert str(found).startswith("local learning coefficient refused: a chain accepted")


def test_it_is_refused_where_chains_drift():
    """Two directions of very different stiffness and hardly any burn-in: the loss settles, the distance does not."""
    stiffness = torch.tensor([1000.0, 1e-4], dtype=torch.float64)
    found = local_learning_coefficient(
        Point(2),
        SAMPLES,
        lambda model, x: (stiffness * model.w.square()).sum() / 2,
        localization=1e-3,
        canonicalize=False,
        draws=300,
        burn_in=100,
    )
    assert split_r_hat(found.losses) < 1.1
    assert found.r_hat > 1.1
    assert any("disagree or still drift" in reason for reason in found.refusals)


def test_it_is_refused_away_from_a_minimum():
    found = local_learning_coefficient(
        Point(2, at=3.0), SAMPLES, lambda model, x: model.w.square().sum() / 2, localization=1.0, canonicalize=False
    )
    assert any("is at no minimum; train on" in reason for reason in found.refusals)


def test_effective_draws_and_r_hat():
    """Autoregressions of coefficient ρ, whose mean loses (1 − ρ)/(1 + ρ) of the draws; and shifted chains."""
    draw = torch.Generator().manual_seed(0)
    for rho in (0.0, 0.5, 0.9):
        noise = torch.randn(4, 20_000, dtype=torch.float64, generator=draw)
        chain = torch.empty_like(noise)
        chain[:, 0] = noise[:, 0]
        for t in range(1, noise.shape[1]):
            chain[:, t] = rho * chain[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
        assert effective_draws(chain) == pytest.approx(80_000 * (1 - rho) / (1 + rho), rel=0.12)
        assert split_r_hat(chain) == pytest.approx(1, abs=0.01)
    shifted = noise + torch.tensor([[0.0], [0.0], [0.0], [2.0]], dtype=torch.float64)
    # Means of half-chains 0, 0, 0, 0, 0, 0, 2, 2: variance 6/7 beside 1 within.
    assert split_r_hat(shifted) == pytest.approx(math.sqrt(1 + 6 / 7), rel=0.02)
    assert effective_draws(shifted) < 20
    still = torch.zeros(2, 10)
    assert (split_r_hat(still), effective_draws(still)) == (math.inf, 0.0)


def test_effective_draws_is_geyers_sum_term_by_term():
    """Of short chains, where autocorrelations rise again by chance: the pairs that count may fall only."""
    draw = torch.Generator().manual_seed(0)
    rose = 0
    for _ in range(20):
        draws = torch.randn(3, 60, dtype=torch.float64, generator=draw).cumsum(1)
        chains, length = draws.shape
        rows = draws.tolist()
        means = [math.fsum(row) / length for row in rows]

        def covariance(lag, rows=rows, means=means, length=length):
            each = [
                math.fsum((row[t] - mean) * (row[t + lag] - mean) for t in range(length - lag)) / (length - 1)
                for row, mean in zip(rows, means, strict=True)
            ]
            return math.fsum(each) / len(each)

        within, between = covariance(0), statistics.variance(means)
        total = (length - 1) / length * within + between
        rho = [1 - (within - covariance(lag)) / total for lag in range(length)]
        last, time = math.inf, -1.0
        for pair in (rho[lag] + rho[lag + 1] for lag in range(0, length - 1, 2)):
            if pair <= 0:
                break
            rose += pair > last
            last = min(last, pair)
            time += 2 * last
        assert effective_draws(draws) == pytest.approx(chains * length / max(time, 1.0), rel=1e-9)
    assert rose > 0


def test_plot(trained):
    pytest.importorskip("matplotlib")
    found = local_learning_coefficient(trained, digits_like(), loss_of, chains=2, draws=30, burn_in=100)
    figure, axes = found.plot()
    assert axes.figure is figure
    assert len(axes.lines) == 3
    assert isinstance(found, LearningCoefficient)
    assert set(found.to_dict()) >= {"estimate", "standard_error", "refusals", "acceptance"}


class Random(Point):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.w, 0.5)


def bowl(model: nn.Module, x: Tensor) -> Tensor:
    return model.w.square().sum()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: local_learning_coefficient(Point(2), SAMPLES, bowl), ValueError, "With canonicalize=False the model"),
        (lambda: plain(localization=0.0), ValueError, "localization: expected a number above 0"),
        (lambda: plain(chains=1), ValueError, "chains: expected a whole number, at least 2"),
        (lambda: plain(draws=5), ValueError, "draws: expected a whole number, at least 20"),
        (lambda: plain(burn_in=10), ValueError, "burn_in: expected at least 100 to adapt"),
        (lambda: plain(step_size=-1.0), ValueError, "step_size: expected a number above 0, or None"),
        (lambda: plain(beta=0.0), ValueError, "beta: expected a number above 0, or None"),
        (lambda: plain(data=torch.zeros(2)), ValueError, "at least 3 samples"),
        (lambda: plain(data=[]), ValueError, "at least one batch"),
        (lambda: plain(data=3), TypeError, "data: expected a batch of tensors or an iterable of batches, got int"),
        (lambda: plain(progress="yes"), TypeError, "progress: expected True, False or a function"),
        (lambda: plain(loss=lambda m, x: m.w.sum() * math.nan), ValueError, "expected a finite loss"),
        (lambda: plain(model=Random(4, 1.0), loss=lambda m, x: m(x).sum()), ValueError, "its loss is random"),
    ],
)
def test_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


def plain(model: nn.Module | None = None, data=SAMPLES, loss=bowl, **arguments) -> LearningCoefficient:
    return local_learning_coefficient(model or Point(2), data, loss, canonicalize=False, **arguments)


def test_the_canonical_point_is_where_it_says(trained):
    """L(w*) is that of the model, and the chains start at the representative of least norm."""
    found = local_learning_coefficient(trained, digits_like(), loss_of, chains=2, draws=20, burn_in=0, step_size=1e-30)
    assert found.loss == pytest.approx(loss_of(trained, digits_like()).item())
    assert found.squared_distances.max() < 1e-20
    assert loss_of(canonicalize(trained), digits_like()).item() == pytest.approx(found.loss)
