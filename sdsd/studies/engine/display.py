"""What a person sees while a study trains: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Literal, Protocol

Row = tuple[str, ...]

NARROWEST = 80
"""Columns of a terminal on which the live table can be read."""


def gamma_columns(first: str, batch_size: int, confidence: float) -> Row:
    """Heads of the columns of `table_row`; phases are those of `GammaStats.phase`."""
    return first, f"Γ of a batch of {batch_size:,}", "noise scale", f"{100 * confidence:g}% interval", "phase"


class Display(Protocol):
    """Progress of one training run."""

    def start(self, total: int) -> None: ...

    def update(self, step: int, headline: str, header: Row, rows: Sequence[Row]) -> None: ...

    def stop(self) -> None: ...

    def say(self, text: str) -> None: ...


class Quiet:
    """Says nothing."""

    def start(self, total: int) -> None:
        pass

    def update(self, step: int, headline: str, header: Row, rows: Sequence[Row]) -> None:
        pass

    def stop(self) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class PlainLines:
    """About ten lines over the run, each with the headline and the last row (the whole network)."""

    def __init__(self, lines: int = 10) -> None:
        self.lines = lines
        self.total = 0

    def start(self, total: int) -> None:
        self.total = total

    def update(self, step: int, headline: str, header: Row, rows: Sequence[Row]) -> None:
        every = max(1, self.total // self.lines)
        if step % every == 0 or step == self.total:
            whole = (
                "".join(f" · {name}: {value}" for name, value in zip(header[1:3], rows[-1][1:3], strict=True))
                if rows
                else ""
            )
            self.say(f"step {step:>{len(str(self.total))}}/{self.total} · {headline}{whole}")

    def stop(self) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, flush=True)


class LiveTable:
    """A progress bar over a table that is redrawn in place (rich)."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()
        self.live: Any = None

    def start(self, total: int) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("steps ·"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self.task = self.progress.add_task("training", total=total)
        self.live = Live(console=self.console, refresh_per_second=8)
        self.live.start()

    def update(self, step: int, headline: str, header: Row, rows: Sequence[Row]) -> None:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=headline, title_justify="left", title_style="bold")
        last = len(header) - 1
        for index, name in enumerate(header):
            # A long name is folded, so that the numbers beside it stay whole.
            side: Literal["left", "right"] = "left" if index in (0, last) else "right"
            head = "\nof ".join(name.rsplit(" of ", 1))
            table.add_column(head, justify=side, no_wrap=index > 0, overflow="fold")
        for index, row in enumerate(rows):
            table.add_row(*row, style="bold" if index == len(rows) - 1 else None, end_section=index == len(rows) - 2)
        self.progress.update(self.task, completed=step)
        self.live.update(Group(self.progress, table))

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def choose_display(quiet: bool = False) -> Display:
    """Nothing when `quiet`; the live table on a terminal wide enough for it, if rich is installed; else plain lines."""
    if quiet:
        return Quiet()
    wide = sys.stdout.isatty() and shutil.get_terminal_size().columns >= NARROWEST
    return LiveTable() if wide and importlib.util.find_spec("rich") is not None else PlainLines()


def noise_scale_of(gamma: float) -> float:
    """Samples for which signal equals noise, from Γ of one sample: 1/Γ, infinite where no signal is seen."""
    if math.isnan(gamma):
        return math.nan
    return 1 / gamma if gamma > 0 else math.inf


def table_row(name: str, gamma: float, low: float, high: float, batch_size: int) -> tuple[str, ...]:
    """One row of the live table from Γ of one sample and its bounds; shown is that of a batch.

    The interval is that of the noise scale, which has none where Γ lies below zero with both bounds.
    """
    from ...report.figures import plain_number

    interval = f"{plain_number(noise_scale_of(high))} – {plain_number(noise_scale_of(low))}" if high > 0 else "–"
    if math.isnan(low):
        phase = "–"
    else:
        phase = "drift" if low * batch_size > 1 else "diffusion" if high * batch_size < 1 else "critical"
    return name, plain_number(gamma * batch_size), plain_number(noise_scale_of(gamma)), interval, phase
