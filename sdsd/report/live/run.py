"""The rows of a history as what the live page shows, in memory that does not grow with them."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

from ...gamma import history
from .file import HistoryFile

MOST_POINTS = {True: 600, False: 200}
"""Fewest steps kept of a long run, of the total (True) and of each parameter; twice as many, and every second goes."""
MOST_NAMES = 40
"""Parameters that are drawn and listed, those with the most noise: more cannot be read."""
QUIET = 30.0
"""Seconds without a new row after which a run may have ended, or four times its longest recent pause if longer."""
PAUSES = 5
COLUMNS = ("step", "gamma", "low", "high")


class Thinned:
    """Points of one curve: of many only every k-th, and always the last."""

    def __init__(self, most: int) -> None:
        self.most, self.stride, self.count = most, 1, 0
        self.kept: list[tuple[float | None, ...]] = []
        self.last: tuple[float | None, ...] = ()

    def take(self, point: tuple[float | None, ...]) -> None:
        if self.count % self.stride == 0:
            self.kept.append(point)
            if len(self.kept) == 2 * self.most:
                del self.kept[1::2]
                self.stride *= 2
        self.count += 1
        self.last = point

    def columns(self) -> dict[str, list[float | None]]:
        points = self.kept if self.kept and self.kept[-1] is self.last else [*self.kept, self.last]
        return {name: [point[place] for point in points] for place, name in enumerate(COLUMNS)}


class LiveRun:
    """One file of a history, and what is known of it.

    Args:
        path: the file; it need not be there yet.

    Example:
        >>> run = LiveRun("nowhere.jsonl")
        >>> run.update()
        >>> run.view()["state"]
        'waiting'
    """

    def __init__(self, path: str | Path) -> None:
        self.file = HistoryFile(path)
        self.problem: str | None = None
        self.version = time.time_ns()
        self._pauses: deque[float] = deque(maxlen=PAUSES)
        self._begin()

    def _begin(self) -> None:
        self._curves: dict[str, Thinned] = {}
        self._last: dict[str, history.Row] = {}
        self._rows = 0
        self._grown: float | None = None
        self._pauses.clear()
        self._part_behind = 0
        self._changed: float | None = None
        self._there = False

    def update(self) -> None:
        """Read on. What is wrong with the file is kept in `problem`, until a later reading succeeds."""
        before = self.problem
        try:
            part = self.file.read()
        except (ValueError, OSError) as error:
            self.problem = str(error)
            self.version += self.problem != before
            return
        self.problem = None
        if part.anew:
            self._begin()
        for row in part.rows:
            self._take(row)
        if part.rows:
            now = time.monotonic()
            if self._grown is not None:
                self._pauses.append(now - self._grown)
            self._grown = now
        self.version += bool(part.rows or part.anew or before)
        self._there, self._part_behind, self._changed = part.there, part.behind, part.changed

    def _take(self, row: history.Row) -> None:
        name = row["parameter"]
        self._rows += 1
        self._last[name] = row
        curve = self._curves.get(name)
        if curve is None:
            curve = self._curves[name] = Thinned(MOST_POINTS[name == history.TOTAL])
        curve.take((row["step"], *gammas(row)))

    def view(self, known: int | None = None) -> dict[str, Any]:
        """What the page shows, as plain values; without the curves where it knows this version already."""
        age = None if self._changed is None else max(0.0, time.time() - self._changed)
        if self.problem is not None:
            state = "broken"
        elif not self._rows:
            state = "waiting"
        else:
            writing = age is not None and age < max(QUIET, 4 * max(self._pauses, default=0.0))
            state = "writing" if writing else "quiet"
        total = self._last.get(history.TOTAL, {})
        view = {
            "version": str(self.version),
            "file": self.file.path.name,
            "state": state,
            "there": self._there,
            "problem": self.problem,
            "age": age,
            "behind": self._part_behind,
            "rows": self._rows,
            "step": total.get("step"),
            "batch": total.get("batch_size"),
            "advice": total.get("advice"),
            "verdict": total.get("verdict"),
            "recommended": total.get("recommended_batch"),
            "confidence": total.get("confidence"),
        }
        if known != self.version:
            names = [name for name in self._curves if name != history.TOTAL]
            loud = sorted(names, key=lambda name: -noise(self._last[name]))[:MOST_NAMES]
            shown = [name for name in names if name in set(loud)]
            view["left_out"] = len(names) - len(shown)
            view["curves"] = [
                {"name": name, "phase": self._last[name]["phase"], **self._curves[name].columns()}
                for name in ([history.TOTAL] if history.TOTAL in self._curves else []) + shown
            ]
        return view


def gammas(row: history.Row) -> tuple[float | None, float | None, float | None]:
    """Γ of one sample with its bounds; None where it is not known. Where nothing is averaged, that of the step."""
    gamma = row["smoothed_gamma"]
    if math.isnan(gamma):
        gamma = inverse(row["noise_scale"])
    low, high = inverse(row["noise_scale_high"]), inverse(row["noise_scale_low"])
    return _known(gamma), _known(low), _known(high)


def inverse(scale: float) -> float:
    """Γ of one sample for a noise scale: 0 for an infinite one."""
    return 1 / scale if scale else math.inf


def noise(row: history.Row) -> float:
    """The row's noise; what is not finite is the loudest."""
    return row["noise"] if math.isfinite(row["noise"]) else math.inf


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
