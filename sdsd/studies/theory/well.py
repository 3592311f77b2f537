"""A well that ends: which paths of stochastic gradient flow stay, by diffusion and by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ...theory.dynamics import (
    Case,
    local_terms,
    saturating_well,
    simulate,
)
from ..documents import SDSD
from ..engine import Progress, Study, StudyResult, Verdict, fraction_interval
from ..rules import RULES

EXAMPLE = 0.2
"""The diffusion that the sentences about the well speak of."""


def measure(
    seed: int,
    progress: Progress,
    *,
    paths: int = 600,
    step_size: float = 0.1,
    times: Sequence[int] = (20, 200, 1000, 4000),
    diffusion: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6),
    slow_diffusion: float = 0.15,
    inside: float = 3.0,
    start: float = 1.0,
) -> dict[str, Any]:
    """How many paths are still in a saturating well, by diffusion at the first two times, and by time."""

    def near_at(case: Case, count: int, looks: Sequence[int]) -> dict[int, Tensor]:
        """Which of `count` paths are within the radius `inside` at each time; they start at the radius `start`."""
        begin = torch.zeros(count, 2)
        begin[:, 0] = start
        ran = simulate(
            *case,
            begin,
            step_size=step_size,
            steps=round(looks[-1] / step_size),
            every=round(looks[0] / step_size),
            seed=seed,
            progress=progress.bar(f"seed {seed}: following {count:,} paths to t = {looks[-1]}"),
        )
        near = ran.states.norm(dim=2) < inside
        return {time: near[round(time / looks[0])].double() for time in looks}

    each = torch.tensor(diffusion).repeat_interleave(paths)
    by_diffusion = {
        str(time): near.view(len(diffusion), paths).sum(1).tolist()
        for time, near in near_at(saturating_well(each), len(each), times[:2]).items()
    }
    over_time = near_at(saturating_well(slow_diffusion), paths, times)
    terms = local_terms(*saturating_well(EXAMPLE), torch.tensor([[start, 0.0]]))
    return {
        "by_diffusion": by_diffusion,
        "by_time": [int(near.sum()) for near in over_time.values()],
        "at_start": {"gamma_h": terms.gamma_h.item(), "gamma_published": terms.gamma_published.item()},
    }


def _kept(result: StudyResult) -> tuple[list[list[int]], list[int], int]:
    """Paths in the well by diffusion, at the first two times, by time at one, and of how many, over all seeds."""
    by_diffusion = [
        [sum(counts) for counts in zip(*(s["by_diffusion"][time] for s in result.series), strict=True)]
        for time in map(str, result.config["times"][:2])
    ]
    by_time = [sum(counts) for counts in zip(*(s["by_time"] for s in result.series), strict=True)]
    return by_diffusion, by_time, result.config["paths"] * len(result.seeds)


def judge(result: StudyResult) -> list[Verdict]:
    (_, late), by_time, count = _kept(result)
    config = result.config
    at = {d: fraction_interval(kept, count) for d, kept in zip(config["diffusion"], late, strict=True)}
    kept = {time: inside / count for time, inside in zip(config["times"], by_time, strict=True)}
    gamma_h = result.series[0]["at_start"]["gamma_h"]
    dissolves = at[0.1].value > 0.9 and at[0.4].value < 0.2
    slow = list(kept.values())
    judged = Verdict(
        claim="Below Γ = 1 diffusion dominates and what was learned dissolves, at a phase transition",
        source=f"{SDSD} §4",
        verdict=("direction only" if slow[-1] < slow[0] - 0.1 else "reproduced") if dissolves else "inconclusive",
        published="a transition at Γ = 1",
        our_figure=replace(at[EXAMPLE], unit=f"of paths stay until t = {config['times'][1]} at D = {EXAMPLE:g}"),
        corrected=f"There is a crossover: {at[0.1].value:.2f}, {at[0.2].value:.2f}, {at[0.4].value:.2f} stay for "
        f"D = 0.1, 0.2, 0.4, at Γ_H = {gamma_h:.2g} for D = 0.2. It is an escape time and no "
        f"transition: at D = {config['slow_diffusion']:g} "
        + ", ".join(f"{share:.2f} at t = {time}" for time, share in kept.items())
        + ".",
        **RULES["well"].stated(),
    )
    return [judged]


def draw(result: StudyResult) -> Any:
    by_diffusion, by_time, count = _kept(result)
    figure, (left, right) = figures.new_figure(10.6, 4.1, columns=2)
    config = result.config
    early, late = (f"t = {time}" for time in config["times"][:2])
    curves = {name: [k / count for k in row] for name, row in zip((early, late), by_diffusion, strict=True)}
    draw_curves(
        left,
        config["diffusion"],
        curves,
        colours={early: figures.TEAL, late: figures.PURPLE},
        xlabel="diffusion D",
        ylabel="share of paths in the well",
        marker="o",
    )
    start = result.series[0]["at_start"]
    draw_level(left, EXAMPLE * start["gamma_h"], "Γ_H = 1 at the start", vertical=True, at=0.9)
    draw_level(left, EXAMPLE * start["gamma_published"], "Γ = 1", vertical=True, colour=figures.ORANGE, at=0.12)
    left.set_ylim(0, 1.04)
    figures.set_title(left, "More noise empties the well …")
    draw_curves(
        right,
        config["times"],
        {f"D = {config['slow_diffusion']:g}": [kept / count for kept in by_time]},
        xlabel="time",
        ylabel="share of paths in the well",
        log_x=True,
        marker="o",
        legend="",
    )
    right.set_ylim(0, 1.04)
    figures.set_title(right, f"… and so does time (D = {config['slow_diffusion']:g})")
    return figure


STUDIES = (
    Study(
        name="well",
        summary="paths that leave a saturating well, by diffusion and by time",
        claim="Learning dissolves below Γ = 1, at a phase transition",
        source=f"{SDSD} §4",
        quick={"paths": 200, "step_size": 0.2, "times": (20, 200)},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=45,
    ),
)
