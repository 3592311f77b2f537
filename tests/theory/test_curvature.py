"""The corrected ratios against an explicit Hessian, against every batch there is, and against real steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import sdsd
from sdsd.theory import CurvatureObserver, curvature_gamma
from sdsd.theory.curvature import rows as gradient_rows
from sdsd.theory.derivatives import Hessian, undisturbed


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def network(dtype=torch.float64):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def samples(count, dtype=torch.float64):
    return torch.randn(count, 3, dtype=dtype), torch.randint(0, 3, (count,))


class Bowl(nn.Module):
    """Loss ½θᵀAθ + x·θ of a sample x: H = A, the gradient Aθ + x, and a step's change exactly of second order."""

    def __init__(self, matrix, start):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.theta = nn.Parameter(start.clone())

    def forward(self, x):
        return x @ self.theta + self.theta @ self.matrix @ self.theta / 2


def mean_of_outputs(model, batch):
    return model(batch).mean()


def bowl(dim=4):
    root = torch.randn(dim, dim).double()
    return Bowl(root @ root.T / dim, torch.randn(dim).double())


def explicit(model, loss_fn, batch, rows):
    """Gradients (one for each of `rows`, index ranges) and Hessian of the whole batch, by plain autograd."""
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss_fn(model, take(batch, row)), parameters)])
        for row in rows
    ]
    names = [name for name, _ in model.named_parameters()]

    def loss(vector):
        pieces = [piece.view_as(p) for piece, p in zip(vector.split(sizes), parameters, strict=True)]
        swapped = torch.func.functional_call
        return loss_fn(lambda x: swapped(model, dict(zip(names, pieces, strict=True)), (x,)), batch)

    point = torch.cat([p.detach().flatten() for p in parameters])
    hessian = torch.autograd.functional.hessian(loss, point)
    return torch.stack(gradients) if gradients else None, hessian


def take(batch, row):
    return tuple(part[row] for part in batch) if isinstance(batch, tuple) else batch[row]


# ---- by definition ---------------------------------------------------------------------------------------------------


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


# ---- what a step does ------------------------------------------------------------------------------------------------


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


# ---- estimators ------------------------------------------------------------------------------------------------------


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
    original = gradient_rows.gradient_rows

    def counted(*arguments):
        rows = original(*arguments)
        held.append(len(rows))
        return rows

    monkeypatch.setattr(gradient_rows, "gradient_rows", counted)
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


# ---- in a model and a training loop ----------------------------------------------------------------------------------


def test_nothing_is_left_behind():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.ReLU(), nn.Linear(4, 3)).double()
    batch = samples(32)
    model[0].weight.grad = torch.full((4, 3), 7.0).double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=8, samples_per_gradient=8)
    assert stats.n == 4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad.eq(7).all()
    assert model[4].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


def test_parameters_that_do_not_train_are_left_out():
    model, batch = network(), samples(16)
    model[0].weight.requires_grad_(False)
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=1)
    rows = []
    for i in range(16):
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = cross_entropy(model, take(batch, slice(i, i + 1)))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert stats.noise == pytest.approx(torch.stack(rows).var(0).sum().item(), rel=1e-10)


def test_attention_has_second_derivatives():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    batch = torch.randn(6, 3, 4).double(), torch.randint(0, 3, (6,))
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=2, curvature_batch=batch)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative, which curvature_gamma sees to
        gradients, hessian = explicit(model, cross_entropy, batch, [slice(i, i + 1) for i in range(6)])
    assert stats.curvature_noise == pytest.approx((hessian @ gradients.T.cov()).trace().item() / 2, rel=1e-8)


