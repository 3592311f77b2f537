"""Whether training arrives at a function in proportion to the volume of the parameters that compute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...report import figures
from ...report.figures import draw_level
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, mean_interval, rank_correlation
from ..rules import RULES
from .boolean_experiment import (
    function_classes,
    make_task,
    sampled_counts,
    trained_functions,
)

CLAIM = "SGD ends in a function with a probability in proportion to its volume"
CORRELATION = Effect(nothing=0.0)
TITLES = {"sgd": "SGD", "adam": "Adam"}
TARGETS = {"a literal and another": 0x8888, "exclusive or of two": 0x6666, "parity of four": 0x6996}
"""Truth tables of 2, 4 and 16 leaves; a random one is the fourth."""


def measure(
    seed: int,
    progress: Progress,
    *,
    networks: int = 1_000_000,
    runs: int = 1000,
    hidden: int = 16,
    seen: int = 8,
    batch: int = 4,
    learning_rates: Mapping[str, float] = {"sgd": 0.5, "adam": 0.02},
    most_steps: int = 4000,
    chance_draws: int = 20,
) -> dict[str, Any]:
    """Volumes of all functions that fit 8 of the 16 inputs, and how often training arrives at each."""
    draw = torch.Generator().manual_seed(seed)
    counts = sampled_counts(networks, hidden, draw, progress.bar(f"seed {seed}: {networks:,} random networks"))
    classes = function_classes()
    reached, members = (torch.zeros(2**16).index_add_(0, classes, each.float()) for each in (counts, torch.ones(2**16)))
    volumes = (reached / members)[classes].double()
    targets = {**TARGETS, "random": int(torch.randint(2**16, (), generator=draw))}
    compared = []
    for name, target in progress.each(list(targets.items()), f"seed {seed}: training"):
        task = make_task(target, seen, draw)
        fitting = task.fits(torch.arange(2**16)).nonzero().flatten()
        share = volumes[fitting] / volumes[fitting].sum()
        for optimizer, learning_rate in learning_rates.items():
            arrived = trained_functions(
                task,
                optimizer,
                networks=runs,
                hidden=hidden,
                learning_rate=learning_rate,
                batch=batch,
                most_steps=most_steps,
                generator=draw,
            )
            frequency = torch.bincount(arrived, minlength=2**16)[fitting].double() / max(len(arrived), 1)
            chance = [_distance(_drawn(share, len(arrived), draw), share) for _ in range(chance_draws)]
            compared.append(
                {
                    "target": name,
                    "optimizer": optimizer,
                    "arrived": len(arrived),
                    "correlation": rank_correlation(frequency, share),
                    "distance": _distance(frequency, share),
                    "distance_by_chance": sum(chance) / len(chance),
                    "frequency": frequency.tolist(),
                    "volume": share.tolist(),
                }
            )
    return {"compared": compared}


def _drawn(share: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Frequencies of so many draws from `share` itself."""
    places = torch.multinomial(share, count, replacement=True, generator=draw)
    return torch.bincount(places, minlength=len(share)).double() / count


def _distance(left: Tensor, right: Tensor) -> float:
    """Total variation."""
    return ((left - right).abs().sum() / 2).item()


def _by_seed(result: StudyResult, key: str, optimizer: str) -> list[float]:
    """The mean over targets, seed by seed."""
    chosen = [[each[key] for each in s["compared"] if each["optimizer"] == optimizer] for s in result.series]
    return [sum(values) / len(values) for values in chosen]


def judge(result: StudyResult) -> list[Verdict]:
    names = list(result.config["learning_rates"])
    correlation = {name: mean_interval(_by_seed(result, "correlation", name)) for name in names}
    distance = {name: mean_interval(_by_seed(result, "distance", name)) for name in names}
    chance = {name: mean_interval(_by_seed(result, "distance_by_chance", name)) for name in names}
    ours = mean_interval(
        _by_seed(result, "correlation", names[0]),
        "is Spearman's correlation of frequency and volume among the functions that fit, under SGD",
        against=0,
    )
    word = CORRELATION.verdict(ours)
    if word == "reproduced" and distance[names[0]].value > 2 * chance[names[0]].value:
        word = "direction only"
    runs = result.config["runs"]
    short = min(each["arrived"] for series in result.series for each in series["compared"])
    return [
        Verdict(
            claim=CLAIM,
            source=f"{MOVES}, The Entropic Selection Principle, 2",
            verdict=word,
            published="P ∝ V",
            our_figure=ours,
            corrected="What fills more of parameter space is found more often, but not in proportion: frequencies of "
            + ", ".join(
                f"{TITLES[name]} (correlation {correlation[name]}) are {distance[name]} from the volumes in "
                f"total variation, and draws from them would be {chance[name].value:.2f}"
                for name in names
            )
            + f". Each network stopped when it first fitted; of {runs} at least {short} did.",
            **RULES["volume-sgd"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    compared = [each for each in result.series[0]["compared"] if each["optimizer"] == "sgd"]
    figure, axes = figures.new_figure(10.6, 3.9, columns=2)
    for place, each in zip(axes, (compared[0], compared[-1]), strict=True):
        pairs = [(v, f) for v, f in zip(each["volume"], each["frequency"], strict=True) if v > 0 and f > 0]
        volume, frequency = zip(*pairs, strict=True)
        place.scatter(volume, frequency, s=16, color=figures.BLUE, alpha=0.6, linewidths=0)
        ends = [min(volume), max(volume)]
        place.plot(ends, ends, color=figures.MUTED, linewidth=1.6, linestyle=(0, (5, 2)))
        place.set_xscale("log")
        place.set_yscale("log")
        place.set_xlabel("share of the volume that fits")
        place.set_ylabel("share of SGD's runs")
        draw_level(place, 1 / each["arrived"], "one run", at=0.02)
        figures.set_title(place, f"Target: {each['target']}")
    return figure


STUDIES = (
    Study(
        name="volume-sgd",
        summary="how often SGD and Adam arrive at each function that fits, against its volume",
        claim="P(converge) ∝ V",
        source=f"{MOVES}, The Entropic Selection Principle, 2",
        quick={"networks": 100_000, "runs": 300, "most_steps": 2000},
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=60,
    ),
)
