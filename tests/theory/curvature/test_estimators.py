"""Estimates: unbiased, with error bars that cover, within memory and cost."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sdsd.theory import curvature_gamma
from sdsd.theory.curvature import rows as gradient_rows
from sdsd.theory.derivatives import Hessian

from .bowls import bowl, cross_entropy, explicit, mean_of_outputs, network, samples, take


@pytest.mark.parametrize("population", [None, 30])
def test_estimates_are_unbiased_and_their_error_bar_is_their_spread(population):
    model = bowl()
    H, theta = model.matrix, model.theta.detach()
    everything = torch.randn(30, 4).double() * 2
    center, root = torch.ones(4).double() / 2, torch.randn(4, 4).double()
    truth_mean = H @ theta + (everything.mean(0) if population else center)
    truth_covariance = everything.T.cov() if population else root @ root.T
    rate, size, rounds = 0.4, 3, 250
    found = []
    for _ in range(rounds):
        if population:
            x = everything[torch.randperm(30)[:12]]
        else:
            x = center + torch.randn(12, 4).double() @ root.T
        found.append(
            curvature_gamma(model, mean_of_outputs, x, learning_rate=rate, batch_size=size, population=population)
        )
    of_batch = truth_covariance * (1 / size - (1 / population if population else 0))
    wanted = {
        "signal": truth_mean @ truth_mean,
        "noise": of_batch.trace(),
        "curvature_signal": truth_mean @ H @ truth_mean,
        "curvature_noise": (H @ of_batch).trace(),
    }
    wanted["expected_change"] = -rate * wanted["signal"] + rate**2 / 2 * (
        wanted["curvature_signal"] + wanted["curvature_noise"]
    )
    for name, value in wanted.items():
        values = torch.tensor([getattr(stats, name) for stats in found]).double()
        assert abs(values.mean() - value) < 4 * values.std() / math.sqrt(rounds), name
    spread = torch.tensor([stats.expected_change for stats in found]).std().item()
    error = torch.tensor([stats.expected_change_error for stats in found]).square().mean().sqrt().item()
    assert 0.9 * spread < error < 1.5 * spread  # the jackknife errs upwards (Efron and Stein 1981)


class Tiny(nn.Module):
    """One curved neuron: few parameters, and a Hessian that moves with the samples."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.7, -0.4]).double())

    def forward(self, x):
        return (x[:, 0] * self.theta[0] + self.theta[1]).tanh() * 2 - x[:, 1]


def squares(model, x):
    return model(x).square().mean()


@pytest.mark.parametrize("finite", [False, True])
def test_the_mean_over_all_draws_is_the_truth(finite):
    """All batches of 4 that can be drawn from 4 samples with replacement, or from 5 without, in every order.

    The batch's own Hessian fails here: large gradients and large curvature come from the same samples.
    """
    torch.manual_seed(3)
    count = 5 if finite else 4
    model, everything = Tiny(), torch.randn(count, 2).double() * 2
    rows = [slice(i, i + 1) for i in range(count)]
    gradients, hessian = explicit(model, squares, everything, rows)
    mean = gradients.mean(0)
    covariance = gradients.T.cov() if finite else gradients.T.cov(correction=0)
    of_batch = covariance * (1 / 3 - (1 / count if finite else 0))
    draws = itertools.permutations(range(count), 4) if finite else itertools.product(range(count), repeat=4)
    found = [
        curvature_gamma(
            model,
            squares,
            everything[list(draw)],
            learning_rate=0.3,
            batch_size=3,
            population=count if finite else None,
        )
        for draw in draws
    ]
    curved, trace = mean @ hessian @ mean, (hessian @ of_batch).trace()
    wanted = {"signal": mean @ mean, "curvature_signal": curved, "curvature_noise": trace}
    wanted["expected_change"] = -0.3 * wanted["signal"] + 0.3**2 / 2 * (curved + trace)
    for name, value in wanted.items():
        values = [getattr(stats, name) for stats in found]
        assert sum(values) / len(values) == pytest.approx(value.item(), rel=1e-9), name


def test_curvature_batches_of_their_own_are_part_of_the_error():
    """With gradients that do not vary, all that is unsure is the Hessian's own sample."""
    model = Tiny()
    x = torch.tensor([[1.0, 0.3]]).double().repeat(6, 1)
    other = torch.randn(64, 2).double()
    stats = curvature_gamma(model, squares, x, learning_rate=0.5, batch_size=2, curvature_batch=other)
    few = curvature_gamma(model, squares, x, learning_rate=0.5, batch_size=2, curvature_batch=other[:1].repeat(64, 1))
    rows = [slice(i, i + 1) for i in range(64)]
    gradient = explicit(model, squares, x, rows[:1])[0][0]
    forms = torch.stack([gradient @ explicit(model, squares, other[row], [])[1] @ gradient for row in rows])
    assert stats.noise == pytest.approx(0, abs=1e-20)
    assert stats.expected_change_error == pytest.approx(0.125 * forms.std().item() / 8, rel=0.5)
    assert few.expected_change_error == pytest.approx(0, abs=1e-12)


