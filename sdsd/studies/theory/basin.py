"""Basins of networks that learned true labels and of networks that memorised random ones: volume, with its bound."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...report import figures
from ...report.figures import draw_dots
from ...theory import basin_volume
from ..digits import load_digits
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES

LARGER = Effect(nothing=0.0)
LEAST_RAYS = 10
"""Effective rays below which an estimate is a lower bound and no volume."""
KINDS = ("true labels", "random labels")


def measure(
    seed: int,
    progress: Progress,
    *,
    samples: int = 200,
    hidden: int = 16,
    stop_at: float = 0.01,
    learning_rate: float = 0.01,
    most_steps: int = 8000,
    threshold: float = 0.5,
    prior_scale: float = 0.5,
    directions: int = 200,
) -> dict[str, Any]:
    """log V of both kinds of minimum at the same loss, as a volume and as a share of a Gaussian."""
    images, classes = load_digits(seed, samples)
    shuffled = classes[torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    volumes: dict[str, Any] = {}
    for kind, labels in zip(KINDS, (classes, shuffled), strict=True):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        optimizer = torch.optim.Adam(model.parameters(), learning_rate)
        for _ in range(most_steps):
            optimizer.zero_grad()
            loss = _loss(model, (images, labels))
            if loss.item() < stop_at:
                break
            loss.backward()
            optimizer.step()
        for name, scale in (("volume", None), ("gaussian", prior_scale)):
            basin = basin_volume(
                model,
                (images, labels),
                _loss,
                threshold=threshold,
                prior_scale=scale,
                directions=directions,
                seed=seed,
                progress=progress.bar(f"seed {seed}: rays, {kind}"),
            )
            volumes[f"{kind}, {name}"] = {
                "log_volume": basin.log_volume,
                "lower_bound": basin.lower_bound(),
                "effective_directions": basin.effective_directions,
                "median_ray": basin.log_shares.median().item(),
                "parameters": basin.parameters,
                "loss": basin.loss,
            }
    return volumes


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def _difference(result: StudyResult, name: str, key: str) -> list[float]:
    """True labels less random ones, in nats a parameter."""
    return [
        (run[f"{KINDS[0]}, {name}"][key] - run[f"{KINDS[1]}, {name}"][key]) / run[f"{KINDS[0]}, {name}"]["parameters"]
        for run in result.series
    ]


def judge(result: StudyResult) -> list[Verdict]:
    unit = "nats a parameter by which the log volume with true labels is larger"
    ours = mean_interval(_difference(result, "volume", "log_volume"), unit, against=0)
    gaussian = mean_interval(_difference(result, "gaussian", "log_volume"))
    median = mean_interval(_difference(result, "volume", "median_ray"))
    least = min(run[name]["effective_directions"] for run in result.series for name in run if name != "seed")
    bounds = [run[f"{KINDS[0]}, gaussian"]["lower_bound"] for run in result.series]
    word = LARGER.verdict(ours) if least >= LEAST_RAYS else "inconclusive"
    if word == "reproduced" and not (gaussian.low is not None and gaussian.low > 0):
        word = "direction only"
    return [
        Verdict(
            claim="Simple functions lie in broad basins, memorising ones in narrow minima",
            source=f"{MOVES}, The Entropic Selection Principle, 1",
            verdict=word,
            published="flatness implies simplicity",
            our_figure=ours,
            corrected="At canonical representatives of the same loss, the estimate with true labels is larger by "
            f"{replace(ours, unit='')} nats a parameter, the typical ray by {median}, the share of a Gaussian by "
            f"{gaussian}. But of {result.config['directions']} rays an estimate rests on as few as {least:.1f}, so "
            "that these are lower bounds and no volumes; what is sure are shares of at least "
            f"e^{min(bounds):.0f} to e^{max(bounds):.0f} of the Gaussian.",
            **RULES["basin"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(10.6, 4.1, columns=2)
    titles = {"volume": "Volume", "gaussian": "Share of a Gaussian"}
    for place, (name, title) in zip(axes, titles.items(), strict=True):
        dots = {}
        for kind in KINDS:
            values = [
                run[f"{kind}, {name}"]["log_volume"] / run[f"{kind}, {name}"]["parameters"] for run in result.series
            ]
            dots[kind] = (math.fsum(values) / len(values), min(values), max(values))
        draw_dots(place, dots, ylabel="log V, nats a parameter")
        figures.set_title(place, title)
    return figure


STUDIES = (
    Study(
        name="basin",
        summary="volume of the basins of networks with true and with random labels, from random rays",
        claim="Flatness implies simplicity",
        source=f"{MOVES}, The Entropic Selection Principle, 1",
        quick={"directions": 40, "samples": 100, "hidden": 8},
        seeds=5,
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=20,
        needs=("sklearn",),
    ),
)
