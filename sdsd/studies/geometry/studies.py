"""The claims of "Functional Geometry in Deep Neural Networks" on real networks, one study each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from ...geometry import COHORTS
from ...report import figures
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import Progress, Study, StudyResult, Verdict
from . import after_merging, redundancy
from .arc import ArcConfig, Examination
from .networks import efficientnet_subject, minilm_subject, mnist_subject, resnet_subject
from .subject import (
    Subject,
    digits_cnn,
    digits_mlp,
)
from .verdicts import compared_silhouettes, judge_network

CIFAR10 = "SDSD_CIFAR10"
"""The environment variable that names the folder of CIFAR-10."""


def _examine(
    subject: Subject, seed: int, progress: Progress, pairs: int, random_pairings: int, epochs: int = 0
) -> dict[str, Any]:
    return Examination(subject, ArcConfig(seed, pairs, random_pairings, epochs), None, progress).run()


def measure_mlp(
    seed: int, progress: Progress, *, pairs: int = 50, random_pairings: int = 8, epochs: int = 5
) -> dict[str, Any]:
    """The second hidden layer of a perceptron."""
    return _examine(digits_mlp(seed), seed, progress, pairs, random_pairings, epochs)


def measure_cnn(
    seed: int, progress: Progress, *, pairs: int = 50, random_pairings: int = 8, epochs: int = 5
) -> dict[str, Any]:
    """The last convolution of a CNN."""
    return _examine(digits_cnn(seed), seed, progress, pairs, random_pairings, epochs)


def measure_mnist(
    seed: int,
    progress: Progress,
    *,
    pairs: int = 50,
    random_pairings: int = 8,
    mapped: int = 2000,
    measured: int = 1000,
) -> dict[str, Any]:
    """See `mnist_subject`."""
    return _examine(mnist_subject(seed, mapped, measured), seed, progress, pairs, random_pairings)


def measure_efficientnet(
    seed: int, progress: Progress, *, pairs: int = 50, random_pairings: int = 8, mapped: int = 64, measured: int = 32
) -> dict[str, Any]:
    """See `efficientnet_subject`."""
    return _examine(efficientnet_subject(seed, mapped, measured), seed, progress, pairs, random_pairings)


def measure_minilm(
    seed: int,
    progress: Progress,
    *,
    layer: int,
    pairs: int = 50,
    random_pairings: int = 8,
    tokens: int = 16,
    sentences: int = 1300,
    mapped: int = 256,
    measured: int = 64,
) -> dict[str, Any]:
    """See `minilm_subject`."""
    subject = minilm_subject(seed, layer=layer, tokens=tokens, count=sentences, mapped=mapped, measured=measured)
    return _examine(subject, seed, progress, pairs, random_pairings)


def measure_resnet(
    seed: int,
    progress: Progress,
    *,
    data: str,
    pairs: int = 50,
    random_pairings: int = 8,
    training_epochs: int = 4,
    measured: int = 450,
) -> dict[str, Any]:
    """See `resnet_subject`; `data` is "digits" or the folder of CIFAR-10."""
    return _examine(resnet_subject(seed, data, training_epochs, measured), seed, progress, pairs, random_pairings)


def _judge(result: StudyResult) -> list[Verdict]:
    return judge_network(result.series)


def _judge_resnet(result: StudyResult) -> list[Verdict]:
    verdicts = judge_network(result.series)
    if result.config["data"] != "digits":
        return verdicts
    note = f" The document's network was trained on CIFAR-10; set {CIFAR10} to its folder to run that."
    return [Verdict(**{**vars(verdict), "corrected": verdict.corrected + note}) for verdict in verdicts]


def draw_network(result: StudyResult) -> Any:
    """The first seed's map, the cohorts of all seeds, the cost at equal size, and the controls."""
    runs = result.series
    first, measure = runs[0], runs[0]["measure"]
    figure, axes = figures.new_figure(12.6, 9.6, rows=2, columns=2)
    (left, right), (lower_left, lower_right) = axes
    figures.draw_points(left, first["map"]["points"], first["map"]["clusters"])
    figures.set_title(left, f"{len(first['map']['order'])} neurons of {first['network']}, {first['layer']!r}")
    figures.draw_merges(
        right,
        {name: [c for run in runs for c in run["biopsy"]["activations"][name]["changes"]] for name in COHORTS},
    )
    right.set_ylabel(f"|change of {measure}|")
    figures.set_title(right, "One pair merged: near, random, far")
    ways = [run["equal size"].get("ways", {}) for run in runs]
    costs = {name: [abs(way[name]["change"]) for way in ways] for name in ways[0]}
    costs["random pairs, averaged"] = [fmean(map(abs, run["consolidation"]["activations"]["random"])) for run in runs]
    figures.draw_costs(lower_left, costs, "nearest activations, averaged", f"|change of {measure}|")
    figures.set_title(lower_left, f"{first['consolidation']['activations']['pairs']} neurons fewer, by who chooses")
    figures.draw_silhouettes(lower_right, compared_silhouettes(runs))
    figures.set_title(lower_right, "Ten clusters: trained, and controls")
    return figure


def _study(
    name: str,
    what: str,
    measure: Callable[..., dict[str, Any]],
    quick: Mapping[str, Any],
    expected_seconds: float,
    **further: Any,
) -> Study:
    return Study(
        name=name,
        summary=f"map, biopsy, consolidation and controls of {what}",
        claim="Neurons that fire alike do the same job, and merging them is safe",
        source=f"{FUNCTIONAL_GEOMETRY}, Phases I to IV",
        measure=measure,
        draw=draw_network,
        expected_seconds=expected_seconds,
        quick={"pairs": 10, "random_pairings": 3, **quick},
        needs=("sklearn",),
        **{"judge": _judge, **further},
    )


STUDIES = (
    _study(
        "geometry-digits-mlp",
        "a perceptron that learned digits",
        measure_mlp,
        {"epochs": 1, "pairs": 50},
        20,
        seeds=5,
    ),
    _study("geometry-digits-cnn", "a CNN that learned digits", measure_cnn, {"epochs": 1}, 360, seeds=5),
    _study("geometry-mnist", "a CNN that others trained on MNIST", measure_mnist, {"mapped": 500, "measured": 200}, 40),
    _study(
        "geometry-efficientnet",
        "EfficientNet-Lite0, trained on ImageNet",
        measure_efficientnet,
        {"mapped": 16, "measured": 8},
        150,
    ),
    *(
        _study(
            f"geometry-minilm-{layer + 1}",
            f"the feed-forward neurons of MiniLM's layer {layer + 1}",
            measure_minilm,
            {"mapped": 64, "measured": 16},
            seconds,
            settings={"layer": layer},
        )
        for layer, seconds in ((2, 450), (5, 140))
    ),
    _study(
        "geometry-resnet18",
        "the last block of ResNet18, on CIFAR-10 where there is one",
        measure_resnet,
        {"training_epochs": 1},
        540,
        settings={"data": os.environ.get(CIFAR10, "digits")},
        judge=_judge_resnet,
    ),
    *after_merging.STUDIES,
    *redundancy.STUDIES,
)
