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
    ornstein_uhlenbeck,
    simulate,
)
from ..documents import SDSD
from ..engine import Measured, Progress, Study, StudyResult, Verdict, fraction_interval
from ..rules import RULES

NEAR = 0.01
"""Of the start: within it a path under additive noise counts as converged."""


def measure(
    seed: int,
    progress: Progress,
    *,
    stiffness: float = 1.0,
    ratios: Sequence[float] = (0.4, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0),
    paths: int = 4000,
    step_size: float = 0.01,
    time: float = 20.0,
    additive_ratio: float = 100.0,
    additive_dim: int = 10,
    additive_time: float = 50.0,
) -> dict[str, Any]:
    """E[s²] by its exact recursion, the mean over paths, and the typical path, on both sides of Γ_H = 1; and paths in a
    bowl with additive noise, from a start where Γ is `additive_ratio`."""
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
    # Γ = ‖∇L‖² / Tr D = k² ‖s‖² / (dim D), and Γ_H = k ‖s‖² / (dim D): both are the ratio where k = 1.
    diffusion = 1 / (additive_dim * additive_ratio)
    start = torch.zeros(paths, additive_dim)
    start[:, 0] = 1
    count = round(additive_time / step_size)
    ran = simulate(*ornstein_uhlenbeck(1.0, diffusion), start, step_size=step_size, steps=count, every=count, seed=seed)
    near = int((ran.states[-1].norm(dim=1) < NEAR).sum())
    return {"points": points, "additive": {"near": near, "paths": paths}}


def judge(result: StudyResult) -> list[Verdict]:
    points = result.pooled("points")
    below = [point for point in points if point["gamma_h"] < 1]
    share = fraction_interval(
        int(sum(point["converged"] for point in below)),
        int(sum(point["paths"] for point in below)),
        "of paths below Γ_H = 1 have converged",
    )
    additive = [series["additive"] for series in result.series]
    above = fraction_interval(sum(each["near"] for each in additive), sum(each["paths"] for each in additive))
    edge = min(points, key=lambda point: abs(point["exact"]))
    worst = min(below, key=lambda point: point["mean_of_paths"] - point["exact"])
    judged = Verdict(
        claim="Convergence is almost sure if and only if Γ > 1",
        source=f"{SDSD} §4, Lyapunov stability",
        verdict=_word(share, above),
        published="no path below Γ = 1, every path above",
        our_figure=share,
        corrected=f"Almost every path converges on both sides, at the rate k + σ²/2. What turns at Γ_H = "
        f"{edge['gamma_h']:g} is the mean square, by its exact recursion; a mean over {worst['paths']} paths misses it "
        f"(rate {worst['mean_of_paths']:+.2f} for {worst['exact']:+.2f} at Γ_H = {worst['gamma_h']:g}). Nor is Γ > 1 "
        f"enough: of paths in a bowl with additive noise that start at Γ = {result.config['additive_ratio']:g}, "
        f"{above} are within a hundredth of their start at t = {result.config['additive_time']:g}, for there Γ falls "
        "with the way that is left.",
        **RULES["multiplicative"].stated(),
    )
    return [judged]


def _word(below: Measured, above: Measured) -> str:
    """By the shares that converge below 1, of which there should be none, and above, which should be all."""
    assert None not in (below.low, below.high, above.low, above.high)
    if (below.low or 0) > 0.95 or (above.high or 0) < 0.05:
        return "refuted"
    return "reproduced" if (below.high or 0) < 0.05 and (above.low or 0) > 0.95 else "inconclusive"


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
