"""L_geom on real digits: what adding it to the loss does to accuracy, and what it does alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ...theory import geometric_functional, symmetries
from ..digits import Digits, evaluate, split_digits
from ..documents import SDSD
from ..engine import Measured, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES
from .digits_network import Recipe

STRENGTHS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def measure(
    seed: int,
    progress: Progress,
    *,
    neurons: int = 128,
    batch: int = 64,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    epochs: int = 20,
    strengths: Sequence[float] = STRENGTHS,
    volume_weight: float = 0.1,
    other_weights: Sequence[float] = (0.0, 1.0),
    alone_steps: int = 300,
    alone_learning_rate: float = 1e-3,
    wrong: float = 0.2,
    wrong_images: int = 600,
    wrong_epochs: int = 100,
    wrong_strengths: Sequence[float] = (0.0, 0.1, 0.3, 1.0),
    weight_decays: Sequence[float] = (5e-3, 1e-2, 2e-2),
) -> dict[str, Any]:
    """Accuracy against the strength of L_geom in the loss; L_geom alone, from a trained network on; and with few
    images and a share of labels drawn at random, where there is something to regularise, L_geom beside weight decay."""
    recipe = Recipe(neurons, batch, learning_rate, momentum, epochs)
    series: dict[str, Any] = {"strength": list(strengths)}
    data = split_digits(seed)
    for strength in progress.each(strengths, f"seed {seed}: training with cross-entropy + strength · L_geom"):
        model = _train_regularised(recipe, data, seed, strength, volume_weight)
        for key, value in _look(model, data, volume_weight).items():
            series.setdefault(key, []).append(value)
        if strength == 0:
            series["alone"] = _minimise_alone(model, data, volume_weight, alone_steps, alone_learning_rate)
            series["elsewhere"] = {
                str(weight): _minimise_alone(model, data, weight, alone_steps, alone_learning_rate)["accuracy"][-1]
                for weight in other_weights
            }
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(10, data.labels.shape, generator=draw)
    given = torch.where(torch.rand(len(data.labels), generator=draw) < wrong, drawn, data.labels)
    noisy = replace(data, images=data.images[:wrong_images], labels=given[:wrong_images])
    longer = replace(recipe, epochs=wrong_epochs)
    series["wrong"] = {"strength": {}, "decay": {}}
    for strength in progress.each(wrong_strengths, f"seed {seed}: the same with {wrong:.0%} of the labels drawn anew"):
        model = _train_regularised(longer, noisy, seed, strength, volume_weight)
        series["wrong"]["strength"][str(strength)] = _look(model, data, volume_weight)["accuracy"]
    for decay in weight_decays:
        model = _train_regularised(longer, noisy, seed, 0.0, volume_weight, decay)
        series["wrong"]["decay"][str(decay)] = _look(model, data, volume_weight)["accuracy"]
    return series


def _look(model: nn.Module, data: Digits, volume_weight: float) -> dict[str, float]:
    with torch.no_grad():
        functional = geometric_functional(model, volume_weight)
    accuracy = evaluate(model, data.held_out_images, data.held_out_labels)[1]
    return {"accuracy": accuracy, "entropy": functional.entropy.item(), "log_volume": functional.volume.item()}


def _train_regularised(
    recipe: Recipe, data: Digits, seed: int, strength: float, volume_weight: float, decay: float = 0.0
) -> nn.Module:
    model, optimizer = recipe.start(seed, decay)
    draw = torch.Generator().manual_seed(seed)
    structure = symmetries(model)
    for _ in range(recipe.epochs):
        for chosen in recipe.batches(len(data.images), draw):
            optimizer.zero_grad()
            loss = cross_entropy(model(data.images[chosen]), data.labels[chosen])
            if strength:
                loss = loss + strength * geometric_functional(structure, volume_weight).value
            loss.backward()
            optimizer.step()
    return model


def _minimise_alone(
    trained: nn.Module, data: Digits, volume_weight: float, steps: int, learning_rate: float
) -> dict[str, list[float]]:
    """Adam on L_geom and nothing else."""
    model = copy.deepcopy(trained)
    structure = symmetries(model)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    rows: dict[str, list[float]] = {"step": []}
    for step in range(steps + 1):
        if step % (steps // 10) == 0:
            rows["step"].append(step)
            for key, value in _look(model, data, volume_weight).items():
                rows.setdefault(key, []).append(value)
        optimizer.zero_grad()
        geometric_functional(structure, volume_weight).value.backward()
        optimizer.step()
    return rows


def judge(result: StudyResult) -> list[Verdict]:
    start = [series["alone"]["accuracy"][0] for series in result.series]
    end = [series["alone"]["accuracy"][-1] for series in result.series]
    gained = [b - a for a, b in zip(start, end, strict=True)]
    elsewhere = {
        weight: [series["elsewhere"][weight] for series in result.series] for weight in result.series[0]["elsewhere"]
    }
    every = gained + [b - a for ends in elsewhere.values() for a, b in zip(start, ends, strict=True)]
    change = mean_interval(gained, "in accuracy", against=0.0)
    columns = zip(*(series["accuracy"] for series in result.series), strict=True)
    gains = {
        strength: fmean(list(column)) for strength, column in zip(result.config["strengths"], columns, strict=True)
    }
    best = max(gains, key=lambda strength: gains[strength])
    judged = Verdict(
        claim="Intelligence emerges from minimising L_geom = H_G + λV, rather than purely from minimising the loss",
        source=f"{SDSD}, introduction and §1",
        verdict="refuted" if max(every) < 0 else "reproduced" if min(every) > 0 else "inconclusive",
        published="the Learning Functional, without a number",
        our_figure=change,
        corrected=f"L_geom is a regulariser, no learning rule. Alone it takes accuracy from {fmean(start):.3f} to "
        f"{fmean(end):.3f} (λ = {result.config['volume_weight']:g}; "
        + ", ".join(f"to {fmean(ends):.3f} at λ = {float(weight):g}" for weight, ends in elsewhere.items())
        + "). Beside cross-entropy "
        + (f"strength {best:g} gives {gains[best]:.3f}, against" if best else "no strength does better than")
        + f" the {gains[0.0]:.3f} without. On {result.config['wrong_images']} images, {result.config['wrong']:.0%} "
        "of their labels drawn anew, " + _with_wrong_labels(result),
        **RULES["regulariser"].stated(),
    )
    return [judged]


def _with_wrong_labels(result: StudyResult) -> str:
    """What the best strength and the best weight decay gain over neither, in points of held-out accuracy."""
    runs = [series["wrong"] for series in result.series]
    bare = [run["strength"]["0.0"] for run in runs]

    def best(kind: str) -> tuple[str, Measured]:
        means = {name: fmean(run[kind][name] for run in runs) for name in runs[0][kind] if name != "0.0"}
        name = max(means, key=lambda name: means[name])
        return name, mean_interval([100 * (run[kind][name] - b) for run, b in zip(runs, bare, strict=True)])

    (strength, by_functional), (decay, by_decay) = best("strength"), best("decay")
    return (
        f"strength {strength} gains {by_functional} points on the {100 * fmean(bare):.1f}% without, and weight decay "
        f"{decay} gains {by_decay}: each the best of those tried."
    )


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(12.6, 3.9, columns=3)
    tried = result.config["strengths"]
    strengths = [strength or min(filter(None, tried)) / 3 for strength in tried]

    def over_strength(key: str) -> tuple[list[float], tuple[list[float], list[float]]]:
        columns = list(map(list, zip(*(series[key] for series in result.series), strict=True)))
        return [fmean(c) for c in columns], ([min(c) for c in columns], [max(c) for c in columns])

    for place, key, title, label, colour in (
        (axes[0], "accuracy", "Beside cross-entropy it is no help …", "held-out accuracy", figures.GREEN),
        (axes[1], "entropy", "… though it does lower H_G …", "H_G (nats)", figures.PURPLE),
    ):
        curve, band = over_strength(key)
        draw_curves(
            place,
            strengths,
            {label: curve},
            bands={label: band},
            colours={label: colour},
            log_x=True,
            xlabel="strength of L_geom in the loss",
            ylabel=label,
            marker="o",
            legend="",
        )
        place.set_xticks(strengths, [f"{strength:g}" for strength in tried])
        place.minorticks_off()
        figures.set_title(place, title)
    steps = result.series[0]["alone"]["step"]
    columns = list(zip(*(series["alone"]["accuracy"] for series in result.series), strict=True))
    draw_curves(
        axes[2],
        steps,
        {"accuracy": [fmean(list(c)) for c in columns]},
        bands={"accuracy": ([min(c) for c in columns], [max(c) for c in columns])},
        colours={"accuracy": figures.RED},
        xlabel="steps on L_geom alone",
        ylabel="held-out accuracy",
        legend="",
    )
    draw_level(axes[2], fmean(list(columns[0])), "as trained", at=0.98)
    figures.set_title(axes[2], "… and alone it unlearns")
    return figure


STUDIES = (
    Study(
        name="regulariser",
        summary="L_geom beside cross-entropy, by strength, and L_geom alone",
        claim="Learning is the minimisation of H_G + λV",
        source=f"{SDSD} §1",
        quick={
            "epochs": 3,
            "strengths": STRENGTHS[::3],
            "alone_steps": 30,
            "other_weights": (0.0,),
            "wrong_strengths": (0.0, 0.3),
            "wrong_epochs": 30,
        },
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=100,
        needs=("sklearn",),
    ),
)
