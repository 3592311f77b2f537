"""The torch path: equal tokens of a sample share a slot, gradients are added into slots, slots are squared."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup_squares(grads: Tensor, tokens: Tensor, padding: int) -> Tensor:
    """Σ_n ‖g_n‖², a 0-dim float64 tensor, of gradients (N, T, d) at tokens (N, T)."""
    values = grads.to(torch.promote_types(grads.dtype, torch.float32))
    if padding >= 0:
        values = values.masked_fill((tokens == padding).unsqueeze(-1), 0.0)
    ordered, order = tokens.sort(dim=1)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # Slots count on through the samples, so that no two samples share one.
    slots = new.flatten().cumsum(0) - 1
    rows = values.gather(1, order.unsqueeze(-1).expand_as(values)).flatten(0, 1)
    added = torch.zeros_like(rows).index_add(0, slots, rows)
    return added.double().square().sum()