def networks():
    yield nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    yield nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    yield nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 4, 2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def test_intervals_cover_the_truth_and_the_trace_is_not_too_large():
    """Three networks after 1, 5 and 15 epochs on 300 samples, a fifth of them wrong; batches of 48 are drawn from them.

    At least 0.9 of the 95% intervals hold what all samples say, and the trace is right on average, where the batch's
    own Hessian makes it 1.4 times too large.
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    labels = torch.randint(0, 4, (300,), generator=generator)
    images = (centres[labels] + 1.2 * torch.randn(300, 16, generator=generator)).double()
    wrong = torch.rand(300, generator=generator) < 0.2
    labels = torch.where(wrong, torch.randint(0, 4, (300,), generator=generator), labels)
    data, rate, size, draws = (images, labels), 0.2, 8, 8
    covered, traces = [], []
    for model in networks():
        model.double()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for epoch in range(16):
            if epoch in (1, 5, 15):
                gradients, hessian = explicit(model, cross_entropy, data, [slice(i, i + 1) for i in range(300)])
                mean, covariance = gradients.mean(0), gradients.T.cov(correction=0)
                trace = (hessian @ covariance).trace().item()
                bent = (mean @ hessian @ mean).item()
                truth = -rate * (mean @ mean).item() + rate**2 / 2 * (bent + trace / size)
                found = []
                for _ in range(draws):
                    chosen = torch.randint(300, (48,), generator=generator)
                    stats = curvature_gamma(
                        model, cross_entropy, take(data, chosen), learning_rate=rate, batch_size=size
                    )
                    low, high = stats.expected_change_interval
                    covered.append(low <= truth <= high)
                    found.append(stats.curvature_noise * size / trace)
                traces.append(sum(found) / draws)
            for chosen in torch.randperm(300, generator=generator).split(size):
                optimizer.zero_grad()
                cross_entropy(model, take(data, chosen)).backward()
                optimizer.step()
    assert len(covered) == 72
    assert sum(covered) >= 0.9 * len(covered)
    assert 0.8 < sum(traces) / len(traces) < 1.25


def test_memory_is_bounded_and_numbers_stay_the_same(monkeypatch):
    """No more rows at a time than fit, whether computed once or anew; dropout draws the same both times."""
    model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.3), nn.Tanh(), nn.Linear(40, 3)).double()
    batch, width = samples(22), 283
    held = []
    original = gradient_rows.rows_of

    def counted(*arguments):
        rows = original(*arguments)
        held.append(len(rows))
        return rows

    monkeypatch.setattr(gradient_rows, "rows_of", counted)
    arguments = {"learning_rate": 0.1, "batch_size": 4}
    model.eval()
    plain = curvature_gamma(model, cross_entropy, batch, **arguments)
    assert held == [22]
    held.clear()
    bound = 8 * width * 12  # 12 rows: three at a time, and room for none to be kept
    tight = curvature_gamma(model, cross_entropy, batch, max_bytes=bound, **arguments)
    assert max(held) == 3
    assert sum(held) == 2 * 22
    assert tight.population is plain.population is None
    for name, value in plain.to_dict().items():
        assert value is None or tight.to_dict()[name] == pytest.approx(value, rel=1e-9), name
    probed, again = (
        curvature_gamma(model, cross_entropy, batch, probes=5, max_bytes=most, **arguments) for most in (None, bound)
    )
    assert again.curvature_noise == pytest.approx(probed.curvature_noise, rel=1e-9)
    model.train()
    torch.manual_seed(5)
    dropped = curvature_gamma(model, cross_entropy, batch, max_bytes=bound, curvature_batch=batch, **arguments)
    assert dropped.noise > 0
    assert dropped.noise != pytest.approx(plain.noise)


@pytest.mark.parametrize(("options", "products"), [({}, 12 + 1), ({"probes": 3}, 3 + 1), ({"population": 24}, 24 + 1)])
def test_the_cost_is_what_the_docstring_says(monkeypatch, options, products):
    """Products of the Hessian with a vector, counted in whole batches of 24 samples."""
    count = 0
    original = Hessian.products

    def counted(self, vectors, number):
        nonlocal count
        count += number * self._samples
        return original(self, vectors, number)

    monkeypatch.setattr(Hessian, "products", counted)
    curvature_gamma(network(), cross_entropy, samples(24), learning_rate=0.1, batch_size=4, **options)
    assert count == products * 24


def test_probes_estimate_the_exact_sum_within_their_error():
    model, batch = network(), samples(200)
    arguments = {"learning_rate": 0.1, "batch_size": 4}
    exact = curvature_gamma(model, cross_entropy, batch, probes=0, **arguments)
    misses = []
    for seed in range(12):
        probed = curvature_gamma(model, cross_entropy, batch, seed=seed, **arguments)
        assert probed.expected_change_error is None
        assert probed.expected_change_interval is None
        assert probed.signal == exact.signal
        assert 0 < probed.curvature_noise_error < 0.5 * exact.curvature_noise
        misses.append((probed.curvature_noise - exact.curvature_noise) / probed.curvature_noise_error)
    misses = torch.tensor(misses)
    assert misses.abs().max() < 4
    assert 0.4 < misses.square().mean().sqrt() < 1.8
    many = curvature_gamma(model, cross_entropy, batch, probes=400, **arguments)
    assert many.curvature_noise == pytest.approx(exact.curvature_noise, rel=0.15)
    assert many.curvature_noise_error < probed.curvature_noise_error / 2
    few = curvature_gamma(model, cross_entropy, tuple(part[:128] for part in batch), **arguments)
    assert few.curvature_noise_error == 0


def test_float32_models_agree_with_float64():
    model, batch = network(), samples(40)
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.3, batch_size=4)
    single = curvature_gamma(
        model.float(), cross_entropy, (batch[0].float(), batch[1]), learning_rate=0.3, batch_size=4
    )
    for name in ("signal", "noise", "curvature_signal", "curvature_noise", "expected_change"):
        assert getattr(single, name) == pytest.approx(getattr(stats, name), rel=1e-4)
