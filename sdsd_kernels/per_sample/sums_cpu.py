"""The torch path: the definition in float32 or better, one tensor a sample's gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_shift_grads(
    grads: Tensor,
    inputs: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    square_norms: Tensor,
    scale_row: int,
    shift_row: int,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    wide = torch.promote_types(grads.dtype, torch.float32)
    b = grads.to(wide)
    scale = shift = None
    if inputs is not None:
        x = inputs.to(wide)
        for statistic, apply in ((mean, torch.sub), (rstd, torch.mul)):
            if statistic is not None:
                group = x.shape[2] // statistic.shape[2]
                x = apply(x, statistic.to(wide).repeat_interleave(group, 2))
        scale = (b * x).sum(1)
    if shift_row >= 0:
        shift = b.sum(1)
    for row, each in ((scale_row, scale), (shift_row, shift)):
        if each is not None:
            square_norms[row, 0] = each.double().square().sum()
    return None if scale is None else scale.sum(0).to(dtype), None if shift is None else shift.sum(0).to(dtype)
