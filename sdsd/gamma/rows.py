"""A row of a `GammaHistory`: what a measured step gave, in total or for a parameter, and the JSON it is kept as."""

from __future__ import annotations

import json
import math
from typing import Any

from .recommend import recommend_batch
from .stats import GammaStats

TOTAL = "total"
COLUMNS = (
    "step",
    "parameter",
    "batch_size",
    "signal",
    "noise",
    "gamma",
    "gamma_unbiased",
    "noise_scale",
    "smoothed_gamma",
    "smoothed_noise_scale",
    "noise_scale_low",
    "noise_scale_high",
    "confidence",
    "phase",
    "recommended_batch",
    "verdict",
    "advice",
)
Row = dict[str, Any]
Values = tuple[Any, ...]
"""A row's values in the order of `COLUMNS`: less memory than a row, and nothing for the garbage collector to visit."""
_WORDS = {name: f"{name}_is" for name in COLUMNS}


def row_of(step: int, name: str, stats: GammaStats) -> Row:
    """The row of a step that gave `stats` in total, or for the parameter `name`."""
    smoothed = stats.smoothed
    interval, level = (None, None) if smoothed is None else (smoothed.noise_scale_interval, smoothed.confidence)
    low, high = interval or (math.nan, math.nan)
    per_sample = math.nan if smoothed is None else smoothed.gamma_unbiased / smoothed.samples_per_gradient
    advice = None if smoothed is None or smoothed.confidence is None else recommend_batch(smoothed)
    values = (
        step,
        name,
        stats.batch_size,
        stats.signal,
        stats.noise,
        stats.gamma,
        stats.gamma_unbiased,
        stats.noise_scale,
        per_sample,
        math.nan if smoothed is None else smoothed.noise_scale,
        low,
        high,
        None if interval is None else level,
        None if smoothed is None else smoothed.phase,
        None if advice is None else advice.samples,
        None if advice is None else advice.verdict,
        None if advice is None or name != TOTAL else str(advice),
    )
    return dict(zip(COLUMNS, values, strict=True))


def line_of(row: Row) -> str:
    """A row as a line of strict JSON: what is not finite is null, and a word beside it says which."""
    plain = {}
    for name, value in row.items():
        plain[name] = value
        if isinstance(value, float) and not math.isfinite(value):
            plain |= {name: None, f"{name}_is": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def row_of_line(line: str) -> Row:
    """The row that a line of a file holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        plain = {"confidence": None} | json.loads(line)
        row = {name: plain[name] for name in COLUMNS}
        if len(plain) > len(COLUMNS):
            row |= {name: float(plain[word]) for name, word in _WORDS.items() if word in plain}
        if type(row["step"]) is not int or not isinstance(row["parameter"], str):
            raise TypeError("step and parameter are no whole number and text")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a row of a GammaHistory, got {line.strip()[:60]!r} ({type(error).__name__}: {error})."
        ) from error
    return row
