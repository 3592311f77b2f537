"""Per-sample gradients of a convolution's weight, and their squares, by the cheaper of two ways.

A batch of N images with C channels is one image with N·C channels; convolved in N·groups groups, its weight gradient
holds the gradient of every sample side by side. With few positions and many channels products of positions are
cheaper.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .pieces import chunks, sum_of_squares

GROUP_BYTES = 2**21
"""Samples are taken together while a group's inputs, or its gradients, are no larger: they stay in the cache."""


def by_samples(
    grad: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], scale: Tensor | None, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """The weight gradient as the sum of those of the samples, and the sum of their squares."""
    total = torch.zeros(weight.numel(), dtype=_wide_dtype(weight), device=weight.device)
    squares: Tensor | None = None
    most = max(weight.numel(), x[0].numel(), grad[0].numel()) * weight.element_size()
    for start, stop in chunks(x.shape[0], most, min(max_bytes, GROUP_BYTES)):
        each = per_sample_weight(grad[start:stop], x[start:stop], weight, settings)
        flat = each.view(stop - start, -1).to(total.dtype)
        total.addmv_(flat.t(), flat.new_ones(stop - start))
        part = sum_of_squares(each, scale)
        squares = part if squares is None else squares + part
    assert squares is not None
    return total.view(weight.shape).to(weight.dtype), squares


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


PASSES = 95
"""Multiply-adds that forming, squaring and adding up one value of a sample's gradient costs beyond the plain layer."""
ADDING = 60
"""The same for adding up one product of two positions. Both fitted to a few layers, float32, one thread of an EPYC."""


def products_win(x: Tensor, grad: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> bool:
    """Whether products of positions are cheaper than gradients of samples: few positions, many channels."""
    stride, padding, _, transposed, _, groups = settings
    known = x.ndim == 4 and not transposed and groups == 1 and x.dtype in (torch.float32, torch.float64)
    if not known or x.device.type != "cpu":
        return False
    p, c = weight.shape[:2]
    taps, positions = weight[0, 0].numel(), grad[0, 0].numel()
    inputs = (x.shape[2] + 2 * padding[0]) * (x.shape[3] + 2 * padding[1])
    phases = min(stride[0] * stride[1], taps)
    return (
        phases * (inputs / (stride[0] * stride[1])) ** 2 * c + positions**2 * (p + ADDING * taps)
        < PASSES * p * c * taps
    )


def squares_by_products(grad: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], max_bytes: int) -> Tensor:
    """Σ_n ‖g_n‖² = Σ_n ⟨B, A⟩: products of output gradients and of patches, for all pairs of positions.

    The product of two patches is a sum over the kernel's taps of products of two inputs: of one product matrix, read
    at shifted places. With a stride only inputs of the same phase ever meet.
    """
    stride, (top, left), dilation = settings[:3]
    x = F.pad(x, (left, left, top, top))
    height, width = grad.shape[2:]
    taps = [[divmod(k * dilation[axis], stride[axis]) for k in range(weight.shape[2 + axis])] for axis in (0, 1)]
    total = grad.new_zeros((), dtype=torch.float64)
    most = max((x[0, 0].numel() // (stride[0] * stride[1])) ** 2, x[0].numel()) * x.element_size()
    for start, stop in chunks(x.shape[0], most, min(max_bytes, GROUP_BYTES)):
        patches = x.new_zeros(stop - start, height, width, height, width)
        for row_phase in {phase for _, phase in taps[0]}:
            for column_phase in {phase for _, phase in taps[1]}:
                part = x[start:stop, :, row_phase :: stride[0], column_phase :: stride[1]]
                flat = part.flatten(2)
                inputs = torch.bmm(flat.transpose(1, 2), flat).unflatten(2, part.shape[2:]).unflatten(1, part.shape[2:])
                for i, _ in (tap for tap in taps[0] if tap[1] == row_phase):
                    for j, _ in (tap for tap in taps[1] if tap[1] == column_phase):
                        rows, columns = slice(i, i + height), slice(j, j + width)
                        patches += inputs[:, rows, columns, rows, columns]
        b = grad[start:stop].flatten(2)
        total = total + torch.dot(torch.bmm(b.transpose(1, 2), b).view(-1), patches.view(-1))
    return total


def per_sample_weight(grad: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> Tensor:
    """Weight gradient of every sample; shape: (N, *weight.shape)."""
    n = x.shape[0]
    stride, padding, dilation, transposed, output_padding, groups = settings
    shape = (n * weight.shape[0], *weight.shape[1:])
    # Only the shape of the weight is looked at when its gradient alone is asked for.
    stand_in = weight.new_zeros(1).expand(shape)
    # By way of one dimension: strides of dimensions of size 1 may look like channels last, which torch then fails at.
    together = torch.ops.aten.convolution_backward(
        grad.reshape(-1).view(1, -1, *grad.shape[2:]),
        x.reshape(-1).view(1, -1, *x.shape[2:]),
        stand_in,
        [0],
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        n * groups,
        [False, True, False],
    )[1]
    return together.view(n, *weight.shape)
