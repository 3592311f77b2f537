"""How far a long call is: nothing, a line on standard error, or what the caller makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable

Report = Callable[[int, int], None]
Progress = bool | Report
"""What a long call takes as `progress`: False, True for a line on standard error, or a function (done, total)."""


def reporter(progress: Progress, what: str) -> Report:
    """The function that a long call tells (done, total).

    Raises:
        TypeError: `progress` is neither a bool nor a function.
    """
    if progress is False:
        return lambda done, total: None
    if progress is True:
        return lambda done, total: _print_line(what, done, total)
    if not callable(progress):
        raise TypeError(
            f"progress: expected True, False or a function of (done, total), got {type(progress).__name__}."
        )
    return progress


def sparing(report: Report) -> Report:
    """`report`, told of a call's end and about a hundred times before."""

    def told(done: int, total: int) -> None:
        if done == total or done % max(1, total // 100) == 0:
            report(done, total)

    return told


def _print_line(what: str, done: int, total: int) -> None:
    """On a terminal one line that is written over; elsewhere a line for every tenth part."""
    if sys.stderr.isatty():
        print(f"\r{what}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total or done * 10 // total > (done - 1) * 10 // total:
        print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)
