"""The definitions, in plain torch and float64. Compared with, never served."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import grad

from .op import WeightGradStats


def weight_grad_stats_reference(
    inputs: Tensor, output_grads: Tensor, *, weight_grad: bool = True, scale: Tensor | None = None
) -> WeightGradStats:
    """Weight gradient and square norm by their definition, in float64; see `weight_grad_stats` for the shapes."""
    a = inputs.detach().double()
    b = output_grads.detach().double()
    if a.ndim == 2:
        a, b = a.unsqueeze(1), b.unsqueeze(1)
    return _stats(torch.einsum("ntp,ntd->npd", b, a), weight_grad, scale)


def conv_weight_grad_stats_reference(
    inputs: Tensor,
    output_grads: Tensor,
    kernel_size: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    weight_grad: bool = True,
    scale: Tensor | None = None,
) -> WeightGradStats:
    """The same for a convolution, sample by sample; see `conv_weight_grad_stats`."""
    space = inputs.ndim - 2
    kernel = tuple(kernel_size) if isinstance(kernel_size, (list, tuple)) else (kernel_size,) * space
    shape = (output_grads.shape[1], inputs.shape[1] // groups, *kernel)
    gradient = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)[space - 1]
    per_sample = [
        gradient(a[None], shape, b[None], stride=stride, padding=padding, dilation=dilation, groups=groups)
        for a, b in zip(inputs.detach().double(), output_grads.detach().double(), strict=True)
    ]
    return _stats(torch.stack(per_sample), weight_grad, scale)


def _stats(per_sample: Tensor, weight_grad: bool, scale: Tensor | None) -> WeightGradStats:
    scaled = per_sample if scale is None else per_sample * scale.detach().double()
    return WeightGradStats(per_sample.sum(0) if weight_grad else None, (scaled * scaled).sum())
