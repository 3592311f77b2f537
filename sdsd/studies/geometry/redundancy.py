"""What foretells the cost of a merge: the angle between activations, the neurons' mass, or both and the readers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...geometry import merge
from ...report import figures
from ..digits import evaluate, split_digits
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import Progress, Study, StudyResult, Verdict, mean_interval, rank_correlation
from ..rules import EFFECTS, RULES

ANGLE, MASS, PRODUCT = "1 − cos", "mass", "‖a_i − a_j‖ ‖v_i − v_j‖"
EFFECT = EFFECTS["redundancy"]


def measure(
    seed: int,
    progress: Progress,
    *,
    hidden: int = 128,
    epochs: int = 30,
    batch: int = 64,
    learning_rate: float = 0.1,
    pairs: int = 500,
) -> dict[str, Any]:
    """Random pairs of a perceptron's hidden neurons merged one at a time, and their cost on held-out digits."""
    data = split_digits(seed)
    head = nn.Linear(hidden, 10)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), head)
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.labels)).split(batch):
            optimizer.zero_grad()
            cross_entropy(model(data.images[chosen]), data.labels[chosen]).backward()
            optimizer.step()
    with torch.no_grad():
        activations = model[:4](data.images).T
        readers = head.weight.detach().T
    alive = (activations.norm(dim=1) > 1e-3 * activations.norm(dim=1).max()).nonzero().flatten()
    drawn = [alive[torch.randperm(len(alive))[:2]].tolist() for _ in range(pairs)]
    before = evaluate(model, data.held_out_images, data.held_out_labels)[0]
    costs = []
    for pair in progress.each(drawn, f"seed {seed}: merging random pairs"):
        with merge(model, "2", [pair], "mean"):
            costs.append(evaluate(model, data.held_out_images, data.held_out_labels)[0] - before)
    return {"cost": costs, **_foretold(activations, readers, torch.tensor(drawn))}


def _foretold(activations: Tensor, readers: Tensor, pairs: Tensor) -> dict[str, list[float]]:
    """What is known of each pair before it is merged."""
    first, second = (activations[pairs[:, k]].double() for k in (0, 1))
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
    mass = activations.norm(dim=1).double() * readers.norm(dim=1).double()
    between = (readers[pairs[:, 0]] - readers[pairs[:, 1]]).norm(dim=1).double()
    return {
        ANGLE: (1 - cosine).tolist(),
        MASS: (mass[pairs[:, 0]] + mass[pairs[:, 1]]).tolist(),
        PRODUCT: ((first - second).norm(dim=1) * between).tolist(),
    }


def correlations(result: StudyResult) -> dict[str, list[float]]:
    """Of each way to foretell with |cost|, seed by seed."""
    return {
        way: [rank_correlation(series[way], list(map(abs, series["cost"]))) for series in result.series]
        for way in (ANGLE, MASS, PRODUCT)
    }


def judge(result: StudyResult) -> list[Verdict]:
    figures = {way: mean_interval(values, against=0.0, within=(-1, 1)) for way, values in correlations(result).items()}
    ours = mean_interval(correlations(result)[ANGLE], "rank correlation of 1 − cos with the cost", against=0.0)
    return [
        Verdict(
            claim="Over pairs as they come, the angle between activations foretells what a merge costs",
            source=f"{FUNCTIONAL_GEOMETRY}, Core Hypothesis",
            verdict=EFFECT.verdict(ours),
            published="implied",
            our_figure=ours,
            effect=EFFECT,
            corrected=f"Over {result.config['pairs']} random pairs of live neurons and their cost on held-out digits: "
            + ", ".join(f"{figure} for {way}" for way, figure in figures.items())
            + ".",
            **RULES["redundancy"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(12.6, 4.1, columns=3)
    for place, way in zip(axes, (ANGLE, MASS, PRODUCT), strict=True):
        values = correlations(result)[way]
        _draw_pairs(place, result.series[0], way)
        figures.set_title(place, f"rank correlation {sum(values) / len(values):.2f}")
    axes[0].set_ylabel("|change of held-out loss|")
    return figure


@figures.styled
def _draw_pairs(axes: Any, series: dict[str, Any], way: str) -> None:
    costs = [max(abs(cost), 1e-6) for cost in series["cost"]]
    axes.plot(series[way], costs, ".", color=figures.BLUE, alpha=0.5, markersize=5)
    axes.set_yscale("log")
    axes.set_xlabel(way)


STUDIES = (
    Study(
        name="redundancy",
        summary="random pairs of neurons merged one at a time, and what foretells the cost",
        claim="The angle between activations foretells what a merge costs",
        source=f"{FUNCTIONAL_GEOMETRY}, Core Hypothesis",
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=60,
        quick={"pairs": 60, "epochs": 10},
        seeds=6,
        quick_seeds=2,
        needs=("sklearn",),
    ),
)
