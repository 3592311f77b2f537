"""Where the loss of stochastic gradient flow stops falling in a bowl, against Γ = 1 and Γ_H = 1."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from ...report import figures
from ...report.figures import draw_curves, draw_level, draw_phase_diagram
from ...theory.dynamics import (
    loss_sign_change,
    phase_diagram,
)
from ..documents import SDSD
from ..engine import Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES


def measure(
    seed: int,
    progress: Progress,
    *,
    stiffness: Sequence[float] = (0.2, 1.0, 5.0),
    diffusion: float = 0.1,
    dim: int = 4,
    paths: int = 4000,
    grid: int = 33,
    paths_a_cell: int = 64,
) -> dict[str, Any]:
    """In bowls of several stiffnesses: at which value of each ratio does the expected loss stop falling?"""
    turns = []
    for place, k in enumerate(progress.each(stiffness, f"seed {seed}: finding where the loss turns")):
        # Every stiffness gets its own random numbers: a bowl looks the same at every k but for its scales.
        turn = loss_sign_change(k, diffusion, dim=dim, paths=paths, seed=1000 * seed + place)
        turns.append(
            {
                "stiffness": k,
                "gamma_h": turn.gamma_h.value,
                "gamma_h_error": turn.gamma_h.standard_error,
                "gamma_published": turn.gamma_published.value,
            }
        )
    axis = torch.logspace(-1, 1, grid, dtype=torch.float64)
    diagram = phase_diagram(
        axis,
        axis / 4,
        dim=dim,
        paths=paths_a_cell,
        seed=seed,
        progress=progress.bar(f"seed {seed}: filling the phase diagram"),
    )
    names = ("stiffness", "diffusion", "growth", "standard_error", "gamma_h", "gamma_published")
    return {"turns": turns, "diagram": {name: getattr(diagram, name).tolist() for name in names}}


def judge(result: StudyResult) -> list[Verdict]:
    turns, bowls = result.pooled("turns"), result.config["stiffness"]
    off = {name: max(abs(turn[name] - 1) for turn in turns) for name in ("gamma_h", "gamma_published")}
    stiffest = [turn["gamma_published"] for turn in turns if turn["stiffness"] == bowls[-1]]
    judged = Verdict(
        claim="Γ = ‖∇L‖² / Tr D = 1 is the phase transition between a loss that falls and one that rises",
        source=f"{SDSD} §4",
        verdict="refuted"
        if off["gamma_published"] > 0.5 and off["gamma_h"] < 0.1
        else "reproduced"
        if off["gamma_published"] < 0.1
        else "inconclusive",
        published="Γ = 1",
        our_figure=mean_interval(stiffest, f"is Γ where the loss turns in a bowl of stiffness {bowls[-1]:g}"),
        corrected="The loss turns at Γ_H = ‖∇L‖² / Tr(D H) = 1, with the Hessian H (measured "
        f"{mean_interval([turn['gamma_h'] for turn in turns])}). The document's Γ is then "
        + ", ".join(f"{turn['gamma_published']:.2f} for k = {turn['stiffness']:g}" for turn in turns[: len(bowls)])
        + ".",
        **RULES["phase"].stated(),
    )
    return [judged]


def draw(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(11.6, 4.6, columns=2, width_ratios=(1.15, 1))
    arrays = {name: np.array(values) for name, values in result.series[0]["diagram"].items()}
    del arrays["standard_error"]
    draw_phase_diagram(left, **arrays)
    turns, bowls = result.pooled("turns"), result.config["stiffness"]
    curves = {
        name: [fmean([turn[key] for turn in turns if turn["stiffness"] == k]) for k in bowls]
        for name, key in (("Γ_H", "gamma_h"), ("the document's Γ", "gamma_published"))
    }
    draw_curves(
        right,
        bowls,
        curves,
        colours={"Γ_H": figures.INK, "the document's Γ": figures.ORANGE},
        log_x=True,
        log_y=True,
        marker="o",
        xlabel="stiffness k",
        ylabel="ratio at which the loss turns",
        legend="upper left",
    )
    draw_level(right, 1.0, "what a transition at 1 would give", at=0.02)
    figures.set_title(right, "Paths turn at Γ_H = 1")
    return figure


STUDIES = (
    Study(
        name="phase",
        summary="where the loss stops falling in bowls, against Γ = 1 and Γ_H = 1; the phase diagram",
        claim="Γ = 1 separates learning from dissolving",
        source=f"{SDSD} §4",
        quick={"paths": 1000, "grid": 9, "paths_a_cell": 24},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=15,
    ),
)
