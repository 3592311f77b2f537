"""Trained on after a merge: does a network merged by geometry peak lower than one merged at random?"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...geometry import mass_consolidation, plasticity, sgd_training
from ...report import figures
from ...report.figures import plain_number
from ..digits import evaluate, split_digits
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import Measured, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES
from .verdicts import plasticity_verdict

WAYS = ("geometry", "random", "untouched")
GAIN = 1.0
"""Points of accuracy below which a gain is none."""
NEGLIGIBLE = 0.1
"""Of (random − geometry) / (random + geometry)."""


def measure(
    seed: int,
    progress: Progress,
    *,
    images: int = 150,
    hidden: int = 128,
    epochs: int = 30,
    epochs_after: int = 10,
    pairs: int = 50,
    learning_rate: float = 0.1,
    learning_rate_after: float = 0.02,
    random_pairings: int = 4,
) -> dict[str, Any]:
    """A perceptron that saw few digits, so that its accuracy has room above; merged, and trained on."""
    data = split_digits(seed)
    shown = (data.images[:images], data.labels[:images])
    layers = [nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    model = nn.Sequential(*layers)
    batches = list(zip(shown[0].split(32), shown[1].split(32), strict=True))
    progress.say(f"seed {seed}: training, merging, training on")
    torch.manual_seed(seed)
    for _ in range(epochs):
        for inputs, labels in batches:
            loss = cross_entropy(model(inputs), labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(gradient, alpha=learning_rate)

    def accuracy(network: nn.Module) -> float:
        return evaluate(network, data.held_out_images, data.held_out_labels)[1]

    with torch.no_grad():
        activations = model[:4](shown[0])
    measured = plasticity(
        model,
        "2",
        sgd_training(
            batches, lambda network, batch: cross_entropy(network(batch[0]), batch[1]), lr=learning_rate_after
        ),
        accuracy,
        pairs,
        epochs=epochs_after,
        activations=activations,
        seed=seed,
    )
    merged = mass_consolidation(
        model,
        "2",
        lambda network: evaluate(network, data.held_out_images, data.held_out_labels)[0],
        pairs,
        random_pairings=random_pairings,
        activations=activations,
        seed=seed,
    )
    costs = {"geometry": abs(merged.geometry), "random": fmean(map(abs, merged.random))}
    return {"before": accuracy(model), "cost": costs, **{name: list(getattr(measured, name)) for name in WAYS}}


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def judge(result: StudyResult) -> list[Verdict]:
    peaks = {name: [100 * max(series[name]) for series in result.series] for name in WAYS}
    before = [100 * series["before"] for series in result.series]
    differences = [a - b for a, b in zip(peaks["geometry"], peaks["random"], strict=True)]
    ours = mean_interval(differences, "points, geometry − random", against=0.0)
    means = {name: sum(values) / len(values) for name, values in peaks.items()}
    return [
        Verdict(
            claim="Merging by geometry does not help a network to learn on: a negative result, which the document "
            "calls verified",
            source=f"{FUNCTIONAL_GEOMETRY}, Phase IV",
            verdict=_word(ours),
            published="no gain (84.7 against 86.8%)",
            our_figure=ours,
            corrected=f"From {sum(before) / len(before):.1f}% peak accuracy is "
            + ", ".join(f"{value:.1f}% {name}" for name, value in means.items())
            + ".",
            **RULES["after-merging"].stated(),
        ),
        _judge_speed(result),
        plasticity_verdict(result.series),
    ]


def _judge_speed(result: StudyResult) -> Verdict:
    """Stability is what merging costs at once, speed what accuracy is over the epochs that follow."""
    speeds = [100 * (fmean(series["geometry"]) - fmean(series["random"])) for series in result.series]
    ours = mean_interval(speeds, "points of accuracy over the epochs after a merge, geometry − random", against=0.0)
    costs = {name: [series["cost"][name] for series in result.series] for name in ("geometry", "random")}
    stability = mean_interval(
        [(b - a) / (a + b) for a, b in zip(costs["geometry"], costs["random"], strict=True)], against=0.0
    )
    epochs = result.config["epochs_after"]
    return Verdict(
        claim="Geometry encodes stability, not learning speed",
        source=f"{FUNCTIONAL_GEOMETRY}, Key Findings, 7",
        verdict=_speed_word(stability, ours),
        published="to be determined",
        our_figure=ours,
        corrected=f"Merging {result.config['pairs']} pairs at once costs {plain_number(fmean(costs['geometry']))} of "
        f"held-out loss by geometry and {plain_number(fmean(costs['random']))} at random: (random − geometry) / "
        f"(random + geometry) is {stability}. What is lost at once is caught up with later: the difference is "
        f"{_after(result, 0)} points after one epoch and {_after(result, -1)} after {epochs}.",
        **RULES["after-merging: speed"].stated(),
    )


def _after(result: StudyResult, epoch: int) -> Measured:
    return mean_interval([100 * (series["geometry"][epoch] - series["random"][epoch]) for series in result.series])


def _speed_word(stability: Measured, speed: Measured) -> str:
    if stability.low is None or stability.high is None or speed.low is None or speed.high is None:
        return "inconclusive"
    if min(speed.low, -speed.high) > -GAIN:  # within a point of 0
        if stability.low > 0:
            return "reproduced"
        return "no effect" if max(stability.high, -stability.low) < NEGLIGIBLE else "inconclusive"
    return "refuted" if speed.low > GAIN or speed.high < -GAIN else "inconclusive"


def _word(ours: Measured) -> str:
    if ours.low is None or ours.high is None:
        return "inconclusive"
    if ours.high < GAIN:
        return "reproduced"
    return "refuted" if ours.low > 0 and ours.value >= GAIN else "inconclusive"


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(7, 4.2)
    colours = dict(zip(WAYS, (figures.BLUE, figures.ORANGE, figures.MUTED), strict=True))
    _draw_curves(axes, result, colours)
    figures.set_title(axes, "Trained on after a merge: who chose the pairs makes no difference")
    return figure


@figures.styled
def _draw_curves(axes: Any, result: StudyResult, colours: dict[str, str]) -> None:
    for name in WAYS:
        columns = list(zip(*(series[name] for series in result.series), strict=True))
        epochs = range(1, len(columns) + 1)
        axes.plot(epochs, [sum(each) / len(each) for each in columns], color=colours[name], label=name)
        axes.fill_between(epochs, list(map(min, columns)), list(map(max, columns)), color=colours[name], alpha=0.1)
    axes.set_xlabel("epochs after the merge")
    axes.set_ylabel("held-out accuracy")
    axes.legend(frameon=False)


STUDIES = (
    Study(
        name="after-merging",
        summary="a network with room to learn, merged by geometry or at random and trained on",
        claim="Merging by geometry does not help to learn on",
        source=f"{FUNCTIONAL_GEOMETRY}, Phase IV",
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=10,
        quick={"epochs": 10, "epochs_after": 3},
        seeds=12,
        quick_seeds=2,
        needs=("sklearn",),
    ),
)
