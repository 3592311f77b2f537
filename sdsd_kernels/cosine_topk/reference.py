"""The definition in plain torch, float64 throughout. Slow, never a backend: what `sdsd.validate()` compares with."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_topk_reference(
    activations: Tensor,
    k: int,
    *,
    neuron_dim: int = -1,
    other: Tensor | None = None,
    farthest: bool = False,
    precision: str = "float32",
    center: bool = False,
) -> tuple[Tensor, Tensor]:
    """cosine_topk by definition: every cosine in float64, sorted by value and then by index.

    Takes what `cosine_topk` takes; `precision` changes nothing here. Values are float64.
    """
    rows = _directions(activations, neuron_dim, center)
    others = rows if other is None else _directions(other, neuron_dim, center)
    scores = rows @ others.T
    if farthest:
        scores = -scores
    if other is None:
        scores.fill_diagonal_(-torch.inf)
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    values, indices = scores.sort(dim=1, descending=True, stable=True)
    values, indices = values[:, :k], indices[:, :k]
    missing = values == -torch.inf
    values = (-values if farthest else values).clamp(-1, 1)
    return values.masked_fill(missing, torch.nan), indices.masked_fill(missing, -1)


def _directions(activations: Tensor, neuron_dim: int, center: bool) -> Tensor:
    """Every neuron divided by its norm, NaN for one that has no direction.  # shape: (N, SAMPLES)"""
    rows = activations.movedim(neuron_dim, 0).flatten(1).double()
    if center:
        rows = rows - rows[:, :1]
        rows = rows - rows.mean(1, keepdim=True)
    # Dividing by the peak first keeps the squares of very large and very small neurons in range; 0 / 0 is NaN.
    rows = rows / rows.abs().amax(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True)
