"""recommend_batch against numbers worked out by hand and a float64 loop over samples, and where it must not answer."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

import sdsd
from sdsd.gamma import recommend
from sdsd.gamma.monitor.averages import RunningAverages, Step
from sdsd.gamma.recommend import MIN_DEGREES
from sdsd.gamma.sources import HostSource, Row, Table


def made(gamma, half, *, batch=512, noise=3.0, degrees=400.0, dimension=None, confidence=0.95):
    """Statistics of `batch` samples with Γ_U = gamma ± half."""
    error = None if half is None else half / float(scipy_stats.t.ppf((1 + confidence) / 2, degrees))
    row = Row(noise * (gamma + 1 / batch), noise, error, dimension)
    return sdsd.GammaStats(
        HostSource(("w",), Table(row, (row,), degrees)),
        n=batch,
        samples_per_gradient=1,
        batch_size=batch,
        confidence=confidence,
    )


def test_a_batch_that_is_too_large_by_hand():
    """Γ_U = 1/100 ± 1/500: B_simple 100, from 1/(6/500) = 83.3 to 1/(4/500) = 125."""
    found = sdsd.recommend_batch(made(0.01, 0.002, batch=440), tokens_per_sample=50)
    assert found.samples == pytest.approx(100, rel=1e-9)
    assert found.samples_interval == pytest.approx((500 / 6, 125), rel=1e-6)
    assert found.ratio == pytest.approx(4.4, rel=1e-9)
    assert found.ratio_interval == pytest.approx((440 / 125, 440 * 6 / 500), rel=1e-6)
    assert found.tokens == pytest.approx(5000, rel=1e-9)
    assert found.tokens_interval == pytest.approx((50 * 500 / 6, 6250), rel=1e-6)
    assert (found.verdict, found.reason, found.batch_size, found.confidence) == ("too large", None, 440, 0.95)
    # 1 + B_noise/B of the fewest steps, 1 + B/B_noise of the fewest samples.
    assert (found.steps_factor(), found.samples_factor()) == pytest.approx((1 + 1 / 4.4, 5.4), rel=1e-9)
    assert (found.steps_factor(100), found.samples_factor(100)) == pytest.approx((2, 2), rel=1e-9)
    for batch in (1, 30, 1000):  # (S/S_min − 1)(E/E_min − 1) = 1
        assert (found.steps_factor(batch) - 1) * (found.samples_factor(batch) - 1) == pytest.approx(1, rel=1e-12)
    assert str(found) == (
        "Your batch of 440 samples is 4.4 times too large: about 100 samples, or 5,000 tokens, are worth having (95% "
        "interval 83 to 125 samples)."
    )


@pytest.mark.parametrize(
    ("batch", "verdict", "sentence"),
    [
        (32, "can grow", "Your batch of 32 samples can grow 3.1 times: about 100 samples are worth having"),
        (100, "about right", "Your batch of 100 samples is about right: about 100 samples are worth having"),
        (84, "about right", "Your batch of 84 samples is about right"),
        (83, "can grow", "Your batch of 83 samples can grow 1.2 times"),
        (124, "about right", "is about right"),
        (126, "too large", "Your batch of 126 samples is 1.3 times too large"),
    ],
)
def test_the_verdict_compares_the_batch_with_the_interval(batch, verdict, sentence):
    found = sdsd.recommend_batch(made(0.01, 0.002), batch_size=batch)
    assert found.verdict == verdict
    assert sentence in str(found)
    assert found.tokens is found.tokens_interval is None


NUMBERS = ("samples", "tokens", "ratio")


def nothing_told(found, reason):
    assert [getattr(found, name) for name in NUMBERS] == [None] * len(NUMBERS)
    assert found.steps_factor() is found.samples_factor(7) is None
    assert reason in found.reason
    assert found.reason in str(found)


@pytest.mark.parametrize(
    ("stats", "reason"),
    [
        (made(-0.01, 0.002), "no signal is seen"),
        (made(0.01, None), "no interval is defined"),
        (made(0.01, 0.002, degrees=MIN_DEGREES - 0.01), "rests on 15 independent steps or gradients"),
        (made(0.01, 0.002, degrees=1.0), "rests on 2 independent steps"),
        (made(0.01, 0.002, degrees=math.nan), "rests on one step"),
        (made(0.01, 0.002, dimension=9.9), "9.9 directions"),
        (made(0.01, 0.002, dimension=math.nan), "nan directions"),
        (made(0.01, 0.002, noise=0.0), "there is no noise"),
        (made(0.01, 0.002, noise=math.nan), "finite"),
        (made(math.inf, 0.002), "finite"),
    ],
)
def test_no_number_where_the_data_cannot_tell(stats, reason):
    found = sdsd.recommend_batch(stats, tokens_per_sample=3)
    nothing_told(found, reason)
    assert found.samples_interval is found.ratio_interval is found.tokens_interval is found.verdict is None
    assert str(found).startswith("The data cannot tell which batch is worth having")


@pytest.mark.parametrize(("confidence", "shown"), [(0.999, "99.9%"), (0.9, "90%")])
def test_the_level_is_said_as_it_is(confidence, shown):
    stats = made(0.01, 0.002, confidence=confidence)
    assert f"({shown} interval" in str(sdsd.recommend_batch(stats))
    assert f"intervals at {shown};" in str(stats)


@pytest.mark.parametrize("tokens", [50.0, np.float64(50), np.float32(50), np.int64(50), torch.tensor(50.0)])
def test_tokens_as_they_are_counted(tokens):
    found = sdsd.recommend_batch(made(0.01, 0.002), tokens_per_sample=tokens)
    assert type(found.tokens) is float
    assert found.tokens == pytest.approx(50 * found.samples)
    json.dumps(found.to_dict())


@pytest.mark.parametrize("tokens", ["50", True, torch.ones(2), [50]])
def test_what_is_no_number_of_tokens(tokens):
    with pytest.raises(TypeError, match="tokens_per_sample: expected a number, got"):
        sdsd.recommend_batch(made(0.01, 0.002), tokens_per_sample=tokens)


def test_the_limits_are_the_last_that_answer():
    assert sdsd.recommend_batch(made(0.01, 0.002, degrees=MIN_DEGREES)).samples is not None
    assert sdsd.recommend_batch(made(0.01, 0.002, dimension=10.0)).samples is not None


def test_an_interval_that_is_open_above_gives_a_lower_bound_alone():
    """Γ_U = 1/100 ± 1/80: no upper bound, and at least 1/(1/100 + 1/80) = 44.4 samples."""
    stats = made(1 / 100, 1 / 80)
    found = sdsd.recommend_batch(stats, batch_size=11, tokens_per_sample=2)
    nothing_told(found, "only a lower bound is known, 44 samples")
    assert found.samples_interval == pytest.approx((400 / 9, math.inf))
    assert found.tokens_interval == pytest.approx((800 / 9, math.inf))
    assert found.ratio_interval == pytest.approx((0, 11 * 9 / 400))
    assert found.verdict == "can grow"
    assert str(found).startswith(
        "Your batch of 11 samples can grow at least 4 times. How far, the data cannot tell: noise"
    )
    inside = sdsd.recommend_batch(stats, batch_size=500)
    nothing_told(inside, "only a lower bound is known")
    assert inside.verdict is None  # 500 lies in the interval, as everything above 44 does


def test_a_wide_interval_gives_its_bounds_and_no_number():
    """Γ_U = .01 ± .009: from 52.6 to 1000, a factor of 19."""
    stats = made(0.01, 0.009, batch=4000)
    found = sdsd.recommend_batch(stats)
    nothing_told(found, "53 to 1,000 samples, is wider than a factor of 10")
    assert found.verdict == "too large"
    assert str(found).startswith("Your batch of 4,000 samples is at least 4 times too large.")
    assert sdsd.recommend_batch(stats, batch_size=200).verdict is None
    assert sdsd.recommend_batch(stats, widest=19.5).samples == pytest.approx(100)
    assert sdsd.recommend_batch(stats, widest=18.5).samples is None


def test_less_than_one_sample_is_one():
    found = sdsd.recommend_batch(made(4.0, 1.0, batch=8))
    assert (found.samples, found.samples_interval, found.ratio) == (1.0, (1.0, 1.0), 8.0)
    assert found.verdict == "too large"


def test_units_of_gradients_over_several_samples():
    """Γ_U of gradients over b = 5 samples: B_simple = 5 / Γ_U."""
    gradients = torch.randn(60, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.2
    stats = sdsd.gamma_stats(gradients, samples_per_gradient=5, confidence=0.9)
    found = sdsd.recommend_batch(stats)
    mean, noise = gradients.mean(0), gradients.var(0).sum()
    assert found.samples == pytest.approx(float(5 * noise / (mean @ mean - noise / 60)), rel=1e-10)
    assert (found.batch_size, found.confidence) == (300, 0.9)
    assert "90% interval" in str(found)


def test_a_training_run_against_a_loop_over_samples():
    """The smoothed averages and their interval, from single samples' gradients in float64."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    decay, steps, n = 0.95, 40, 16
    target = torch.randn(6, 3, dtype=torch.float64)
    signal, noise = np.zeros(steps), np.zeros(steps)
    with sdsd.GammaMonitor(model, mode="exact", ema=decay) as monitor:
        for step in range(steps):
            x = torch.randn(n, 6, dtype=torch.float64)
            y = x @ target + torch.randn(n, 3, dtype=torch.float64)
            rows = []
            for one, wanted in zip(x, y, strict=True):
                with monitor.paused():
                    loss = (model(one[None]) - wanted).square().sum()
                    rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
            rows = torch.stack(rows)
            noise[step] = rows.var(0).sum()
            signal[step] = rows.mean(0).square().sum() - noise[step] / n
            optimizer.zero_grad()
            (model(x) - y).square().sum(1).mean().backward()
            stats = monitor.step()
            if step in (0, 10):
                early = sdsd.recommend_batch(stats.smoothed)
                nothing_told(early, "rests on one step" if step == 0 else "rests on 10 independent steps")
            optimizer.step()
    weights = decay ** np.arange(steps)[::-1]
    weights /= weights.sum()
    s, v, w = weights @ signal, weights @ noise, (weights**2).sum()
    variance = w / (1 - w) * (weights @ (signal - s / v * noise) ** 2) / v**2
    half = scipy_stats.t.ppf(0.975, 1 / w - 1) * math.sqrt(variance)
    found = sdsd.recommend_batch(stats.smoothed)
    assert found.samples == pytest.approx(v / s, rel=1e-8)
    assert found.samples_interval == pytest.approx((1 / (s / v + half), 1 / (s / v - half)), rel=1e-8)
    assert found.batch_size == n
    of_one = sdsd.recommend_batch(stats.smoothed.parameters["bias"])
    assert of_one.samples != found.samples


