"""The rows of a layer as directions and shares, checked once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDING = 1e-12
"""Of cosines: rows of one direction are within any angle, and a cap holds its edge, up to which points are drawn."""


def check_angle(angle: float) -> None:
    if not 0 < angle <= math.pi / 2:
        raise ValueError(f"angle: expected radians in (0, π/2], got {angle!r}. Degrees? Use math.radians.")


def live_rows(rows: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows that have mass and direction, and their shares in float64, which sum to 1."""
    for value, name in ((rows, "rows"), (mass, "mass")):
        if value is not None and not (isinstance(value, Tensor) and value.is_floating_point()):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point torch.Tensor, got {kind}.")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"rows: expected shape (neurons, dimensions), neither 0, got {tuple(rows.shape)}.")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"rows: expected finite numbers, got {int((~rows.isfinite()).sum())} that are not.")
    if mass is None:
        mass = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    if mass.shape != rows.shape[:1]:
        raise ValueError(f"mass: expected one number a row, {len(rows)}, got shape {tuple(mass.shape)}.")
    if not bool((mass.isfinite() & (mass >= 0)).all()):
        raise ValueError(f"mass: expected finite numbers ≥ 0, got {mass.min().item():g} … {mass.max().item():g}.")
    live = (mass.detach() > 0) & (rows.detach() != 0).any(1)
    if not bool(live.any()):
        raise ValueError("rows: expected at least one neuron with mass and a direction, got none.")
    share = mass[live].double()
    return rows[live], share / share.sum()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1 in float64; divided by their largest entry first, so that no square leaves the range."""
    rows = rows.double()
    rows = rows / rows.detach().abs().amax(1, keepdim=True)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
