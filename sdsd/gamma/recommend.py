"""`recommend_batch`: the batch worth having, how far yours is from it, and None where the data cannot tell.

McCandlish et al. 2018 (arXiv:1812.06162, sections 2.2 and 2.3). With G the mean gradient, Σ the covariance of single
samples' gradients, H the Hessian and the learning rate tuned for every batch B, one step lowers the loss by

    ΔL(B) = ΔL_max / (1 + B_noise / B)        B_noise = Tr(HΣ) / GᵀHG

so that S steps and E = B S samples reach a loss that takes at least S_min steps or E_min samples:

    S / S_min = 1 + B_noise / B        E / E_min = 1 + B / B_noise        (S / S_min − 1)(E / E_min − 1) = 1

At B = B_noise both are 2: twice the fewest steps and twice the fewest samples. That is the batch recommended here; the
paper calls it critical, B_crit = E_min / S_min.

What is measured is B_simple = Tr Σ / ‖G‖². It is B_noise where H is a multiple of the identity, and only there:
Tr(HΣ) / GᵀHG weights noise and signal by the curvature of their directions. The paper found the two, and the bend of
the measured trade-off, alike within a factor of a few, and B_simple growing as the loss falls. It is a scale of the
present weights, not of a whole run, and says nothing on generalisation or on how a learning rate carries over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdsd_kernels import checks

from .stats import MIN_EFFECTIVE_DIMENSION, GammaStats

MIN_DEGREES = 15
"""Fewest degrees of freedom of an interval that a recommendation is made from.

Earlier numbers are the lucky ones. Simulated with Gaussian noise in 30 directions and a noise scale of one and of eight
batches: after two steps, where a 95% interval happens not to reach Γ = 0, it holds the truth in 68% and 34% of the
cases; after 20 steps in 94% and 93%.
"""


@dataclass(frozen=True)
class BatchRecommendation:
    """What `recommend_batch` found. Every number is a float in samples, tokens or times; None: the data cannot tell."""

    batch_size: int
    """The batch asked about, in samples."""
    samples: float | None
    """The batch worth having, B_simple, at least 1; round it as your devices like."""
    samples_interval: tuple[float, float] | None
    """Where it lies with `confidence`; the upper bound is infinite where the data give none."""
    verdict: str | None
    """"too large", "can grow", or "about right" where the interval holds `batch_size`.

    It can be told where `samples` cannot: from a lower bound alone that is beyond the batch, for example.
    """
    reason: str | None
    """Why `samples` is None."""
    confidence: float
    """Level of the intervals."""
    tokens_per_sample: float | None = None
    """As given."""

    @property
    def ratio(self) -> float | None:
        """batch_size / samples: 4.4 where the batch is 4.4 times too large, 0.5 where it can double."""
        return None if self.samples is None else self.batch_size / self.samples

    @property
    def ratio_interval(self) -> tuple[float, float] | None:
        """Where `ratio` lies; from 0 where the data give no lower bound."""
        if self.samples_interval is None:
            return None
        low, high = self.samples_interval
        return self.batch_size / high, self.batch_size / low

    @property
    def tokens(self) -> float | None:
        """samples × tokens_per_sample; None also where that was not given."""
        if self.samples is None or self.tokens_per_sample is None:
            return None
        return self.samples * self.tokens_per_sample

    @property
    def tokens_interval(self) -> tuple[float, float] | None:
        """Where `tokens` lies."""
        if self.samples_interval is None or self.tokens_per_sample is None:
            return None
        low, high = self.samples_interval
        return low * self.tokens_per_sample, high * self.tokens_per_sample

    def steps_factor(self, batch_size: float | None = None) -> float | None:
        """How many times the fewest steps such a batch takes to a loss: 1 + samples / batch_size (default: yours).

        Args:
            batch_size: in samples; None: that of this recommendation.

        Returns:
            A float, at least 1; None where `samples` is None.
        """
        return None if self.samples is None else 1 + self.samples / self._checked(batch_size)

    def samples_factor(self, batch_size: float | None = None) -> float | None:
        """How many times the fewest samples such a batch takes to a loss: 1 + batch_size / samples.

        Args:
            batch_size: in samples; None: that of this recommendation.

        Returns:
            A float, at least 1; None where `samples` is None.
        """
        return None if self.samples is None else 1 + self._checked(batch_size) / self.samples

    def _checked(self, batch_size: float | None) -> float:
        return self.batch_size if batch_size is None else _positive("batch_size", batch_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and tuples, with the sentence, ready for a logger."""
        return {name: getattr(self, name) for name in _FIELDS} | {
            "steps_factor": self.steps_factor(),
            "samples_factor": self.samples_factor(),
            "sentence": str(self),
        }

    def __str__(self) -> str:
        yours = f"Your batch of {self.batch_size:,} sample{'s'[: self.batch_size > 1]}"
        if self.samples is None:
            if self.verdict is None or self.ratio_interval is None:
                return f"The data cannot tell which batch is worth having: {self.reason}."
            low, high = self.ratio_interval
            how = (
                f"is at least {low:.2g} times too large"
                if self.verdict == "too large"
                else (f"can grow at least {1 / high:.2g} times")
            )
            return f"{yours} {how}. How far, the data cannot tell: {self.reason}."
        assert self.samples_interval is not None
        assert self.ratio is not None
        low, high = self.samples_interval
        worth = f"{_rounded(self.samples)} samples"
        if self.tokens is not None:
            worth += f", or {_rounded(self.tokens)} tokens,"
        worth += f" are worth having ({100 * self.confidence:g}% interval {_rounded(low)} to {_rounded(high)} samples)"
        how = {
            "too large": f"is {self.ratio:.2g} times too large",
            "can grow": f"can grow {1 / self.ratio:.2g} times",
            "about right": "is about right",
        }[self.verdict or "about right"]
        return f"{yours} {how}: about {worth}."