@pytest.mark.parametrize("mode", ["exact", "micro"])
def test_the_observer_measures_along_a_run_and_the_monitor_does_not_notice(mode):
    def run(watched):
        torch.manual_seed(0)
        model, batches = network(), [samples(16) for _ in range(6)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        monitor = sdsd.GammaMonitor(model, mode=mode)
        observer = CurvatureObserver(cross_entropy, batches[:2], optimizer=optimizer, every=2)
        if watched:
            monitor.add_observer(observer)
        seen, points = [], []
        for batch in batches:
            points.append({name: value.clone() for name, value in model.state_dict().items()})
            for part in (slice(0, 8), slice(8, 16)):
                (cross_entropy(model, take(batch, part)) / 2).backward()
            seen.append(monitor.step().to_dict())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        monitor.detach()
        return seen, observer.history, points, batches

    plain, _, _, _ = run(watched=False)
    seen, history, points, batches = run(watched=True)
    assert str(seen) == str(plain)
    assert [step for step, _ in history] == [0, 2, 4]
    assert [stats.learning_rate for _, stats in history] == pytest.approx([0.1, 0.025, 0.00625])
    assert {stats.batch_size for _, stats in history} == {16}
    model = network()
    model.load_state_dict(points[2])
    again = curvature_gamma(model, cross_entropy, batches[1], learning_rate=0.025, batch_size=16)
    assert history[1][1].to_dict() == again.to_dict()


def test_the_observer_takes_the_scale_of_adam_and_waits_for_its_first_step():
    model, batch = network(), samples(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = sdsd.GammaMonitor(model)
    observer = CurvatureObserver(
        cross_entropy, lambda: batch, optimizer=optimizer, every=1, precondition=True, batch_size=4, probes=8
    )
    remove = monitor.add_observer(observer)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        monitor.step()
        if observer.history:
            scale = {
                name: 1 / ((state["exp_avg_sq"] / (1 - 0.999 ** state["step"].item())).sqrt() + 1e-8)
                for name, state in ((name, optimizer.state[p]) for name, p in model.named_parameters())
            }
            wanted = curvature_gamma(
                model, cross_entropy, batch, learning_rate=0.01, batch_size=4, precondition=scale, probes=8
            )
            assert observer.history[-1][1].expected_change == pytest.approx(wanted.expected_change, rel=1e-9)
        optimizer.step()
    assert [step for step, _ in observer.history] == [1, 2]
    assert observer.history[0][1].curvature_noise_error > 0
    remove()


def test_the_report_says_what_to_do():
    model, x = bowl(), torch.randn(30, 4).double()
    noisy = {"learning_rate": 0.01, "batch_size": 8}
    text = str(curvature_gamma(model, mean_of_outputs, x / 100, **noisy))
    assert text.startswith("a step of 0.01 on 8 samples lowers the loss: E[ΔL] = -")
    assert "largest learning rate" in text
    text = str(curvature_gamma(model, mean_of_outputs, x / 100, learning_rate=1000.0, batch_size=8))
    assert text.startswith("a step of 1000 on 8 samples raises the loss")
    with torch.no_grad():
        model.theta.copy_(-torch.linalg.solve(model.matrix, x.mean(0)))
    text = str(curvature_gamma(model, mean_of_outputs, x[:10], **noisy))
    assert text.startswith("a step of 0.01 on 8 samples lowers or raises the loss, the samples cannot tell")


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_errors_say_what_is_wrong():
    model, batch = network(), samples(8)
    good = {"learning_rate": 0.1, "batch_size": 2}

    def call(changed=None, model=model, batch=batch, loss_fn=cross_entropy):
        return curvature_gamma(model, loss_fn, batch, **{**good, **(changed or {})})

    for name, values in {
        "learning_rate": (0, -1.0, math.inf, math.nan),
        "batch_size": (0, -2, 1.5, True),
        "samples_per_gradient": (0, 2.0),
        "population": (0, -5),
        "chunk_size": (0,),
        "max_bytes": (0, 1.5),
        "probes": (1, -1, 2.5),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name}: expected"):
                call({name: value})
    with pytest.raises(ValueError, match="population: expected at least the 8 samples drawn from it, got 5"):
        call({"population": 5})
    with pytest.raises(ValueError, match="expected at least 4 gradients of 5 samples, got 8.*Two halves need two"):
        call({"samples_per_gradient": 5})
    with pytest.raises(ValueError, match=r"expected at least 2 gradients of 5 samples, got 8 samples\.$"):
        call({"samples_per_gradient": 5, "curvature_batch": batch})
    with pytest.raises(ValueError, match="max_bytes: expected at least 992, 32 bytes for each of 31 parameters"):
        call({"max_bytes": 991})
    with pytest.raises(ValueError, match="its 13 samples do not divide into gradients of 3"):
        call({"samples_per_gradient": 3}, batch=samples(13))
    with pytest.raises(ValueError, match=r"one common first dimension, got lengths \[7, 8\]"):
        call(batch=(batch[0], batch[1][:7]))
    with pytest.raises(ValueError, match=r"one common first dimension, got lengths \[\]"):
        call(batch="nothing")
    with pytest.raises(ValueError, match=r"curvature_batch: .*got lengths \[7, 8\]"):
        call({"curvature_batch": (batch[0], batch[1][:7])})
    with pytest.raises(ValueError, match=r"loss_fn: expected one number, the batch's mean loss, got \(8, 3\)|\(1, 3\)"):
        call(loss_fn=lambda model, batch: model(batch[0]))
    with pytest.raises(ValueError, match="gradients hold NaN or infinity"):
        call(batch=(batch[0] * math.nan, batch[1]))
    with pytest.raises(ValueError, match="1 is a BatchNorm in train mode"):
        call(model=nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double())
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient"):
        call(model=nn.Flatten())


def test_preconditioners_have_to_fit():
    model, batch = network(), samples(8)

    def call(precondition):
        return curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=2, precondition=precondition)

    ones = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=r"expected shape \(4,\) for 0.bias, got \(3,\)"):
        call({**ones, "0.bias": torch.ones(3)})
    with pytest.raises(ValueError, match="nothing for 0.bias"):
        call({name: value for name, value in ones.items() if name != "0.bias"})
    with pytest.raises(ValueError, match="nothing for 0.weight. An optimizer knows its scale after its first step"):
        call(torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="expected an Adam, AdamW or RMSprop optimizer, got SGD"):
        call(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="the optimizer does not hold 2.weight, 2.bias"):
        call(torch.optim.Adam(model[0].parameters()))
    with pytest.raises(TypeError, match="expected an optimizer or a mapping"):
        call([torch.ones(3)])


def test_observers_have_to_be_set_up_right():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="either an optimizer"):
        CurvatureObserver(cross_entropy, [])
    with pytest.raises(ValueError, match="either an optimizer"):
        CurvatureObserver(cross_entropy, [], optimizer=optimizer, learning_rate=0.1)
    with pytest.raises(ValueError, match="every: expected a whole number of steps"):
        CurvatureObserver(cross_entropy, [], learning_rate=0.1, every=0)
    with pytest.raises(ValueError, match="got SGD"):
        CurvatureObserver(cross_entropy, [], optimizer=optimizer, precondition=True)
    with pytest.raises(ValueError, match="needs the optimizer"):
        CurvatureObserver(cross_entropy, [], learning_rate=0.1, precondition=True)

    def step(observer):
        with sdsd.GammaMonitor(model) as monitor:
            monitor.add_observer(observer)
            cross_entropy(model, samples(8)).backward()
            monitor.step()

    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        step(CurvatureObserver(cross_entropy, [], learning_rate=0.1))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
    model.zero_grad()
    with pytest.raises(ValueError, match=r"expected one learning rate for all parameters, got \[0.1, 0.2\]"):
        step(CurvatureObserver(cross_entropy, [samples(8)], optimizer=torch.optim.SGD(groups)))
