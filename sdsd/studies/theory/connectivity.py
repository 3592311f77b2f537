"""Linear mode connectivity: the loss on the line between two networks, as they are, ordered, and matched."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ...geometry import loss_barrier
from ...report import figures
from ...report.figures import draw_curves
from ...theory import canonicalize, match_neurons
from ..digits import Digits, split_digits
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES

WAYS = {
    "naive": "as they are",
    "ordered": "ordered by weight",
    "activations": "matched by activations",
    "weights": "matched by weights",
}
"""How the second network's neurons stand when the line is drawn."""
REMAINING = 0.1
"""Share of the barrier that may be left."""


def measure(
    seed: int,
    progress: Progress,
    *,
    width: int = 128,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    points: int = 21,
) -> dict[str, Any]:
    """Two perceptrons that learn the same digits from different starts, and the line between them."""
    digits = split_digits(seed)
    networks = []
    for start in progress.each((2 * seed, 2 * seed + 1), f"seed {seed}: networks"):
        torch.manual_seed(start)
        network = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )
        _train(network, digits, epochs, batch_size, torch.optim.SGD(network.parameters(), learning_rate, momentum))
        networks.append(network)
    one, other = networks
    data = [(digits.images, digits.labels)]
    held_out = [(digits.held_out_images, digits.held_out_labels)]
    pairs = {
        "naive": (one, other),
        "ordered": (canonicalize(one), canonicalize(other)),
        "activations": (one, match_neurons(one, other, data).apply(other)),
        "weights": (one, match_neurons(one, other, example_input=digits.images[:1]).apply(other)),
    }
    measured: dict[str, Any] = {"losses": {}, "barrier": {}, "held_out_barrier": {}}
    for way, (first, second) in pairs.items():
        line = loss_barrier(first, second, (data, _loss), points=points)
        measured["losses"][way], measured["barrier"][way] = list(line.losses), line.barrier
        measured["held_out_barrier"][way] = loss_barrier(first, second, (held_out, _loss), points=points).barrier
    measured["loss"] = fmean(measured["losses"]["naive"][place] for place in (0, -1))
    return measured


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def _train(network: nn.Module, digits: Digits, epochs: int, batch_size: int, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(epochs):
        for part in torch.randperm(len(digits.images)).split(batch_size):
            optimizer.zero_grad()
            _loss(network, (digits.images[part], digits.labels[part])).backward()
            optimizer.step()


def judge(result: StudyResult) -> list[Verdict]:
    barriers = {way: mean_interval([series["barrier"][way] for series in result.series]) for way in WAYS}
    gains = mean_interval(
        [series["barrier"]["naive"] - series["barrier"]["weights"] for series in result.series],
        "nats, barrier as they are less barrier matched by weights",
    )
    remaining = [series["barrier"]["weights"] / series["barrier"]["naive"] for series in result.series]
    verdict = Effect(nothing=0.0).verdict(gains)
    if verdict == "reproduced" and max(remaining) > REMAINING:
        verdict = "direction only"
    held_out = {way: fmean(series["held_out_barrier"][way] for series in result.series) for way in WAYS}
    return [
        Verdict(
            claim="Mode connectivity: up to the order of their neurons, networks from different starts lie in one "
            "valley",
            source=f"{MOVES}, Loss Landscape Geometry",
            verdict=verdict,
            published="a heading without figures",
            our_figure=gains,
            corrected="For these perceptrons yes, up to a permutation that has to be looked for: barriers are "
            + "; ".join(f"{barriers[way]} {label}" for way, label in WAYS.items())
            + f" (on digits they have not seen {held_out['naive']:.2f}, {held_out['ordered']:.2f}, "
            f"{held_out['activations']:.3f} and {held_out['weights']:.3f}). Neurons put in order of their weight are "
            "not aligned.",
            **RULES["connectivity"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(10.4, 4.1, columns=2)
    points = len(result.series[0]["losses"]["naive"])
    shares = [place / (points - 1) for place in range(points)]
    curves, bands = {}, {}
    for way, label in WAYS.items():
        at = [mean_interval([series["losses"][way][place] for series in result.series]) for place in range(points)]
        curves[label] = [each.value for each in at]
        bands[label] = (
            [each.value if each.low is None else each.low for each in at],
            [each.value if each.high is None else each.high for each in at],
        )
    draw_curves(left, shares, curves, bands=bands, xlabel="from the first network to the second", ylabel="loss")
    figures.set_title(left, "The line between two networks")
    for place, way in enumerate(WAYS):
        values = [series["barrier"][way] for series in result.series]
        right.scatter([place] * len(values), values, s=18, color=figures.CLUSTER_COLOURS[place])
    right.set_xticks(range(len(WAYS)), [label.replace(" by ", "\nby ") for label in WAYS.values()], fontsize=8.5)
    right.set_xlim(-0.5, len(WAYS) - 0.5)
    right.set_ylabel("barrier (nats)")
    figures.set_title(right, "Barriers, one dot a pair")
    return figure


STUDIES = (
    Study(
        name="connectivity",
        summary="the loss between two networks: as they are, ordered, neurons matched",
        claim="Networks from different starts lie in one valley up to permutation",
        source=f"{MOVES}, Loss Landscape Geometry",
        quick={"epochs": 10, "width": 64, "points": 11},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=15,
        seeds=5,
        needs=("sklearn", "scipy"),
    ),
)
