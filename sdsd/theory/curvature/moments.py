"""Quadratic forms of gradients in the metric of a step and in the Hessian: signal, noise and their sampling errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..derivatives import Hessian
from .rows import GradientRows

BLOCK_ELEMENTS = 2**22
"""Gradients are centred in float64 so many numbers at a time."""


@dataclass(frozen=True)
class Group:
    """Samples that the error leaves out together: the Hessian of their mean loss, and which gradients are theirs."""

    hessian: Hessian
    samples: int
    start: int
    stop: int


@dataclass(frozen=True)
class Fold:
    """Gradients `start` to `stop` and the Hessian they meet: the sum of `weights` times those of the groups.

    The Hessian comes in parts, each (weight of the part, its groups): within a part groups count by their samples, and
    to leave one out leaves the others.
    """

    start: int
    stop: int
    parts: tuple[tuple[float, tuple[int, ...]], ...]

    @property
    def count(self) -> int:
        return self.stop - self.start


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


@dataclass
class Curved:
    """The Hessian's form over the gradients of a fold.

    `means` and `traces` are those of the groups' Hessians, by group; the traces are None with probes, where
    `trace_error` is the standard error of the form's trace.
    """

    form: Form
    means: dict[int, float]
    traces: dict[int, float] | None
    trace_error: float


class Moments:
    """What `curvature_gamma` needs of the gradients.

    With P the diagonal `scale` (None: the identity): `plain`, the form P of all gradients; `squared_trace`, Tr PΣP; and
    `curved`, for each fold the form PHP with the fold's Hessian, its trace from `probes` random sums of deviations
    where that is not 0.
    """

    def __init__(
        self,
        rows: GradientRows,
        scale: Tensor | None,
        folds: Sequence[Fold],
        groups: Sequence[Group],
        *,
        probes: int,
        probes_at_once: int,
        seed: int,
    ) -> None:
        self._rows, self._scale, self._groups, self.folds = rows, scale, groups, folds
        sums = [self._sum(fold) for fold in folds]
        self._mean = torch.stack(sums).sum(0) / rows.count
        self._own, self._squared, self._cross = (torch.zeros(rows.count, dtype=torch.float64) for _ in range(3))
        self._probes, self._probes_at_once, self._seed = probes, probes_at_once, seed
        self.curved = [self._curve(fold, total / fold.count) for fold, total in zip(folds, sums, strict=True)]
        n = rows.count
        signal = self._mean.dot(self._scaled(self._mean)).item()
        self.plain = Form(signal, self._own.sum().item() / (n - 1), self._own, self._cross)
        self.squared_trace = self._squared.sum().item() / (n - 1)

    def _sum(self, fold: Fold) -> Tensor:
        total = torch.zeros(self._rows.width, dtype=torch.float64, device=self._rows.device)
        for _, block in self._rows.blocks(fold.start, fold.stop):
            for part in block.split(self._block):
                total += part.double().sum(0)
        return total

    @property
    def _block(self) -> int:
        return max(1, BLOCK_ELEMENTS // self._rows.width)

    def _scaled(self, vectors: Tensor) -> Tensor:
        return vectors if self._scale is None else vectors * self._scale

    def _weights(self, fold: Fold) -> dict[int, float]:
        """Of the groups' Hessians in that of the fold."""
        weights: dict[int, float] = {}
        for weight, chosen in fold.parts:
            samples = sum(self._groups[group].samples for group in chosen)
            weights |= {group: weight * self._groups[group].samples / samples for group in chosen}
        return weights

    def _curve(self, fold: Fold, mean: Tensor) -> Curved:
        weights, scaled_mean = self._weights(fold), self._scaled(mean)
        curved_mean, means = torch.zeros_like(mean), {}
        for group, weight in weights.items():
            product = self._groups[group].hessian.product(scaled_mean)
            curved_mean += weight * product
            means[group] = scaled_mean.dot(product).item()
        cross = torch.zeros(fold.count, dtype=torch.float64)
        own = {group: torch.zeros(fold.count, dtype=torch.float64) for group in weights}
        for place, block in self._rows.blocks(fold.start, fold.stop):
            self._take_plain(place, block)
            inside = slice(place.start - fold.start, place.stop - fold.start)
            cross[inside] = torch.cat(
                [(self._scaled(part.double() - mean) @ curved_mean).cpu() for part in block.split(self._block)]
            )
            if not self._probes:
                for group in weights:
                    own[group][inside] = self._curvatures(group, block, mean)
        value = math.fsum(weights[group] * means[group] for group in weights)
        if self._probes:
            trace, error = self._probed_trace(fold, mean, weights)
            return Curved(Form(value, trace, None, cross), means, None, error)
        traces = {group: each.sum().item() / (fold.count - 1) for group, each in own.items()}
        owned = torch.stack([weights[group] * own[group] for group in weights]).sum(0)
        return Curved(Form(value, owned.sum().item() / (fold.count - 1), owned, cross), means, traces, 0.0)

    def _take_plain(self, place: slice, block: Tensor) -> None:
        """Squares and products of deviations from the mean of all gradients."""
        start = place.start
        for part in block.split(self._block):
            deviations = part.double() - self._mean
            scaled, here = self._scaled(deviations), slice(start, start + len(part))
            self._own[here] = (deviations * scaled).sum(1).cpu()
            self._squared[here] = scaled.square().sum(1).cpu()
            self._cross[here] = (scaled @ self._mean).cpu()
            start += len(part)

    def _curvatures(self, group: int, block: Tensor, mean: Tensor) -> Tensor:
        """dᵀHd of each gradient of a block with the Hessian of a group; shape: (len(block),)."""
        return _forms(self._groups[group].hessian, lambda k: self._scaled(block[k].double() - mean), len(block))

    def _probed_trace(self, fold: Fold, mean: Tensor, weights: dict[int, float]) -> tuple[float, float]:
        """Mean of zᵀHz over z = P Σ ±dᵢ / √(n−1) with random signs, whose covariance is PΣP; and its standard error."""
        generator = torch.Generator().manual_seed(self._seed + fold.start)
        values = torch.zeros(self._probes, dtype=torch.float64)
        for first in range(0, self._probes, self._probes_at_once):
            count = min(self._probes_at_once, self._probes - first)
            signs = torch.randint(0, 2, (count, fold.count), generator=generator).double() * 2 - 1
            signs = signs.to(self._rows.device) / math.sqrt(fold.count - 1)
            total = torch.zeros(count, self._rows.width, dtype=torch.float64, device=self._rows.device)
            for place, block in self._rows.blocks(fold.start, fold.stop):
                start = place.start - fold.start
                for part in block.split(self._block):
                    total.addmm_(signs[:, start : start + len(part)], part.double() - mean)
                    start += len(part)
            total = self._scaled(total)
            for group, weight in weights.items():
                values[first : first + count] += weight * _forms(self._groups[group].hessian, total.__getitem__, count)
        return values.mean().item(), values.std().item() / math.sqrt(self._probes)

    # Over folds, which count by their gradients.

    def _share(self, fold: Fold) -> float:
        return fold.count / self._rows.count

    def curvature(self, seen: float) -> tuple[float, float, float]:
        """μᵀHμ and Tr(HΣ), unbiased, and the standard error of the second from probes.

        `seen`: a gradient's part of the population, by which the square of a mean is less too large.
        """
        signal = trace = variance = 0.0
        for fold, each in zip(self.folds, self.curved, strict=True):
            share = self._share(fold)
            signal += share * (each.form.mean - (1 / fold.count - seen) * each.form.trace)
            trace += share * each.form.trace
            variance += (share * each.trace_error) ** 2
        return signal, trace, math.sqrt(variance)

    def change_error(self, learning_rate: float, seen: float, share: float) -> tuple[float, int] | None:
        """Jackknife standard error of E[ΔL] and its degrees of freedom; None with probes, or with folds below 3.

        Every group is left out with its gradients and its Hessian at once. `share`: Σ_B over the gradients' own
        covariance.
        """
        n = self._rows.count
        if self._probes or min(fold.count for fold in self.folds) < 3:
            return None
        signal, _ = self.plain.left_out(1 / (n - 1) - seen)
        contributions = (n - 1) / n * learning_rate * (signal - (self.plain.mean - (1 / n - seen) * self.plain.trace))
        own_hessians = torch.zeros(len(self._groups), dtype=torch.float64)
        for fold, each in zip(self.folds, self.curved, strict=True):
            m, factor = fold.count, self._share(fold) * learning_rate**2 / 2
            unseen = 1 / m - seen
            curvature, trace = each.form.left_out(1 / (m - 1) - seen)
            whole = each.form.mean + (share - unseen) * each.form.trace
            contributions[fold.start : fold.stop] += (m - 1) / m * factor * (whole - curvature - share * trace)
            assert each.traces is not None
            of_group = {g: each.means[g] + (share - unseen) * each.traces[g] for g in each.means}
            for weight, chosen in fold.parts:
                samples = sum(self._groups[g].samples for g in chosen)
                parts = {g: self._groups[g].samples / samples for g in chosen}
                centre = math.fsum(parts[g] * of_group[g] for g in chosen)
                for g in chosen:
                    own_hessians[g] += factor * weight * parts[g] * (of_group[g] - centre)
        return self._error(contributions, own_hessians, max(0.0, 1 - n * seen))

    def _error(self, gradients: Tensor, hessians: Tensor, of_population: float) -> tuple[float, int]:
        """From what single gradients and the groups' Hessians contribute to the estimate."""
        owners = [group for group in self._groups if group.stop > group.start]
        if owners:
            totals = torch.stack([gradients[group.start : group.stop].sum() for group in owners]) + hessians
            return math.sqrt(of_population * _variance(totals)), len(totals) - 1
        variance = of_population * _variance(gradients) + (_variance(hessians) if len(hessians) > 1 else 0.0)
        return math.sqrt(variance), min(len(gradients), len(hessians)) - 1


def _variance(contributions: Tensor) -> float:
    """Of a sum of contributions that are independent of each other."""
    count = len(contributions)
    return count / (count - 1) * (contributions - contributions.mean()).square().sum().item()


def _forms(hessian: Hessian, vectors: Callable[[int], Tensor], count: int) -> Tensor:
    """vᵀHv of `count` vectors; shape: (count,)."""
    values = torch.zeros(count, dtype=torch.float64)
    for k, product in hessian.products(vectors, count):
        values[k] += vectors(k).dot(product).cpu()
    return values
