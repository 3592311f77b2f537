"""Noise to compare with."""

from __future__ import annotations

import torch


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quartic(s: torch.Tensor) -> torch.Tensor:
    return (s**4).sum(1) / 4 + s[:, 0] * s[:, 1]
