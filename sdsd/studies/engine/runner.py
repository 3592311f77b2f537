"""Several studies one after the other, their seeds on several processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from ..._extras import MissingExtraError
from .files import prepare_output
from .progress import LOGGER, Progress
from .result import StudyResult
from .run import run_study
from .seeds import SeedFile, log_measured, measure_seed
from .study import Study, check_needs


@dataclass(frozen=True)
class Runner:
    """How to run studies.

    Attributes:
        out: the folder that gets one for each study.
        progress: shows how far it is.
        first: the first seed.
        count: how many seeds; by default as many as each study wants.
        quick: smaller and rougher.
        fresh: measure again what earlier runs have finished.
        jobs: how many seeds are measured at a time, each by a process with one thread. The numbers are the same.
    """

    out: Path
    progress: Progress
    first: int = 0
    count: int | None = None
    quick: bool = False
    fresh: bool = False
    jobs: int = 1

    def folder(self, study: Study) -> Path:
        """Where `study` writes."""
        return self.out / study.name

    def run(self, studies: Sequence[Study]) -> Iterator[tuple[Study, StudyResult]]:
        """Run one after the other, each given back when its files are written; an interrupted one is the last.

        Where there are several, one that needs a package which is not installed is left out and the progress says so.

        Raises:
            ValueError: a folder cannot be written, or holds a finished seed that cannot be read.
            MissingExtraError: what every study needs, or the only one, is missing.
        """
        for study in studies:
            check_needs(study)
            prepare_output(self.folder(study))
        if self.jobs > 1:
            self._measure_ahead(studies)
        for study in studies:
            self.progress.say(f"{study.name}: {study.summary}")
            seeds = study.seed_numbers(self.first, self.count, self.quick)
            fresh = self.fresh and self.jobs == 1
            try:
                result = run_study(study, self.folder(study), self.progress, seeds=seeds, quick=self.quick, fresh=fresh)
            except MissingExtraError as error:
                if len(studies) == 1:
                    raise
                self.progress.say(f"{study.name} is left out: {error}\n")
                LOGGER.warning("%s is left out: %s", study.name, error)
                continue
            yield study, result
            if result.interrupted:
                return

    def _measure_ahead(self, studies: Sequence[Study]) -> None:
        """Measure what is missing on `jobs` processes; what they finish is kept in files."""
        wanted = [
            (study, SeedFile(self.folder(study), study.name, study.config(self.quick), seed))
            for study in studies
            for seed in study.seed_numbers(self.first, self.count, self.quick)
        ]
        missing = [(study, file) for study, file in wanted if self.fresh or file.read() is None]
        advance = self.progress.bar(f"measuring {len(missing)} seeds on {self.jobs} processes")
        pool = ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn"), _let_interrupts_end_it)
        try:
            names = {pool.submit(measure_seed, study.measure, file, Progress()): file for study, file in missing}
            for done, future in enumerate(as_completed(names), start=1):
                file = names[future]
                # What misses a package is left for `run`, which knows whether to go on without it.
                if not isinstance(future.exception(), MissingExtraError):
                    seconds = future.result().seconds
                    self.progress.say(f"{file.study}, seed {file.seed}: {seconds:.0f} s")
                    log_measured(file, seconds)
                advance(done, len(missing))
        finally:
            self.progress.stop()
            pool.shutdown(wait=False, cancel_futures=True)


def _let_interrupts_end_it() -> None:
    """Ctrl-C ends a process at once, without a traceback; whoever started it speaks."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
