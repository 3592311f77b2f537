"""Numbers as people write them, on axes and in text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def plain_number(value: float) -> str:
    """A number as people write it on an axis or in a table: 0.06, 4.1, 36, 4,600, 2.1 million.

    Args:
        value: any number.

    Returns:
        Text without an exponent, where people write none.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e6:
        text = f"{size / 1e6:.1f} million"
    elif size >= 1000:
        text = f"{float(f'{size:.2g}'):,.0f}"
    elif size >= 10 or size == 0:
        text = f"{size:.0f}"
    elif size >= 1e-5:
        text = f"{float(f'{size:.2g}'):.6f}".rstrip("0").rstrip(".")
    else:
        text = f"{size:.1e}".replace("e-0", "e-").replace("e-", "×10^−")
    return f"−{text}" if value < 0 else text


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_axis(axis: Any, low: float, high: float) -> None:
    """Ticks at powers of ten between `low` and `high`; at 1, 2 and 5 of each where there is at most one power."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [decade for decade in decades if low <= 10.0**decade <= high]
    apart = -(-len(powers) // 7)
    ticks = [10.0**power for power in powers[:: apart or 1]]
    if len(ticks) < 2:
        ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5) if low <= step * 10.0**decade <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """A tick of a logarithmic axis: 0.01, 0.5, 20, 1,000, but 10⁻⁵, 2 · 10⁶."""
    if 0.001 <= value < 1e5:
        return f"{value:,.0f}" if value >= 1 else f"{value:.3f}".rstrip("0")
    power = math.floor(math.log10(value) + 1e-9)
    factor = round(value / 10.0**power)
    return f"{f'{factor} · ' if factor > 1 else ''}10{str(power).translate(SUPERSCRIPTS)}"


def minus(text: str) -> str:
    """A number as text with the minus sign that is used throughout."""
    return text.replace("-", "−")


def limits_of(values: Sequence[float], pad: float = 1.6) -> tuple[float, float]:
    positive = [value for value in values if math.isfinite(value) and value > 0]
    if not positive:
        return 0.1, 10.0
    return min(positive) / pad, max(positive) * pad
