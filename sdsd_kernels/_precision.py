"""What products of float32 values may be rounded to on a GPU."""

from __future__ import annotations

import warnings
from typing import Any

from ._checks import check_choice

PRECISIONS = ("float32", "fp16")
RETIRED = {"tf32": "fp16", "bf16": "fp16", "bf16x3": "float32"}
"""Precisions of earlier releases and what serves in their place: as exact or more so, and as fast or faster."""


def check_precision(value: Any) -> str:
    """One of `PRECISIONS`; a DeprecationWarning for what used to be one, a ValueError for anything else."""
    if value in PRECISIONS:
        return str(value)
    if isinstance(value, str) and value in RETIRED:
        warnings.warn(
            f"precision={value!r} is retired: {RETIRED[value]!r} serves in its place, which errs no more and takes no "
            "longer. Pass that.",
            DeprecationWarning,
            stacklevel=3,
        )
        return RETIRED[value]
    return check_choice(value, "precision", PRECISIONS)
