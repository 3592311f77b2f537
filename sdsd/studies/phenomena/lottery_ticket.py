"""Lottery tickets: a network pruned to an eighth learns as fast as the whole one, from its own start and no other."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ..digits import Digits, evaluate, split_digits
from ..documents import EXPLANATION
from ..engine import Effect, Progress, Study, StudyResult, Verdict, geometric_interval, mean_interval
from ..rules import RULES
from .training import (
    Batch,
    Series,
    Watch,
    column,
    mask_gradients,
    mean,
    mean_curve,
    train,
)

TICKET, REINITIALISED, RANDOM_MASK, DENSE = "ticket", "other start", "random mask", "whole network"
SMALL_BATCH = "ticket, small batch"
STARVED_START, STARVED_MASK = "other start, as for the whole", "random mask, as for the whole"
CONTROLS = (REINITIALISED, RANDOM_MASK)
"""Their weights are as large as the connections left to a neuron ask for."""
STARVED = (STARVED_START, STARVED_MASK)
"""The same with weights of the size of the whole network's, too small for an eighth of the connections."""
ARMS = (TICKET, *CONTROLS, DENSE, SMALL_BATCH, *STARVED)
DRAWN = ARMS[:5]
COLOURS = dict(zip(DRAWN, (figures.GREEN, figures.ORANGE, figures.RED, figures.MUTED, figures.TEAL), strict=True))


