"""Goldstone modes: noise carries u·v = 1 along its orbit without end, and not across it."""

from __future__ import annotations

from typing import Any

import torch

from ...report import figures
from ...report.figures import draw_curves
from ...theory.dynamics import hyperbola, simulate
from ..documents import SDSD
from ..engine import Effect, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES

FREE = Effect(nothing=0.0, published=1.0)


def measure(
    seed: int,
    progress: Progress,
    *,
    paths: int = 4000,
    diffusion: float = 0.001,
    step_size: float = 0.02,
    end: float = 40.0,
    looks: int = 40,
) -> dict[str, Any]:
    """Variance of ½ log(u/v), the place along the orbit, and of uv − 1, the place across, over time."""
    steps = round(end / step_size)
    ran = simulate(
        *hyperbola("isotropic", diffusion),
        torch.ones(paths, 2),
        step_size=step_size,
        steps=steps,
        every=steps // looks,
        seed=seed,
        progress=progress.bar(f"seed {seed}: {paths:,} paths"),
    )
    u, v = ran.states.unbind(2)
    return {
        "times": ran.times.tolist(),
        "along": ((u / v).abs().log() / 2).var(1).tolist(),
        "across": (u * v - 1).var(1).tolist(),
    }


def _power(series: dict[str, Any], key: str) -> float:
    """The power of time with which a variance grows over the last three quarters."""
    first = len(series["times"]) // 4
    logs = torch.tensor(series["times"][first:], dtype=torch.float64).log()
    values = torch.tensor(series[key][first:], dtype=torch.float64).log()
    logs = logs - logs.mean()
    return (logs @ values / (logs @ logs)).item()


def judge(result: StudyResult) -> list[Verdict]:
    along = mean_interval(
        [_power(series, "along") for series in result.series],
        "is the power of time with which the variance along the orbit grows",
        against=0,
    )
    across = mean_interval([_power(series, "across") for series in result.series])
    d, end = result.config["diffusion"], result.config["end"]
    rate = mean_interval([series["along"][-1] / (d * end) for series in result.series])
    height = mean_interval([series["across"][-1] / d for series in result.series])
    word = FREE.verdict(along)
    if word == "reproduced" and abs(across.value) > 0.1:
        word = "direction only"
    return [
        Verdict(
            claim="Noise drives exploration along symmetry orbits, as with Goldstone modes in physics",
            source=f"{SDSD} §2",
            verdict=word,
            published="an analogy; a free mode diffuses with the power 1",
            our_figure=along,
            corrected=f"Along the orbit of u·v = 1 the variance of ½ log(u/v) grows with the power {along.value:.2f} "
            f"of time, to {rate} · D t; across it the variance of uv − 1 stays (power {across}, {height} · D). "
            "A mode that nothing holds is one along which isotropic noise selects nothing.",
            **RULES["goldstone"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(7.4, 4.1)
    columns = {
        name: [sum(v) / len(v) for v in zip(*(series[key][1:] for series in result.series), strict=True)]
        for name, key in (("along: ½ log(u/v)", "along"), ("across: uv − 1", "across"))
    }
    draw_curves(axes, result.series[0]["times"][1:], columns, log_x=True, log_y=True, xlabel="time", ylabel="variance")
    figures.set_title(axes, "Noise wanders along the orbit and is held across it")
    return figure


STUDIES = (
    Study(
        name="goldstone",
        summary="variance along and across the orbit of u·v = 1 under noise",
        claim="Noise explores symmetry orbits like Goldstone modes",
        source=f"{SDSD} §2",
        quick={"paths": 1000, "step_size": 0.05, "end": 20.0},
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=5,
    ),
)
