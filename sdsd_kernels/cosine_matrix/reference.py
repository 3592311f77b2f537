"""The definition in plain torch, float64 throughout. Slow, never a backend: what `sdsd.validate()` compares with."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_matrix_reference(
    activations: Tensor,
    *,
    neuron_dim: int = -1,
    precision: str = "float32",
    out_dtype: torch.dtype | None = None,
    zero: str = "zero",
    center: bool = False,
) -> Tensor:
    """cosine_matrix by definition: x_i · x_j / (‖x_i‖ ‖x_j‖) in float64, then one rounding to `out_dtype`.

    Takes what `cosine_matrix` takes; `precision` changes nothing here. `out_dtype` None gives float64.
    """
    rows = activations.movedim(neuron_dim, 0).flatten(1).double()
    if center:
        rows = rows - rows[:, :1]
        rows = rows - rows.mean(1, keepdim=True)
    peak = rows.abs().amax(1, keepdim=True)
    dead = (peak == 0).squeeze(1)
    if zero == "raise" and dead.any():
        raise ValueError(f"activations: {int(dead.sum())} neurons are zero on every sample.")
    # Dividing by the peak first keeps the squares of very large and very small neurons in range.
    rows = rows / torch.where(peak > 0, peak, 1.0)
    rows = rows / torch.where(peak > 0, rows.norm(dim=1, keepdim=True), 1.0)
    rows[~peak.squeeze(1).isfinite()] = float("nan")
    if zero == "nan":
        rows[dead] = float("nan")
    cosine = (rows @ rows.T).clamp(-1, 1)
    cosine.diagonal()[(~dead) & peak.squeeze(1).isfinite()] = 1.0
    return cosine.to(out_dtype or torch.float64)
