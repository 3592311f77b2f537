"""weight_grad_stats against the weight gradient alone, per-sample gradients in memory, and both methods forced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdsd_kernels import WeightGradStats, weight_grad_stats

from .cases import OURS, PLAIN_WEIGHT_GRAD, Case, cases_for
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
    generator = torch.Generator(device).manual_seed(0)
    samples, positions, d, p = case.shape
    inputs, output_grads = (
        torch.empty(samples, positions, last, dtype=case.torch_dtype, device=device).normal_(generator=generator)
        for last in (d, p)
    )
    total, squares = exact(inputs, output_grads)
    half = case.torch_dtype in (torch.float16, torch.bfloat16)

    def check(provider: str, result: Any) -> None:
        found = result if provider == PLAIN_WEIGHT_GRAD else result.weight_grad
        error = ((found.double() - total).norm() / total.norm()).item()
        assert error <= (1e-2 if half else 1e-5), f"weight gradient off by {error:.3g} of its norm"
        if provider == PLAIN_WEIGHT_GRAD:
            return
        error = abs(result.square_norm.item() - squares) / squares
        allowed = 1e-2 if half and not provider.startswith(OURS) else 1e-5
        assert error <= allowed, f"square norm off by {error:.3g}, expected at most {allowed:g}"

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
    return Comparison(providers, check, baseline=PLAIN_WEIGHT_GRAD, work=work, work_unit="FLOP")


@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_weight_grad_stats(case: Case, compare: Callable) -> None:
    compare(prepare, case)
