"""The definition in plain torch, float64 throughout. Slow, never a backend."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_between_reference(
    x: Tensor, y: Tensor, *, neuron_dim: int = -1, zero: str = "zero", center: bool = False
) -> Tensor:
    """cosine_between by definition: x_i · y_j / (‖x_i‖ ‖y_j‖) in float64. Takes what `cosine_between` takes."""
    cosine = _directions(x, "x", neuron_dim, zero, center) @ _directions(y, "y", neuron_dim, zero, center).T
    return cosine.clamp(-1, 1)


def _directions(activations: Tensor, name: str, neuron_dim: int, zero: str, center: bool) -> Tensor:
    """Every neuron divided by its norm.  # shape: (N, SAMPLES)"""
    rows = activations.movedim(neuron_dim, 0).flatten(1).double()
    if center:
        rows = rows - rows[:, :1]
        rows = rows - rows.mean(1, keepdim=True)
    # Dividing by the peak first keeps the squares of very large and very small neurons in range.
    peak = rows.abs().amax(1, keepdim=True)
    if zero == "raise" and bool((peak == 0).any()):
        raise ValueError(f"{name}: {int((peak == 0).sum())} neurons are zero on every sample.")
    rows = rows / torch.where(peak > 0, peak, 1.0)
    rows = rows / torch.where(peak > 0, rows.norm(dim=1, keepdim=True), torch.nan if zero == "nan" else 1.0)
    rows[~peak.squeeze(1).isfinite()] = torch.nan
    return rows
