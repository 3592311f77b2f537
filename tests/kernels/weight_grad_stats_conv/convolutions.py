"""Convolutions, their batches, and their gradients by loops."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdsd_kernels import available_backends, conv_weight_grad_stats
from tests.helpers import assert_within, summation_error, unit_roundoff

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

HAS_KERNELS = "triton" in available_backends(DEVICE)

ENGINE, POINTERS = "triton, copy engine", "triton, pointers"

WAYS = ["torch", *([ENGINE, POINTERS] if HAS_KERNELS else [])]


class Layer(NamedTuple):
    """A convolution and its batch."""

    samples: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1

    def each(self, value) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.size)

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.outputs, self.channels // self.groups, *self.each(self.kernel))

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.size, *map(self.each, (self.kernel, self.stride, self.padding, self.dilation)), strict=True
            )
        )

    def batch(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Inputs and output gradients."""
        return (
            torch.randn(self.samples, self.channels, *self.size).to(DEVICE, dtype),
            torch.randn(self.samples, self.outputs, *self.positions).to(DEVICE, dtype),
        )

    def stats(self, inputs: Tensor, output_grads: Tensor, **options):
        return conv_weight_grad_stats(
            inputs,
            output_grads,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            **options,
        )


def oracle(layer: Layer, inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None) -> tuple[np.ndarray, float]:
    """Weight gradient and square norm in NumPy float64: every sample alone, every tap a sum over positions."""
    a, b = (x.detach().cpu().double().numpy() for x in (inputs, output_grads))
    factors = 1.0 if scale is None else scale.detach().cpu().double().numpy()
    stride, padding, dilation = (layer.each(value) for value in (layer.stride, layer.padding, layer.dilation))
    a = np.pad(a, [(0, 0), (0, 0), *((p, p) for p in padding)])
    per_group, outputs = layer.channels // layer.groups, layer.outputs // layer.groups
    total, squares = np.zeros(layer.weight), 0.0
    for image, grads in zip(a, b, strict=True):
        gradient = np.zeros(layer.weight)
        for tap in np.ndindex(*layer.each(layer.kernel)):
            met = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilation, layer.positions, stride, strict=True)
            )
            for group in range(layer.groups):
                left = grads[group * outputs : (group + 1) * outputs].reshape(outputs, -1)
                right = image[group * per_group : (group + 1) * per_group][(slice(None), *met)].reshape(per_group, -1)
                gradient[(slice(group * outputs, (group + 1) * outputs), slice(None), *tap)] = left @ right.T
        total += gradient
        squares += float(((factors * gradient) ** 2).sum())
    return total, squares


def assert_right(layer: Layer, inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None, **options) -> None:
    """Within what sums of that many products may err by."""
    stats = layer.stats(inputs, output_grads, scale=scale, **options)
    assert (stats.square_norm.dtype, stats.square_norm.shape) == (torch.float64, ())
    assert (stats.weight_grad.dtype, stats.weight_grad.device) == (options.get("dtype", inputs.dtype), inputs.device)
    total, squares = oracle(layer, inputs, output_grads, scale)
    magnitude, most = oracle(layer, inputs.abs(), output_grads.abs(), scale)
    terms = int(np.prod(layer.positions))
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    rounding = 8 * unit_roundoff(dtype)
    inner = 2 * summation_error(terms, dtype) + rounding
    if options["backend"] == "torch" and scale is None:  # products of positions may serve
        inner += summation_error(layer.channels * magnitude[0, 0].size, dtype) + summation_error(layer.outputs, dtype)
    bound = (inner + summation_error(layer.samples * max(terms**2, magnitude.size), dtype)) * most
    assert_within(stats.square_norm, torch.tensor(squares, dtype=torch.float64), bound)
    allowed = (summation_error(layer.samples * terms, dtype) + rounding) * torch.from_numpy(magnitude)
    if stats.weight_grad.dtype.itemsize < dtype.itemsize:
        # The interpreter truncates to bfloat16, which errs twice as much as rounding.
        returned = unit_roundoff(stats.weight_grad.dtype) * 2
        allowed = allowed * (1 + returned) + returned * torch.from_numpy(np.abs(total)) + 1e-7 * (dtype.itemsize < 8)
    assert_within(stats.weight_grad, torch.from_numpy(total), allowed)


LAYERS = {
    "1 × 1": Layer(3, 20, 18, (5, 6), 1),
    "3 × 3, padded": Layer(2, 33, 17, (5, 9), 3, padding=1),
    "padding on one side alone would do": Layer(2, 16, 5, (4, 4), 3, padding=(2, 0)),
    "kernel not square": Layer(2, 18, 9, (7, 6), (1, 4), padding=(0, 3)),
    "kernel as large as the image": Layer(3, 16, 6, (4, 5), (4, 5)),
    "stride 2, even": Layer(2, 24, 17, (8, 6), 3, stride=2, padding=1),
    "stride 2, odd": Layer(2, 24, 17, (7, 9), 3, stride=2, padding=1),
    "strides that differ": Layer(2, 17, 8, (9, 8), (3, 2), stride=(3, 1), padding=(2, 1)),
    "1 × 1, stride 2": Layer(2, 16, 18, (7, 8), 1, stride=2),
    "stride 2, kernel 2": Layer(3, 32, 8, (6, 8), 2, stride=2),
    "dilation": Layer(2, 17, 9, (9, 8), 3, padding=2, dilation=(2, 3)),
    "dilation and stride": Layer(2, 16, 9, (9, 10), 3, stride=2, padding=2, dilation=2),
    "dilation and stride share a factor": Layer(1, 16, 4, (12, 11), (2, 3), stride=(4, 3), dilation=(2, 3)),
    "one channel": Layer(3, 1, 20, (7, 6), 3, padding=1),
    "three channels": Layer(3, 3, 17, (8, 9), 3, stride=2, padding=1),
    "three channels, patches": Layer(2, 3, 20, (8, 12), 4, stride=4),
    "eight channels, two outputs": Layer(2, 8, 2, (5, 5), 3, padding=1),
    "few channels, 1 × 1": Layer(3, 5, 6, (4, 5), 1),
    "depthwise": Layer(3, 10, 10, (6, 7), 3, padding=1, groups=10),
    "depthwise, stride and dilation": Layer(2, 6, 6, (9, 8), 3, stride=2, padding=2, dilation=2, groups=6),
    "depthwise, three outputs a channel": Layer(2, 5, 15, (6, 5), (2, 3), groups=5),
    "depthwise, several samples a range": Layer(9, 10, 10, (4, 4), 3, padding=1, groups=10),
    "two groups": Layer(2, 48, 48, (4, 5), (1, 3), padding=(0, 1), groups=2),
    "two groups in one tile": Layer(2, 16, 16, (5, 4), 3, padding=1, groups=2),
    "small groups": Layer(2, 32, 32, (5, 4), 3, padding=1, groups=4),
    "groups of three channels": Layer(2, 12, 8, (6, 5), 3, stride=2, padding=1, groups=4),
    "groups that no box starts at": Layer(2, 51, 21, (5, 4), 2, groups=3),
    "many samples, few tiles": Layer(19, 16, 8, (3, 3), (1, 2), padding=(0, 1)),
    "one dimension": Layer(3, 17, 9, (23,), 3, stride=2, padding=1),
    "one dimension, depthwise": Layer(3, 6, 6, (11,), 4, padding=3, groups=6),
}
