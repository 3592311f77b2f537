"""What the studies of phenomena share: a training loop with a GammaMonitor, what is logged along it, curves over seeds.

========================  ==============================================================================================
`gamma`                   Γ of a batch of `Watch.batch` samples, from the monitor on the steps that are made
`gamma_published`         Γ as the first source document writes it, from the same gradients as they come, biased by 1/n
`gamma_canonical`         Γ at the canonical representative (least norm), so that no rescaling of neurons moves it
`gamma_star`              Γ*, above 1 iff an SGD step on such a batch is expected to lower the loss
`entropy`, `volume`       H_G in nats, and V in caps, summed over hidden layers, at the canonical representative
========================  ==============================================================================================

The first two are taken at every look, the others at some of them. Γ grows in proportion to the batch, so each study
names one, and Γ of full-batch descent is that of batches it might have drawn. It is the unbiased Γ_U of samples drawn
without replacement from the training set: with all of them the mean gradient is exact, and no bias is taken away.

V is taken at the angle at which caps round as many random directions cover half of what they could (`telling_angle`),
the same from start to end: caps of 60° do not overlap in so many dimensions, and V would be the number of neurons.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...gamma import GammaMonitor, GammaStats
from ...theory import canonicalize, curvature_gamma, hidden_layers, orbit_entropy, realized_volume, telling_angle
from ..documents import SDSD
from ..engine import Verdict, mean_interval
from ..rules import RULES

PROBES = 16
SHOWN = ("reproduced", "direction only")
"""Verdicts by which a phenomenon is there to be explained."""
LEAST_FALL = 0.05
"""Part of H_G and of V that has to go before a fall is called one."""

Batch = tuple[Tensor, Tensor]
LossFunction = Callable[[nn.Module, Batch], Tensor]
Series = dict[str, Any]


@dataclass(frozen=True)
class Watch:
    """What is logged along a run, and how often.

    Attributes:
        batch: samples of the batch that Γ and Γ* are given for.
        every: steps between two looks.
        geometry_every: looks between two at `gamma_canonical`, `gamma_star`, `entropy` and `volume`; 0 for never.
        micro: samples a gradient. 1 measures single samples, in exact mode; more, micro-batches of so many, which
            BatchNorm in train mode and masked weights need.
        smoothing: weight of the past in Γ of mini-batches; Γ of a full batch is that step's own.
        layers: (writer, reader) of the hidden layers, where their neurons cannot be rescaled; None finds them.
        canonical: whether the model has a canonical representative (neurons that can be rescaled).
        samples: training samples that the geometry is looked at with, at most.
        cap_samples: points drawn for V.
        angle: of the caps, in radians; None takes the one that tells for layers of that size.
    """

    batch: int
    every: int
    geometry_every: int = 1
    micro: int = 1
    smoothing: float = 0.9
    layers: tuple[tuple[str, str], ...] | None = None
    canonical: bool = True
    samples: int = 512
    cap_samples: int = 8192
    angle: float | None = None


def train(
    model: nn.Module,
    data: Batch,
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer,
    watch: Watch,
    *,
    steps: int,
    batch_size: int | None = None,
    evaluate: Callable[[], Mapping[str, float]] = dict,
    masks: Sequence[Tensor] | None = None,
    stop: Callable[[Series], bool] | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    seed: int = 0,
) -> Series:
    """Train and log: lists by name, one entry a look, and under "geometry" those of the looks at the geometry.

    Args:
        data: (inputs, targets) of training.
        loss_fn: (model, batch) → mean loss.
        steps: at most; a look at step k comes before update k.
        batch_size: drawn anew each epoch; None takes all samples in every step.
        evaluate: further numbers of a look.
        masks: for each parameter 1 where it trains, 0 where it is pruned.
        stop: given the series so far after a look, whether to end.
        scheduler: of the learning rate, stepped after each update.
        seed: of the batches.
    """
    if masks is not None:
        mask_gradients(model, masks)
    generator = torch.Generator().manual_seed(seed)
    rows: Series = {"geometry": {}}
    monitor = GammaMonitor(
        model,
        mode="exact" if watch.micro == 1 else "micro",
        every=1 if batch_size else watch.every,
        ema=watch.smoothing if batch_size else 0.0,
        population=len(data[1]),
    )
    with monitor:
        queue: list[Tensor] = []
        for step in range(steps + 1):
            queue = queue or _epoch(len(data[1]), batch_size, generator)
            batch = data if batch_size is None else _part(data, queue.pop())
            optimizer.zero_grad()
            loss = _backward(model, batch, loss_fn, watch.micro)
            stats = monitor.step()
            if step % watch.every == 0:
                assert stats is not None
                with monitor.paused():
                    _append(rows, {"step": step, "batch_loss": loss, **_gamma_numbers(stats, watch), **evaluate()})
                    looks = len(rows["step"]) - 1
                    if watch.geometry_every and looks % watch.geometry_every == 0:
                        shape = geometry(model, data, loss_fn, watch, optimizer, masks)
                        _append(rows["geometry"], {"step": step, **shape})
                if stop is not None and stop(rows):
                    break
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return rows


def _epoch(count: int, batch_size: int | None, generator: torch.Generator) -> list[Tensor]:
    """Batches of one epoch, all of one size."""
    if batch_size is None:
        return []
    order = torch.randperm(count, generator=generator)
    return list(order[: count - count % batch_size].split(batch_size))


def _part(data: Batch, chosen: Tensor) -> Batch:
    return data[0][chosen], data[1][chosen]


def _backward(model: nn.Module, batch: Batch, loss_fn: LossFunction, micro: int) -> float:
    """The mean loss of the batch, its gradient added up: in one pass, or in one for each micro-batch."""
    size = len(batch[1])
    passes = size // micro if micro > 1 else 1
    total = 0.0
    for inputs, targets in zip(*(part.split(size // passes) for part in batch), strict=True):
        loss = loss_fn(model, (inputs, targets)) / passes
        loss.backward()
        total += loss.item()
    return total


def _append(rows: Series, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        rows.setdefault(name, []).append(value)


def _gamma_numbers(stats: GammaStats, watch: Watch) -> dict[str, float]:
    published = stats.gamma * watch.batch / stats.samples_per_gradient
    assert stats.smoothed is not None
    return {"gamma": gamma_of_batch(stats.smoothed, watch.batch), "gamma_published": published}


def gamma_of_batch(stats: GammaStats, batch: int) -> float:
    """Γ of a batch of `batch` samples."""
    return stats.gamma_unbiased * batch / stats.samples_per_gradient


def mask_gradients(model: nn.Module, masks: Sequence[Tensor]) -> None:
    """Let nothing reach the parameters where their mask is 0; put in before a monitor, which then sees the same."""
    for parameter, mask in zip(model.parameters(), masks, strict=True):
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def geometry(
    model: nn.Module,
    data: Batch,
    loss_fn: LossFunction,
    watch: Watch,
    optimizer: torch.optim.Optimizer,
    masks: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """Γ at the canonical representative, Γ* of an SGD step at the optimizer's learning rate, H_G and V."""
    batch = data[0][: watch.samples], data[1][: watch.samples]
    rate = optimizer.param_groups[0]["lr"]
    example = batch[0]
    canonical = canonicalize(model, order=False, example_input=example) if watch.canonical else copy.deepcopy(model)
    seen = hidden_layers(canonical, watch.layers, example_input=example)
    layers = [(layer.rows.detach(), layer.mass.detach()) for layer in seen]
    numbers = {"entropy": sum(orbit_entropy(rows, mass).item() for rows, mass in layers)}
    numbers["volume"] = sum(
        realized_volume(rows[mass > 0], watch.angle or telling_angle(*rows.shape), watch.cap_samples).value
        for rows, mass in layers
    )
    if masks is not None:
        mask_gradients(canonical, masks)
    at_canonical = gamma_at(canonical, batch, loss_fn, watch.micro, population=len(data[1]))
    numbers["gamma_canonical"] = gamma_of_batch(at_canonical, watch.batch)
    adaptive = isinstance(optimizer, torch.optim.Adam)
    if adaptive and not optimizer.state:
        return {**numbers, "gamma_star": math.nan, "expected_change": math.nan}
    curvature = curvature_gamma(
        model,
        loss_fn,
        batch,
        learning_rate=rate,
        batch_size=watch.batch,
        samples_per_gradient=watch.micro,
        probes=PROBES,
        precondition=optimizer if adaptive else None,
        population=len(data[1]),
    )
    return {**numbers, "gamma_star": curvature.gamma_star, "expected_change": curvature.expected_change}


