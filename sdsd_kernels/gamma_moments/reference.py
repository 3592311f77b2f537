"""The definition, in plain torch and float64. Compared with, never served."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .op import GammaMoments


def gamma_moments_reference(grads: Tensor | Sequence[Tensor], *, per_sample: bool = False) -> GammaMoments:
    """Moments by their definition; see `gamma_moments` for arguments and shapes."""
    entries = [grads] if isinstance(grads, Tensor) else list(grads)
    rows: dict[str, list[Tensor]] = {field: [] for field in GammaMoments._fields}
    for entry in entries:
        G = entry.detach().double().reshape(entry.shape[0], -1)  # shape: (N, P)
        mean = G.mean(0)
        d = G - mean
        quads = G[: G.shape[0] // 4 * 4].reshape(-1, 4, G.shape[1])
        rows["signal"].append(mean @ mean)
        rows["squares"].append((d * d).sum())
        rows["deviations"].append((d * d).sum(1))
        rows["projections"].append(d @ mean)
        rows["products"].append(((quads[:, 0] - quads[:, 1]) * (quads[:, 2] - quads[:, 3])).sum(1) / 2)
    stacked = {field: torch.stack(values) for field, values in rows.items()}
    if not per_sample:
        return GammaMoments(stacked["signal"], stacked["squares"], None, None, None)
    return GammaMoments(**stacked)
