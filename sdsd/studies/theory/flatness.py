"""Sharpness along an orbit: any number for one function, and one number at the canonical representative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...report import figures
from ...report.figures import draw_curves
from ...theory import random_representative, sharpness
from ..digits import load_digits
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, geometric_interval
from ..rules import RULES

MOVED = Effect(nothing=1.0, negligible=1.1)


def measure(
    seed: int,
    progress: Progress,
    *,
    samples: int = 256,
    hidden: int = 32,
    steps: int = 60,
    learning_rate: float = 0.01,
    points: int = 6,
    spread: float = 1.0,
) -> dict[str, Any]:
    """The top Hessian eigenvalue as trained and at random points of the orbit, there and at the canonical one."""
    batch = load_digits(seed, samples, dtype=torch.float64)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    model = model.double()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(model, batch).backward()
        optimizer.step()
    orbit = [model, *(random_representative(model, spread=spread, seed=100 * seed + k) for k in range(points))]
    values: dict[str, list[float]] = {"as_it_is": [], "canonical": []}
    for point in progress.each(orbit, f"seed {seed}: points of the orbit"):
        for name, canonical in (("as_it_is", False), ("canonical", True)):
            values[name].append(sharpness(point, batch, _loss, canonicalize=canonical, tolerance=1e-3, seed=seed).value)
    return values


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def judge(result: StudyResult) -> list[Verdict]:
    moved = geometric_interval(
        [max(run["as_it_is"]) / min(run["as_it_is"]) for run in result.series],
        "is the factor by which the top eigenvalue moves over one orbit",
        against=1,
    )
    spread = max(max(run["canonical"]) / min(run["canonical"]) - 1 for run in result.series)
    word = MOVED.verdict(moved)
    low, high = min(min(run["as_it_is"]) for run in result.series), max(max(run["as_it_is"]) for run in result.series)
    return [
        Verdict(
            claim="The definition of a flat minimum depends on the coordinates",
            source=f"{MOVES}, What's Known: Flat Minima Hypothesis",
            verdict=word,
            published="contested",
            our_figure=moved,
            corrected=f"Points that compute one function have a top Hessian eigenvalue from {low:.2g} to {high:.2g}. "
            f"At the representative of least norm it is the same for all of them, within {spread:.1e}.",
            effect=MOVED,
            **RULES["flatness"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(7.4, 4.1)
    run = result.series[0]
    places = list(range(len(run["as_it_is"])))
    draw_curves(
        axes,
        places,
        {"at the point": run["as_it_is"], "at its canonical representative": run["canonical"]},
        log_y=True,
        marker="o",
        xlabel="points of one orbit (0: as trained)",
        ylabel="top eigenvalue of the Hessian",
        legend="lower right",
    )
    axes.set_ylim(bottom=min(run["canonical"]) / 4)
    axes.set_xticks(places)
    figures.set_title(axes, "One function, any sharpness; one number where the norm is least")
    return figure


STUDIES = (
    Study(
        name="flatness",
        summary="the top Hessian eigenvalue along an orbit, and at the canonical representative",
        claim="Flatness depends on the coordinates",
        source=f"{MOVES}, What's Known: Flat Minima Hypothesis",
        quick={"hidden": 16, "points": 2},
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=8,
        needs=("sklearn",),
    ),
)
