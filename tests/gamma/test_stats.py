"""GammaStats: its numbers against their definitions, its error bars against simulation, its manners."""

from __future__ import annotations

import itertools
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

import sdsd
from sdsd.gamma.sources import MomentsSource, standard_error


def jackknife(G: np.ndarray) -> float:
    """Standard error of Γ_U by leaving out each row in turn, from the definition."""

    def unbiased(rows: np.ndarray) -> float:
        mean, noise = rows.mean(0), rows.var(0, ddof=1).sum()
        return (mean @ mean - noise / len(rows)) / noise

    n = len(G)
    left_out = np.array([unbiased(np.delete(G, i, 0)) for i in range(n)])
    return math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())


def test_definitions():
    G = torch.randn(12, 40, dtype=torch.float64) + 0.3
    mean, noise = G.mean(0), G.var(0).sum().item()
    signal = (mean @ mean).item()
    stats = sdsd.gamma_stats(G, samples_per_gradient=4)
    assert stats.signal == pytest.approx(signal, rel=1e-12)
    assert stats.noise == pytest.approx(noise, rel=1e-12)
    assert stats.gamma == pytest.approx(signal / noise, rel=1e-12)
    assert stats.signal_unbiased == pytest.approx(signal - noise / 12, rel=1e-12)
    assert stats.gamma_unbiased == pytest.approx((signal - noise / 12) / noise, rel=1e-12)
    assert stats.noise_scale == stats.noise_scale_raw == pytest.approx(4 * noise / (signal - noise / 12), rel=1e-12)
    assert (stats.n, stats.samples_per_gradient, stats.batch_size) == (12, 4, 48)
    assert stats.interval is None
    assert stats.phase is None


def test_agrees_with_the_published_formula():
    grads = torch.randn(32, 500) + 0.1
    seed = (grads.mean(0) ** 2).sum().item() / (grads.var(0).sum().item() + 1e-10)
    assert sdsd.gamma_stats(grads).gamma == pytest.approx(seed, rel=1e-5)


def test_small_gradients_keep_their_ratio():
    grads = torch.randn(32, 500) + 0.1
    # A power of two changes no digit.
    assert sdsd.gamma_stats(grads * 2.0**-27).gamma == pytest.approx(sdsd.gamma_stats(grads).gamma, rel=1e-5)


@pytest.mark.parametrize("n", [3, 4, 9, 32])
def test_interval_is_the_jackknife(n):
    G = torch.randn(n, 60, dtype=torch.float64) + 1.0  # enough signal that the floor for Γ ≈ 0 is not what counts
    stats = sdsd.gamma_stats(G, samples_per_gradient=5, confidence=0.9)
    half = scipy_stats.t.ppf(0.95, n - 1) * jackknife(G.numpy())
    low, high = stats.interval
    assert (low + high) / 2 == pytest.approx(stats.gamma_unbiased)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-8)
    assert stats.noise_scale_interval == pytest.approx((5 / high, 5 / low if low > 0 else math.inf))


