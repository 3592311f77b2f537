"""Which method serves a call, by the cost of each in units of one multiply-add of the plain weight gradient.

Beside the weight gradient's N·T·p·d, "gram" pays for two (T, T) products a sample, whose few columns and whose T² sums
make them slower than large products, and "fused" for passing over each p·d gradient in memory (or, in the kernel, in
registers) to square it and add it up:

    gram:  N · (d + p) · (square · T² + linear · T)
    fused: N · p · d · (once + share · T)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

METHODS = ("fused", "gram", "rank1")


@dataclass(frozen=True)
class Cost:
    """Cost of a method beyond the weight gradient, per sample: see the module docstring."""

    gram_square: float
    gram_linear: float
    fused_once: float
    fused_share: float

    def gram(self, positions: int, d: int, p: int) -> float:
        """Per sample."""
        return (d + p) * positions * (self.gram_square * positions + self.gram_linear)

    def fused(self, positions: int, d: int, p: int) -> float:
        """Per sample."""
        return p * d * (self.fused_once + self.fused_share * positions)


# Fitted to the fastest of many runs of both methods at 9 pairs (d, p) from 64 × 64 to 512 × 2048 and T from 2 to 256,
# float32, one thread of an AMD EPYC (Milan): it named the faster method in all but a few cases where the two were
# within 10%. The table in README.md shows some of them.
CPU = Cost(gram_square=1.05, gram_linear=18.0, fused_once=30.0, fused_share=0.08)
# Not measured: a model. The kernel's square-and-add takes 2 to 3 operations a value of g_n on ordinary lanes, which do
# a sixteenth of the matrix unit's multiply-adds; the (T, T) products are read back once, and for halves they run in
# float32, another sixteenth.
CUDA_HALF = Cost(gram_square=16.0, gram_linear=64.0, fused_once=32.0, fused_share=0.05)
CUDA_FLOAT32 = Cost(gram_square=1.5, gram_linear=16.0, fused_once=8.0, fused_share=0.05)


def choose_method(inputs: Tensor, output_grads: Tensor, scaled: bool, weight_grad: bool) -> str:
    """The method for inputs (N, T, d) and output gradients (N, T, p)."""
    positions, d, p = inputs.shape[1], inputs.shape[2], output_grads.shape[2]
    if positions == 1:
        return "rank1"
    if scaled:
        return "fused"
    if inputs.device.type == "cpu":
        cost = CPU
    else:
        cost = CUDA_HALF if inputs.dtype.itemsize == 2 else CUDA_FLOAT32
    # Without a weight gradient "gram" is spared its product, which "fused" forms in any case.
    plain = 0 if weight_grad else positions * p * d
    return "gram" if cost.gram(positions, d, p) < cost.fused(positions, d, p) + plain else "fused"
