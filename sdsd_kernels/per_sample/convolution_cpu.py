"""Convolutions in torch, on any device, by the cheapest of three ways.

"samples": a batch of N images with C channels is one image with N·C channels; convolved in N·groups groups, its weight
gradient holds the gradient of every sample side by side. Samples are taken in chunks that stay in the cache.
"patches": the inputs that each position sees are copied side by side, a sample at a time; the sample's gradient is one
matrix product. "products": of positions, beside the plain weight gradient; no sample's gradient is formed.

The last two are for the CPU. Costs beyond the plain weight gradient are a sample's, in units of one of its
multiply-adds, for c channels, p outputs, k taps, T positions in rows of W and strides s::

    samples:  (95 + 2·T where c < 8) · p·c·k
    patches:  c·k · (T · (4 + 220/W + 20 where some s > 1) + p · (8 + 0.15·T)) + 300000;   no copy where k = s = 1
    products: phases · (inputs / phases)² · c + T² · (p + 60·k)
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .convolution import Convolution
from .cpu import GROUP_BYTES, Unfolding, as_result, one_by_one, sum_of_squares, trusted, working_dtype
from .layout import weight_strides

# Fitted to some twenty layers, float32, one thread of an EPYC.
PASSES = 95
"""Multiply-adds that forming, squaring and adding up one value of a sample's gradient costs in groups."""
FEW_CHANNELS, OF_FEW = 8, 2
"""With fewer channels than that groups cost so much more, for every value and position."""
ADDING = 60
"""What adding up one product of two positions costs."""


