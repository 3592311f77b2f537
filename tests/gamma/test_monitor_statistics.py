"""Preconditioning, smoothing, intervals, populations: what a monitor makes of its numbers."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

import sdsd
from tests.gamma.models import (
    mean_of_squares,
    per_sample_gradients,
)

from .exact import N, images


class TestPreconditioning:
    @pytest.mark.parametrize(
        "make",
        [
            lambda p: torch.optim.Adam(p, lr=1e-2),
            lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
            lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
        ],
    )
    @pytest.mark.parametrize("positions", [(), (4,)])
    def test_metric_of_the_optimizer(self, make, positions):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
        optimizer = make(model.parameters())
        with sdsd.GammaMonitor(model, precondition=optimizer) as monitor:
            for step in range(3):
                x, y = images(*positions, 5), torch.randn(N, dtype=torch.float64)
                D = torch.cat([_diagonal(optimizer, p).flatten() for p in model.parameters()]) if step else None
                if step:
                    monitor.detach()
                    rows = (
                        torch.cat(
                            [g.flatten(1) for g in per_sample_gradients(model, x, y, mean_of_squares).values()], 1
                        )
                        * D
                    )
                    monitor._attachment.attach(monitor._parameters)
                    monitor._begin_step()
                optimizer.zero_grad()
                mean_of_squares(model(x), y).backward()
                stats = monitor.step()
                if step == 0:
                    assert stats is None, "the optimizer has no state before its first step"
                else:
                    assert stats.noise == pytest.approx(rows.var(0).sum().item(), rel=1e-9)
                    assert stats.signal == pytest.approx(rows.mean(0).square().sum().item(), rel=1e-9)
                optimizer.step()

    def test_other_optimizers_are_refused(self):
        model = nn.Linear(2, 2)
        with pytest.raises(ValueError, match="expected an Adam, AdamW or RMSprop optimizer, got SGD"):
            sdsd.GammaMonitor(model, precondition=torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(ValueError, match="the optimizer does not hold"):
            sdsd.GammaMonitor(model, precondition=torch.optim.Adam(nn.Linear(2, 2).parameters()))


def _diagonal(optimizer, parameter):
    state, group = optimizer.state[parameter], optimizer.param_groups[0]
    if "square_avg" in state:
        return 1 / ((state["square_avg"] - state["grad_avg"] ** 2).sqrt() + group["eps"])
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    return 1 / ((second / (1 - group["betas"][1] ** float(state["step"]))).sqrt() + group["eps"])


class TestSmoothing:
    def run(self, monitor, model, steps):
        stats = None
        for _ in range(steps):
            model.zero_grad()
            x = torch.randn(N, 5, dtype=torch.float64)
            (model(x).squeeze(1) - 1).square().mean().backward()
            stats = monitor.step()
        return stats

    def test_ratio_of_averages(self):
        model = nn.Linear(5, 1).double()
        signals, noises = [], []
        with sdsd.GammaMonitor(model, ema=0.8) as monitor:
            monitor.add_observer(lambda _, s: (signals.append(s.signal_unbiased), noises.append(s.noise)))
            smoothed = self.run(monitor, model, 12).smoothed
        weights = torch.tensor([0.8 ** (11 - k) for k in range(12)], dtype=torch.float64)
        weights = weights / weights.sum()
        s, v = torch.tensor(signals, dtype=torch.float64), torch.tensor(noises, dtype=torch.float64)
        S, V = (weights * s).sum(), (weights * v).sum()
        assert smoothed.gamma_unbiased == pytest.approx((S / V).item())
        assert smoothed.noise == pytest.approx(V.item())
        w = (weights**2).sum()
        residual = (weights * (s - S / V * v) ** 2).sum()
        low, high = smoothed.interval
        half = _t(0.975, (1 / w - 1).item()) * math.sqrt(w / (1 - w) * residual) / V.item()
        assert (high - low) / 2 == pytest.approx(half, rel=1e-6)
        assert smoothed.parameters["weight"].noise < smoothed.noise

    def test_averages_are_by_sample_in_either_mode(self):
        """The averages of one step are that step, in the unit of one sample however many make a micro-batch."""
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        with sdsd.GammaMonitor(model, mode="micro", ema=0.0) as monitor:
            for part in range(4):
                x = images(5) + part
                (mean_of_squares(model(x), torch.randn(N, dtype=torch.float64)) / 4).backward()
            stats = monitor.step()
        smoothed = stats.smoothed
        assert (stats.samples_per_gradient, smoothed.samples_per_gradient) == (N, 1)
        assert smoothed.noise == pytest.approx(N * stats.noise, rel=1e-9)
        assert smoothed.signal_unbiased == pytest.approx(stats.signal_unbiased, rel=1e-9)
        assert smoothed.noise_scale == pytest.approx(stats.noise_scale, rel=1e-9)

    def test_one_step_has_no_interval(self):
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model) as monitor:
            stats = self.run(monitor, model, 1)
        assert stats.interval is None
        assert stats.smoothed.interval is None
        assert stats.smoothed.noise == pytest.approx(stats.noise)

    def test_earlier_results_do_not_change(self):
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model) as monitor:
            first = self.run(monitor, model, 2)
            value = pickle.loads(pickle.dumps(first.smoothed)).noise
            self.run(monitor, model, 3)
            monitor._results.averages.reset()
            assert first.smoothed.noise == value

    def test_resume(self):
        torch.manual_seed(3)
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model, every=2) as monitor:
            self.run(monitor, model, 5)
            state = copy.deepcopy(monitor.state_dict())
            random = torch.get_rng_state()
            wanted = [self.run(monitor, model, 1) for _ in range(2)]
        torch.set_rng_state(random)
        with sdsd.GammaMonitor(model, every=2) as monitor:
            monitor.load_state_dict(state)
            found = [self.run(monitor, model, 1) for _ in range(2)]
        assert [stats is None for stats in found] == [stats is None for stats in wanted] == [True, False]
        assert found[1].smoothed.noise_scale_raw == pytest.approx(wanted[1].smoothed.noise_scale_raw)

    def test_averages_of_a_loaded_state_are_read_before_the_first_step(self):
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model) as monitor:
            self.run(monitor, model, 3)
            wanted, state = monitor.smoothed, copy.deepcopy(monitor.state_dict())
            later = self.run(monitor, model, 2).smoothed
            monitor.load_state_dict(state)  # back to the checkpoint
            assert monitor.smoothed.to_dict() == wanted.to_dict() != later.to_dict()
            with pytest.raises(RuntimeError, match="none since load_state_dict"):
                _ = monitor.stats
        with sdsd.GammaMonitor(model) as monitor:
            monitor.load_state_dict(state)
            assert monitor.smoothed.to_dict() == wanted.to_dict()
            assert self.run(monitor, model, 1).smoothed.to_dict() == monitor.smoothed.to_dict()

    def test_a_state_without_steps_has_no_averages(self):
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model) as monitor:
            monitor.load_state_dict(monitor.state_dict())
            with pytest.raises(RuntimeError, match="none yet"):
                _ = monitor.smoothed
            self.run(monitor, model, 1)
            state = copy.deepcopy(monitor.state_dict())
            del state["averages"]["samples"]  # as version 0.2.0 saved it
            monitor.load_state_dict(state)
            with pytest.raises(RuntimeError, match="none since"):
                _ = monitor.smoothed

    def test_state_of_another_model(self):
        with sdsd.GammaMonitor(nn.Linear(5, 1)) as one, sdsd.GammaMonitor(nn.Sequential(nn.Linear(5, 1))) as two:
            with pytest.raises(ValueError, match="other parameters than this monitor's"):
                two.load_state_dict(one.state_dict())
            with pytest.raises(ValueError, match="averages, steps, mode, parameters, population is missing"):
                two.load_state_dict({})


def _t(probability, degrees):
    from scipy import stats

    return stats.t.ppf(probability, degrees)


class TestStatistics:
    """A linear model whose gradient noise is known: g = −2(y − wx)x at w = 0 with y = μ + ε, x = 1 direction."""

    def draws(self, mu, steps, ema=0.98):
        """Monitor a bare location model: per-sample gradient −2(y_n − 0), y ~ N(μ, 1) in 12 dimensions."""
        model = nn.Linear(1, 12, bias=False).double()
        nn.init.zeros_(model.weight)
        found = []
        with sdsd.GammaMonitor(model, ema=ema) as monitor:
            for _ in range(steps):
                model.zero_grad()
                y = torch.randn(8, 12, dtype=torch.float64) + mu
                (y - model(torch.ones(8, 1, dtype=torch.float64))).square().sum(1).mean().backward()
                found.append(monitor.step())
        return found

    def test_unbiased_where_the_naive_ratio_has_a_floor(self):
        found = self.draws(0.2, 600)
        signal = sum(s.signal_unbiased for s in found) / len(found)
        noise = sum(s.noise for s in found) / len(found)
        assert noise == pytest.approx(4 * 12, rel=0.03)
        assert signal == pytest.approx(4 * 12 * 0.2**2, abs=0.15)
        naive = sum(s.gamma for s in found) / len(found)
        assert naive == pytest.approx(0.04 + 1 / 8, abs=0.03)

    def test_smoothed_intervals_cover(self):
        truth = 0.3**2
        hits = 0
        for _ in range(60):
            low, high = self.draws(0.3, 40, ema=0.95)[-1].smoothed.interval
            hits += low <= truth <= high
        assert hits >= 50


class TestPopulation:
    """Batches drawn without replacement from few samples, the weights held still: every way to draw them."""

    def setup_method(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.x, self.y = torch.randn(6, 3).double(), torch.randn(6).double()
        rows = per_sample_gradients(self.model, self.x, self.y, mean_of_squares)
        self.rows = torch.cat([each.flatten(1) for each in rows.values()], 1)
        self.truth = self.rows.mean(0).square().sum().item()

    def measure(self, steps, population=6, **options):
        """Statistics of each step, the samples of whose backward passes are listed."""
        with sdsd.GammaMonitor(self.model, population=population, **options) as monitor:
            for parts in steps:
                self.model.zero_grad()
                for part in map(list, parts):
                    (mean_of_squares(self.model(self.x[part]), self.y[part]) / len(parts)).backward()
                yield monitor.step()

    def is_unbiased(self, found):
        mean = sum(stats.signal_unbiased for stats in found) / len(found)
        return abs(mean - self.truth) <= 1e-12 * self.rows.square().sum(1).mean().item()

    def test_epochs(self):
        steps, ends = [], []
        for first in itertools.combinations(range(6), 3):
            rest = [k for k in range(6) if k not in first]
            found = list(self.measure([[first], [rest]], mode="exact", ema=0.7))
            steps += found
            ends.append(found[-1].smoothed)
        assert self.is_unbiased(steps)
        assert self.is_unbiased(ends)
        assert {stats.population for stats in (*steps, *ends, *ends[0].parameters.values())} == {6}

    def test_epochs_with_an_odd_last_batch(self):
        steps, ends = [], []
        for first in itertools.combinations(range(6), 4):
            rest = [k for k in range(6) if k not in first]
            found = list(self.measure([[first], [rest]], mode="exact", ema=0.7))
            steps += found
            ends.append(found[-1].smoothed)
            s, v = zip(*[(stats.signal_unbiased, stats.noise) for stats in found], strict=True)
            assert ends[-1].gamma_unbiased == pytest.approx((0.7 * s[0] + s[1]) / (0.7 * v[0] + v[1]), rel=1e-12)
        for found in (steps[::2], steps[1::2], ends):
            assert self.is_unbiased(found)

    @pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (2, 1, 1)])
    def test_micro_batches(self, sizes):
        found = []
        for order in itertools.permutations(range(6), sum(sizes)):
            cuts = list(itertools.accumulate((0, *sizes)))
            found += self.measure([[order[a:b] for a, b in itertools.pairwise(cuts)]], mode="micro")
        assert self.is_unbiased(found)
        assert self.is_unbiased([stats.smoothed for stats in found])

    @pytest.mark.parametrize(
        ("parts", "options"),
        [
            ([range(6)], {"mode": "exact"}),
            ([range(3), range(3, 6)], {"mode": "micro"}),
            ([range(4), [4, 5]], {"mode": "micro"}),
            ([range(3), range(3, 6)], {"mode": "exact"}),
        ],
    )
    def test_full_batches_have_no_bias_to_take_away(self, parts, options):
        for population in (6, None):
            stats = list(self.measure([parts, parts], population, **options))[-1]
            assert (stats.signal_unbiased == stats.signal) == (population == 6)
            assert (stats.smoothed.signal_unbiased == stats.smoothed.signal) == (population == 6)
            assert stats.signal == pytest.approx(self.truth, rel=1e-12)

    def test_unbiased_with_a_step_that_is_not_finite(self):
        self.x[0] = math.inf
        found = list(self.measure([[[1, 2, 3]], [[0, 4]], [[4, 5]]], mode="exact", ema=0.5))
        with pytest.warns(RuntimeWarning, match="NaN or infinity"):
            assert math.isnan(found[1].signal_unbiased)
        (a, b), (v, w) = ([getattr(found[k], key) for k in (0, 2)] for key in ("signal_unbiased", "noise"))
        assert found[2].smoothed.gamma_unbiased == pytest.approx((a + 2 * b) / (v + 2 * w), rel=1e-12)

    def test_more_samples_than_there_are(self):
        with pytest.raises(ValueError, match=r"at least the 6 samples seen \(6 gradients of 1\), got 5"):
            list(self.measure([[range(6)]], 5, mode="exact"))
        with pytest.raises(ValueError, match=r"at least the 6 samples seen \(2 gradients of 3\), got 5"):
            list(self.measure([[range(3), range(3, 6)]], 5, mode="micro"))

    def test_none_is_as_ever(self):
        steps = [[[0, 1, 2]], [[3, 4, 5]]]
        found, endless = (list(self.measure(steps, each, mode="exact"))[-1] for each in (None, 10**18))
        assert found.signal_unbiased == found.signal - found.noise / 3
        assert endless.signal_unbiased == pytest.approx(found.signal_unbiased, rel=1e-12)
        assert endless.smoothed.interval == pytest.approx(found.smoothed.interval, rel=1e-12)

    def test_averages_of_another_population_are_refused(self):
        states = {}
        for population in (None, 6, 7):
            with sdsd.GammaMonitor(self.model, population=population) as monitor:
                states[population] = monitor.state_dict()
        for mine, other in itertools.product(states, states):
            with sdsd.GammaMonitor(self.model, population=mine) as monitor:
                if mine == other:
                    monitor.load_state_dict(states[other])
                    continue
                message = f"with population={other}, this monitor's would be of population={mine}"
                with pytest.raises(ValueError, match=message):
                    monitor.load_state_dict(states[other])
