"""Quantiles of Student's t distribution, so that an error bar needs no SciPy."""

from __future__ import annotations

import functools
import math


def _incomplete_beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (Lentz's method; Press et al., Numerical Recipes §6.4)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + numerator / c
            c = c if abs(c) > tiny else tiny
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return value


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _incomplete_beta_fraction(a, b, x) / a
    return 1 - front * _incomplete_beta_fraction(b, a, 1 - x) / b


@functools.lru_cache(maxsize=1024)
def student_t_quantile(probability: float, degrees: float) -> float:
    """The t with P(T ≤ t) = `probability` for `degrees` > 0 degrees of freedom (any real number)."""
    if not 0 < probability < 1 or not degrees > 0:
        raise ValueError(f"expected 0 < probability < 1 and degrees > 0, got {probability!r} and {degrees!r}.")
    if probability < 0.5:
        return -student_t_quantile(1 - probability, degrees)
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while incomplete_beta(degrees / 2, 0.5, degrees / (degrees + high * high)) > tail:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if incomplete_beta(degrees / 2, 0.5, degrees / (degrees + middle * middle)) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2
