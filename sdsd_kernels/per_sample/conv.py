"""Convolutions in torch, on any device: by gradients of samples, or by products of positions where those are cheaper.

A batch of N images with C channels is one image with N·C channels; convolved in N·groups groups, its weight gradient
holds the gradient of every sample side by side. Samples are taken in chunks that stay in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .cpu import GROUP_BYTES, as_result, sum_of_squares, trusted, working_dtype
from .geometry import Geometry
from .layout import weight_strides

PASSES = 95
"""Multiply-adds that forming, squaring and adding up one value of a sample's gradient costs beyond the plain layer."""
ADDING = 60
"""The same for adding up one product of two positions. Both fitted to a few layers, float32, one thread of an EPYC."""


def conv_weight_grad_stats(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
    weight_grad: bool,
    dtype: torch.dtype,
    channels_last: bool,
    max_bytes: int,
) -> tuple[Tensor | None, Tensor]:
    """Weight gradient or None, and the square norm, of inputs (N, C, *size) and output gradients (N, P, *size')."""
    shape = (output_grads.shape[1], inputs.shape[1] // geometry.groups, *geometry.kernel)
    total: Tensor | None
    squares: float | Tensor
    if scale is None and products_win(inputs, output_grads, geometry):
        total = _batch(inputs, output_grads, shape, geometry) if weight_grad else None
        squares = _by_products(inputs, output_grads, geometry, max_bytes)
    else:
        total, squares = _by_samples(inputs, output_grads, shape, scale, geometry, weight_grad, max_bytes)
    if total is not None:
        strides = weight_strides(shape, channels_last)
        if total.dtype != dtype or total.stride() != strides:
            total = torch.empty_strided(shape, strides, dtype=dtype, device=total.device).copy_(total)
    return total, as_result(squares, inputs)


def _gradient(x: Tensor, grad: Tensor, shape: tuple[int, ...], known: Geometry, groups: int) -> Tensor:
    # Only the shape of the weight is looked at when its gradient alone is asked for.
    stand_in = x.new_zeros(1).expand(shape)
    none = (0,) * len(known.kernel)
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad, x, stand_in, [0], known.stride, known.padding, known.dilation, False, none, groups, [False, True, False]
    )[1]
    return gradient


def _batch(x: Tensor, grad: Tensor, shape: tuple[int, ...], known: Geometry) -> Tensor:
    """The plain weight gradient."""
    return _gradient(x, grad, shape, known, known.groups)


def _each(x: Tensor, grad: Tensor, shape: tuple[int, ...], known: Geometry) -> Tensor:
    """Weight gradient of every sample; shape: (N, *shape)."""
    n = x.shape[0]
    together = _gradient(
        x.reshape(1, -1, *x.shape[2:]),
        grad.reshape(1, -1, *grad.shape[2:]),
        (n * shape[0], *shape[1:]),
        known,
        n * known.groups,
    )
    return together.reshape(n, *shape)


def _by_samples(
    inputs: Tensor,
    output_grads: Tensor,
    shape: tuple[int, ...],
    scale: Tensor | None,
    known: Geometry,
    weight_grad: bool,
    max_bytes: int,
) -> tuple[Tensor | None, float | Tensor]:
    """The weight gradient as the sum of those of the samples, and the sum of their squares."""
    dtype = working_dtype(inputs.dtype)
    elements = torch.Size(shape).numel()
    total = torch.zeros(elements, dtype=dtype, device=inputs.device) if weight_grad else None
    factors = None if scale is None else scale.to(dtype).reshape(-1)
    squares: float | Tensor = 0.0
    most = max(elements, inputs[0].numel(), output_grads[0].numel()) * dtype.itemsize
    for start, stop in chunks(inputs.shape[0], most, min(max_bytes, GROUP_BYTES)):
        x, grad = inputs[start:stop].to(dtype), output_grads[start:stop].to(dtype)
        flat = _each(x, grad, shape, known).view(stop - start, elements)
        if total is not None:
            total.addmv_(flat.t(), flat.new_ones(stop - start))
        if factors is not None:
            flat.mul_(factors)
        squares = squares + sum_of_squares(flat.view(-1))
        del x, grad, flat  # widened copies would live on beside the next ones
    return (None if total is None else total.view(shape)), squares


def products_win(inputs: Tensor, output_grads: Tensor, known: Geometry) -> bool:
    """Whether products of positions are cheaper than gradients of samples: few positions, many channels."""
    if inputs.ndim != 4 or known.groups != 1 or inputs.dtype.itemsize < 4 or inputs.device.type != "cpu":
        return False
    p, c = output_grads.shape[1], inputs.shape[1]
    taps, positions = known.kernel[0] * known.kernel[1], output_grads[0, 0].numel()
    stride, padding = known.stride, known.padding
    padded = (inputs.shape[2] + 2 * padding[0]) * (inputs.shape[3] + 2 * padding[1])
    phases = min(stride[0] * stride[1], taps)
    return bool(
        phases * (padded / (stride[0] * stride[1])) ** 2 * c + positions**2 * (p + ADDING * taps)
        < PASSES * p * c * taps
    )


def _by_products(inputs: Tensor, output_grads: Tensor, known: Geometry, max_bytes: int) -> float:
    """Σ_n ‖g_n‖² = Σ_n ⟨B, A⟩: products of output gradients and of patches, for all pairs of positions."""
    value = _products(inputs, output_grads, known, max_bytes)
    if inputs.dtype != torch.float64 and not trusted(value):
        value = _products(inputs.double(), output_grads.double(), known, max_bytes)
    return value


def _products(inputs: Tensor, output_grads: Tensor, known: Geometry, max_bytes: int) -> float:
    """The product of two patches is a sum over the kernel's taps of products of two inputs: of one product matrix,
    read at shifted places. With a stride only inputs of the same phase ever meet."""
    kernel, stride, (top, left), dilation, _ = known
    x = F.pad(inputs, (left, left, top, top))
    height, width = output_grads.shape[2:]
    taps = [[divmod(k * dilation[axis], stride[axis]) for k in range(kernel[axis])] for axis in (0, 1)]
    total = 0.0
    most = max((x[0, 0].numel() // (stride[0] * stride[1])) ** 2, x[0].numel()) * x.element_size()
    for start, stop in chunks(x.shape[0], most, min(max_bytes, GROUP_BYTES)):
        patches = x.new_zeros(stop - start, height, width, height, width)
        for row_phase in sorted({phase for _, phase in taps[0]}):
            for column_phase in sorted({phase for _, phase in taps[1]}):
                part = x[start:stop, :, row_phase :: stride[0], column_phase :: stride[1]]
                flat = part.flatten(2)
                products: Any = torch.bmm(flat.transpose(1, 2), flat)
                products = products.unflatten(2, part.shape[2:]).unflatten(1, part.shape[2:])
                for i, _ in (tap for tap in taps[0] if tap[1] == row_phase):
                    for j, _ in (tap for tap in taps[1] if tap[1] == column_phase):
                        rows, columns = slice(i, i + height), slice(j, j + width)
                        patches += products[:, rows, columns, rows, columns]
        b = output_grads[start:stop].flatten(2)
        total += torch.dot(torch.bmm(b.transpose(1, 2), b).view(-1), patches.view(-1)).item()
    return total


def chunks(samples: int, bytes_each: int, max_bytes: int) -> list[tuple[int, int]]:
    """Ranges of samples whose gradients fit `max_bytes`; one sample at least."""
    step = max(1, min(samples, max_bytes // max(bytes_each, 1)))
    return [(start, min(start + step, samples)) for start in range(0, samples, step)]
