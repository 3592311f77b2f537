"""What a study found, in one format for all: numbers, the source document's claim, ours, and which of them stands.

results.json holds a `StudyResult`:

    schema      4
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

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sdsd_kernels import checks

from .files import revive, versions
from .judging import VERDICTS, Effect
from .measured import Measured

SCHEMA = 4


@dataclass(frozen=True)
class Verdict:
    """One claim of a source document, held against measurement.

    Attributes:
        claim: what the document says, in our words.
        source: the document's title and section.
        verdict: one of `VERDICTS`.
        rule: what decides, written so that it could have come out otherwise.
        published: the document's number, or how it states the claim.
        our_figure: ours; None where there is nothing to measure.
        corrected: the statement that the measurement supports.
        fixed, replaced: since when the rule stands, and what it took the place of; see `Rule`.
        effect: what the claim says of `our_figure`, where its interval decides; then rows of one claim on several
            networks can be pooled, and their p-values corrected for their number.
    """

    claim: str
    source: str
    verdict: str
    rule: str
    published: str
    our_figure: Measured | None
    corrected: str
    fixed: str = ""
    replaced: str = ""
    effect: Effect | None = None

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
        verdicts = [_verdict(each) for each in facts["verdicts"]]
        return cls(**{name: revive(facts[name]) for name in names}, verdicts=verdicts)

    def summary_lines(self, width: int = 110) -> list[str]:
        """Claim, both numbers, verdict and corrected statement of each verdict, in `width` columns."""
        lines = []
        for verdict in self.verdicts:
            for label, text in (
                ("claim", f"{verdict.claim} ({verdict.source})"),
                ("  there", verdict.published),
                ("  here", "–" if verdict.our_figure is None else str(verdict.our_figure)),
                ("  verdict", verdict.verdict.upper()),
                ("  rule", verdict.rule),
                ("  instead", verdict.corrected),
            ):
                lines += textwrap.wrap(text, width, initial_indent=f"{label:<11}", subsequent_indent=" " * 11)
        return lines


def _verdict(facts: Mapping[str, Any]) -> Verdict:
    figure, effect = facts["our_figure"], facts["effect"]
    return Verdict(
        **{
            **facts,
            "our_figure": None if figure is None else Measured(**revive(figure)),
            "effect": None if effect is None else Effect(**effect),
        }
    )
