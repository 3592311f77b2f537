"""How far a long call is: nothing, a line on standard error, or what the caller makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable

Report = Callable[[int, int], None]
Progress = bool | Report
"""What a long call takes as `progress`: False, True for a line on standard error, or a function (done, total)."""


def reporter(progress: Progress, what: str) -> Report:
    """The function that a long call tells (done, total), about a hundred times and at its end.

    Raises:
        TypeError: `progress` is neither a bool nor a function.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"progress: expected True, False or a function of (done, total), got {type(progress).__name__}."
        )
    if progress is False:
        return lambda done, total: None
    told: Report = progress if callable(progress) else lambda done, total: _print_line(what, done, total)

    def sparing(done: int, total: int) -> None:
        if done == total or done % max(1, total // 100) == 0:
            told(done, total)

    return sparing


def _print_line(what: str, done: int, total: int) -> None:
    print(f"\r{what}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
