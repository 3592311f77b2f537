"""One run of a study: its seeds measured or read, judged, drawn and written.

A finished seed is written to `seeds/` in the study's folder, and read instead of measured again as long as the study's
settings and the versions of sdsd and torch are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...report import figures
from .files import prepare_output, write_json, write_text
from .page import study_page
from .progress import LOGGER, Progress
from .result import StudyResult
from .seeds import SeedFile, measure_seed
from .study import Study, check_needs


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
                LOGGER.info("%s, seed %d: finished earlier, read from %s", study.name, seed, file.path)
            result.add(seed, finished.series, finished.seconds)
        result.verdicts = study.judge(result)
        picture, page = f"{study.name}.png", "report.html"
        figure = study.draw(result)
        figures.save_png(figure, folder / picture)
        result.figures = [picture]
        write_text(folder / page, study_page(study, result, figures.to_panels(figure, study.name)))
    except KeyboardInterrupt:
        result.status, result.verdicts, result.figures = "interrupted", [], []
        LOGGER.warning("%s: interrupted after %d seeds, which are kept in %s", study.name, len(result.seeds), folder)
    finally:
        progress.stop()
    write_json(folder / "results.json", result.to_dict())
    return result
