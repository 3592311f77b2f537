"""A study that is measured at once."""

from __future__ import annotations

import math

from sdsd.studies.engine import (
    Measured,
    Study,
    Verdict,
)

MEASURED: list[int] = []
"""seeds that `measure` was called for"""


def measure(seed, progress, *, size=10, interrupt_at=None):
    if seed == interrupt_at:
        raise KeyboardInterrupt
    MEASURED.append(seed)
    return {"numbers": [seed, size], "nothing": math.nan, "endless": math.inf, "pair": (1, 2)}


def judge(result):
    return [Verdict("c", "s", "refuted", "r", "1", Measured(float(sum(result.pooled("numbers")))), "i")]


def draw(result):
    from sdsd.report import figures

    figure, axes = figures.new_figure(3, 2)
    axes.plot(result.pooled("numbers"))
    return figure


def toy(name: str = "toy", interrupt_at: int | None = None, **changes) -> Study:
    settings = {} if interrupt_at is None else {"interrupt_at": interrupt_at}
    fields = {"settings": settings, "quick": {"size": 1}, "measure": measure, "judge": judge, "draw": draw}
    return Study(name, "counts", "it counts", "nobody", **{**fields, "expected_seconds": 1, **changes})
