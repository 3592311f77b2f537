"""The definition in plain torch, float64 throughout. Slow, never a backend."""

from __future__ import annotations

from torch import Tensor

from ..cosine_matrix.reference import directions


def cosine_between_reference(
    x: Tensor, y: Tensor, *, neuron_dim: int = -1, zero: str = "zero", center: bool = False
) -> Tensor:
    """cosine_between by definition: x_i · y_j / (‖x_i‖ ‖y_j‖) in float64. Takes what `cosine_between` takes."""
    u, v = (directions(*part, neuron_dim=neuron_dim, zero=zero, center=center) for part in ((x, "x"), (y, "y")))
    return (u @ v.T).clamp(-1, 1)
