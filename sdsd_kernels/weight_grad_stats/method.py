"""Which method serves a call: measured limits on the CPU, a model of the cost on a GPU."""

from __future__ import annotations

from torch import Tensor

METHODS = ("fused", "gram", "rank1")


def choose_method(inputs: Tensor, output_grads: Tensor, scaled: bool, weight_grad: bool, backend: str) -> str:
    """The method for inputs (N, T, d) and output gradients (N, T, p)."""
    positions, d, p = inputs.shape[1], inputs.shape[2], output_grads.shape[2]
    if positions == 1:
        return "rank1"
    if scaled:
        return "fused"
    return "gram" if positions * (d + p) <= 0.25 * d * p else "fused"
