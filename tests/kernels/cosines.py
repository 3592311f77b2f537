"""Cosines in float64, written apart from the references of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def flat(x: Tensor, neuron_dim: int = -1) -> Tensor:
    """One neuron a row, on the CPU, where it can be compared.  # shape: (N, SAMPLES)"""
    return x.detach().cpu().movedim(neuron_dim, 0).flatten(1)


def exact_rows(x: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    rows = flat(x, neuron_dim).double()
    return rows - rows.sum(1, keepdim=True) / rows.shape[1] if center else rows


def exact_cosines(one: Tensor, other: Tensor) -> Tensor:
    """Sums of products over square roots of sums of squares; float64 holds squares of 1e±30 without scaling."""
    squares = [(rows * rows).sum(1) for rows in (one, other)]
    return torch.einsum("is,js->ij", one, other) / torch.sqrt(squares[0][:, None] * squares[1][None, :])
