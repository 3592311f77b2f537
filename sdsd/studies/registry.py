"""What a study is, and how one is run: checked, timed, written whole, its figure drawn.

A study is an entry `Study` in a mapping from names, and a function from (config, progress) to a StudyResult. The
function appends to `series` as numbers come in, inside `StudyResult.keep_finished`, so that Ctrl-C keeps them.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._extras import require
from ..report import figures
from ._files import prepare_output, write_json
from ._progress import Progress
from .demo import one_thread
from .result import StudyResult


@dataclass(frozen=True)
class StudyConfig:
    """How to run a study.

    Attributes:
        seeds: of the repetitions.
        quick: smaller and rougher, to see that it works; verdicts are given all the same.
    """

    seeds: tuple[int, ...]
    quick: bool = False


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        name: what it is called on the command line.
        summary: what it does, in a line.
        claim: the claim it tests, in our words.
        source: the document that makes the claim, and where.
        expected_seconds: on one core of a laptop, with the default seeds.
        run: does it. The result's `config` is completed with what the study fixes itself.
        draw: the figure of a complete result.
        default_seeds: how many repetitions it takes.
    """

    name: str
    summary: str
    claim: str
    source: str
    expected_seconds: float
    run: Callable[[StudyConfig, Progress], StudyResult]
    draw: Callable[[StudyResult], Any]
    default_seeds: int = 1

    def config(self, seed: int = 0, seeds: int | None = None, quick: bool = False) -> StudyConfig:
        """`seeds` repetitions from `seed` on; by default as many as the study wants, one when `quick`."""
        count = (1 if quick else self.default_seeds) if seeds is None else seeds
        if seed < 0 or count < 1:
            raise ValueError(f"seed, seeds: expected a seed ≥ 0 and at least one of them, got {seed} and {count}.")
        return StudyConfig(tuple(range(seed, seed + count)), quick)


def find_study(name: str, studies: Mapping[str, Study]) -> Study:
    """The study called `name`.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    if name in studies:
        return studies[name]
    near = difflib.get_close_matches(name, studies, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(studies)}."
    raise ValueError(f"there is no experiment {name!r}. {hint}")


def run_study(study: Study, config: StudyConfig, out: str | Path, progress: Progress) -> StudyResult:
    """Run `study` and write results.json, and for a complete run its figure, into `out`.

    torch runs on one thread and its random state is as before afterwards: same seeds, same numbers.

    Raises:
        ValueError: `out` cannot be written.
        MissingExtraError: matplotlib is missing.
    """
    require("matplotlib", extra="report", purpose=f"the experiment {study.name!r}")
    folder = prepare_output(out)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(config.seeds[0])
        try:
            result = study.run(config, progress)
        finally:
            progress.stop()
    result.seconds = time.perf_counter() - started
    if not result.interrupted:
        picture = f"{study.name}.png"
        figures.save_png(study.draw(result), folder / picture)
        result.figures.append(picture)
    write_json(folder / "results.json", result.to_dict())
    return result
