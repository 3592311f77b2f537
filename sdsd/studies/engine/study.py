"""What a study is: data and three functions, an entry `Study` in the `STUDIES` of its file.

    measure(seed, progress, *, …)  → what one seed gave, in what JSON can hold; its keyword-only parameters are the
                                     settings of the study
    judge(result)                  → a `Verdict` for each claim, over all seeds
    draw(result)                   → the figure

docs/studies.md builds one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..._extras import require
from .result import StudyResult, Verdict
from .settings import RESERVED, UNSET, check_names, settings_of


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        name: what it is called on the command line: lower-case words joined by hyphens.
        summary: what it does, in a line.
        claim: the claim it tests, in a line.
        source: the document that makes the claim, and where.
        measure: does it for one seed, from (seed, progress, *, settings). Its keyword-only parameters are everything
            the numbers depend on but the seed. What it returns is kept as JSON: NaN comes back as None. torch runs on
            one thread, its generator seeded with `seed`.
        judge: verdicts on the claims from a complete result.
        draw: the figure of a complete result.
        expected_seconds: for all seeds of a run that is not quick, on one core of a laptop.
        settings: values that differ from the defaults of `measure`, where studies share one.
        quick: values that `--quick` changes, to see in seconds that it works.
        seeds: how many repetitions it takes.
        quick_seeds: how many with `--quick`.
        needs: packages of the extra "report" it cannot run without, by import name.
    """

    name: str
    summary: str
    claim: str
    source: str
    measure: Callable[..., dict[str, Any]]
    judge: Callable[[StudyResult], list[Verdict]]
    draw: Callable[[StudyResult], Any]
    expected_seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    quick_seeds: int = 1
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"name: expected lower-case words joined by hyphens, got {self.name!r}.")
        known = settings_of(self.measure)
        check_names(self.settings, known, "settings")
        check_names(self.quick, known, "quick")
        if missing := [name for name, value in {**known, **self.settings}.items() if value is UNSET]:
            raise ValueError(f"settings: expected a value for {', '.join(map(repr, missing))}, which has no default.")

    def config(self, quick: bool = False) -> dict[str, Any]:
        """The settings of a run, as `measure` gets them, and whether it is a quick one."""
        changed = self.quick if quick else {}
        return {RESERVED: quick, **settings_of(self.measure), **self.settings, **changed}

    def seed_numbers(self, first: int = 0, count: int | None = None, quick: bool = False) -> tuple[int, ...]:
        """`count` seeds from `first` on; by default as many as the study wants."""
        count = (self.quick_seeds if quick else self.seeds) if count is None else count
        if first < 0 or count < 1:
            raise ValueError(f"seed, seeds: expected a seed ≥ 0 and at least one of them, got {first} and {count}.")
        return tuple(range(first, first + count))


def find_study(name: str, studies: Mapping[str, Study]) -> Study:
    """The study called `name`.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    if name in studies:
        return studies[name]
    near = difflib.get_close_matches(name, studies, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(studies)}."
    raise ValueError(f"there is no study {name!r}. {hint}")


def check_needs(study: Study) -> None:
    """Import what `study` needs beyond torch.

    Raises:
        MissingExtraError: something is missing.
    """
    for module in ("matplotlib", *study.needs):
        require(module, extra="report", purpose=f"the study {study.name!r}")
