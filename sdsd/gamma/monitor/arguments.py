"""What `GammaMonitor` may be given."""

from __future__ import annotations

MODES = ("auto", "exact", "micro")
AUTO_SWITCH = 4
"""Backward passes in one step from which "auto" takes micro-batches for samples: as exact, and any layer works."""


def check_arguments(
    every: int,
    mode: str,
    batch_dim: int,
    batch_size: int | None,
    loss_reduction: str,
    ema: float,
    confidence: float,
    max_bytes: int,
) -> None:
    for name, value in (("every", every), ("batch_size", batch_size), ("max_bytes", max_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a whole number, at least 1, got {value!r}.")
    if isinstance(batch_dim, bool) or not isinstance(batch_dim, int) or batch_dim < 0:
        raise ValueError(f"batch_dim: expected a dimension counted from the front, 0 or more, got {batch_dim!r}.")
    for name, chosen, choices in (("mode", mode, MODES), ("loss_reduction", loss_reduction, ("mean", "sum"))):
        if chosen not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {chosen!r}.")
    if not 0 <= ema < 1:
        raise ValueError(f"ema: expected the weight of the past, 0 ≤ ema < 1, got {ema!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a level between 0 and 1, for example 0.95, got {confidence!r}.")