def gamma_at(model: nn.Module, batch: Batch, loss_fn: LossFunction, micro: int, population: int) -> GammaStats:
    """Γ of the gradients of `batch`, drawn from a population, at the point where the model is."""
    with GammaMonitor(model, mode="exact" if micro == 1 else "micro", population=population, ema=0.0) as monitor:
        model.zero_grad()
        _backward(model, batch, loss_fn, micro)
        stats = monitor.step()
    assert stats is not None
    return stats


def column(result_series: Sequence[Mapping[str, Any]], *path: str) -> list[Any]:
    """What lies under `path` in each seed's series."""
    values = []
    for series in result_series:
        value: Any = series
        for name in path:
            value = value[name]
        values.append(value)
    return values


def mean_curve(
    curves: Sequence[Sequence[float | None]],
) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Mean over seeds, and the lowest and the highest, as far as all go; NaN where one is not defined (None)."""
    columns = [tuple(math.nan if value is None else value for value in values) for values in zip(*curves, strict=False)]
    return list(map(mean, columns)), ([min(values) for values in columns], [max(values) for values in columns])


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def judge_functional(phenomenon: str, runs: Sequence[Series], controls: Mapping[str, Sequence[Series]]) -> Verdict:
    """Whether H_G and V fall where the phenomenon is, and more than in its controls."""

    def falls(rows: Series) -> tuple[float, float]:
        entropy, volume = (rows["geometry"][key] for key in ("entropy", "volume"))
        return 1 - entropy[-1] / entropy[0], 1 - volume[-1] / volume[0]

    here = [falls(rows) for rows in runs]
    there = {name: [falls(rows) for rows in others] for name, others in controls.items()}
    entropies, volumes = zip(*here, strict=True)
    entropy_falls, volume_falls = min(entropies) > LEAST_FALL, min(volumes) > LEAST_FALL
    more = all(
        mine[key] > other[key]
        for others in there.values()
        for mine, other in zip(here, others, strict=True)
        for key in (0, 1)
    )
    described = [f"by {_percent(here)} where it happens"]
    described += [f"by {_percent(others)} with {name}" for name, others in there.items()]
    if entropy_falls:
        verdict = "reproduced" if volume_falls and more else "direction only"
    elif max(entropies) < -LEAST_FALL:
        verdict = "opposite"
    else:
        verdict = "no effect" if max(map(abs, entropies)) <= LEAST_FALL else "inconclusive"
    return Verdict(
        claim=f"{phenomenon} is a collapse of symmetry and volume: H_G and V fall",
        source=f"{SDSD}, introduction and §2–3",
        verdict=verdict,
        published="a proposition, without a number",
        our_figure=mean_interval(entropies, "of H_G is lost"),
        corrected=f"H_G and V fall {', '.join(described)}.",
        **RULES["collapse of H_G and V"].stated(),
    )


def _percent(falls: Sequence[tuple[float, float]]) -> str:
    return " and ".join(f"{100 * mean([each[key] for each in falls]):.2g}%" for key in (0, 1))


def separation(scores: Sequence[float], chosen: Sequence[bool]) -> float:
    """How well `scores` tell the chosen from the others: the chance that one of them scores higher (area under ROC).

    0.5 says nothing, 1 and 0 say all; the same for any scale of the scores, so for Γ at any batch size. NaN where all
    or none are chosen.
    """
    inside = np.array([score for score, wanted in zip(scores, chosen, strict=True) if wanted])
    outside = np.array([score for score, wanted in zip(scores, chosen, strict=True) if not wanted])
    if not len(inside) or not len(outside):
        return math.nan
    difference = inside[:, None] - outside[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)
