"""Whether a running average may be read as of the present weights: how far Γ moves while it averages.

An exponential average with weight β of the past is of samples β / (1 − β) steps old on average, its memory. Where Γ
moves at a steady rate the average lags behind by what Γ moves in one memory, and its interval, which is one of chance
alone, does not know that. Two averages taken far apart lag by the same factor, so that their ratio shows the rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdsd_kernels import checks

from .stats import GammaStats

SHORT = 0.3
"""Lag, in half widths of the interval, up to which nine in ten 95% intervals hold the present value."""
APART = 8
"""Memories that two averages are apart at least, so that chance moves the lag by less than a fifth of a half width."""


@dataclass(frozen=True)
class AveragingLag:
    """How far a running average of Γ is behind the present; all numbers are None where the signal was not told from
    the noise, then and now, for then nothing is known of the rate."""

    lag: float | None
    """What Γ moves in one memory of ema / (1 − ema) steps; below 0 where Γ falls, and the average is above it."""
    lag_error: float | None
    """How far off that may be, at the confidence of the interval."""
    half_width: float | None
    """Half the width of the interval of the average."""

    @property
    def ratio(self) -> float | None:
        """|lag| in half widths of the interval."""
        return None if self.lag is None or not self.half_width else abs(self.lag) / self.half_width

    @property
    def present(self) -> bool | None:
        """Whether the interval may be read as of the present weights: the lag, as far as it may be off, is at most 0.3
        half widths of it.

        False where it is more for sure: then the interval is of the average over the last steps. Shorten the memory, or
        hold the weights still and average. None where the data cannot tell.
        """
        if self.lag is None or self.lag_error is None or not self.half_width:
            return None
        if abs(self.lag) + self.lag_error <= SHORT * self.half_width:
            return True
        return False if abs(self.lag) - self.lag_error > SHORT * self.half_width else None


def averaging_lag(earlier: GammaStats, now: GammaStats, *, steps: int, ema: float) -> AveragingLag:
    """Compare what Γ moves in one memory of a running average with the interval of that average.

        lag = Γ_now (1 − (Γ_earlier / Γ_now) ** (memory / steps))        memory = ema / (1 − ema)

    It takes Γ to move by a steady factor a step, and knows no more than both averages: a Γ that has begun to move in
    the last few memories is seen late. `sdsd study averaging` measures how often intervals hold the present Γ.

    Args:
        earlier: `monitor.smoothed` of some steps ago, or of one of its parameters.
        now: the same now.
        steps: measured steps between the two, at least 8 memories: 392 at ema=0.98, 72 at 0.9.
        ema: of the monitor, above 0 and below 1.

    Returns:
        `AveragingLag`: its `present` says whether the interval of `now` is one of the present weights.

    Raises:
        TypeError: no `GammaStats`; steps no whole number.
        ValueError: ema out of range; too few steps; statistics of gradients over different numbers of samples, or
            without an interval.

    Example:
        >>> import torch
        >>> from sdsd import gamma_stats
        >>> _ = torch.manual_seed(0)
        >>> stats = gamma_stats(torch.randn(64, 100) + 0.5, confidence=0.95)
        >>> averaging_lag(stats, stats, steps=72, ema=0.9).present
        True
    """
    ema = checks.check_number(ema, "ema", "a number between 0 and 1", above=0, below=1)
    memory = ema / (1 - ema)
    least = math.ceil(APART * memory - 1e-9)
    steps = checks.check_integer(steps, "steps", least=1)
    if steps < least:
        raise ValueError(
            f"steps: expected at least {least} between the two averages, {APART} memories of ema={ema:g}, got {steps}. "
            "Keep an older average, or take a smaller ema."
        )
    (before, wide), (after, half) = _with_half_width(earlier, "earlier"), _with_half_width(now, "now")
    if earlier.samples_per_gradient != now.samples_per_gradient:
        raise ValueError(
            f"earlier, now: expected gradients over the same number of samples, got {earlier.samples_per_gradient:g} "
            f"and {now.samples_per_gradient:g}."
        )
    if before <= wide or after <= half:
        return AveragingLag(None, None, None)
    share = memory / steps
    lag = after * -math.expm1(share * math.log(before / after))
    return AveragingLag(lag, after * share * math.hypot(wide / before, half / after), half)


def _with_half_width(stats: GammaStats, name: str) -> tuple[float, float]:
    if not isinstance(stats, GammaStats):
        raise TypeError(f"{name}: expected a GammaStats such as monitor.smoothed, got {type(stats).__name__}.")
    if stats.interval is None:
        raise ValueError(f"{name}: expected statistics with an interval, which an average has from two steps on.")
    low, high = stats.interval
    return (low + high) / 2, (high - low) / 2
