"""The definition in plain torch, float64 throughout. Slow, never a backend: what `sdsd.validate()` compares with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cosine_matrix.reference import directions


def cosine_topk_reference(
    activations: Tensor, k: int, *, other: Tensor | None = None, farthest: bool = False, **options: Any
) -> tuple[Tensor, Tensor]:
    """cosine_topk by definition: every cosine, sorted by value and then by index. `options`: neuron_dim, center."""
    # NaN for a neuron without direction.
    rows = directions(activations, "activations", zero="nan", **options)
    others = rows if other is None else directions(other, "other", zero="nan", **options)
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