def test_error_is_at_least_that_of_pure_noise():
    n, noise = 32, 3.0
    even, nothing, products = np.full(n, noise * (n - 1) / n), np.zeros(n), np.full(n // 4, 2.0)
    jackknife_alone = standard_error(0.1, noise, even, nothing, products * 0)
    assert jackknife_alone == pytest.approx(0.0)
    wanted = math.sqrt(2 * 2.0**2 / (n * (n - 1) * noise**2))
    assert standard_error(0.1, noise, even, nothing, products) == pytest.approx(wanted)


def test_parameters_and_total():
    layers = {"a.weight": torch.randn(20, 5, 3).double(), "a.bias": torch.randn(20, 5).double() + 2}
    stats = sdsd.gamma_stats(layers, confidence=0.95)
    joined = torch.cat([layer.flatten(1) for layer in layers.values()], 1)
    whole = sdsd.gamma_stats(joined, confidence=0.95)
    assert list(stats.parameters) == ["a.weight", "a.bias"]
    for name in ("signal", "noise", "gamma_unbiased", "interval", "effective_dimension"):
        assert getattr(stats, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    alone = sdsd.gamma_stats(layers["a.bias"], confidence=0.95)
    assert stats.parameters["a.bias"].interval == pytest.approx(alone.interval, rel=1e-9)
    assert stats.parameters["a.bias"].parameters == {}
    assert list(sdsd.gamma_stats(tuple(layers.values())).parameters) == ["0", "1"]


def test_what_vmap_of_grad_returns():
    model = torch.nn.Linear(6, 4)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, x, y):
        out = torch.func.functional_call(model, parameters, (x[None],))
        return torch.nn.functional.cross_entropy(out, y[None])

    x, y = torch.randn(10, 6), torch.randint(0, 4, (10,))
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    stats = sdsd.gamma_stats(grads)
    rows = [
        torch.autograd.grad(loss(dict(model.named_parameters()), x[i], y[i]), model.parameters()) for i in range(10)
    ]
    G = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()
    assert stats.noise == pytest.approx(G.var(0).sum().item(), rel=1e-5)
    assert stats.signal == pytest.approx(G.mean(0).square().sum().item(), rel=1e-5)
    assert set(stats.parameters) == {"weight", "bias"}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f4"])
def test_numpy_input(dtype):
    G = np.random.default_rng(0).normal(size=(6, 20)).astype(dtype)
    G.setflags(write=False)
    assert sdsd.gamma_stats(G[::-1]).noise == pytest.approx(G.astype("f8").var(0, ddof=1).sum(), rel=1e-5)


class TestEdges:
    def test_no_noise(self):
        stats = sdsd.gamma_stats(torch.ones(4, 3), confidence=0.95)
        assert (stats.noise, stats.gamma, stats.noise_scale) == (0.0, math.inf, 0.0)
        assert stats.interval is None
        assert stats.phase is None

    def test_nothing_at_all(self):
        stats = sdsd.gamma_stats(torch.zeros(4, 3))
        assert math.isnan(stats.gamma)
        assert stats.noise_scale == 0.0

    def test_negative_signal_is_reported_not_clipped(self):
        stats = sdsd.gamma_stats(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
        assert stats.gamma_unbiased == pytest.approx(-0.25)
        assert stats.noise_scale == math.inf
        assert stats.noise_scale_raw == pytest.approx(-4.0)

    def test_bad_values_are_named(self):
        grads = {"fine": torch.randn(4, 3), "broken": torch.full((4, 3), float("nan"))}
        stats = sdsd.gamma_stats(grads)
        with pytest.warns(RuntimeWarning, match="NaN or infinity in: broken"):
            assert not stats.finite
        assert stats.parameters["fine"].finite
        assert math.isnan(stats.noise)

    @pytest.mark.parametrize(("n", "told"), [(15, False), (16, True)])
    def test_directions_are_told_from_sixteen_gradients_on(self, n, told):
        stats = sdsd.gamma_stats(torch.randn(n, 50), confidence=0.95)
        assert math.isfinite(stats.effective_dimension) == told

    def test_phase_needs_ten_directions(self):
        one_direction = torch.randn(40, 1) * torch.ones(1, 30) + 0.01
        stats = sdsd.gamma_stats(one_direction, confidence=0.95)
        assert stats.effective_dimension < 10
        assert stats.interval is not None
        assert stats.phase is None


@pytest.mark.parametrize(("shift", "phase"), [(1.0, "drift"), (0.0, "diffusion"), (0.5, "critical")])
def test_phase(shift, phase):
    mean = torch.zeros(64, 1000)
    # Γ of a batch of 64 is 64 · shift² · ‖mean direction‖² / 1000; 4/√64 as unit puts "critical" at Γ_B ≈ 1.
    mean[:, 0] = shift * math.sqrt(1000 / 64) * 2
    stats = sdsd.gamma_stats(torch.randn(64, 1000) + mean, confidence=0.95, batch_size=64)
    assert stats.phase == phase


def test_phase_follows_the_batch():
    grads = torch.randn(64, 1000) + 0.1  # Γ_1 = .01
    assert sdsd.gamma_stats(grads, confidence=0.95, batch_size=10).phase == "diffusion"
    assert sdsd.gamma_stats(grads, confidence=0.95, batch_size=1000).phase == "drift"
    # Means over 4 samples: a batch of 200 is 50 of them, Γ = .5, and one of 800 is 200, Γ = 2.
    for batch, phase in ((200, "diffusion"), (800, "drift")):
        stats = sdsd.gamma_stats(grads, samples_per_gradient=4, confidence=0.95, batch_size=batch)
        assert stats.phase == phase


class TestCoverage:
    """Intervals against simulation. Bounds are the binomial spread of 600 draws round what theory allows."""

    draws = 600

    def covered(self, gamma: float, spectrum: torch.Tensor, n: int, freedom: float = math.inf) -> float:
        """Share of 95% intervals that hold the true Γ = `gamma`, noise covariance diag(spectrum²), Student's t."""
        mean = torch.full_like(spectrum, math.sqrt(gamma * spectrum.square().sum().item() / len(spectrum)))
        hits = 0
        for _ in range(self.draws):
            noise = torch.randn(n, len(spectrum))
            if freedom < math.inf:
                noise = noise * (torch.distributions.Chi2(freedom).sample((n, 1)) / (freedom - 2)).rsqrt()
            stats = sdsd.gamma_stats(noise * spectrum + mean, confidence=0.95)
            low, high = stats.interval
            hits += low <= gamma <= high
        return hits / self.draws

    @pytest.mark.parametrize("gamma", [0.2, 1.0])
    def test_with_signal(self, gamma):
        assert 0.92 <= self.covered(gamma, torch.ones(60), 32) <= 0.99

    @pytest.mark.parametrize("gamma", [0.2, 1.0])
    def test_heavy_tails_cost_what_readme_says(self, gamma):
        """.80 to .86 with t of three degrees of freedom, and four standard deviations of 600 draws."""
        assert 0.74 <= self.covered(gamma, torch.ones(60), 32, freedom=3.0) <= 0.92

    def test_without_signal(self):
        assert 0.92 <= self.covered(0.0, torch.ones(60), 32) <= 1.0

    def test_without_signal_and_few_directions(self):
        assert self.covered(0.0, torch.tensor([1.0, 0.7, 0.5]), 32) >= 0.85


def test_unbiased_where_the_naive_ratio_is_not():
    truth, n, d = 0.01, 8, 400
    naive, signal, noise = 0.0, 0.0, 0.0
    for _ in range(300):
        stats = sdsd.gamma_stats(torch.randn(n, d) + math.sqrt(truth))
        naive += stats.gamma / 300
        signal += stats.signal_unbiased
        noise += stats.noise
    assert naive == pytest.approx(truth + 1 / n, rel=0.02)
    assert signal / noise == pytest.approx(truth, abs=0.001)


class TestPopulation:
    """Samples drawn without replacement, against every sample that can be drawn from a small population."""

    @staticmethod
    def population(size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(size, 3, dtype=torch.float64, generator=generator) + 0.4

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(size=st.integers(2, 7), data=st.data(), scale=st.floats(1e-3, 1e3), shift=st.floats(-3, 3))
    def test_unbiased_over_all_subsets(self, size, data, scale, shift):
        n = data.draw(st.integers(2, size))
        everything = (self.population(size, data.draw(st.integers(0, 2**16))) + shift) * scale
        found = [
            sdsd.gamma_stats(everything[list(chosen)], population=size)
            for chosen in itertools.combinations(range(size), n)
        ]
        truth, spread = everything.mean(0).square().sum().item(), everything.var(0).sum().item()
        allowed = 1e-12 * (truth + spread)
        assert abs(sum(stats.signal_unbiased for stats in found) / len(found) - truth) <= allowed
        assert abs(sum(stats.noise for stats in found) / len(found) - spread) <= allowed

    @pytest.mark.parametrize(("size", "n"), [(6, 2), (7, 3), (6, 3)])
    def test_unbiased_over_all_disjoint_pairs(self, size, n):
        everything = self.population(size)
        found = [
            sdsd.gamma_stats(
                everything[list(order)].unflatten(0, (n, 2)).mean(1), samples_per_gradient=2, population=size
            )
            for order in itertools.permutations(range(size), 2 * n)
        ]
        truth = everything.mean(0).square().sum().item()
        assert sum(stats.signal_unbiased for stats in found) / len(found) == pytest.approx(truth, rel=1e-12)
        spread = everything.var(0).sum().item() / 2
        assert sum(stats.noise for stats in found) / len(found) == pytest.approx(spread, rel=1e-12)

    def test_all_of_it_leaves_nothing_to_chance(self):
        grads = {"a": torch.randn(12, 30), "b": torch.randn(12, 5)}
        plain, stats = (sdsd.gamma_stats(grads, confidence=0.9, population=each) for each in (None, 12))
        for found in (stats, *stats.parameters.values()):
            assert found.signal_unbiased == found.signal
            assert found.gamma_unbiased == found.gamma
            assert found.interval == (found.gamma, found.gamma)
        assert (stats.signal, stats.noise) == (plain.signal, plain.noise)
        assert stats.noise_scale == 1 / stats.gamma

    def test_intervals_shrink_by_what_was_seen(self):
        G = torch.randn(20, 60, dtype=torch.float64) + 1.0
        plain, stats = (
            sdsd.gamma_stats(G, samples_per_gradient=3, confidence=0.9, population=each) for each in (None, 100)
        )
        widths = [high - low for low, high in (plain.interval, stats.interval)]
        assert widths[1] / widths[0] == pytest.approx(math.sqrt(1 - 60 / 100), rel=1e-9)
        assert sum(stats.interval) / 2 == pytest.approx(stats.gamma_unbiased)
        assert stats.signal_unbiased == pytest.approx(stats.signal - (1 / 20 - 3 / 100) * stats.noise, rel=1e-12)

    def test_the_interval_covers_the_population_s_own_ratio(self):
        """60 of 80 drawn, over and over: without the correction the intervals are twice as wide as they should be."""
        everything = torch.randn(80, 60) + 0.7
        truth = (everything.mean(0).square().sum() / everything.var(0).sum()).item()
        hits = {80: 0, None: 0}
        for _ in range(300):
            drawn = everything[torch.randperm(80)[:60]]
            for population in hits:
                low, high = sdsd.gamma_stats(drawn, confidence=0.95, population=population).interval
                hits[population] += low <= truth <= high
        assert 0.91 <= hits[80] / 300 <= 0.99
        assert hits[None] / 300 > 0.99

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(n=st.integers(2, 9), b=st.integers(1, 5), sizes=st.lists(st.integers(0, 10**6), min_size=2, max_size=5))
    def test_lies_between_the_biased_and_that_of_unlimited_samples(self, n, b, sizes):
        grads = torch.randn(n, 4, dtype=torch.float64)
        found = [
            sdsd.gamma_stats(grads, samples_per_gradient=b, population=n * b + extra).signal_unbiased
            for extra in sorted(sizes)
        ]
        plain = sdsd.gamma_stats(grads, samples_per_gradient=b)
        assert found == sorted(found, reverse=True)
        assert plain.signal >= found[0]
        assert found[-1] >= plain.signal_unbiased

    def test_is_kept(self):
        stats = sdsd.gamma_stats({"w": torch.randn(20, 30) + 1}, confidence=0.95, population=50)
        assert stats.population == stats.parameters["w"].population == stats.to_dict()["population"] == 50
        again = pickle.loads(pickle.dumps(stats))
        assert again.to_dict() == stats.to_dict()
        assert again.population == 50
        assert "population=50" in repr(stats)
        assert "of a population of 50" in str(stats)
        assert sdsd.gamma_stats(torch.randn(4, 3)).population is None


def test_effective_dimension_is_estimated():
    assert sdsd.gamma_stats(torch.randn(400, 200), confidence=0.95).effective_dimension == pytest.approx(200, rel=0.3)


def test_values_are_fetched_once_and_only_when_read(monkeypatch):
    fetches = []
    fetch = MomentsSource._fetch
    monkeypatch.setattr(MomentsSource, "_fetch", lambda self: fetches.append(1) or fetch(self))
    stats = sdsd.gamma_stats({"a": torch.randn(5, 3), "b": torch.randn(5, 2)}, confidence=0.95)
    parameters = stats.parameters
    assert not fetches
    _ = stats.noise, stats.interval, parameters["a"].signal, stats.parameters["b"].phase
    assert len(fetches) == 1


def test_immutable():
    stats = sdsd.gamma_stats(torch.randn(4, 3))
    for change in (lambda: setattr(stats, "n", 5), lambda: setattr(stats, "noise", 1.0), lambda: delattr(stats, "n")):
        with pytest.raises(AttributeError, match="immutable"):
            change()
    with pytest.raises(TypeError):
        stats.parameters["x"] = stats


def test_prints_pickles_and_serialises():
    stats = sdsd.gamma_stats({"w": torch.randn(20, 30) + 1}, confidence=0.95)
    text = str(stats)
    assert "w " in text
    assert "total" in text
    assert "intervals at 95%" in text
    assert f"{stats.noise_scale:.4g}" in repr(stats)
    assert pickle.loads(pickle.dumps(stats)).to_dict() == stats.to_dict()
    restored = json.loads(json.dumps(stats.to_dict()))
    assert restored["parameters"]["w"]["noise"] == stats.noise


def test_whole_numbers_of_numpy_become_ints():
    count = np.int64
    stats = sdsd.gamma_stats(torch.randn(4, 3), samples_per_gradient=count(2), batch_size=count(8), population=count(9))
    found = json.loads(json.dumps(stats.to_dict()))
    assert (found["samples_per_gradient"], found["batch_size"], found["population"]) == (2, 8, 9)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"grads": "x"}, TypeError, "grads: expected a tensor.*got str"),
            ({"grads": np.zeros((3, 2), complex)}, TypeError, "got dtype complex128"),
            ({"grads": np.zeros((3, 2), object)}, TypeError, "got dtype object"),
            ({"grads": np.zeros((3, 2), int)}, TypeError, r"got torch.int64"),
            ({"grads": [np.zeros((3, 2)), 4]}, TypeError, r"grads\[1\]: expected a torch.Tensor, got int"),
            ({"samples_per_gradient": 0}, ValueError, "samples_per_gradient: expected a whole number"),
            ({"samples_per_gradient": None}, ValueError, "samples_per_gradient: expected a whole number.*got None"),
            ({"batch_size": 2.5}, ValueError, "batch_size: expected a whole number"),
            ({"population": 0}, ValueError, "population: expected a whole number of samples .*got 0"),
            ({"population": 8.0}, ValueError, "population: expected a whole number of samples .*got 8.0"),
            ({"population": True}, ValueError, "population: expected a whole number of samples .*got True"),
            (
                {"population": 3},
                ValueError,
                r"at least the 4 samples seen \(4 gradients of 1\), got 3. Give the number",
            ),
            (
                {"population": 11, "samples_per_gradient": 3},
                ValueError,
                r"at least the 12 samples seen \(4 gradients of 3\), got 11",
            ),
            ({"confidence": 95}, ValueError, "between 0 and 1, for example 0.95, got 95"),
            ({"grads": torch.randn(2, 5), "confidence": 0.95}, ValueError, "at least 3 gradients, got 2"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            sdsd.gamma_stats(**{"grads": torch.randn(4, 2), **arguments})
