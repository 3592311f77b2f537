"""The definitions in plain torch, float64, from the whole matrix. Slow, never a backend: `sdsd.validate()` compares.

`options`: neuron_dim and center.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cosine_matrix.reference import cosine_matrix_reference


def pair_cosines_reference(activations: Tensor, **options: Any) -> Tensor:
    """Cosines of all pairs, NaN on and below the diagonal and for neurons without direction.  # shape: (N, N)"""
    cosine = cosine_matrix_reference(activations, zero="nan", **options)
    return cosine.masked_fill(torch.ones_like(cosine, dtype=torch.bool).tril(), torch.nan)


def cosine_histogram_reference(activations: Tensor, bins: int = 100, **options: Any) -> Tensor:
    """Counts of cosine_histogram by definition.  # shape: (bins,)"""
    cosine = pair_cosines_reference(activations, **options)
    place = ((cosine[~cosine.isnan()] + 1) * bins / 2).floor().long().clamp(max=bins - 1)
    return torch.bincount(place, minlength=bins)


def cosine_row_sums_reference(
    activations: Tensor, kind: str = "cosine", *, neuron_dim: int = -1, center: bool = False
) -> Tensor:
    """cosine_row_sums by definition.  # shape: (N,)"""
    cosine = pair_cosines_reference(activations, neuron_dim=neuron_dim, center=center)
    term = {"cosine": cosine, "absolute": cosine.abs(), "distance": (2 - 2 * cosine).sqrt()}[kind]
    sums = term.nansum(1) + term.nansum(0)
    rows = activations.movedim(neuron_dim, 0).flatten(1)
    return sums.masked_fill(~rows.isfinite().all(1), torch.nan)


def cosine_pairs_reference(
    activations: Tensor, *, above: float | None = None, below: float | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """First, second and cosine of cosine_pairs by definition."""
    cosine = pair_cosines_reference(activations, **options)
    bound: Any = below if above is None else above
    first, second = torch.where(cosine <= bound if above is None else cosine >= bound)
    return first, second, cosine[first, second]
