"""A number with its 95% interval, over seeds or over independent trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..._student_t import incomplete_beta, student_t_quantile
from ...report.figures import plain_number


@dataclass(frozen=True)
class Measured:
    """A number of ours, with its 95% interval where there is one; `unit` follows it in text.

    `p` is the chance of a number at least this far from no effect, were there none; None where that was not asked.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    p: float | None = None

    def __str__(self) -> str:
        numbers = [self.value] if self.low is None or self.high is None else [self.value, self.low, self.high]
        texts = list(map(plain_number, numbers))
        if len(set(texts)) < len(set(numbers)):  # an interval narrower than plain numbers show
            texts = [f"{number:.4g}".replace("-", "−") for number in numbers]
        interval = f" [{texts[1]}, {texts[2]}]" if len(texts) > 1 else ""
        return f"{texts[0]}{interval} {self.unit}".rstrip()


def mean_interval(
    values: Sequence[float],
    unit: str = "",
    level: float = 0.95,
    against: float | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Measured:
    """Mean of independent values with Student's interval; without one for a single value.

    `against`: the mean where there is no effect, which `p` of the two-sided t test is about. `within`: between what the
    values lie of necessity, as correlations do between −1 and 1; the interval ends there.
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Measured(mean, unit=unit)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    half = student_t_quantile((1 + level) / 2, count - 1) * spread
    p = None if against is None else _two_sided(mean - against, spread, count - 1)
    return Measured(mean, max(within[0], mean - half), min(within[1], mean + half), unit, p)


def _two_sided(distance: float, error: float, degrees: float) -> float:
    """P(|T| ≥ |distance| / error) of Student's t."""
    if error == 0:
        return float(distance == 0)
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + (distance / error) ** 2))


def geometric_interval(
    values: Sequence[float], unit: str = "", level: float = 0.95, against: float | None = None
) -> Measured:
    """Geometric mean of independent positive values, with Student's interval of their logarithms.

    `against`: the ratio where there is no effect, as in `mean_interval`.
    """
    logs = mean_interval(
        [math.log(value) for value in values], level=level, against=None if against is None else math.log(against)
    )
    low, high = (None if bound is None else math.exp(bound) for bound in (logs.low, logs.high))
    return Measured(math.exp(logs.value), low, high, unit, logs.p)


def fraction_interval(successes: int, count: int, unit: str = "", level: float = 0.95) -> Measured:
    """A share of independent trials with Wilson's score interval (Wilson 1927)."""
    z = student_t_quantile((1 + level) / 2, 1e7)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = (0.0 if successes == 0 else centre - half), (1.0 if successes == count else centre + half)
    return Measured(share, low, high, unit)
