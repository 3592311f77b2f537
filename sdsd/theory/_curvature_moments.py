"""Quadratic forms of gradients in the metric of a step and in the Hessian: signal, noise and their sampling errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdsd_kernels import checks

from ._hessian import Hessian

BLOCK_ELEMENTS = 2**22
"""Gradients are centred in float64 so many numbers at a time."""


@dataclass
class Form:
    """A quadratic form A over n gradients g with mean ḡ and d = g − ḡ.

    `mean` is ḡᵀAḡ, `trace` Σ dᵢᵀAdᵢ/(n−1); `own` dᵢᵀAdᵢ, where known, and `cross` dᵢᵀAḡ; shape: (n,) each.
    """

    mean: float
    trace: float
    own: Tensor | None
    cross: Tensor

    def left_out(self, correction: float) -> tuple[Tensor, Tensor]:
        """(mean − correction · trace, trace) of the n − 1 gradients without each one; shape: (n,) each."""
        assert self.own is not None
        n = len(self.own)
        mean = self.mean - 2 * self.cross / (n - 1) + self.own / (n - 1) ** 2
        trace = ((n - 1) * self.trace - n * self.own / (n - 1)) / (n - 2)
        return mean - correction * trace, trace


class Moments:
    """What `curvature_gamma` needs of the gradients.

    With P the diagonal `scale` (None: the identity) and H the Hessian: `plain`, the form P; `curved`, the form PHP, its
    trace from `probes` random sums of deviations where that is not 0, with standard error `trace_error`; and
    `squared_trace`, Tr PΣP.
    """

    def __init__(self, rows: Tensor, scale: Tensor | None, hessian: Hessian, probes: int, seed: int) -> None:
        self._rows, self._scale, n = rows, scale, len(rows)
        self._mean = torch.stack([block.double().sum(0) for block in rows.split(self._block)]).sum(0) / n
        scaled_mean = self._scaled(self._mean)
        curved_mean = hessian.product(scaled_mean)
        own, squared, cross, curved_cross = (torch.zeros(n, dtype=torch.float64) for _ in range(4))
        for place, deviations in self._deviations():
            scaled = self._scaled(deviations)
            own[place] = (deviations * scaled).sum(1).cpu()
            squared[place] = scaled.square().sum(1).cpu()
            cross[place] = (scaled @ self._mean).cpu()
            curved_cross[place] = (scaled @ curved_mean).cpu()
        self.squared_trace = squared.sum().item() / (n - 1)
        self.plain = Form(self._mean.dot(scaled_mean).item(), own.sum().item() / (n - 1), own, cross)
        curved_own: Tensor | None = None
        if probes:
            combined = self._combined(probes, seed)
            values = _curvatures(hessian, lambda k: combined[k], probes)
            trace, self.trace_error = values.mean().item(), values.std().item() / math.sqrt(probes)
        else:
            curved_own = _curvatures(hessian, lambda i: self._scaled(rows[i].double() - self._mean), n)
            trace, self.trace_error = curved_own.sum().item() / (n - 1), 0.0
        self.curved = Form(scaled_mean.dot(curved_mean).item(), trace, curved_own, curved_cross)

    @property
    def _block(self) -> int:
        return max(1, BLOCK_ELEMENTS // self._rows.shape[1])

    def _deviations(self) -> Iterator[tuple[slice, Tensor]]:
        """Deviations from the mean in float64, block by block, and which gradients they are of."""
        for start in range(0, len(self._rows), self._block):
            place = slice(start, min(start + self._block, len(self._rows)))
            yield place, self._rows[place].double() - self._mean

    def _scaled(self, vectors: Tensor) -> Tensor:
        return vectors if self._scale is None else vectors * self._scale

    def _combined(self, probes: int, seed: int) -> Tensor:
        """P Σ ±dᵢ / √(n−1) with random signs: the covariance is PΣP; shape: (probes, parameters)."""
        n = len(self._rows)
        generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
        signs = torch.randint(0, 2, (probes, n), generator=generator).double() * 2 - 1
        signs = signs.to(self._rows.device) / math.sqrt(n - 1)
        total = torch.zeros(probes, self._rows.shape[1], dtype=torch.float64, device=self._rows.device)
        for place, deviations in self._deviations():
            total.addmm_(signs[:, place], deviations)
        return self._scaled(total)

    def change_error(self, learning_rate: float, unseen: float, share: float) -> float | None:
        """Jackknife standard error of E[ΔL]; None with probes, or with fewer than 3 gradients.

        `unseen`: the part of a trace by which a mean's square is too large; `share`: Σ_B over the gradients' own
        covariance.
        """
        n = len(self._rows)
        if self.curved.own is None or n < 3:
            return None
        correction = unseen - 1 / n + 1 / (n - 1)
        signal, _ = self.plain.left_out(correction)
        curvature, trace = self.curved.left_out(correction)
        changes = learning_rate * (learning_rate / 2 * (curvature + share * trace) - signal)
        of_population = max(0.0, n * unseen)  # 1 − the part of the population that was measured
        return math.sqrt((n - 1) / n * of_population * (changes - changes.mean()).square().sum().item())


def _curvatures(hessian: Hessian, vectors: Callable[[int], Tensor], count: int) -> Tensor:
    """vᵀHv of `count` vectors; shape: (count,)."""
    values = torch.zeros(count, dtype=torch.float64)
    for k, product in hessian.products(vectors, count):
        values[k] += vectors(k).dot(product).cpu()
    return values
