"""Trained on after a merge: does a network merged by geometry peak lower than one merged at random?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...geometry import plasticity, sgd_training
from ...report import figures
from ..digits import evaluate, split_digits
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import Measured, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES

WAYS = ("geometry", "random", "untouched")
GAIN = 1.0
"""Points of accuracy below which a gain is none."""


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
    return {"before": accuracy(model), **{name: list(getattr(measured, name)) for name in WAYS}}


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
        )
    ]


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
