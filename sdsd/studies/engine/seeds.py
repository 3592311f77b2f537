"""One finished seed of a study, kept in a file of its own: what makes studies resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .files import plain, revive, versions, write_json
from .progress import LOGGER, Progress
from .result import SCHEMA
from .settings import RESERVED
from .threads import one_thread


@dataclass(frozen=True)
class FinishedSeed:
    """What one seed gave, and how long that took."""

    series: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class SeedFile:
    """Where one seed of one configuration is kept: `seeds/SEED-DIGEST.json`.

    Attributes:
        folder: of the study.
        study: its name.
        config: the settings, and whether the run is quick.
        seed: which repetition.
    """

    folder: Path
    study: str
    config: Mapping[str, Any]
    seed: int

    @property
    def path(self) -> Path:
        """Other settings, or other versions of sdsd or torch, have another name, so that neither replaces the other."""
        text = json.dumps(self._identity(), sort_keys=True)
        return self.folder / "seeds" / f"{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"

    def _identity(self) -> dict[str, Any]:
        used = versions()
        needed = {name: used.get(name, "") for name in ("sdsd", "torch")}
        return {"schema": SCHEMA, "study": self.study, "seed": self.seed, "config": plain(self.config)} | needed

    def read(self) -> FinishedSeed | None:
        """What is kept, or None.

        Raises:
            ValueError: the file is there and cannot be understood.
        """
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            return FinishedSeed(revive(kept["series"]), float(kept["seconds"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: expected a finished seed of the study; delete the file.") from error

    def write(self, finished: FinishedSeed) -> None:
        """Keep `finished`."""
        self.path.parent.mkdir(exist_ok=True)
        write_json(self.path, {**self._identity(), "seconds": finished.seconds, "series": finished.series})


def measure_seed(measure: Callable[..., dict[str, Any]], file: SeedFile, progress: Progress) -> FinishedSeed:
    """Measure one seed and keep it. torch's random state is as before afterwards.

    What comes back went through JSON, so that a study judges the same numbers whether they are fresh or kept.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(file.seed)
        series = measure(file.seed, progress, **{name: file.config[name] for name in file.config if name != RESERVED})
    try:
        series = json.loads(json.dumps(plain(series)))
    except TypeError as error:
        raise TypeError(f"study {file.study!r}: measure must return what JSON can hold, but {error}.") from error
    finished = FinishedSeed(revive(series), round(time.perf_counter() - started, 2))
    file.write(finished)
    log_measured(file, finished.seconds)
    return finished


def log_measured(file: SeedFile, seconds: float) -> None:
    """Say that a seed was measured; of seeds on other processes the runner says it."""
    LOGGER.info("%s, seed %d: measured in %.1f s, kept in %s", file.study, file.seed, seconds, file.path)
