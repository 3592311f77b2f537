"""What a study is, and how one is run: seed by seed, each kept when it is finished, then judged and drawn.

A study is data and three functions, an entry `Study` in its module's `STUDIES`; `catalogue` lists the modules.

    measure(seed, progress, *, …)  → what one seed gave, in what JSON can hold; its keyword-only parameters are the
                                     settings of the study
    judge(result)                  → a `Verdict` for each claim, over all seeds
    draw(result)                   → the figure

A finished seed is written to `seeds/` in the study's folder, and read instead of measured again as long as the study's
settings and the versions of sdsd and torch are the same. docs/studies.md builds one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..._extras import require
from ...report import figures
from .files import prepare_output, write_json, write_text
from .page import study_page
from .progress import Progress
from .result import StudyResult, Verdict
from .seeds import SeedFile, measure_seed
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


def run_study(
    study: Study,
    out: str | Path,
    progress: Progress,
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    fresh: bool = False,
) -> StudyResult:
    """Run `study`, or go on with a run of it, and write what it found into the folder `out`.

    results.json and, when all seeds are finished, the figure NAME.png and the page report.html. An interrupt (Ctrl-C)
    ends the run with the seeds that are finished, status "interrupted" and no verdict; the next run goes on from there.

    Args:
        study: which.
        out: the folder, made if need be.
        progress: shows how far it is.
        seeds: of the repetitions; by default as many as the study wants, from 0 on.
        quick: smaller and rougher.
        fresh: measure again what earlier runs have finished.

    Raises:
        ValueError: `out` cannot be written, or holds a finished seed that cannot be read.
        MissingExtraError: matplotlib, or what the study needs, is missing.
    """
    check_needs(study)
    folder = prepare_output(out)
    result = StudyResult(study.name, study.config(quick))
    try:
        for seed in study.seed_numbers(quick=quick) if seeds is None else seeds:
            file = SeedFile(folder, study.name, result.config, seed)
            finished = None if fresh else file.read()
            if finished is None:
                finished = measure_seed(study.measure, file, progress)
            else:
                progress.say(f"seed {seed}: finished earlier, in {file.path}")
            result.add(seed, finished.series, finished.seconds)
        result.verdicts = study.judge(result)
        picture, page = f"{study.name}.png", "report.html"
        figure = study.draw(result)
        figures.save_png(figure, folder / picture)
        result.figures = [picture]
        write_text(folder / page, study_page(study, result, figures.to_svg(figure, study.name)))
    except KeyboardInterrupt:
        result.status, result.verdicts, result.figures = "interrupted", [], []
    finally:
        progress.stop()
    write_json(folder / "results.json", result.to_dict())
    return result
