"""The curvature-aware ratio on real digits: what foretells whether a step lowers the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...report import figures
from ...report.theory_figures import draw_level
from ..documents import SDSD
from ..engine import Progress, Study, StudyResult, Verdict, fraction_interval
from .gamma_star_experiment import gamma_star_experiment

RATIOS = {"gamma_star": "Γ*", "gamma_seed": "Γ = C_α (§5)", "gamma_seed_diffusion": "Γ = ‖∇L‖²/Tr D (§4)"}


def measure(
    seed: int,
    progress: Progress,
    *,
    learning_rates: Sequence[float] = (0.05, 0.2, 0.5),
    batch_size: int = 16,
    label_noise: float = 0.2,
    steps: int = 1500,
    measurements: int = 14,
    batches: int = 400,
    probes: int = 64,
    hidden: int = 32,
) -> dict[str, Any]:
    """SGD on digits with label noise: the sign of the expected change of the loss, foretold and measured."""
    points = []
    for rate in progress.each(learning_rates, f"seed {seed}: training and looking ahead"):
        run = gamma_star_experiment(
            learning_rates=(rate,),
            batch_size=batch_size,
            label_noise=label_noise,
            hidden=hidden,
            steps=steps,
            measurements=measurements,
            batches=batches,
            probes=probes,
            seed=seed,
        )
        for point in run.points:
            points.append(
                {
                    "learning_rate": rate,
                    "step": point.step,
                    "measured": point.measured,
                    "measured_error": point.measured_error,
                    "significant": point.significant,
                    "expected_change": point.stats.expected_change,
                    **{ratio: getattr(point.stats, ratio) for ratio in RATIOS},
                    "right": {
                        "gamma_star": point.exact_is_right,
                        "gamma_seed": point.seed_is_right,
                        "gamma_seed_diffusion": point.seed_diffusion_is_right,
                    },
                }
            )
    return {"points": points}


def judge(result: StudyResult) -> list[Verdict]:
    clear = [point for point in result.pooled("points") if point["significant"]]
    right = {ratio: sum(point["right"][ratio] for point in clear) for ratio in RATIOS}
    star, best = right["gamma_star"], max(right["gamma_seed"], right["gamma_seed_diffusion"])
    if not clear or star < 0.9 * len(clear):
        verdict = "not reproduced"
    else:
        verdict = "refuted" if best < star else "reproduced"
    judged = Verdict(
        claim="The loss falls when Γ, signal over noise of the gradient, is above 1, and rises below",
        source=f"{SDSD} §4, §5",
        verdict=verdict,
        rule="of the steps whose mean effect is three standard errors from zero: refuted if Γ* foretells the sign of "
        "90% or more, and either form of the document's Γ of fewer; reproduced if Γ does as well as Γ*",
        seed_figure="all of them",
        our_figure=fraction_interval(right["gamma_seed"], max(1, len(clear)), "of signs are foretold by Γ of §5"),
        corrected=f"Γ* = (‖μ‖² − (η/2)μᵀHμ) / ((η/2)Tr(HΣ_B)) foretells {star} of {len(clear)} signs, Γ of §5 "
        f"{right['gamma_seed']}, Γ of §4 {right['gamma_seed_diffusion']}: the Hessian decides.",
    )
    return [judged]


def draw(result: StudyResult) -> Any:
    clear = [point for point in result.pooled("points") if point["significant"]]
    figure, axes = figures.new_figure(12.8, 4.1, columns=3)
    for place, (ratio, name) in zip(axes, RATIOS.items(), strict=True):
        right = sum(point["right"][ratio] for point in clear)
        _draw_signs(place, clear, ratio)
        figures.set_title(place, f"{name}: {right} of {len(clear)} signs")
    axes[0].set_ylabel("measured change of the loss in a step")
    axes[0].legend(loc="upper right", fontsize=9.5, frameon=False)
    return figure


SHOWN = (0.02, 60.0)
"""Ratios beyond are drawn at the edge, negative ones too."""


@figures.styled
def _draw_signs(axes: Any, points: list[dict[str, Any]], ratio: str) -> None:
    """Measured change against a ratio; the shaded quarters are where a ratio that foretells the sign puts its dots."""
    for good, colour in ((True, figures.GREEN), (False, figures.RED)):
        chosen = [p for p in points if p["right"][ratio] == good and p[ratio] is not None]
        x = np.clip(np.array([p[ratio] for p in chosen], dtype=float), *SHOWN)
        y = np.array([p["measured"] for p in chosen], dtype=float)
        label = "sign foretold" if good else "wrong"
        axes.plot(x, y, "o", color=colour, alpha=0.8, markersize=5, markeredgewidth=0, label=label, clip_on=False)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1e-3, linscale=0.3)
    axes.set_xlim(*SHOWN)
    axes.set_ylim(-1, 1)
    axes.set_yticks([-0.1, -0.01, 0, 0.01, 0.1], ["−0.1", "−0.01", "0", "0.01", "0.1"])
    axes.minorticks_off()
    figures.log_axis(axes.xaxis, *SHOWN)
    axes.fill_between([SHOWN[0], 1], 0, 1, color=figures.GREEN, alpha=0.08, linewidth=0)
    axes.fill_between([1, SHOWN[1]], -1, 0, color=figures.GREEN, alpha=0.08, linewidth=0)
    axes.axhline(0, color=figures.MUTED, linewidth=1.2)
    axes.set_xlabel("ratio before the step")
    draw_level(axes, 1.0, "1", vertical=True, at=0.06)


STUDIES = (
    Study(
        name="prediction",
        summary="which ratio foretells whether a step of SGD lowers the loss",
        claim="The loss falls iff Γ > 1",
        source=f"{SDSD} §4, §5",
        quick={"steps": 300, "measurements": 6, "batches": 100, "probes": 16, "hidden": 16},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=80,
        needs=("sklearn",),
    ),
)
