"""The definitions, in plain torch and float64. Compared with, never served."""

from __future__ import annotations

from torch import Tensor


def scale_shift_grads_reference(
    output_grads: Tensor, inputs: Tensor | None = None, mean: Tensor | None = None, rstd: Tensor | None = None
) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor]]:
    """(gradient, square norm) of the scale, or None without inputs, and of the shift; see `scale_shift_grads`."""
    b = output_grads.detach().double()
    scale = None
    if inputs is not None:
        groups = 1 if mean is None and rstd is None else (mean if mean is not None else rstd).shape[2]  # type: ignore[union-attr]
        x = inputs.detach().double().unflatten(2, (groups, -1))
        if mean is not None:
            x = x - mean.detach().double().unsqueeze(3)
        if rstd is not None:
            x = x * rstd.detach().double().unsqueeze(3)
        each = (b * x.flatten(2)).sum(1)
        scale = each.sum(0), each.square().sum()
    each = b.sum(1)
    return scale, (each.sum(0), each.square().sum())
