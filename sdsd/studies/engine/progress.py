"""How far a study is: a bar on a terminal, a few lines elsewhere, nothing when quiet."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ..._progress import Report

LOGGER = logging.getLogger("sdsd.studies")

Item = TypeVar("Item")


class Progress:
    """Says nothing; the others do the same and show it."""

    def bar(self, what: str) -> Report:
        """A new bar called `what`; call the result with (done, total)."""
        return lambda done, total: None

    def each(self, items: Sequence[Item], what: str) -> Iterator[Item]:
        """Yield `items` under a bar of their own."""
        advance = self.bar(what)
        for done, item in enumerate(items):
            advance(done, len(items))
            yield item
        advance(len(items), len(items))

    def say(self, text: str) -> None:
        """Print a line."""

    def stop(self) -> None:
        """Leave the terminal as it was."""


class PlainProgress(Progress):
    """A line when a bar begins, and then one every `every` seconds at most."""

    def __init__(self, every: float = 5.0) -> None:
        self.every = every

    def bar(self, what: str) -> Report:
        self.say(f"{what} …")
        last = time.monotonic()

        def advance(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= self.every and 0 < done < total:
                last = time.monotonic()
                self.say(f"{what} · {100 * done // total}%")

        return advance

    def say(self, text: str) -> None:
        print(text, flush=True)


class RichProgress(Progress):
    """Bars that are redrawn in place (rich); a bar goes when it is full."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()
        self.shown: Any = None

    def bar(self, what: str) -> Report:
        if self.shown is None:
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self.shown = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                expand=True,
            )
            self.shown.start()
        bars = self.shown
        task = bars.add_task(what)

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total, visible=done < total)

        return advance

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        if self.shown is not None:
            self.shown.stop()
            self.shown = None


def choose_progress(quiet: bool = False) -> Progress:
    """Nothing when `quiet`; bars on a terminal, if rich is installed; else plain lines."""
    if quiet:
        return Progress()
    bars = sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    return RichProgress() if bars else PlainProgress()
