"""The definition in plain torch, float64 throughout. Slow, never a backend: what `sdsd.validate()` compares with."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_matrix_reference(
    activations: Tensor, *, neuron_dim: int = -1, zero: str = "zero", center: bool = False
) -> Tensor:
    """cosine_matrix by definition: x_i · x_j / (‖x_i‖ ‖x_j‖)."""
    u = directions(activations, "activations", neuron_dim=neuron_dim, zero=zero, center=center)
    cosine = (u @ u.T).clamp(-1, 1)
    cosine.diagonal()[u.norm(dim=1) > 0] = 1.0
    return cosine


def directions(
    activations: Tensor, name: str, *, neuron_dim: int = -1, zero: str = "zero", center: bool = False
) -> Tensor:
    """Every neuron divided by its norm; NaN for one with a NaN or an infinity.  # shape: (N, SAMPLES)"""
    rows = activations.movedim(neuron_dim, 0).flatten(1).double()
    if center:
        rows = rows - rows[:, :1]
        rows = rows - rows.mean(1, keepdim=True)
    peak = rows.abs().amax(1, keepdim=True)
    dead = peak == 0
    if zero == "raise" and dead.any():
        raise ValueError(f"{name}: {int(dead.sum())} neurons are zero on every sample.")
    # Dividing by the peak first keeps the squares of very large and very small neurons in range.
    rows = rows / peak
    return torch.where(dead, torch.nan if zero == "nan" else 0.0, rows / rows.norm(dim=1, keepdim=True))
