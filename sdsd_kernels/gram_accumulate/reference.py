"""The definition in plain torch, float64 throughout. Slow, never a backend: what `sdsd.validate()` compares with."""

from __future__ import annotations

from torch import Tensor


def gram_accumulate_reference(
    gram: Tensor,
    activations: Tensor,
    *,
    neuron_dim: int = -1,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """The upper triangle that `gram_accumulate` leaves, zeros below it, as a new float64 matrix."""
    a = activations.detach().movedim(neuron_dim, 0).flatten(1).double()
    if shift is not None:
        a = a - shift.detach().double()[:, None]
    if scale is not None:
        a = a * scale.detach().double()[:, None]
    return (gram.detach().double() + a @ a.T).triu()
