"""`sdsd gamma train.py`: train what a user's file defines, with a monitor, and show signal and noise while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..gamma import GammaHistory, GammaMonitor, GammaStats
from .engine import Display, Row, choose_display, gamma_columns, table_row
from .user_file import Script, load_script, users_code

EMA = 0.98
MOST_ROWS = 20


@dataclass
class TrainingRun:
    """What a run measured, finished or not."""

    stats: GammaStats | None = None
    steps: int = 0
    measured: int = 0
    interrupted: bool = False

    @property
    def window(self) -> str:
        """How many steps the running averages are worth."""
        share = (1 - EMA) / (1 + EMA) * (1 + EMA**self.measured) / (1 - EMA**self.measured)
        return f"{1 / share:.0f} of them"


def train_file(
    path: str | Path,
    *,
    steps: int | None = None,
    every: int = 1,
    confidence: float = 0.95,
    population: int | None = None,
    history: str | Path | None = None,
    quiet: bool = False,
    display: Display | None = None,
) -> TrainingRun:
    """Train what `path` defines for `steps` steps; an interrupt (Ctrl-C) ends it early and keeps what was measured.

    With `history` every measured step is written to that file, in total and by parameter (`GammaHistory`); what an
    earlier run left there is replaced.

    Raises:
        ValueError: no such file, `history` is a file of something else,
            a name is missing or of the wrong kind, no batches, a model the monitor refuses.
        UserCodeError: the file, its loader or its loss raised.
    """
    path = Path(path)
    kept = None if history is None else GammaHistory(history, parameters=True)
    script = load_script(path)
    total = steps or script.steps
    run = TrainingRun()
    display = display or choose_display(quiet)
    batches = endless(script.loader, path)
    with GammaMonitor(
        script.model, every=every, ema=EMA, confidence=confidence, population=population, history=kept
    ) as monitor:
        display.start(total)
        try:
            for batch in batches:
                loss = train_step(script, batch, path)
                stats = monitor.step()
                script.optimizer.step()
                run.steps += 1
                if stats is not None:
                    run.stats, run.measured = stats, run.measured + 1
                rows = table(run.stats) if not quiet and run.stats is not None else []
                header = gamma_columns("parameter", run.stats.batch_size, confidence) if run.stats is not None else ()
                display.update(run.steps, f"loss {loss:.4f}", header, rows)
                if run.steps == total:
                    break
        except KeyboardInterrupt:
            run.interrupted = True
        finally:
            display.stop()
    return run


def endless(loader: Iterable[Any], path: Path) -> Iterator[Any]:
    """Batches of the loader, again and again; ends only where a loader cannot be started a second time."""
    passes = 0
    while True:
        count = 0
        with users_code(path):
            batches = iter(loader)
        while True:
            with users_code(path):
                try:
                    batch = next(batches)
                except StopIteration:
                    break
            count += 1
            yield batch
        if count == 0 and passes == 0:
            raise ValueError(f"{path}: loader gave no batch.")
        if count == 0:
            return
        passes += 1


def train_step(script: Script, batch: Any, path: Path) -> float:
    """Gradients of one batch; returns the loss."""
    script.optimizer.zero_grad()
    with users_code(path):
        loss = script.loss(script.model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"{path}: loss: expected a scalar tensor, got {got}.")
    if not loss.requires_grad:
        raise ValueError(f"{path}: loss: it does not depend on a parameter that trains.")
    with users_code(path):
        loss.backward()
    return loss.item()


def table(stats: GammaStats) -> list[Row]:
    """The parameters with the most noise, in the model's order, and in total; smoothed."""
    assert stats.smoothed is not None
    parameters = stats.smoothed.parameters
    loudest = set(sorted(parameters, key=lambda name: parameters[name].noise, reverse=True)[:MOST_ROWS])
    shown = {name: part for name, part in parameters.items() if name in loudest}
    rows = []
    for name, part in {**shown, "total": stats.smoothed}.items():
        low, high = part.interval or (float("nan"), float("nan"))
        each = part.samples_per_gradient
        rows.append(table_row(name, part.gamma_unbiased / each, low / each, high / each, stats.batch_size))
    return rows