def simulated(batches, steps, trials=4000, n=32, dimensions=30):
    """The recommendations of many trainings, each a row of the averages, at a noise scale of so many batches."""
    draw = np.random.default_rng(0)
    averages = RunningAverages(trials, 0.98, torch.device("cpu"))
    for _ in range(steps):
        # Tr Σ = 1 spread over equal directions: ‖ḡ‖² and Σ‖g − ḡ‖² are χ², the first not central.
        signal = draw.noncentral_chisquare(dimensions, dimensions / batches, trials) / (dimensions * n)
        spread = draw.chisquare(dimensions * (n - 1), trials) / dimensions
        averages.update(Step(torch.from_numpy(np.stack([signal, spread + n * signal])), n, 1, n))
    names = tuple(map(str, range(trials)))
    stats = sdsd.GammaStats(
        averages.source(names, n),
        n=n,
        samples_per_gradient=1,
        batch_size=n,
        confidence=0.95,
    )
    return [sdsd.recommend_batch(each) for each in stats.parameters.values()]


def covered(found, truth):
    """The share of given numbers whose interval holds the truth."""
    given = [each.samples_interval for each in found if each.samples is not None]
    return float(np.mean([low <= truth <= high for low, high in given]))


def test_numbers_are_given_once_their_intervals_hold(monkeypatch):
    """The few trainings that could tell after two steps would be the lucky ones, whose intervals do not hold."""
    for batches in (1, 8):
        share = covered(simulated(batches, 20), 32 * batches)
        assert 0.9 < share < 0.97
        assert all(each.samples is None for each in simulated(batches, 2, trials=50))
    monkeypatch.setattr(recommend, "MIN_DEGREES", 0)
    for batches in (1, 8):
        share = covered(simulated(batches, 2), 32 * batches)
        assert share < 0.75