def conv_weight_grad_stats(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    convolution: Convolution,
    weight_grad: bool,
    dtype: torch.dtype,
    channels_last: bool,
    max_bytes: int,
) -> tuple[Tensor | None, Tensor]:
    """Weight gradient or None, and the square norm, of inputs (N, C, *size) and output gradients (N, P, *size')."""
    shape = (output_grads.shape[1], inputs.shape[1] // convolution.groups, *convolution.kernel)
    total: Tensor | None
    squares: float | Tensor
    way = cheapest_way(inputs, output_grads, convolution, scale is not None)
    if way == "products":
        total = _batch(inputs, output_grads, shape, convolution) if weight_grad else None
        squares = _by_products(inputs, output_grads, convolution, max_bytes)
    elif way == "patches":
        total, squares = _by_patches(inputs, output_grads, shape, scale, convolution, weight_grad)
    else:
        total, squares = _by_samples(inputs, output_grads, shape, scale, convolution, weight_grad, max_bytes)
    if total is not None:
        strides = weight_strides(shape, channels_last)
        if total.dtype != dtype or total.stride() != strides:
            total = torch.empty_strided(shape, strides, dtype=dtype, device=total.device).copy_(total)
    return total, as_result(squares, inputs)


def _gradient(x: Tensor, grad: Tensor, shape: tuple[int, ...], known: Convolution, groups: int) -> Tensor:
    # Only the shape of the weight is looked at when its gradient alone is asked for.
    stand_in = x.new_zeros(1).expand(shape)
    none = (0,) * len(known.kernel)
    gradient: Tensor = torch.ops.aten.convolution_backward(
        grad, x, stand_in, [0], known.stride, known.padding, known.dilation, False, none, groups, [False, True, False]
    )[1]
    return gradient


def _batch(x: Tensor, grad: Tensor, shape: tuple[int, ...], known: Convolution) -> Tensor:
    """The plain weight gradient."""
    return _gradient(x, grad, shape, known, known.groups)


def _each(x: Tensor, grad: Tensor, shape: tuple[int, ...], known: Convolution) -> Tensor:
    """Weight gradient of every sample; shape: (N, *shape)."""
    n = x.shape[0]
    # By way of one dimension: strides of dimensions of size 1 may look like channels last, which torch then fails at.
    together = _gradient(
        x.reshape(-1).view(1, -1, *x.shape[2:]),
        grad.reshape(-1).view(1, -1, *grad.shape[2:]),
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
    known: Convolution,
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


def cheapest_way(inputs: Tensor, output_grads: Tensor, known: Convolution, scaled: bool) -> str:
    """ "samples", "patches" or "products": see the module docstring."""
    if known.groups != 1 or inputs.dtype.itemsize < 4 or inputs.device.type != "cpu":
        return "samples"
    return _cheapest(inputs.shape[1:], output_grads.shape[1:], known, scaled)


@functools.lru_cache(maxsize=1024)
def _cheapest(inputs: torch.Size, outputs: torch.Size, known: Convolution, scaled: bool) -> str:
    """Of a sample's inputs (C, *size) and outputs (P, *size')."""
    c, p, size = inputs[0], outputs[0], outputs[1:]
    taps, positions, strided = math.prod(known.kernel), size.numel(), max(known.stride) > 1
    values = p * c * taps
    costs: dict[str, float] = {"samples": (PASSES + (OF_FEW * positions if c < FEW_CHANNELS else 0)) * values}
    copying = 0.0 if taps == 1 and not strided else 4 + 220 / size[-1] + 20 * strided
    costs["patches"] = c * taps * (positions * copying + p * (8 + 0.15 * positions)) + 300_000
    if len(inputs) == 3 and not scaled:
        padded = math.prod(whole + 2 * pad for whole, pad in zip(inputs[1:], known.padding, strict=True))
        of_phase = padded / math.prod(known.stride)
        costs["products"] = min(math.prod(known.stride), taps) * of_phase**2 * c + positions**2 * (p + ADDING * taps)
    return min(costs, key=costs.__getitem__)


def _by_patches(
    inputs: Tensor,
    output_grads: Tensor,
    shape: tuple[int, ...],
    scale: Tensor | None,
    known: Convolution,
    weight_grad: bool,
) -> tuple[Tensor | None, float | Tensor]:
    """The weight gradient as the sum of those of the samples, and the sum of their squares."""
    elements = math.prod(shape)
    total = inputs.new_zeros(elements) if weight_grad else None
    factors = None if scale is None else scale.to(inputs.dtype).reshape(-1)
    grads, unfolding = output_grads.flatten(2), None
    if math.prod(known.kernel) == 1 == max(known.stride) and not any(known.padding):
        pairs = zip(grads, inputs.flatten(2).mT, strict=True)
    else:
        pairs, unfolding = zip(grads, inputs, strict=True), _unfolding(inputs, output_grads.shape[2:], known)
    squares = one_by_one(pairs, inputs.new_empty(elements), total, factors, unfolding)
    return (None if total is None else total.view(shape)), squares


def _unfolding(inputs: Tensor, size: torch.Size, known: Convolution) -> Unfolding:
    """Of pictures such as those of `inputs`, and as many positions as `size` says."""
    channels = inputs.shape[1]
    whole = [n + 2 * pad for n, pad in zip(inputs.shape[2:], known.padding, strict=True)]
    padded = inputs.new_zeros(channels, *whole)
    inside = padded
    for dim, pad in enumerate(known.padding, start=1):
        inside = inside.narrow(dim, pad, whole[dim - 1] - 2 * pad)
    steps = padded.stride()[1:]
    by_tap = [step * apart for step, apart in zip(steps, known.dilation, strict=True)]
    by_position = [step * apart for step, apart in zip(steps, known.stride, strict=True)]
    shape, strides = (channels, *known.kernel, *size), (padded.stride(0), *by_tap, *by_position)
    windows = padded.as_strided(shape, strides)
    copied = inputs.new_empty(windows.shape)
    return Unfolding(inside, windows, copied, copied.view(-1, size.numel()).t())


def _by_products(inputs: Tensor, output_grads: Tensor, known: Convolution, max_bytes: int) -> float:
    """Σ_n ‖g_n‖² = Σ_n ⟨B, A⟩: products of output gradients and of patches, for all pairs of positions."""
    value = _products(inputs, output_grads, known, max_bytes)
    if inputs.dtype != torch.float64 and not trusted(value):
        value = _products(inputs.double(), output_grads.double(), known, max_bytes)
    return value


def _products(inputs: Tensor, output_grads: Tensor, known: Convolution, max_bytes: int) -> float:
    """The product of two patches is a sum over the kernel's taps of products of two inputs: of one product matrix,
    read at shifted places. With a stride only inputs of the same phase ever meet."""
    _, stride, (top, left), *_ = known
    x = F.pad(inputs, (left, left, top, top))
    height, width = output_grads.shape[2:]
    phases = _phases(known, height, width)
    total = 0.0
    most = max((x[0, 0].numel() // (stride[0] * stride[1])) ** 2, x[0].numel()) * x.element_size()
    for start, stop in chunks(x.shape[0], most, min(max_bytes, GROUP_BYTES)):
        patches = x.new_zeros(stop - start, height, width, height, width)
        for of_phase, places in phases:
            part = x[start:stop][of_phase]
            flat = part.flatten(2)
            products = torch.bmm(flat.transpose(1, 2), flat)
            products = products.view(stop - start, *part.shape[2:], *part.shape[2:])
            for rows, columns in places:
                patches += products[:, rows, columns, rows, columns]
        b = output_grads[start:stop].flatten(2)
        total += torch.dot(torch.bmm(b.transpose(1, 2), b).view(-1), patches.view(-1)).item()
    return total


Slices = tuple[slice, slice]


@functools.lru_cache(maxsize=1024)
def _phases(known: Convolution, height: int, width: int) -> list[tuple[tuple[Any, ...], list[Slices]]]:
    """Where inputs (N, C, H, W) of each phase lie, and where among these those that the taps of the phase meet."""
    met: dict[tuple[int, int], list[Slices]] = {}
    for tap in itertools.product(*map(range, known.kernel)):
        (i, row_phase), (j, column_phase) = (
            divmod(k * apart, stride) for k, apart, stride in zip(tap, known.dilation, known.stride, strict=True)
        )
        met.setdefault((row_phase, column_phase), []).append((slice(i, i + height), slice(j, j + width)))
    rows, columns = known.stride
    return [((..., slice(i, None, rows), slice(j, None, columns)), places) for (i, j), places in sorted(met.items())]


def chunks(samples: int, bytes_each: int, max_bytes: int) -> list[tuple[int, int]]:
    """Ranges of samples whose gradients fit `max_bytes`; one sample at least."""
    step = max(1, min(samples, max_bytes // max(bytes_each, 1)))
    return [(start, min(start + step, samples)) for start in range(0, samples, step)]
