"""The first biopsy, which failed: single neurons taken out, where the second one merges pairs."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from torch import Tensor

from ...geometry import COHORTS, collect_activations, disjoint_pairs, evaluating, merge, outgoing_weights
from ...geometry.merging import single_number
from ...report import figures
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import (
    Measured,
    Progress,
    Study,
    StudyResult,
    Verdict,
    geometric_interval,
    mean_interval,
    rank_correlation,
)
from ..rules import EFFECTS, RULES
from .arc import MOST_OF_A_LAYER
from .networks import mnist_subject, resnet_subject
from .subject import Subject, digits_cnn, digits_mlp

WAYS = {"removed": "taken out", "absorbed": "taken out, partner stands in", "averaged": "averaged with its partner"}
"""What is done to a pair: one neuron taken out, and its partner left as it is or given its readers by least squares,
or both averaged. The first two are the mean over both neurons, for nothing says which of them goes."""
COMPARED = ("near", "far")
EFFECT = EFFECTS["removal"]


def measure_mlp(seed: int, progress: Progress, *, epochs: int = 30, pairs: int = 25) -> dict[str, Any]:
    """The second hidden layer of a perceptron."""
    return _measure(digits_mlp(seed, epochs), seed, progress, pairs)


def measure_cnn(seed: int, progress: Progress, *, epochs: int = 15, pairs: int = 25) -> dict[str, Any]:
    """The last convolution of a CNN."""
    return _measure(digits_cnn(seed, epochs), seed, progress, pairs)


def measure_mnist(
    seed: int, progress: Progress, *, pairs: int = 25, mapped: int = 2000, measured: int = 1000
) -> dict[str, Any]:
    """See `mnist_subject`."""
    return _measure(mnist_subject(seed, mapped, measured), seed, progress, pairs)


def measure_resnet(
    seed: int, progress: Progress, *, training_epochs: int = 4, pairs: int = 25, measured: int = 450
) -> dict[str, Any]:
    """See `resnet_subject`; on digits."""
    return _measure(resnet_subject(seed, "digits", training_epochs, measured), seed, progress, pairs)


def _measure(subject: Subject, seed: int, progress: Progress, pairs: int) -> dict[str, Any]:
    model, layer, example = subject.model, subject.layer, subject.example_input
    collected = collect_activations(model, subject.batches, layer, forward=subject.forward)[layer]
    gram, cosine, alive = collected.gram(), collected.cosine_matrix(), collected.alive
    nobody = gram.diag().diag()

    def loss() -> float:
        with evaluating(model):
            return single_number(subject.sensitivity(model), "loss")

    before = loss()

    def cost(pair: tuple[int, int], how: Any, products: Tensor | None = None) -> float:
        with merge(model, layer, [pair], how, gram=products, example_input=example):
            return abs(loss() - before)

    def either(pair: tuple[int, int], products: Tensor) -> float:
        return fmean(cost(each, "absorb", products) for each in (pair, pair[::-1]))

    ways: dict[str, Callable[[tuple[int, int]], float]] = {
        "removed": lambda pair: either(pair, nobody),
        "absorbed": lambda pair: either(pair, gram),
        "averaged": lambda pair: cost(pair, "mean"),
    }

    count = max(1, min(pairs, int(MOST_OF_A_LAYER * int(alive.sum()))))

    def chosen(which: str) -> list[tuple[int, int]]:
        drawn = disjoint_pairs(None, count, which, cosine=cosine, alive=alive, seed=seed)
        return [(int(pair.first), int(pair.second)) for pair in drawn]

    costs: dict[str, Any] = {name: {} for name in COMPARED}
    for name in progress.each(COMPARED, f"seed {seed}: {subject.name}, {', '.join(COMPARED)} pairs"):
        for way, measure in ways.items():
            costs[name][way] = [measure(pair) for pair in chosen(COHORTS[name])]
    strangers = chosen("random")
    readers = outgoing_weights(model, layer, example).norm(dim=1).double()
    carried = gram.diag().double().sqrt() * readers.to(gram.device)
    single = {
        "cost": [cost((i, j), "absorb", nobody) for pair in strangers for i, j in (pair, pair[::-1])],
        "carried": [carried[j].item() for pair in strangers for j in (pair[1], pair[0])],
        "angle": [1 - cosine[i, j].item() for i, j in strangers for _ in range(2)],
    }
    return {**costs, "single": single, "name": subject.name, "measure": subject.measure}


def ratios(result: StudyResult) -> dict[str, list[float]]:
    """far / near in mean |change of loss|, by what is done to a pair, seed by seed."""
    return {way: [fmean(run["far"][way]) / fmean(run["near"][way]) for run in result.series] for way in WAYS}


def correlations(result: StudyResult, what: str) -> list[float]:
    """Of the cost of taking a neuron out with `what` is known of it ("carried" or "angle"), seed by seed."""
    return [rank_correlation(run["single"][what], run["single"]["cost"]) for run in result.series]


def judge(result: StudyResult) -> list[Verdict]:
    apart = {way: geometric_interval(values, against=1.0) for way, values in ratios(result).items()}
    removed, averaged = ratios(result)["removed"], ratios(result)["averaged"]
    ours = geometric_interval(
        [a / b for a, b in zip(averaged, removed, strict=True)],
        "× far / near averaged over far / near taken out",
        against=1.0,
    )
    word = EFFECT.verdict(ours)
    carried, angle = (mean_interval(correlations(result, what)) for what in ("carried", "angle"))
    return [
        Verdict(
            claim="Neurons taken out, and not merged, do not show which pairs are redundant: the first biopsy failed",
            source=f"{FUNCTIONAL_GEOMETRY}, Phase II",
            verdict="direction only" if word == "reproduced" and _tells(apart["removed"]) else word,
            effect=EFFECT,
            **RULES["removal"].stated(),
            published="failed; neither figures nor a reason",
            our_figure=ours,
            corrected=f"Far / near is {apart['removed']} with one neuron of the pair taken out, {apart['absorbed']} "
            f"with its partner standing in, {apart['averaged']} averaged. Over random pairs the rank correlation of "
            f"what taking a neuron out costs is {carried} with what it carries, ‖a‖ ‖v‖, and {angle} with 1 − cos to "
            "its partner.",
        )
    ]


def _tells(ours: Measured) -> bool:
    return ours.low is not None and ours.low > 1


def draw(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(11.8, 3.6, columns=2)
    measure = result.series[0]["measure"]
    for axes, name in ((left, "near"), (right, "far")):
        costs = {label: [fmean(run[name][way]) for run in result.series] for way, label in WAYS.items()}
        figures.draw_costs(axes, costs, WAYS["averaged"], f"|change of {measure}|, mean over pairs")
        figures.set_title(axes, f"{name.capitalize()} pairs")
    return figure


STUDIES = tuple(
    Study(
        name=f"removal-{network}",
        summary=f"neurons of near and far pairs taken out one at a time, {what}",
        claim="Taking neurons out does not show which are redundant",
        source=f"{FUNCTIONAL_GEOMETRY}, Phase II",
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=seconds,
        quick={"pairs": 10, **quick},
        seeds=seeds,
        needs=("sklearn",),
    )
    for network, what, measure, quick, seconds, seeds in (
        ("mlp", "a perceptron that learned digits", measure_mlp, {"pairs": 25}, 10, 5),
        ("cnn", "a CNN that learned digits", measure_cnn, {"epochs": 2}, 120, 5),
        ("mnist", "a CNN that others trained on MNIST", measure_mnist, {"mapped": 500, "measured": 200}, 15, 3),
        ("resnet18", "the last block of ResNet18 on digits", measure_resnet, {"training_epochs": 1}, 150, 3),
    )
)
