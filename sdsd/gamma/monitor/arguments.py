"""What `GammaMonitor` may be given."""

from __future__ import annotations

import warnings
from typing import Any

from sdsd_kernels import checks

MODES = ("auto", "exact", "micro")
AUTO_SWITCH = 4
"""Backward passes in one step from which "auto" takes micro-batches for samples: as exact, and any layer works."""


def check_arguments(mode: str, loss_reduction: str, ema: float, confidence: float, precondition: Any) -> None:
    """ValueError for an argument out of range."""
    for name, chosen, choices in (("mode", mode, MODES), ("loss_reduction", loss_reduction, ("mean", "sum"))):
        if chosen not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {chosen!r}.")
    if not 0 <= ema < 1:
        raise ValueError(f"ema: expected the weight of the past, 0 ≤ ema < 1, got {ema!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a level between 0 and 1, for example 0.95, got {confidence!r}.")
    if precondition is not None and mode == "micro":
        raise ValueError("precondition: measured in exact mode only; leave it out or use mode='exact'.")


def warn_of_switch(passes: int) -> None:
    """Say that a step of so many backward passes made micro-batches the samples."""
    warnings.warn(
        f"a step of {passes} backward passes: from the next one on micro-batches are the samples (mode 'micro'), and "
        "the running averages start anew. Pass mode='exact' to keep single samples.",
        stacklevel=4,
    )


def check_dimension(batch_dim: Any) -> int | None:
    """`batch_dim` as an int, if it counts from the front; None stays None, for lists of samples."""
    if batch_dim is None:
        return None
    dimension = checks.whole_number(batch_dim)
    if dimension is None or dimension < 0:
        raise ValueError(
            "batch_dim: expected a dimension counted from the front, 0 or more, or None where the model is called with "
            f"a list of samples, got {batch_dim!r}."
        )
    return int(dimension)
