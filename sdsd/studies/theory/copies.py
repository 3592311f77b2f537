"""The two steps of the sketch of Proposition 2: what copies of neurons do to V, and how the loss varies on an orbit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...report import figures
from ...theory import hidden_layers, random_representative, realized_volume, telling_angle
from ..digits import evaluate, split_digits
from ..documents import SDSD
from ..engine import Progress, Study, StudyResult, Verdict, geometric_interval, mean_interval
from ..rules import EFFECTS, RULES
from .digits_network import Recipe

BEFORE, WIDER, REPLACED = "as trained", "half of the neurons doubled", "half of them copies of the others"
CONSTANT = 1e-9
"""Of the loss: what rounding may change."""
EFFECT = EFFECTS["copies"]


def measure(
    seed: int,
    progress: Progress,
    *,
    neurons: int = 128,
    batch: int = 64,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    epochs: int = 20,
    decays: Sequence[float] = (0.0, 5e-3, 2e-2),
    points: int = 10,
    samples: int = 16384,
) -> dict[str, Any]:
    """V of networks as trained and with copies, and the loss at random points of their orbits, in float64."""
    recipe, data = Recipe(neurons, batch, learning_rate, momentum, epochs), split_digits(seed)
    states = []
    for decay in progress.each(decays, f"seed {seed}: training, copying, moving along orbits"):
        model, optimizer = recipe.start(seed, decay)
        draw = torch.Generator().manual_seed(seed)
        for _ in range(epochs):
            for chosen in recipe.batches(len(data.images), draw):
                optimizer.zero_grad()
                cross_entropy(model(data.images[chosen]), data.labels[chosen]).backward()
                optimizer.step()
        (layer,) = hidden_layers(model)
        volumes = volumes_with_copies(layer.rows.detach(), samples, seed)
        model = model.double()
        members = [model, *(random_representative(model, seed=point) for point in range(points))]
        losses = [evaluate(member, data.images.double(), data.labels)[0] for member in members]
        states.append({"decay": decay, "volume": volumes, "losses": losses})
    return {"states": states}


def volumes_with_copies(rows: Tensor, samples: int, seed: int) -> dict[str, float]:
    """V at one angle: of the rows, with half of them twice, and with half of them in the place of the others."""
    half = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: len(rows) // 2]
    angle = telling_angle(*rows.shape)
    kinds = {BEFORE: rows, WIDER: torch.cat([rows, rows[half]]), REPLACED: rows[half].repeat(2, 1)}
    return {name: realized_volume(each, angle, samples, seed).value for name, each in kinds.items()}


def _ratios(result: StudyResult, kind: str) -> list[float]:
    """V with copies over V as trained, a mean over states, seed by seed."""
    return [
        sum(state["volume"][kind] / state["volume"][BEFORE] for state in series["states"]) / len(series["states"])
        for series in result.series
    ]


def judge(result: StudyResult) -> list[Verdict]:
    replaced = geometric_interval(
        _ratios(result, REPLACED), "× V, with half of the neurons copies of the others", against=1.0
    )
    wider = geometric_interval(_ratios(result, WIDER))
    states = result.pooled("states")
    spreads = [(max(state["losses"]) - min(state["losses"])) / min(state["losses"]) for state in states]
    volumes = [state["volume"][BEFORE] for state in states]
    by_seed = [
        max((max(state["losses"]) - min(state["losses"])) / min(state["losses"]) for state in series["states"])
        for series in result.series
    ]
    return [
        Verdict(
            claim="Redundancy raises the realized volume V",
            source=f"{SDSD} §3, sketch of Proposition 2, 3",
            verdict=EFFECT.verdict(replaced),
            effect=EFFECT,
            published="a step of a proof, without a number",
            our_figure=replaced,
            corrected=f"Copies fill no room: half as many neurons more, all copies, leave V at {wider} of itself, and "
            "copies in the place of other neurons lower it. V is low where neurons are redundant.",
            **RULES["copies: V"].stated(),
        ),
        Verdict(
            claim="States of larger volume have a loss that varies more along symmetry orbits, by which V falls",
            source=f"{SDSD} §3, sketch of Proposition 2, 4",
            verdict="refuted" if max(spreads) < CONSTANT else "inconclusive",
            published="a step of a proof, without a number",
            our_figure=mean_interval(by_seed, "of the loss is the most by which it varies over an orbit"),
            corrected=f"Along an orbit the function is the same, and so is the loss, whatever V is (here "
            f"{min(volumes):.0f} to {max(volumes):.0f}). That is so by definition, and the number says only that "
            "these are orbits. What lowers V is weight decay: see `orbit`.",
            **RULES["copies: loss"].stated(),
        ),
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(7.6, 3.4)
    states = result.pooled("states")
    volumes = {kind: [state["volume"][kind] for state in states] for kind in (BEFORE, WIDER, REPLACED)}
    figures.draw_costs(axes, volumes, BEFORE, "V (caps)")
    figures.set_title(axes, "Copies of neurons fill no room")
    return figure


STUDIES = (
    Study(
        name="copies",
        summary="V with copies of neurons, and the loss along orbits, of networks trained on digits",
        claim="Redundancy raises V, and V makes the loss vary on orbits",
        source=f"{SDSD} §3",
        quick={"epochs": 3, "samples": 4096, "points": 4},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=10,
        needs=("sklearn",),
    ),
)
