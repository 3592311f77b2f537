"""What a study found, in one format for all: numbers, the source document's claim, ours, and which of them stands.

results.json holds a `StudyResult`:

    schema      2
    study       its name
    status      "complete" | "interrupted": then only the finished seeds are there, and no verdict
    config      everything the numbers depend on, but the seeds and the machine
    seeds       of the repetitions
    versions    of what computed them
    seconds     that the seeds took to measure, in all
    series      the measured numbers, by name, one entry for each seed
    verdicts    one for each claim, see `Verdict`
    figures     file names
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sdsd_kernels import checks

from ...gamma.student import student_t_quantile
from ...report.figures import plain_number
from .files import revive, versions

SCHEMA = 2
VERDICTS = ("reproduced", "direction only", "not reproduced", "refuted", "untestable here")


@dataclass(frozen=True)
class Measured:
    """A number of ours, with its 95% interval where there is one; `unit` follows it in text."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def __str__(self) -> str:
        numbers = [self.value] if self.low is None or self.high is None else [self.value, self.low, self.high]
        texts = list(map(plain_number, numbers))
        if len(set(texts)) < len(set(numbers)):  # an interval narrower than plain numbers show
            texts = [f"{number:.4g}".replace("-", "−") for number in numbers]
        interval = f" [{texts[1]}, {texts[2]}]" if len(texts) > 1 else ""
        return f"{texts[0]}{interval} {self.unit}".rstrip()


@dataclass(frozen=True)
class Verdict:
    """One claim of a seed document, held against measurement.

    Attributes:
        claim: what the document says, in our words.
        source: the document's title and section.
        verdict: one of `VERDICTS`.
        rule: what decides, written so that it could have come out otherwise.
        seed_figure: the document's number, or how it states the claim.
        our_figure: ours; None where there is nothing to measure.
        corrected: the statement that the measurement supports.
    """

    claim: str
    source: str
    verdict: str
    rule: str
    seed_figure: str
    our_figure: Measured | None
    corrected: str

    def __post_init__(self) -> None:
        checks.check_choice(self.verdict, "verdict", VERDICTS)


@dataclass
class StudyResult:
    """What a run of a study found, finished or not; see the module for the fields."""

    study: str
    config: dict[str, Any]
    seeds: list[int] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    status: str = "complete"
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt cut it short."""
        return self.status == "interrupted"

    def add(self, seed: int, series: dict[str, Any], seconds: float) -> None:
        """Take in a finished seed."""
        self.seeds.append(seed)
        self.series.append({"seed": seed, **series})
        self.seconds += seconds

    def pooled(self, key: str) -> list[Any]:
        """The entries of the lists called `key` of all seeds, one after the other."""
        return [entry for series in self.series for entry in series[key]]

    def to_dict(self) -> dict[str, Any]:
        """As results.json has it."""
        facts = {"schema": SCHEMA, "study": self.study, "status": self.status, "config": self.config}
        facts |= {"seeds": self.seeds, "versions": versions(), "seconds": round(self.seconds, 1)}
        return {**facts, "series": self.series, "verdicts": list(map(asdict, self.verdicts)), "figures": self.figures}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> StudyResult:
        """What `to_dict` gave, read from results.json.

        Raises:
            ValueError: another schema.
            KeyError, TypeError: no such dictionary.
        """
        if facts["schema"] != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}, got {facts['schema']!r}")
        names = ("study", "config", "seeds", "series", "status", "seconds", "figures")
        verdicts = [Verdict(**{**each, "our_figure": _measured(each["our_figure"])}) for each in facts["verdicts"]]
        return cls(**{name: revive(facts[name]) for name in names}, verdicts=verdicts)

    def summary_lines(self, width: int = 110) -> list[str]:
        """Claim, both numbers, verdict and corrected statement of each verdict, in `width` columns."""
        lines = []
        for verdict in self.verdicts:
            for label, text in (
                ("claim", f"{verdict.claim} ({verdict.source})"),
                ("  there", verdict.seed_figure),
                ("  here", "–" if verdict.our_figure is None else str(verdict.our_figure)),
                ("  verdict", verdict.verdict.upper()),
                ("  rule", verdict.rule),
                ("  instead", verdict.corrected),
            ):
                lines += textwrap.wrap(text, width, initial_indent=f"{label:<11}", subsequent_indent=" " * 11)
        return lines


def _measured(facts: Mapping[str, Any] | None) -> Measured | None:
    return None if facts is None else Measured(**revive(facts))


def mean_interval(values: Sequence[float], unit: str = "", level: float = 0.95) -> Measured:
    """Mean of independent values with Student's interval; without one for a single value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Measured(mean, unit=unit)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    half = student_t_quantile((1 + level) / 2, count - 1) * spread
    return Measured(mean, mean - half, mean + half, unit)


def geometric_interval(values: Sequence[float], unit: str = "", level: float = 0.95) -> Measured:
    """Geometric mean of independent positive values, with Student's interval of their logarithms."""
    logs = mean_interval([math.log(value) for value in values], level=level)
    low, high = (None if bound is None else math.exp(bound) for bound in (logs.low, logs.high))
    return Measured(math.exp(logs.value), low, high, unit)


def fraction_interval(successes: int, count: int, unit: str = "", level: float = 0.95) -> Measured:
    """A share of independent trials with Wilson's score interval (Wilson 1927)."""
    z = student_t_quantile((1 + level) / 2, 1e7)
    share = successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Measured(share, max(0.0, centre - half), min(1.0, centre + half), unit)
