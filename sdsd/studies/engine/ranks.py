"""Spearman's rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Values = Sequence[float] | Tensor


def rank_correlation(one: Values, other: Values) -> float:
    """Spearman's correlation of two series of the same length; ties share their mean rank.

    Returns:
        Between −1 and 1; NaN where one side is constant.
    """
    a, b = (_ranks(torch.as_tensor(side, dtype=torch.float64)) for side in (one, other))
    size = (a.norm() * b.norm()).item()
    return a.dot(b).item() / size if size > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    """Ranks less their mean; shape: (n,)."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts + 1) / 2 - (len(values) - 1) / 2).double()[inverse]
