"""What the measured steps gave: the last statistics, the averages behind them, and whom they are told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..history import GammaHistory
from ..stats import GammaStats
from .averages import RunningAverages, Step, averaged, statistics
from .parameters import Parameters

if TYPE_CHECKING:
    from .monitor import GammaMonitor

Observer = Callable[["GammaMonitor", GammaStats], None]


class Results:
    """Statistics of the steps so far.

    Attributes:
        averages: the running averages; anew where other parameters are measured.
        last: what the last measured step gave, or None.
        loaded: the averages of a loaded state, until a step is measured; else None.
        history: what keeps every measured step, or None.
        observers: called after every measured step, the history first.
    """

    def __init__(
        self,
        parameters: Parameters,
        ema: float,
        confidence: float,
        population: int | None,
        history: GammaHistory | str | Path | None,
    ) -> None:
        self._parameters, self._ema, self._confidence, self._population = parameters, ema, confidence, population
        self.history = _history(history)
        self.observers: list[Observer] = [] if self.history is None else [self.history]
        self.last: GammaStats | None = None
        self.loaded: GammaStats | None = None

    def begin(self) -> None:
        """Average anew, over the parameters that are covered now."""
        self._averaged = self._parameters.covered
        self.averages = RunningAverages(len(self._averaged), self._ema, self._parameters.device)

    def of(self, step: Step) -> GammaStats:
        """The step's statistics, entered into the running averages."""
        if self._averaged is not self._parameters.covered:  # some were left out
            self.begin()
        self.averages.update(step)
        return statistics(step, self.averages, self._averaged, self._population, self._confidence)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from these running averages."""
        self.averages.load_state_dict(state)
        self.last, samples = None, self.averages.samples
        now, names = self.averages.now(), self._averaged
        self.loaded = None if samples is None else averaged(now, names, samples, self._population, self._confidence)

    def tell(self, monitor: GammaMonitor, stats: GammaStats) -> None:
        self.last, self.loaded = stats, None
        for observer in self.observers:
            observer(monitor, stats)


def _history(given: Any) -> GammaHistory | None:
    if given is None or isinstance(given, GammaHistory):
        return given
    if isinstance(given, str | os.PathLike):
        return GammaHistory(Path(given))
    raise TypeError(
        f"history: expected a path, such as 'run.jsonl', a GammaHistory, or None, got {type(given).__name__}."
    )