def test_result_is_frozen_and_goes_to_a_logger():
    found = sdsd.recommend_batch(made(0.01, 0.002), tokens_per_sample=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.samples = 3
    values = json.loads(json.dumps(found.to_dict()))
    assert values["samples"] == pytest.approx(100)
    assert values["tokens"] == pytest.approx(400)
    assert values["ratio"] == pytest.approx(5.12)
    assert values["samples_factor"] == pytest.approx(6.12)
    assert values["sentence"] == str(found)
    assert values["verdict"] == "too large"
    empty = sdsd.recommend_batch(made(-0.01, 0.002)).to_dict()
    assert empty["samples"] is empty["ratio"] is empty["steps_factor"] is None
    assert empty.keys() == values.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number"),
        ({"batch_size": True}, "batch_size: expected a whole number"),
        ({"tokens_per_sample": 0}, "tokens_per_sample: expected a number above 0"),
        ({"tokens_per_sample": math.nan}, "tokens_per_sample"),
        ({"tokens_per_sample": math.inf}, "tokens_per_sample"),
        ({"widest": 1.0}, "widest: expected a factor above 1"),
        ({"widest": math.nan}, "widest"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sdsd.recommend_batch(made(0.01, 0.002), **options)


def test_other_statistics_are_refused():
    with pytest.raises(TypeError, match="got NoneType.*stats.smoothed"):
        sdsd.recommend_batch(None)
    with pytest.raises(ValueError, match="with an interval.*confidence=0.95"):
        sdsd.recommend_batch(sdsd.gamma_stats(torch.randn(8, 3)))
    model = nn.Linear(3, 2)
    with sdsd.GammaMonitor(model) as monitor:
        model(torch.randn(4, 3)).square().mean().backward()
        stats = monitor.step()
    with pytest.raises(ValueError, match="single step. Pass stats.smoothed"):
        sdsd.recommend_batch(stats)
    with pytest.raises(ValueError, match="batch_size: expected a number above 0"):
        sdsd.recommend_batch(made(0.01, 0.002)).steps_factor(0)
