"""The definition, in plain torch and float64. Compared with, never served."""

from __future__ import annotations

import torch
from torch import Tensor

from .op import WeightGradStats


def weight_grad_stats_reference(
    inputs: Tensor, output_grads: Tensor, *, weight_grad: bool = True, scale: Tensor | None = None
) -> WeightGradStats:
    """Weight gradient and square norm by their definition, in float64; see `weight_grad_stats` for the shapes."""
    a = inputs.detach().double()
    b = output_grads.detach().double()
    if a.ndim == 2:
        a, b = a.unsqueeze(1), b.unsqueeze(1)
    per_sample = torch.einsum("ntp,ntd->npd", b, a)  # shape: (N, p, d)
    scaled = per_sample if scale is None else per_sample * scale.detach().double()
    return WeightGradStats(per_sample.sum(0) if weight_grad else None, (scaled * scaled).sum())
