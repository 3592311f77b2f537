"""The Selection Principle: what V_sem selects where the loss is zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ...theory import select_on_hyperbola, select_on_line
from ..documents import MOVES
from ..engine import Progress, Study, StudyResult, Verdict, fraction_interval
from ..rules import RULES


def measure(
    seed: int,
    progress: Progress,
    *,
    starts: int = 1000,
    steps: int = 3000,
    k: float = 0.2,
    learning_rate: float = 0.05,
) -> dict[str, Any]:
    """Gradient descent with and without V_sem on w₁ + w₂ = 1 and on u·v = 1."""
    progress.say(f"seed {seed}: descending from {starts:,} starts")
    looks = [step for step in (0, 5, 10, 20, 40, 80, 150, 300, 600, 1000, 2000, 3000) if step <= steps]
    start = torch.randn(starts, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    line, flat = (select_on_line(start, each, learning_rate, steps) for each in (k, 0.0))
    curve = select_on_hyperbola(start, k, learning_rate, steps)
    apart = line.weights[:20, :, 0] - line.weights[:20, :, 1]
    contraction = (apart[1:] / apart[:-1]).flatten()
    return {
        "step": looks,
        "line_alpha": line.alpha[looks][:, :12].tolist(),
        "flat_alpha": flat.alpha[looks][:, :12].tolist(),
        "line_deviation": (line.alpha[-1] - 0.5).abs().max().item(),
        "contraction": [contraction.min().item(), contraction.max().item()],
        "without_potential_sd": flat.alpha[-1].std().item(),
        "hyperbola_deviation": (curve.alpha[-1] - 0.5).abs().max().item(),
        "off_the_points": (curve.weights[-1].abs() - 1).abs().max().item(),
        "positive": int((curve.weights[-1, :, 0] > 0).sum()),
        "paths": _paths(curve.weights),
    }


def _paths(weights: Tensor) -> list[list[list[float]]]:
    """(u, v) over the first steps, and at the end, for the first forty starts."""
    return torch.cat((weights[:120:2, :40], weights[-1:, :40])).transpose(0, 1).tolist()


def judge(result: StudyResult) -> list[Verdict]:
    runs, starts = result.series, result.config["starts"]
    contraction = 1 - 4 * result.config["k"] * result.config["learning_rate"]
    off = max(run["hyperbola_deviation"] for run in runs)
    positive, count = sum(run["positive"] for run in runs), starts * len(runs)
    share = fraction_interval(positive, count, "of starts end at (1, 1), the others at (−1, −1)")
    measured = [bound for run in runs for bound in run["contraction"]]
    unique = positive in (0, count)
    judged = Verdict(
        claim="Where the loss is zero, V_sem = k Σ(w_i − w_j)² makes the system converge to the unique state of least "
        "V_sem, α = ½",
        source=f"{MOVES}, The Selection Principle",
        verdict=("reproduced" if unique else "direction only") if off < 1e-3 else "inconclusive",
        published="α = 0.5, one state",
        our_figure=share,
        corrected=f"α → ½ on both manifolds (within {off:.0e}); on w₁ + w₂ = 1 the distance shrinks by 1 − 4kη = "
        f"{contraction:g} a step (measured {min(measured):.6f} to {max(measured):.6f}), and without V_sem nothing is "
        f"selected (sd {runs[0]['without_potential_sd']:.2f}). On u·v = 1 there are two minima, so selection is up to "
        "a sign, and V_sem there is ‖w‖² − 2: weight decay.",
        **RULES["selection"].stated(),
    )
    return [judged]


@figures.styled
def _draw_plane(axes: Any, run: dict[str, Any]) -> None:
    for path in run["paths"]:
        u, v = np.array(path).T
        axes.plot(u, v, color=figures.BLUE if u[-1] > 0 else figures.ORANGE, linewidth=0.8, alpha=0.7)
        axes.plot(u[0], v[0], ".", color=figures.MUTED, markersize=4)
    reach = np.linspace(0.3, 3.3, 200)
    for sign in (1, -1):
        axes.plot(sign * reach, sign / reach, color=figures.INK, linewidth=1.2)
        axes.plot([sign], [sign], "o", color=figures.INK, markersize=8, zorder=4)
    axes.set_xlim(-2.8, 2.8)
    axes.set_ylim(-2.8, 2.8)
    axes.set_aspect("equal")
    axes.set_xlabel("u")
    axes.set_ylabel("v")


def draw(result: StudyResult) -> Any:
    run = result.series[0]
    figure, (left, right) = figures.new_figure(10.4, 4.4, columns=2)
    steps = [step + 1 for step in run["step"]]
    for column in range(len(run["line_alpha"][0])):
        for key, colour, label in (
            ("flat_alpha", "#b4bcc6", "without V_sem"),
            ("line_alpha", figures.BLUE, "with V_sem"),
        ):
            curve = {label: [row[column] for row in run[key]]}
            draw_curves(left, steps, curve, colours={label: colour}, legend="" if column else "lower right")
    draw_curves(left, steps, {}, xlabel="step + 1", ylabel="α = w₁", log_x=True, legend="")
    draw_level(left, 0.5, "½", at=0.98)
    figures.set_title(left, "w₁ + w₂ = 1: one state is selected")
    _draw_plane(right, run)
    figures.set_title(right, "u·v = 1: two, and the start decides")
    return figure


STUDIES = (
    Study(
        name="selection",
        summary="what V_sem selects on w₁ + w₂ = 1 and on u·v = 1",
        claim="V_sem selects one state where the loss is flat",
        source=f"{MOVES}, The Selection Principle",
        quick={"starts": 200, "steps": 600},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=10,
    ),
)
