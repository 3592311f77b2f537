"""The 84% experiment, with what it shows and what it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ...theory import rank
from ..documents import MOVES
from ..engine import Effect, Measured, Progress, Study, StudyResult, Verdict, fraction_interval, geometric_interval
from ..rules import RULES

Matrix = Sequence[Sequence[float]]


PUBLISHED_SEEDS = range(50)


LOOKS = (100, 200, 300, 500, 700, 1000, 1500, 2000, rank.PUBLISHED_STEPS, 4000, 5000, 7000, 10_000)


IMBALANCE = Effect(nothing=1.0, published=80.0)
PREFERRED = 0.05


def measure(
    seed: int,
    progress: Progress,
    *,
    target: Matrix = rank.PUBLISHED_TARGET,
    full_rank_target: Matrix = ((1.0, 2.0), (3.0, 4.0)),
    starts: int = 1000,
    steps: Sequence[int] = LOOKS,
    learning_rate: float = 0.05,
    scale: float = 0.1,
    threshold: float = 1e-3,
    thresholds: Sequence[float] = (1e-2, 1e-3, 1e-4),
) -> dict[str, Any]:
    """The 84% as published, over the steps, over more starts, and for a target of full rank."""
    published = rank.factorise(progress=progress.bar("the 50 published starts"))
    seeds = range(seed * starts, (seed + 1) * starts)

    def run(to: Matrix, what: str) -> rank.Factorisation:
        bar = progress.bar(f"seed {seed}: {what}")
        return rank.factorise(to, seeds=seeds, steps=steps, learning_rate=learning_rate, scale=scale, progress=bar)

    many = run(target, f"{starts:,} starts to {max(steps):,} steps")
    full = run(full_rank_target, "a target of full rank")
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    return {
        "published": {
            "rank_one": int((published.rank() == 1).sum()),
            "by_threshold": [int((published.rank(each) == 1).sum()) for each in thresholds],
            "rank_two_imbalance": published.imbalance[published.rank() == 2].tolist(),
        },
        "rank_one_fraction": many.rank_one_fraction(threshold),
        "full_rank_fraction": full.rank_one_fraction(threshold),
        "second_singular_value": torch.quantile(many.singular_values[:, :, 1], levels, dim=1).T.tolist(),
        "imbalance": many.imbalance[list(steps).index(rank.PUBLISHED_STEPS)].tolist(),
    }


def _over_seeds(result: StudyResult, key: str) -> list[float]:
    """Mean of a share over the seeds, which have equally many starts, step by step."""
    columns = zip(*(series[key] for series in result.series), strict=True)
    return [math.fsum(column) / len(column) for column in columns]


def _compresses(low: Measured, artefact: bool) -> str:
    """Of rank 1 for a target of rank 2: there is no solution of that rank, so that it would be a preference."""
    if artefact:
        return "refuted"
    return "reproduced" if low.low is not None and low.low > PREFERRED else "untestable here"


def judge(result: StudyResult) -> list[Verdict]:
    published, steps = result.series[0]["published"], result.config["steps"]
    starts = result.config["starts"] * len(result.seeds)
    fractions = dict(zip(steps, _over_seeds(result, "rank_one_fraction"), strict=True))
    full_shares = zip(steps, _over_seeds(result, "full_rank_fraction"), strict=True)
    full = max(share for step, share in full_shares if step >= rank.PUBLISHED_STEPS)
    low = fraction_interval(round(full * starts), starts, "at rank 1 where the target has rank 2")
    ours = fraction_interval(published["rank_one"], len(PUBLISHED_SEEDS), "of starts at rank 1")
    over_steps = ", ".join(f"{fractions[step]:.0%} at {step:,}" for step in (500, 1000, rank.PUBLISHED_STEPS, 10_000))
    source = f"{MOVES}, Implicit Rank Regularization"
    artefact = fractions[10_000] >= 0.99 and full == 0
    ranked = [imbalance for imbalance in published["rank_two_imbalance"] if math.isfinite(imbalance)]
    imbalance = geometric_interval(ranked, f"× over the {len(ranked)} starts at rank 2", against=1.0)
    counts = ", ".join(
        f"{count} of {len(PUBLISHED_SEEDS)} at {threshold:g}"
        for count, threshold in zip(published["by_threshold"], result.config["thresholds"], strict=True)
    )
    median = float(np.median(result.pooled("imbalance")))
    return [
        Verdict(
            claim="84% of random starts of an overparameterised linear model converge to rank 1",
            source=source,
            verdict="reproduced" if published["rank_one"] == 42 else "inconclusive",
            published="84%",
            our_figure=ours,
            corrected=f"The number stands for one number of steps, {over_steps} ({starts:,} starts), and for one "
            f"threshold of what counts as zero: {counts}.",
            **RULES["rank: 84%"].stated(),
        ),
        Verdict(
            claim="So SGD implicitly compresses: it prefers low rank",
            source=source,
            verdict=_compresses(low, artefact),
            published="84% to rank 1",
            our_figure=low,
            corrected="Every exact solution has the target's rank, so nothing is left to prefer: the share is how many "
            f"runs have come close by the time one stops, {fractions[10_000]:.0%} at 10,000 steps.",
            **RULES["rank: compression"].stated(),
        ),
        Verdict(
            claim="Even rank-2 solutions show an 80-fold imbalance between components",
            source=source,
            verdict=IMBALANCE.verdict(imbalance),
            published="80 ×",
            our_figure=imbalance,
            effect=IMBALANCE,
            corrected=f"Mean {math.fsum(ranked) / len(ranked):.0f}, median {float(np.median(ranked)):.0f}: a few "
            f"starts carry the mean. Over {starts:,} starts of any rank the median is {median:.1f}.",
            **RULES["rank: imbalance"].stated(),
        ),
    ]


@figures.styled
def _draw_imbalance(axes: Any, imbalance: list[float]) -> None:
    edges = np.logspace(0, math.log10(max(imbalance) * 1.01), 40)
    axes.hist(imbalance, bins=edges, color=figures.BLUE, alpha=0.85)
    axes.set_xscale("log")
    figures.log_axis(axes.xaxis, 1, max(imbalance))
    axes.set_xticks([10.0**power for power in range(math.ceil(math.log10(max(imbalance))))])
    axes.set_xlabel("norm of the larger component / smaller")
    axes.set_ylabel("starts")


def draw(result: StudyResult) -> Any:
    steps, published, imbalance = result.config["steps"], result.series[0]["published"], result.pooled("imbalance")
    figure, (left, middle, right) = figures.new_figure(13.6, 4.2, columns=3)
    colours = {"rank-1 target": figures.BLUE, "full-rank target": figures.ORANGE}
    draw_curves(
        left,
        steps,
        {
            "rank-1 target": _over_seeds(result, "rank_one_fraction"),
            "full-rank target": _over_seeds(result, "full_rank_fraction"),
        },
        colours=colours,
        log_x=True,
        marker="o",
        xlabel="steps",
        ylabel="share of starts at rank 1",
        legend="upper left",
    )
    share = published["rank_one"] / len(PUBLISHED_SEEDS)
    left.plot([rank.PUBLISHED_STEPS], [share], "*", color=figures.INK, markersize=15)
    draw_level(left, share, "the published 84%", at=0.02)
    figures.set_title(left, "84% is where one stops")
    low, centre, high = zip(*result.series[0]["second_singular_value"], strict=True)
    draw_curves(
        middle,
        steps,
        {"second singular value": [max(value, 1e-7) for value in centre]},
        bands={"second singular value": ([max(value, 1e-7) for value in low], high)},
        log_x=True,
        log_y=True,
        xlabel="steps",
        ylabel="second singular value",
        legend="",
    )
    middle.set_ylim(1e-6, 0.05)
    draw_level(middle, result.config["threshold"], "counted as rank 1 below", at=0.02)
    figures.set_title(middle, "It goes to zero in every run")
    _draw_imbalance(right, imbalance)
    ranked = published["rank_two_imbalance"]
    draw_level(right, math.fsum(ranked) / len(ranked), "rank 2, mean", vertical=True, colour=figures.ORANGE, at=0.9)
    draw_level(right, float(np.median(imbalance)), "median", vertical=True, at=0.98)
    figures.set_title(right, "A few starts carry the imbalance")
    return figure


STUDIES = (
    Study(
        name="rank",
        summary="the 84% experiment as published, and over steps, starts and targets",
        claim="84% of starts converge to rank 1: SGD compresses",
        source=f"{MOVES}, Implicit Rank Regularization",
        quick={"starts": 200},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=15,
    ),
)
