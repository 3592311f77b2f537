"""Noise in proportion to the state: where the mean square turns, and what a typical path does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ...theory.dynamics import (
    decay_rate,
    mean_square_factor,
    multiplicative_noise,
    simulate,
)
from ..documents import SDSD
from ..engine import Progress, Study, StudyResult, Verdict, fraction_interval
from ..rules import RULES


def measure(
    seed: int,
    progress: Progress,
    *,
    stiffness: float = 1.0,
    ratios: Sequence[float] = (0.4, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0),
    paths: int = 4000,
    step_size: float = 0.01,
    time: float = 20.0,
) -> dict[str, Any]:
    """E[s²] by its exact recursion, the mean over paths, and the typical path, on both sides of Γ_H = 1."""
    steps, points = round(time / step_size), []
    for ratio in progress.each(ratios, f"seed {seed}: running paths at each Γ_H"):
        sigma = math.sqrt(2 * stiffness / ratio)
        start = torch.ones(paths, 1)
        ran = simulate(
            *multiplicative_noise(stiffness, sigma), start, step_size=step_size, steps=steps, every=steps, seed=seed
        )
        size = ran.states[-1, :, 0].abs()
        points.append(
            {
                "gamma_h": ratio,
                "exact": math.log(mean_square_factor(stiffness, sigma, step_size)) / step_size,
                "mean_of_paths": size.square().mean().log().item() / time,
                "typical": 2 * size.log().mean().item() / time,
                "typical_theory": -2 * decay_rate(stiffness, sigma),
                "converged": int((size < 0.1).sum()),
                "paths": paths,
            }
        )
    return {"points": points}


def judge(result: StudyResult) -> list[Verdict]:
    points = result.pooled("points")
    below = [point for point in points if point["gamma_h"] < 1]
    share = fraction_interval(
        int(sum(point["converged"] for point in below)),
        int(sum(point["paths"] for point in below)),
        "of paths below Γ_H = 1 have converged",
    )
    edge = min(points, key=lambda point: abs(point["exact"]))
    worst = min(below, key=lambda point: point["mean_of_paths"] - point["exact"])
    judged = Verdict(
        claim="Convergence is almost sure if and only if Γ > 1",
        source=f"{SDSD} §4, Lyapunov stability",
        verdict="refuted"
        if (share.low or 0) > 0.95
        else "reproduced"
        if share.high is not None and share.high < 0.05
        else "inconclusive",
        published="no path below Γ = 1, every path above",
        our_figure=share,
        corrected=f"Almost every path converges on both sides, at the rate k + σ²/2. What turns at Γ_H = "
        f"{edge['gamma_h']:g} is the mean square, by its exact recursion; a mean over {worst['paths']} paths misses it "
        f"(rate {worst['mean_of_paths']:+.2f} for {worst['exact']:+.2f} at Γ_H = {worst['gamma_h']:g}).",
        **RULES["multiplicative"].stated(),
    )
    return [judged]


def draw(result: StudyResult) -> Any:
    points = result.pooled("points")
    ratios = list(dict.fromkeys(point["gamma_h"] for point in points))

    def over_ratios(key: str) -> list[float]:
        return [fmean([point[key] for point in points if point["gamma_h"] == ratio]) for ratio in ratios]

    figure, axes = figures.new_figure(7.6, 4.6)
    draw_curves(
        axes,
        ratios,
        {
            "E[s²], exact": over_ratios("exact"),
            f"mean of s² over {points[0]['paths']:,.0f} paths": over_ratios("mean_of_paths"),
            "typical path": over_ratios("typical"),
        },
        colours={"E[s²], exact": figures.INK, "typical path": figures.GREEN},
        xlabel="Γ_H = 2k/σ²",
        ylabel="growth rate",
        marker="o",
        legend="lower right",
    )
    draw_level(axes, 0.0, "grows ↑", at=0.98)
    draw_level(axes, 1.0, "Γ_H = 1", vertical=True, at=0.06)
    figures.set_title(axes, "The mean square turns at 1; paths converge everywhere")
    return figure


STUDIES = (
    Study(
        name="multiplicative",
        summary="noise in proportion to the state: exact mean square, sampled mean and typical path",
        claim="Convergence is almost sure iff Γ > 1",
        source=f"{SDSD} §4",
        quick={"paths": 500, "time": 10.0},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=30,
    ),
)
