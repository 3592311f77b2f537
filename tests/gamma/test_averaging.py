"""When a running average of Γ may be read as of now."""

from __future__ import annotations

import math

import pytest
import torch

from sdsd import GammaMonitor, gamma_stats
from sdsd.gamma import AveragingLag, GammaStats, averaging_lag
from sdsd.gamma.monitor.averages import RunningAverages, Step


def averaged(gammas: list[float], ema: float, spread: float) -> list[GammaStats]:
    """Running averages of these signals, off by `spread` up and down in turn, and of a noise of 1; one a step."""
    averages, found = RunningAverages(1, ema, torch.device("cpu")), []
    for step, gamma in enumerate(gammas):
        signal = gamma + spread * (-1) ** step + 1 / 16
        averages.update(Step(torch.tensor([[signal], [16 * signal + 15]], dtype=torch.float64), 16, 1, 16))
        found.append(
            GammaStats(
                averages.source(("all",), 16),
                n=16,
                samples_per_gradient=1,
                batch_size=16,
                confidence=0.95,
                population=None,
            )
        )
    return found


@pytest.mark.parametrize("rate", [-0.01, 0.01])
def test_the_lag_is_that_of_the_average(rate):
    """Γ moves by a factor a step; the average is behind by what it moves in one memory, to first order."""
    gammas = [math.exp(rate * step) for step in range(300)]
    found = averaged(gammas, 0.9, 0.0)
    lag = averaging_lag(found[-101], found[-1], steps=100, ema=0.9).lag
    now = found[-1].gamma_unbiased
    assert lag == pytest.approx(now * -math.expm1(-9 * rate), rel=1e-6)
    assert lag == pytest.approx(gammas[-1] - now, rel=0.1)


def test_present_and_past():
    still = averaged([1.0] * 200, 0.9, 0.2)
    found = averaging_lag(still[100], still[-1], steps=99, ema=0.9)
    assert abs(found.lag) < 0.01
    assert found.present is True
    low, high = still[-1].interval
    assert found.half_width == pytest.approx((high - low) / 2)
    moving = averaged([1.02**step for step in range(200)], 0.9, 0.02)
    found = averaging_lag(moving[100], moving[-1], steps=99, ema=0.9)
    assert found.lag > 0.1 * moving[-1].gamma_unbiased
    assert found.present is False
    assert found.ratio == pytest.approx(found.lag / found.half_width)
    assert averaging_lag(moving[-1], moving[100], steps=99, ema=0.9).lag < 0


def test_the_error_of_the_lag_is_of_both_averages():
    """Of log(now / earlier) · memory / steps, each known to half an interval; here the earlier one far worse."""
    earlier, now = averaged([1.0] * 100, 0.9, 0.3)[-1], averaged([2.0] * 100, 0.9, 0.02)[-1]
    found = averaging_lag(earlier, now, steps=100, ema=0.9)
    halves = [(stats.interval[1] - stats.interval[0]) / 2 / stats.gamma_unbiased for stats in (earlier, now)]
    assert halves[0] > 5 * halves[1]
    assert found.lag_error == pytest.approx(now.gamma_unbiased * 9 / 100 * math.hypot(*halves), rel=1e-6)


def test_what_cannot_be_told():
    hidden = averaged([0.01] * 200, 0.9, 1.0)
    assert averaging_lag(hidden[100], hidden[-1], steps=99, ema=0.9) == AveragingLag(None, None, None)
    assert AveragingLag(None, None, None).present is None
    assert AveragingLag(None, None, None).ratio is None
    # The lag lies within three tenths of the half width, or not, as far as it may be off.
    assert AveragingLag(0.1, 0.19, 1.0).present is True
    assert AveragingLag(-0.1, 0.21, 1.0).present is None
    assert AveragingLag(-0.5, 0.19, 1.0).present is False
    assert AveragingLag(-0.5, 0.21, 1.0).present is None


def test_a_monitor():
    torch.manual_seed(0)
    model = torch.nn.Linear(50, 1)
    with GammaMonitor(model, ema=0.5) as monitor:
        kept = []
        for _ in range(40):
            model(torch.randn(32, 50) + 1).square().mean().backward()
            kept.append(monitor.step().smoothed)
            model.zero_grad()
    assert averaging_lag(kept[-9], kept[-1], steps=8, ema=0.5).half_width > 0
    parameter = averaging_lag(kept[-9].parameters["weight"], kept[-1].parameters["weight"], steps=8, ema=0.5)
    assert parameter.half_width > 0


def test_bad_input():
    stats = averaged([1.0] * 200, 0.9, 0.2)[-1]
    with pytest.raises(ValueError, match="at least 72 between the two averages, 8 memories of ema=0.9, got 71"):
        averaging_lag(stats, stats, steps=71, ema=0.9)
    averaging_lag(stats, stats, steps=72, ema=0.9)
    for ema in (0, 1, 1.5, -1):
        with pytest.raises(ValueError, match="ema: expected a number between 0 and 1"):
            averaging_lag(stats, stats, steps=1000, ema=ema)
    with pytest.raises(TypeError, match="earlier: expected a GammaStats such as monitor.smoothed, got float"):
        averaging_lag(0.5, stats, steps=100, ema=0.9)
    bare = gamma_stats(torch.randn(8, 4), confidence=None)
    with pytest.raises(ValueError, match="now: expected statistics with an interval"):
        averaging_lag(stats, bare, steps=100, ema=0.9)
    pairs = gamma_stats(torch.randn(8, 4) + 1, samples_per_gradient=2, confidence=0.95)
    with pytest.raises(ValueError, match="same number of samples, got 1 and 2"):
        averaging_lag(stats, pairs, steps=100, ema=0.9)
