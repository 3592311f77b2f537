"""The definition, in plain torch and float64. Compared with, never served."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup_squares_reference(grads: Tensor, tokens: Tensor, *, padding: int | None = None) -> Tensor:
    """Σ_n ‖g_n‖² with every sample's gradient of the whole table formed."""
    total = torch.zeros((), dtype=torch.float64, device=grads.device)
    for each, read in zip(grads.detach().double(), tokens.long(), strict=True):
        table = torch.zeros(int(read.max()) + 1, each.shape[1], dtype=torch.float64, device=grads.device)
        table.index_add_(0, read, each)
        if padding is not None and padding < len(table):
            table[padding] = 0.0
        total += table.square().sum()
    return total
