"""Which method serves a call of `weight_grad_stats`.

On the CPU by the cost of each in units of one multiply-add of the plain weight gradient. Beside that gradient's
N·T·p·d, "gram" pays for two (T, T) products a sample, whose few columns and whose T² sums make them slower than large
products, and "fused" for passing over each p·d gradient in memory to square it and add it up:

    gram:  N · (d + p) · (1.05 · T² + 18 · T)
    fused: N · p · d · (30 + 0.08 · T)

On a GPU by seconds, from rates that were measured there (config.py):

    plain: N · T · p · d / rate
    fused: N · p · d · (steps of positions + what finishing a sample's tile costs) / rate
    gram:  N · tiles of the triangle · (d + p) / (rate · share of the multiprocessors at work) + one launch more
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import Tensor

from .._device import device_record
from . import config

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


def choose_method(inputs: Tensor, output_grads: Tensor, scaled: bool, weight_grad: bool) -> str:
    """The method for inputs (N, T, d) and output gradients (N, T, p)."""
    samples, positions, d = inputs.shape
    p = output_grads.shape[2]
    if positions == 1:
        return "rank1"
    if scaled:
        return "fused"
    if inputs.device.type != "cpu":
        rates = config.HALF_RATES if inputs.dtype.itemsize == 2 else config.FLOAT_RATES
        units = device_record(inputs.device).multiprocessors
        fused, gram = gpu_seconds(rates, units, samples, positions, d, p, weight_grad)
        return "gram" if gram < fused else "fused"
    return _on_cpu(positions, d, p, weight_grad)


@functools.lru_cache(maxsize=1024)
def _on_cpu(positions: int, d: int, p: int, weight_grad: bool) -> str:
    # Without a weight gradient "gram" is spared its product, which "fused" forms in any case.
    plain = 0 if weight_grad else positions * p * d
    return "gram" if CPU.gram(positions, d, p) < CPU.fused(positions, d, p) + plain else "fused"


def gpu_seconds(
    rates: config.MethodRates, units: int, samples: int, positions: int, d: int, p: int, weight_grad: bool
) -> tuple[float, float]:
    """Seconds that "fused" and "gram" take on a GPU of `units` multiprocessors, the weight gradient included."""
    steps = -(-positions // rates.block_t) * rates.block_t
    share = units / config.RATED_MULTIPROCESSORS
    fused = samples * p * d * (steps + rates.finish) / (rates.fused * share)
    block = 64 if positions <= 64 else 128
    tiles = -(-positions // block)
    programs = samples * tiles * (tiles + 1) // 2
    gram = programs * block**2 * (d + p) / (rates.gram * share * min(1.0, programs / units))
    if weight_grad:
        gram += samples * positions * p * d / (rates.plain * share) + rates.launch
    return fused, gram