def measure(
    seed: int,
    progress: Progress,
    *,
    hidden: tuple[int, int] = (128, 64),
    rounds: int = 9,
    keep: float = 0.8,
    round_steps: int = 300,
    steps: int = 60,
    every: int = 5,
    batch: int = 128,
    small_batch: int = 16,
    parts: int = 4,
    learning_rate: float = 0.1,
    late_steps: int = 2000,
) -> dict[str, Any]:
    """Iterative magnitude pruning with rewinding to the start, then the ticket beside its controls."""
    data = split_digits(seed)
    start, other = (_start(hidden, offset + seed) for offset in (0, 1000))
    masks = [torch.ones_like(value) for value in start]
    for _ in progress.each(range(rounds), f"seed {seed}: train, prune, rewind"):
        model = _masked(hidden, start, masks)
        mask_gradients(model, masks)
        _descend(model, data, seed, steps=round_steps, batch=batch, learning_rate=learning_rate)
        masks = [_prune(value.detach(), mask, keep) for value, mask in zip(model.parameters(), masks, strict=True)]
    torch.manual_seed(2000 + seed)
    shuffled = [mask.flatten()[torch.randperm(mask.numel())].view_as(mask) for mask in masks]
    everything = [torch.ones_like(mask) for mask in masks]
    arms = {TICKET: (start, masks), DENSE: (start, everything), SMALL_BATCH: (start, masks)}
    arms |= {STARVED_START: (other, masks), STARVED_MASK: (start, shuffled)}
    arms |= {REINITIALISED: (_as_large_as_needed(other, masks), masks)}
    arms |= {RANDOM_MASK: (_as_large_as_needed(start, shuffled), shuffled)}
    series: dict[str, Series] = {}
    late: dict[str, float] = {}
    for name in progress.each(ARMS, f"seed {seed}: the ticket and its controls"):
        size = small_batch if name == SMALL_BATCH else batch
        model = _masked(hidden, *arms[name])
        series[name] = train(
            model,
            (data.images, data.labels),
            _loss,
            torch.optim.SGD(model.parameters(), learning_rate),
            Watch(size, every=every, geometry_every=2, micro=size // parts, smoothing=0.98),
            steps=steps,
            batch_size=size,
            masks=arms[name][1],
            seed=seed,
            evaluate=partial(_held_out, model, data),
        )
        if name != SMALL_BATCH:
            _descend(model, data, seed, steps=late_steps, batch=batch, learning_rate=learning_rate)
            late[name] = _held_out(model, data)["accuracy"]
    kept, weights = (sum(f(mask) for mask in masks if mask.ndim > 1) for f in (torch.count_nonzero, Tensor.numel))
    return {"density": int(kept) / int(weights), "arms": series, "late_accuracy": late}


def _module(hidden: tuple[int, int]) -> nn.Sequential:
    first, second = hidden
    return nn.Sequential(nn.Linear(64, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10))


def _start(hidden: tuple[int, int], seed: int) -> list[Tensor]:
    """The parameters of a fresh network, weights as for ReLU (He et al. 2015)."""
    torch.manual_seed(seed)
    parameters = [parameter.detach() for parameter in _module(hidden).parameters()]
    return [nn.init.kaiming_normal_(value) if value.ndim > 1 else value.zero_() for value in parameters]


def _as_large_as_needed(start: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    """Weights scaled neuron by neuron by √(inputs / inputs left), so that its input is as large as before pruning."""
    scaled = []
    for value, mask in zip(start, masks, strict=True):
        left = mask.sum(1, keepdim=True).clamp(min=1) if mask.ndim > 1 else None
        scaled.append(value if left is None else value * (mask.shape[1] / left).sqrt())
    return scaled


def _masked(hidden: tuple[int, int], start: list[Tensor], masks: list[Tensor]) -> nn.Sequential:
    """A network at `start`, its pruned weights zero."""
    model = _module(hidden)
    with torch.no_grad():
        for parameter, value, mask in zip(model.parameters(), start, masks, strict=True):
            parameter.copy_(value * mask)
    return model


def _descend(model: nn.Module, data: Digits, seed: int, *, steps: int, batch: int, learning_rate: float) -> None:
    """A round of training, which nobody watches."""
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(data.labels), (batch,), generator=generator)
        optimizer.zero_grad()
        _loss(model, (data.images[chosen], data.labels[chosen])).backward()
        optimizer.step()


def _held_out(model: nn.Module, data: Digits) -> dict[str, float]:
    return {"accuracy": evaluate(model, data.held_out_images, data.held_out_labels)[1]}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def _prune(value: Tensor, mask: Tensor, keep: float) -> Tensor:
    """The mask less the smallest of what is left of a weight matrix; biases stay."""
    if value.ndim < 2:
        return mask
    left = int(mask.sum())
    threshold = value[mask > 0].abs().kthvalue(left - round(keep * left) + 1).values
    return mask * (value.abs() >= threshold)


def _last(result: StudyResult, key: str) -> dict[str, list[float]]:
    """`key` at the last step watched, for each arm, seed by seed."""
    return {arm: [curve[-1] for curve in column(result.series, "arms", arm, key)] for arm in ARMS}


def judge(result: StudyResult) -> list[Verdict]:
    accuracy, gamma = (_last(result, key) for key in ("accuracy", "gamma"))
    batch, small, steps, late_steps = (result.config[name] for name in ("batch", "small_batch", "steps", "late_steps"))
    best = list(map(max, zip(*(accuracy[arm] for arm in CONTROLS), strict=True)))
    ahead = [a - b for a, b in zip(accuracy[TICKET], best, strict=True)]
    level = [a - b for a, b in zip(accuracy[TICKET], accuracy[DENSE], strict=True)]
    if min(ahead) > 0.1 and min(level) > -0.02:
        shown = "reproduced"
    elif min(ahead) > 0:
        shown = "direction only"
    else:
        shown = "opposite" if max(ahead) < 0 else "inconclusive"
    highest = list(map(max, zip(*(gamma[arm] for arm in CONTROLS), strict=True)))
    higher = geometric_interval([a / b for a, b in zip(gamma[TICKET], highest, strict=True)], against=1.0)
    pairs = [pair for arm in ARMS for pair in zip(gamma[arm], accuracy[arm], strict=True)]
    if min(ahead) <= 0:
        held = "untestable here"
    elif all((each > 1) == (learned > 0.5) for each, learned in pairs):
        held = "reproduced"
    else:
        held = "direction only" if Effect(nothing=1.0).verdict(higher) == "reproduced" else "refuted"
    means = {arm: (mean(accuracy[arm]), mean(gamma[arm])) for arm in ARMS}
    density = mean(column(result.series, "density"))
    untrained = mean([curve[0] for curve in column(result.series, "arms", TICKET, "accuracy")])
    late = {arm: mean(column(result.series, "late_accuracy", arm)) for arm in (TICKET, *CONTROLS, DENSE, *STARVED)}
    return [
        Verdict(
            claim="A network holds a small part that, from its own start, learns as fast as the whole; from another "
            "start it does not",
            source="Frankle and Carbin 2019, arXiv:1803.03635",
            verdict=shown,
            published="tickets of 10–20% of the weights",
            our_figure=mean_interval(ahead, f"more accurate than the better control, at {density:.1%} of the weights"),
            corrected=f"Accuracy after {steps} steps: "
            + ", ".join(f"{accuracy:.2f} {arm}" for arm, (accuracy, _) in means.items())
            + f"; after {late_steps:,} more: "
            + ", ".join(f"{value:.2f} {arm}" for arm, value in late.items())
            + f". The ticket is at {untrained:.2f} before its first step: choosing the weights is itself training.",
            **RULES["lottery-ticket"].stated(),
        ),
        Verdict(
            claim="SDSD explains lottery tickets: in a ticket drift dominates (Γ > 1), in other parts diffusion",
            source=EXPLANATION,
            verdict=held,
            published="Γ > 1, no batch size given",
            our_figure=replace(higher, unit=f"× Γ of the better control is Γ of the ticket, at batch {batch}"),
            corrected=f"Γ of {batch} samples is {means[TICKET][1]:.2f} for the ticket, {means[REINITIALISED][1]:.2f} "
            f"from another start and {means[RANDOM_MASK][1]:.2f} under a random mask, the ticket's over the better "
            f"control's {higher}; with weights as large as for the whole network the controls have "
            f"{means[STARVED_START][1]:.2f} and {means[STARVED_MASK][1]:.2f}. The whole network has "
            f"{means[DENSE][1]:.2f}; and of {small} samples the ticket has {means[SMALL_BATCH][1]:.2f}, at "
            f"{means[SMALL_BATCH][0]:.0%} accuracy after as many steps on such batches.",
            **RULES["lottery-ticket: Γ"].stated(),
        ),
    ]


def draw(result: StudyResult) -> Any:
    figure, (left, middle, right) = figures.new_figure(13.2, 4.1, columns=3)
    density = mean(column(result.series, "density"))
    held = result.verdicts[1].verdict == "reproduced"
    for axes, path, title, label, legend in (
        (left, ("accuracy",), f"{density:.0%} of the weights, from their own start", "held-out accuracy", "best"),
        (
            middle,
            ("gamma",),
            "Γ > 1 where it learns" if held else "It learns at Γ < 1, too",
            "Γ of the batch trained on",
            "",
        ),
        (right, ("geometry", "gamma_star"), "Γ* > 1: every step lowers the loss", "Γ*", ""),
    ):
        where = "geometry" if len(path) > 1 else "step"
        steps = result.series[0]["arms"][TICKET][where]
        curves = {arm: mean_curve(column(result.series, "arms", arm, *path)) for arm in DRAWN}
        draw_curves(
            axes,
            steps["step"] if isinstance(steps, dict) else steps,
            {arm: each[0] for arm, each in curves.items()},
            bands={arm: each[1] for arm, each in curves.items()},
            colours=COLOURS,
            xlabel="training step",
            ylabel=label,
            marker="o",
            log_y=path[-1] == "gamma_star",
            legend=legend,
        )
        if path[-1] != "accuracy":
            draw_level(axes, 1.0, "1", at=0.02)
        figures.set_title(axes, title)
    left.set_ylim(0, 1)
    return figure


STUDIES = (
    Study(
        name="lottery-ticket",
        summary="iterative magnitude pruning on digits; the ticket beside another start, a random mask and the whole",
        claim="SDSD explains lottery tickets",
        source=EXPLANATION,
        quick={"hidden": (64, 32), "rounds": 5, "keep": 0.67, "round_steps": 150, "every": 20},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=65,
        needs=("sklearn",),
    ),
)
