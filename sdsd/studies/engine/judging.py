"""What decides a verdict: rules with the day since which they stand, and the words that follow from a number.

==================  ===================================================================================================
reproduced          the effect is there, and where the document gives a number, ours is half to twice that
direction only      the effect is there, and the number is another
inconclusive        the data allow both that there is an effect and that there is none
no effect           the interval leaves room for none that would matter
opposite            there is an effect, and it goes the other way
refuted             a statement about all cases or an exact threshold, and cases that contradict it
untestable here     what the claim is about was not measured
==================  ===================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from .measured import Measured

VERDICTS = (
    "reproduced",
    "direction only",
    "inconclusive",
    "no effect",
    "opposite",
    "refuted",
    "untestable here",
)
MATCH = 2.0
"""A number matches the document's within this factor, both ways."""
SIGNIFICANT = 0.05


class Stated(TypedDict):
    """What a verdict says of its rule."""

    rule: str
    fixed: str
    replaced: str


@dataclass(frozen=True)
class Rule:
    """What decides a verdict.

    Attributes:
        text: the rule, written so that the verdict could have been another.
        fixed: the day since which it stands, as in 2026-11-26.
        replaced: the rule before it, what that said, and why it was changed; "" where there was none.
    """

    text: str
    fixed: str
    replaced: str = ""

    def stated(self) -> Stated:
        """As fields of a verdict: `Verdict(…, **rule.stated())`."""
        return {"rule": self.text, "fixed": self.fixed, "replaced": self.replaced}


@dataclass(frozen=True)
class Effect:
    """What a claim says of a number: enough to judge it, to pool it over networks, and to correct it for many tests.

    Attributes:
        nothing: the number where there is no effect: 1 for a ratio, 0 for a difference.
        published: the document's number; None where it names none, and then the direction is all there is to reproduce.
        above: whether the claimed effect makes the number larger than `nothing`.
        negligible: for a difference, the size below which an effect does not matter; for a ratio, the factor.
            None where no such size was named, so that nothing can be called "no effect".
    """

    nothing: float
    published: float | None = None
    above: bool = True
    negligible: float | None = None

    def __post_init__(self) -> None:
        if self.nothing not in (0.0, 1.0):
            raise ValueError(f"nothing: expected 0 for a difference or 1 for a ratio, got {self.nothing!r}.")
        least = float(self.ratio)
        if self.negligible is not None and not self.negligible > least:
            raise ValueError(f"negligible: expected more than {least:g}, got {self.negligible!r}.")
        if self.published is not None and (self.published > self.nothing) != self.above:
            raise ValueError(f"published: expected a number on the claimed side of {self.nothing:g}.")

    @property
    def ratio(self) -> bool:
        """Whether the number is a ratio."""
        return self.nothing == 1.0

    def verdict(self, ours: Measured) -> str:
        """The word for `ours`, by its interval; a number without one is inconclusive."""
        if ours.low is None or ours.high is None:
            return "inconclusive"
        low, high = (ours.low, ours.high) if self.above else (ours.high, ours.low)
        sign = 1 if self.above else -1
        if sign * (low - self.nothing) > 0:
            return "reproduced" if self._matches(ours.value) else "direction only"
        if sign * (high - self.nothing) < 0:
            return "opposite"
        return "no effect" if self._is_negligible(ours.low, ours.high) else "inconclusive"

    def _matches(self, value: float) -> bool:
        if self.published is None:
            return True
        return 1 / MATCH <= value / self.published <= MATCH

    def _is_negligible(self, low: float, high: float) -> bool:
        if self.negligible is None:
            return False
        if self.ratio:
            return 1 / self.negligible < low and high < self.negligible
        return -self.negligible < low and high < self.negligible

    def rule(self) -> str:
        """`verdict` in words."""
        side, other = ("above", "below") if self.above else ("below", "above")
        number = (
            ""
            if self.published is None
            else f" and the number is within a factor of {MATCH:g} of {self.published:g}; direction only if the number "
            "is another"
        )
        size = f"{self.negligible:g} ×" if self.ratio and self.negligible else self.negligible
        none = "" if self.negligible is None else f"; no effect if the interval lies within {size} of {self.nothing:g}"
        return (
            f"reproduced if the 95% interval lies {side} {self.nothing:g}{number}; opposite if it lies {other}{none}; "
            "inconclusive otherwise"
        )


def unshown(shown: Sequence[bool]) -> str:
    """The word where not every repetition shows what was claimed: "no effect" if none does, else "inconclusive"."""
    return "inconclusive" if any(shown) else "no effect"


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for that there are many of them (Holm 1979): below 0.05, none of them is a false alarm in 95%
    of all families.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"p_values: expected numbers from 0 to 1, got {p!r}.")
    count, corrected, largest = len(p_values), [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        corrected[index] = largest
    return corrected