_FIELDS = (
    "batch_size",
    "samples",
    "samples_interval",
    "tokens_per_sample",
    "tokens",
    "tokens_interval",
    "ratio",
    "ratio_interval",
    "verdict",
    "reason",
    "confidence",
)


def recommend_batch(
    stats: GammaStats,
    *,
    batch_size: int | None = None,
    tokens_per_sample: float | None = None,
    widest: float = 10.0,
) -> BatchRecommendation:
    """The batch worth having, from the noise scale and its interval: B_simple of McCandlish et al. 2018.

    ::

        stats = monitor.step()
        print(sdsd.recommend_batch(stats.smoothed, tokens_per_sample=1024))
        # Your batch of 512 samples is 4.4 times too large: about 116 samples, or 118,784 tokens, are worth having …

    Formulas, source, and what B_simple is not: sdsd/gamma/recommend.py. It says within a factor of a few where a larger
    batch stops to save steps. Of a parameter's statistics (`stats.smoothed.parameters[name]`) it is that parameter's.

    Args:
        stats: running averages (`stats.smoothed` of a monitor's step), or `gamma_stats(…, confidence=0.95)`.
        batch_size: the batch to judge, in samples, of all ranks and accumulation steps together; None takes that of
            the last step.
        tokens_per_sample: mean tokens of a sample that enter the loss, padding left out, to have the answer in tokens
            too: a number, or a tensor that holds one. It holds for samples of about that length: tokens of one text are
            not independent samples.
        widest: `samples` is None where the interval's bounds lie further apart than this factor.

    Returns:
        `BatchRecommendation`. `samples`, and what follows from it, is None, and `reason` says why, where the interval
        is open above or too wide, no signal is seen, fewer than 16 independent steps (or gradients) bear it, fewer
        than 10 directions carry the noise, there is no noise, or a value is not finite.

    Raises:
        TypeError: no GammaStats, for example the None of a step that was not measured; tokens_per_sample no number.
        ValueError: statistics of a single step, or without an interval; an argument out of range.
    """
    if not isinstance(stats, GammaStats):
        raise TypeError(
            f"stats: expected GammaStats, got {type(stats).__name__}. Pass stats.smoothed of a step that was measured "
            "(monitor.step() gives None on the others)."
        )
    if stats.smoothed is not None:
        raise ValueError("stats: expected running averages, got statistics of a single step. Pass stats.smoothed.")
    if stats.confidence is None:
        raise ValueError(
            "stats: expected statistics with an interval, got none. Pass stats.smoothed of a monitor's step, or "
            "gamma_stats(…, confidence=0.95)."
        )
    batch_size = checks.check_count(batch_size, "batch_size", of="samples", optional=True)
    if tokens_per_sample is not None:
        tokens_per_sample = _positive("tokens_per_sample", tokens_per_sample)
    if not widest > 1:
        raise ValueError(f"widest: expected a factor above 1, got {widest!r}.")
    batch = batch_size or stats.batch_size
    reason, bounds = _unusable(stats), None
    samples = verdict = None
    if reason is None:
        interval = stats.noise_scale_interval
        assert interval is not None
        low, high = bounds = max(1.0, interval[0]), max(1.0, interval[1])
        if math.isinf(high):
            reason = f"noise hides the signal, so only a lower bound is known, {_rounded(low)} samples; measure on"
        elif high > widest * low:
            reason = f"the interval, {_rounded(low)} to {_rounded(high)} samples, is wider than a factor of {widest:g}"
        else:
            samples = max(1.0, stats.noise_scale)
        verdict = "too large" if high < batch else "can grow" if low > batch else "about right" if samples else None
    return BatchRecommendation(batch, samples, bounds, verdict, reason, stats.confidence, tokens_per_sample)


def _unusable(stats: GammaStats) -> str | None:
    """Why not even a bound can be drawn from these statistics."""
    if not stats.finite:
        return "there are no finite statistics (no measured step, or gradients with NaN or infinity)"
    if stats.noise == 0:
        return "there is no noise: all samples gave the same gradient"
    degrees, dimension = stats.degrees, stats.effective_dimension
    if not degrees >= MIN_DEGREES:
        count = "one step" if math.isnan(degrees) else f"{int(degrees + 1)} independent steps or gradients"
        return (
            f"the interval rests on {count}, and at least {MIN_DEGREES + 1} are needed (running averages remember "
            "(1 + ema) / (1 − ema) steps at most)"
        )
    if dimension is not None and not dimension >= MIN_EFFECTIVE_DIMENSION:
        return f"{dimension:.2g} directions carry the noise, too few for the interval to cover"
    if stats.interval is None:
        return "no interval is defined"
    if stats.noise_scale_interval is None:
        return "no signal is seen: the whole interval of Γ lies below 0"
    return None


def _positive(name: str, value: Any) -> float:
    # A running mean of tokens is a tensor where they were counted by torch.
    number = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
    return checks.check_number(number, name, "a number above 0", above=0)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
