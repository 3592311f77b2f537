"""The local learning coefficient of networks that learned true labels and random ones, along orbits and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...report import figures
from ...report.figures import draw_dots
from ...theory import LearningCoefficient, local_learning_coefficient, random_representative
from ..digits import load_digits
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, geometric_interval
from ..rules import RULES

LESS = Effect(nothing=1.0, above=False, negligible=1.1)
LABELS = {
    "canonical": "canonical",
    "canonical, of a random representative": "canonical,\nfrom another point",
    "as trained": "as trained",
    "random representative": "random\nrepresentative",
    "random labels": "random labels,\ncanonical",
}


def measure(
    seed: int,
    progress: Progress,
    *,
    samples: int = 300,
    hidden: int = 16,
    steps: int = 2000,
    learning_rate: float = 0.01,
    weight_decay: float = 1e-3,
    localization: float = 100.0,
    chains: int = 4,
    draws: int = 1000,
    spread: float = 1.5,
) -> dict[str, Any]:
    """λ̂ at five points: of one function four times, and of a network that memorised random labels."""
    images, classes = load_digits(seed, samples)
    shuffled = classes[torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]

    def train(labels: Tensor) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
        optimizer = torch.optim.Adam(model.parameters(), learning_rate, weight_decay=weight_decay)
        for _ in range(steps):
            optimizer.zero_grad()
            _loss(model, (images, labels)).backward()
            optimizer.step()
        return model

    learned, memorised = train(classes), train(shuffled)
    other = random_representative(learned, spread=spread, seed=seed)
    points = {
        "canonical": (learned, classes, True),
        "canonical, of a random representative": (other, classes, True),
        "as trained": (learned, classes, False),
        "random representative": (other, classes, False),
        "random labels": (memorised, shuffled, True),
    }
    facts = {}
    for place, (name, (model, labels, canonical)) in enumerate(points.items()):
        ran = local_learning_coefficient(
            model,
            (images, labels),
            _loss,
            localization=localization,
            chains=chains,
            draws=draws,
            burn_in=draws,
            canonicalize=canonical,
            seed=10 * seed + place,
            progress=progress.bar(f"seed {seed}: {name}"),
        )
        facts[name] = _facts(ran)
    return {"points": facts}


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def _facts(ran: LearningCoefficient) -> dict[str, Any]:
    facts = ran.to_dict()
    names = ("estimate", "standard_error", "effective_draws", "r_hat", "loss", "parameters")
    return {**{name: facts[name] for name in names}, "refusals": list(ran.refusals), "accepted": min(ran.acceptance)}


def judge(result: StudyResult) -> list[Verdict]:
    runs = [series["points"] for series in result.series]
    kept = [run for run in runs if not (run["canonical"]["refusals"] or run["random labels"]["refusals"])]
    refused = sum(bool(point["refusals"]) for run in runs for point in run.values())
    ours = (
        geometric_interval(
            [run["canonical"]["estimate"] / run["random labels"]["estimate"] for run in kept],
            "× the λ̂ of a network that memorised random labels",
            against=1,
        )
        if kept
        else None
    )
    pair = ("canonical", "canonical, of a random representative")
    apart = max(
        abs(run[pair[0]]["estimate"] - run[pair[1]]["estimate"])
        / (run[pair[0]]["standard_error"] ** 2 + run[pair[1]]["standard_error"] ** 2) ** 0.5
        for run in runs
    )
    raw = [run["random representative"]["estimate"] / run["as trained"]["estimate"] for run in runs]
    losses = {name: sum(run[name]["loss"] for run in runs) / len(runs) for name in runs[0]}
    spread = f"{min(raw):.2g} to {max(raw):.2g}"
    return [
        Verdict(
            claim="What is learned from structured data is less complex than what is memorised",
            source=f"{MOVES}, The Conjecture",
            verdict="inconclusive" if ours is None else LESS.verdict(ours),
            published="flatness implies simplicity",
            our_figure=ours,
            corrected=f"The local learning coefficient with true labels is {ours if ours else 'refused'}, both at "
            f"canonical representatives (mean losses {losses['canonical']:.2g} and {losses['random labels']:.2g}: the "
            "second is farther from the bottom, and how much of the difference that makes is not known). Sampled from "
            f"another point of the orbit the canonical estimate differs by at most {apart:.1f} standard errors; "
            f"without canonicalize that other point gives {spread} times the estimate of the network as trained, for "
            f"one and the same function. {refused} of {5 * len(runs)} estimates were refused by their chains.",
            effect=LESS,
            **RULES["learning-coefficient"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(9.4, 4.2)
    run = result.series[0]["points"]
    dots = {}
    for name, label in LABELS.items():
        value, error = run[name]["estimate"], run[name]["standard_error"]
        error = 0.0 if isinstance(error, str) else error
        dots[f"{label}\n(refused)" if run[name]["refusals"] else label] = (value, value - 2 * error, value + 2 * error)
    draw_dots(axes, dots, ylabel="λ̂ ± 2 standard errors")
    figures.set_title(axes, "One function has one λ̂, at the canonical representative")
    return figure


STUDIES = (
    Study(
        name="learning-coefficient",
        summary="the local learning coefficient with true and random labels, and along an orbit",
        claim="Learned functions are less complex than memorised ones",
        source=f"{MOVES}, The Conjecture",
        quick={"samples": 100, "hidden": 8, "steps": 600, "chains": 2, "draws": 300, "localization": 300.0},
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=85,
        needs=("sklearn",),
    ),
)
