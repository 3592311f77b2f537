"""What a person sees while a study trains: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

Row = tuple[str, ...]


class Display(Protocol):
    """Progress of one training run."""

    def start(self, total: int, header: Row) -> None: ...

    def update(self, step: int, headline: str, rows: Sequence[Row]) -> None: ...

    def stop(self) -> None: ...

    def say(self, text: str) -> None: ...


class Quiet:
    """Says nothing."""

    def start(self, total: int, header: Row) -> None:
        pass

    def update(self, step: int, headline: str, rows: Sequence[Row]) -> None:
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

    def start(self, total: int, header: Row) -> None:
        self.total = total

    def update(self, step: int, headline: str, rows: Sequence[Row]) -> None:
        every = max(1, self.total // self.lines)
        if step % every == 0 or step == self.total:
            whole = f" · Γ {rows[-1][1]} · noise scale {rows[-1][2]}" if rows else ""
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

    def start(self, total: int, header: Row) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.header = header
        self.progress = Progress(
            TextColumn("[bold]training"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("steps ·"),
            TimeRemainingColumn(), console=self.console, expand=True,
        )  # fmt: skip
        self.task = self.progress.add_task("training", total=total)
        self.live = Live(console=self.console, refresh_per_second=8)
        self.live.start()

    def update(self, step: int, headline: str, rows: Sequence[Row]) -> None:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, title=headline, title_justify="left", title_style="bold")
        for index, name in enumerate(self.header):
            table.add_column(name, justify="left" if index in (0, len(self.header) - 1) else "right", no_wrap=True)
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
    """Nothing when `quiet`; the live table on a terminal; else plain lines."""
    if quiet:
        return Quiet()
    return LiveTable() if sys.stdout.isatty() else PlainLines()
