"""The weight gradient in float64, and how far a method may be from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdsd_kernels import available_backends, weight_grad_stats
from sdsd_kernels.per_sample.method import METHODS
from tests.helpers import assert_within, summation_error, unit_roundoff

WAYS = [("torch", name) for name in METHODS]

if "triton" in available_backends("cuda" if torch.cuda.is_available() else "cpu"):
    WAYS += [("triton", name) for name in METHODS]

TRUNCATED = 2.0
"""The interpreter converts float32 to bfloat16 by truncation, which errs twice as much as rounding."""


def serves(way: dict[str, str], positions: int, dtype: torch.dtype, scaled: bool) -> bool:
    if way["backend"] == "triton" and dtype == torch.float64:
        return False
    return {"fused": True, "gram": not scaled, "rank1": positions == 1}[way["method"]]


def oracle(inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None) -> tuple[np.ndarray, float]:
    """Weight gradient and square norm by loops over samples, NumPy float64."""
    a, b = (x.detach().cpu().double().numpy() for x in (inputs, output_grads))
    d = 1.0 if scale is None else scale.detach().cpu().double().numpy()
    total, squares = np.zeros((b.shape[-1], a.shape[-1])), 0.0
    for one, two in zip(a, b, strict=True):
        gradient = np.atleast_2d(two).T @ np.atleast_2d(one)
        total += gradient
        squares += float(((d * gradient) ** 2).sum())
    return total, squares


def allowed(inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None) -> tuple[Tensor, float]:
    """Bounds on the errors of both before a result is rounded to a half.

    With m_n = |b_n|ᵀ|a_n|, the weight gradient sums N·T products. The square norm is at most Σ‖D ∘ m_n‖². Every method
    gets it from sums of T products that are squared ("fused"), of d and of p products that are multiplied and summed
    over T² ("gram", "rank1"), and last of what a block of samples holds.
    """
    samples, d, p = inputs.shape[0], inputs.shape[-1], output_grads.shape[-1]
    positions = inputs.shape[1] if inputs.ndim == 3 else 1
    magnitude, squares = oracle(inputs.abs(), output_grads.abs(), scale)
    gradient_error = square_error = 0.0
    for dtype in (torch.promote_types(inputs.dtype, torch.float32), torch.float64):  # the oracle rounds as well
        rounded = 8 * unit_roundoff(dtype)
        gradient_error += summation_error(samples * positions, dtype) + rounded
        inner = max(2 * summation_error(positions, dtype), summation_error(d, dtype) + summation_error(p, dtype))
        square_error += inner + summation_error(samples * max(p * d, positions**2), dtype) + rounded
    return gradient_error * torch.from_numpy(magnitude), square_error * squares


def assert_close(stats, inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None, truncates=False) -> None:
    """`truncates`: whether the interpreter makes bfloat16 of float32."""
    total, squares = oracle(inputs, output_grads, scale)
    gradient_error, square_error = allowed(inputs, output_grads, scale)
    if stats.weight_grad is not None:
        wanted = torch.from_numpy(total)
        if inputs.dtype.itemsize == 2:
            rounding = unit_roundoff(inputs.dtype) * (TRUNCATED if truncates else 1.0)
            least = torch.finfo(inputs.dtype).smallest_normal * torch.finfo(inputs.dtype).eps
            # What is rounded is the sum as it was found.
            gradient_error = gradient_error * (1 + rounding) + rounding * wanted.abs() + least
        assert_within(stats.weight_grad, wanted, gradient_error)
    assert_within(stats.square_norm, torch.tensor(squares, dtype=torch.float64), square_error)


def assert_right(inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None, **options) -> None:
    before = [x.clone() for x in (inputs, output_grads)]
    stats = weight_grad_stats(inputs, output_grads, scale=scale, **options)
    assert all(torch.equal(x, y) for x, y in zip((inputs, output_grads), before, strict=True)), "an input was changed"
    assert stats.weight_grad is not None
    assert (stats.weight_grad.dtype, stats.weight_grad.device) == (inputs.dtype, inputs.device)
    assert (stats.square_norm.dtype, stats.square_norm.shape) == (torch.float64, ())
    truncates = options.get("backend") == "triton" and inputs.dtype == torch.bfloat16
    assert_close(stats, inputs, output_grads, scale, truncates)
    brief = weight_grad_stats(inputs, output_grads, scale=scale, weight_grad=False, **options)
    assert brief.weight_grad is None
    assert_close(brief, inputs, output_grads, scale)


def pair(samples: int, positions: int, d: int, p: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = lambda last: torch.randn(samples, positions, last).to(device, dtype)  # noqa: E731
    return make(d), make(p)
