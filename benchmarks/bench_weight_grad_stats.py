"""weight_grad_stats and conv_weight_grad_stats against the weight gradient alone and per-sample gradients in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdsd_kernels import WeightGradStats, conv_weight_grad_stats, weight_grad_stats

from .cases import CONVOLUTIONS, OURS, PLAIN_WEIGHT_GRAD, Case, cases_for
from .harness import Comparison, Provider, Unavailable

OP = "weight_grad_stats"
MOST_BYTES = 8 * 2**30
"""Per-sample gradients beyond this are not formed."""


def plain_weight_grad(inputs: Tensor, output_grads: Tensor) -> Tensor:
    return output_grads.reshape(-1, output_grads.shape[-1]).t() @ inputs.reshape(-1, inputs.shape[-1])


def per_sample_gradients(inputs: Tensor, output_grads: Tensor) -> Provider:
    samples, _, d = inputs.shape
    if samples * d * output_grads.shape[2] * 4 > MOST_BYTES:
        return Unavailable(f"per-sample gradients would take more than {MOST_BYTES >> 30} GiB")

    def run() -> WeightGradStats:
        gradients = torch.einsum("ntp,ntd->npd", output_grads, inputs)
        return WeightGradStats(gradients.sum(0), torch.linalg.vector_norm(gradients, dtype=torch.float64).square())

    return run


def exact(inputs: Tensor, output_grads: Tensor) -> tuple[Tensor, float]:
    """Weight gradient and square norm in float64, a sample at a time."""
    total = torch.zeros(output_grads.shape[2], inputs.shape[2], dtype=torch.float64, device=inputs.device)
    squares = 0.0
    for a, b in zip(inputs, output_grads, strict=True):
        gradient = b.double().T @ a.double()
        total += gradient
        squares += gradient.square().sum().item()
    return total, squares


def prepare(case: Case, device: torch.device) -> Comparison:
    """Normal inputs and output gradients of one layer, and everybody who computes from them."""
    return (_convolution if case.variant in CONVOLUTIONS else _linear)(case, device)


def _normal(case: Case, device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    make = [torch.empty(shape, dtype=case.torch_dtype, device=device) for shape in shapes]
    return [x.normal_(generator=generator) for x in make]


def _checked(case: Case, total: Tensor, squares: float) -> Callable[[str, Any], None]:
    half = case.torch_dtype in (torch.float16, torch.bfloat16)
    # On a GPU torch convolves float32 in tf32 unless told otherwise, and so do we.
    rounded = half or (case.variant in CONVOLUTIONS and total.device.type == "cuda")

    def check(provider: str, result: Any) -> None:
        found = result if provider == PLAIN_WEIGHT_GRAD else result.weight_grad
        error = ((found.double() - total).norm() / total.norm()).item()
        assert error <= (1e-2 if rounded else 1e-5), f"weight gradient off by {error:.3g} of its norm"
        if provider == PLAIN_WEIGHT_GRAD:
            return
        error = abs(result.square_norm.item() - squares) / squares
        allowed = 1e-2 if rounded and not (half and provider.startswith(OURS)) else 1e-5
        assert error <= allowed, f"square norm off by {error:.3g}, expected at most {allowed:g}"

    return check


def _linear(case: Case, device: torch.device) -> Comparison:
    samples, positions, d, p = case.shape
    inputs, output_grads = _normal(case, device, (samples, positions, d), (samples, positions, p))

    def forced(method: str) -> Provider:
        return lambda: weight_grad_stats(inputs, output_grads, method=method)

    providers: dict[str, Provider] = {
        OURS: lambda: weight_grad_stats(inputs, output_grads),
        "sdsd, fused": forced("fused"),
        "sdsd, gram": forced("gram"),
        "per-sample gradients": per_sample_gradients(inputs, output_grads),
        PLAIN_WEIGHT_GRAD: lambda: plain_weight_grad(inputs, output_grads),
    }
    work = 2.0 * samples * positions * d * p
    check = _checked(case, *exact(inputs, output_grads))
    return Comparison(providers, check, baseline=PLAIN_WEIGHT_GRAD, work=work, work_unit="FLOP")


def _convolution(case: Case, device: torch.device) -> Comparison:
    """A square image, padded so that the output is as large; channels last."""
    samples, positions, d, p = case.shape
    kernel, side = CONVOLUTIONS[case.variant], math.isqrt(positions)
    settings = ([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], 1, [False, True, False])
    x, b = (
        made.contiguous(memory_format=torch.channels_last)
        for made in _normal(case, device, (samples, d, side, side), (samples, p, side, side))
    )
    weight = torch.empty(p, d, kernel, kernel, dtype=case.torch_dtype, device=device)
    weight = weight.contiguous(memory_format=torch.channels_last)

    def plain(x: Tensor, b: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(b, x, weight.to(x.dtype), [0], *settings)[1]

    total = torch.zeros(p, d, kernel, kernel, dtype=torch.float64, device=device)
    squares = 0.0
    for one in range(samples):
        gradient = plain(x[one : one + 1].double(), b[one : one + 1].double())
        total += gradient
        squares += gradient.square().sum().item()
    ours: dict[str, Any] = {"padding": kernel // 2, "channels_last": True}
    providers: dict[str, Provider] = {
        OURS: lambda: conv_weight_grad_stats(x, b, kernel, **ours),
        PLAIN_WEIGHT_GRAD: lambda: plain(x, b),
    }
    work = 2.0 * samples * side**2 * d * p * kernel**2
    check = _checked(case, total, squares)
    return Comparison(providers, check, baseline=PLAIN_WEIGHT_GRAD, work=work, work_unit="FLOP")


@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_weight_grad_stats(case: Case, compare: Callable) -> None:
    compare(prepare, case)
