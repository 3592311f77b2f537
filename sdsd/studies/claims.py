"""Every claim of the source documents beside what the studies found.

A claim that several studies test, each on a network of its own, is one claim: its row pools the networks, each with the
same weight, and the networks are the independent units of its interval. The p-values of the single networks are
corrected for their number (Holm), and a network whose corrected p-value is above 0.05 is inconclusive.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .catalogue import GROUPS
from .documents import MOVES
from .engine import (
    SIGNIFICANT,
    VERDICTS,
    StudyResult,
    Verdict,
    geometric_interval,
    holm,
    mean_interval,
)
from .rules import RULES

WITHOUT_A_STUDY = "without a study"
DIRECTED = ("reproduced", "direction only", "opposite")
"""Verdicts that say there is an effect."""


def _untestable(claim: str, source: str, stated: str, why: str) -> Verdict:
    return Verdict(
        claim=claim,
        source=f"{MOVES}, {source}",
        verdict="untestable here",
        published=stated,
        our_figure=None,
        corrected=why,
        **RULES["without a study"].stated(),
    )


UNTESTABLE = (
    _untestable(
        "Agency is what a system does on the flat part of its loss",
        "Abstract",
        "a reading",
        "The studies selection and rank test the mechanism; what it means for minds is not theirs to say.",
    ),
)


@dataclass(frozen=True)
class Claim:
    """A verdict, and where it comes from.

    Attributes:
        group: of the study.
        study: its name; "" without one.
        verdict: what was found.
        seeds: how many repetitions it rests on.
        command: repeats it; "" without a study.
        corrected_p: the p-value, corrected for the networks that the claim was tested on; None where there is one.
    """

    group: str
    study: str
    verdict: Verdict
    seeds: int = 0
    command: str = ""
    corrected_p: float | None = None


@dataclass(frozen=True)
class Row:
    """A claim, and every study that tests it.

    Attributes:
        verdict: what all of them say together; of one study, what it says.
        claims: one for each study.
    """

    verdict: Verdict
    claims: tuple[Claim, ...]

    @property
    def study(self) -> str:
        """Its study, or how many networks there are."""
        name = self.claims[0].study
        return f"{len(self.claims)} networks" if len(self.claims) > 1 else f"`{name}`" if name else "–"


@dataclass(frozen=True)
class Claims:
    """All claims, and the studies that have no complete results."""

    claims: tuple[Claim, ...]
    missing: tuple[str, ...]

    def rows(self, group: str | None = None) -> list[Row]:
        """Those of one group, or all; each claim once."""
        together: dict[tuple[str, str], list[Claim]] = {}
        for claim in self.claims:
            if group in (None, claim.group):
                together.setdefault((claim.group, claim.verdict.claim), []).append(claim)
        return [Row(_pooled(each), tuple(each)) for each in together.values()]


def _corrected(claims: Sequence[Claim]) -> list[Claim]:
    """Claims with the p-values of each claim's networks corrected for their number."""
    families: dict[tuple[str, str], list[int]] = {}
    for place, claim in enumerate(claims):
        figure = claim.verdict.our_figure
        if claim.verdict.effect is not None and figure is not None and figure.p is not None:
            families.setdefault((claim.group, claim.verdict.claim), []).append(place)
    corrected = list(claims)
    for places in families.values():
        if len(places) > 1:
            for place, p in zip(places, holm([_p(claims[place]) for place in places]), strict=True):
                word = claims[place].verdict.verdict
                if p > SIGNIFICANT and word in DIRECTED:
                    word = "inconclusive"
                verdict = replace(claims[place].verdict, verdict=word)
                corrected[place] = replace(claims[place], verdict=verdict, corrected_p=p)
    return corrected


def _p(claim: Claim) -> float:
    figure = claim.verdict.our_figure
    assert figure is not None
    assert figure.p is not None
    return figure.p


def _pooled(claims: Sequence[Claim]) -> Verdict:
    """What the networks say together: an interval over networks, by the same effect."""
    first = claims[0].verdict
    if len(claims) == 1:
        return first
    effect, tested = first.effect, [claim.verdict for claim in claims if claim.verdict.effect is not None]
    figures = [each.our_figure for each in tested if each.our_figure is not None]
    words = Counter(claim.verdict.verdict for claim in claims)
    counted = ", ".join(f"{words[word]} {word}" for word in VERDICTS if words[word])
    if effect is None or len(figures) < 2:
        word = first.verdict if len(words) == 1 else "inconclusive"
        return replace(first, our_figure=None, verdict=word, corrected=f"Of {len(claims)}: {counted}.")
    interval = geometric_interval if effect.ratio else mean_interval
    ours = interval([figure.value for figure in figures], figures[0].unit, against=effect.nothing)
    return replace(
        first,
        verdict=_word(effect.verdict(ours), words),
        our_figure=ours,
        corrected=f"Over {len(figures)} networks, each with the same weight. Single ones: {counted}.",
    )


def _word(pooled: str, words: Counter[str]) -> str:
    """What half of the networks do not reproduce, or one of them contradicts, is not reproduced on all of them."""
    most = 2 * words["reproduced"] >= sum(words.values())
    return "direction only" if pooled == "reproduced" and (words["opposite"] or not most) else pooled


def read_claims(out: Path) -> Claims:
    """The verdicts of all studies whose complete results.json is in a folder of `out`.

    Raises:
        ValueError: a results.json of another format.
    """
    claims: list[Claim] = []
    missing = []
    for group, studies in GROUPS.items():
        for study in studies:
            path = out / study.name / "results.json"
            result = _read(path) if path.exists() else None
            if result is None or result.interrupted:
                missing.append(study.name)
                continue
            command = f"sdsd study {study.name} --seeds {len(result.seeds)}{' --quick' * result.config['quick']}"
            claims += [Claim(group, study.name, each, len(result.seeds), command) for each in result.verdicts]
    claims += [Claim(WITHOUT_A_STUDY, "", each) for each in UNTESTABLE]
    return Claims(tuple(_corrected(claims)), tuple(missing))


def _read(path: Path) -> StudyResult:
    try:
        return StudyResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the results of a study ({error}); run the study again.") from error


def groups() -> tuple[str, ...]:
    """Of claims, in the order of the pages."""
    return (*GROUPS, WITHOUT_A_STUDY)
