"""What paths of stochastic gradient flow do, against what Γ = 1 was said to mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...report import figures
from ...report.theory_figures import draw_curves, draw_level, draw_phase_diagram
from ...theory.dynamics import (
    Case,
    decay_rate,
    hyperbola,
    imbalance,
    local_terms,
    loss_sign_change,
    mean_square_factor,
    multiplicative_noise,
    phase_diagram,
    saturating_well,
    simulate,
)
from ..documents import SDSD
from ..engine import Progress, Study, StudyResult, Verdict, fraction_interval, mean_interval

# --- where the loss turns


def measure_phase(
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
        found = loss_sign_change(k, diffusion, dim=dim, paths=paths, seed=1000 * seed + place)
        turns.append(
            {
                "stiffness": k,
                "gamma_h": found.gamma_h.value,
                "gamma_h_error": found.gamma_h.standard_error,
                "gamma_seed": found.gamma_seed.value,
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
    names = ("stiffness", "diffusion", "growth", "standard_error", "gamma_h", "gamma_seed")
    return {"turns": turns, "diagram": {name: getattr(diagram, name).tolist() for name in names}}


def judge_phase(result: StudyResult) -> list[Verdict]:
    turns, bowls = result.pooled("turns"), result.config["stiffness"]
    off = {name: max(abs(turn[name] - 1) for turn in turns) for name in ("gamma_h", "gamma_seed")}
    stiffest = [turn["gamma_seed"] for turn in turns if turn["stiffness"] == bowls[-1]]
    found = Verdict(
        claim="Γ = ‖∇L‖² / Tr D = 1 is the phase transition between a loss that falls and one that rises",
        source=f"{SDSD} §4",
        verdict="refuted" if off["gamma_seed"] > 0.5 and off["gamma_h"] < 0.1 else "not reproduced",
        rule="refuted if in some bowl the loss turns at a Γ that is off 1 by over 0.5, while Γ_H is within 0.1 of 1 in "
        "all; not reproduced if neither decides",
        seed_figure="Γ = 1",
        our_figure=mean_interval(stiffest, f"is Γ where the loss turns in a bowl of stiffness {bowls[-1]:g}"),
        corrected="The loss turns at Γ_H = ‖∇L‖² / Tr(D H) = 1, with the Hessian H (measured "
        f"{mean_interval([turn['gamma_h'] for turn in turns])}). The document's Γ is then "
        + ", ".join(f"{turn['gamma_seed']:.2f} for k = {turn['stiffness']:g}" for turn in turns[: len(bowls)])
        + ".",
    )
    return [found]


def draw_phase(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(11.6, 4.6, columns=2, width_ratios=(1.15, 1))
    arrays = {name: np.array(values) for name, values in result.series[0]["diagram"].items()}
    del arrays["standard_error"]
    draw_phase_diagram(left, **arrays)
    turns, bowls = result.pooled("turns"), result.config["stiffness"]
    curves = {
        name: [_mean([turn[key] for turn in turns if turn["stiffness"] == k]) for k in bowls]
        for name, key in (("Γ_H", "gamma_h"), ("the document's Γ", "gamma_seed"))
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


# --- noise in proportion to the state


def measure_multiplicative(
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


def judge_multiplicative(result: StudyResult) -> list[Verdict]:
    points = result.pooled("points")
    below = [point for point in points if point["gamma_h"] < 1]
    share = fraction_interval(
        int(sum(point["converged"] for point in below)),
        int(sum(point["paths"] for point in below)),
        "of paths below Γ_H = 1 have converged",
    )
    edge = min(points, key=lambda point: abs(point["exact"]))
    worst = min(below, key=lambda point: point["mean_of_paths"] - point["exact"])
    found = Verdict(
        claim="Convergence is almost sure if and only if Γ > 1",
        source=f"{SDSD} §4, Lyapunov stability",
        verdict="refuted" if (share.low or 0) > 0.95 else "not reproduced",
        rule="refuted if over 95% of paths come within a tenth of their start at ratios below 1, by the lower bound",
        seed_figure="no path below Γ = 1, every path above",
        our_figure=share,
        corrected=f"Almost every path converges on both sides, at the rate k + σ²/2. What turns at Γ_H = "
        f"{edge['gamma_h']:g} is the mean square, by its exact recursion; a mean over {worst['paths']} paths misses it "
        f"(rate {worst['mean_of_paths']:+.2f} for {worst['exact']:+.2f} at Γ_H = {worst['gamma_h']:g}).",
    )
    return [found]


def draw_multiplicative(result: StudyResult) -> Any:
    points = result.pooled("points")
    ratios = list(dict.fromkeys(point["gamma_h"] for point in points))

    def over_ratios(key: str) -> list[float]:
        return [_mean([point[key] for point in points if point["gamma_h"] == ratio]) for ratio in ratios]

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


# --- a well that ends


EXAMPLE = 0.2
"""The diffusion that the sentences about the well speak of."""


def measure_well(
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
        "at_start": {"gamma_h": terms.gamma_h.item(), "gamma_seed": terms.gamma_seed.item()},
    }


def _kept(result: StudyResult) -> tuple[list[list[int]], list[int], int]:
    """Paths in the well by diffusion, at the first two times, by time at one, and of how many, over all seeds."""
    by_diffusion = [
        [sum(counts) for counts in zip(*(s["by_diffusion"][time] for s in result.series), strict=True)]
        for time in map(str, result.config["times"][:2])
    ]
    by_time = [sum(counts) for counts in zip(*(s["by_time"] for s in result.series), strict=True)]
    return by_diffusion, by_time, result.config["paths"] * len(result.seeds)


def judge_well(result: StudyResult) -> list[Verdict]:
    (_, late), by_time, count = _kept(result)
    config = result.config
    at = {d: fraction_interval(kept, count) for d, kept in zip(config["diffusion"], late, strict=True)}
    kept = {time: inside / count for time, inside in zip(config["times"], by_time, strict=True)}
    gamma_h = result.series[0]["at_start"]["gamma_h"]
    dissolves = at[0.1].value > 0.9 and at[0.4].value < 0.2
    slow = list(kept.values())
    found = Verdict(
        claim="Below Γ = 1 diffusion dominates and what was learned dissolves, at a phase transition",
        source=f"{SDSD} §4",
        verdict=("direction only" if slow[-1] < slow[0] - 0.1 else "reproduced") if dissolves else "not reproduced",
        rule="not reproduced if the share of paths that stay does not fall from over 0.9 to below 0.2 between D = 0.1 "
        "and 0.4; direction only if, at one D, that share depends on when one looks by more than 0.1",
        seed_figure="a transition at Γ = 1",
        our_figure=replace(at[EXAMPLE], unit=f"of paths stay until t = {config['times'][1]} at D = {EXAMPLE:g}"),
        corrected=f"There is a crossover: {at[0.1].value:.2f}, {at[0.2].value:.2f}, {at[0.4].value:.2f} stay for "
        f"D = 0.1, 0.2, 0.4, at Γ_H = {gamma_h:.2g} for D = 0.2. It is an escape time and no "
        f"transition: at D = {config['slow_diffusion']:g} "
        + ", ".join(f"{share:.2f} at t = {time}" for time, share in kept.items())
        + ".",
    )
    return [found]


def draw_well(result: StudyResult) -> Any:
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
    draw_level(left, EXAMPLE * start["gamma_seed"], "Γ = 1", vertical=True, colour=figures.ORANGE, at=0.12)
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


# --- Proposition 1


VARIANTS = ("gradient descent", "isotropic noise", "label noise", "weight decay")


def measure_conservation(
    seed: int,
    progress: Progress,
    *,
    paths: int = 1000,
    step_size: float = 0.05,
    time: float = 100,
    isotropic_diffusion: float = 0.01,
    label_noise: float = 1.0,
    weight_decay: float = 0.02,
) -> dict[str, Any]:
    """Q = u² − v² on u·v = 1 under gradient descent, isotropic noise, label noise and weight decay."""
    cases = (
        hyperbola(),
        hyperbola("isotropic", isotropic_diffusion),
        hyperbola("label", label_noise, learning_rate=step_size),
        hyperbola(weight_decay=weight_decay),
    )
    steps = round(time / step_size)
    look = slice(None, None, max(1, steps // 50))
    runs: dict[str, dict[str, Any]] = {}
    variants = list(zip(VARIANTS, cases, strict=True))
    for name, case in progress.each(variants, f"seed {seed}: running each variant"):
        start = torch.tensor([[2.0, 0.9]]).repeat(paths, 1)
        ran = simulate(*case, start, step_size=step_size, steps=steps, every=1, seed=seed)
        q = imbalance(ran.states)
        u, v = ran.states.unbind(2)
        r = (u[:-1] - u[1:]) / (step_size * v[:-1])
        identity = (q[1:] / (q[:-1] * (1 - (step_size * r) ** 2)) - 1).abs().max().item()
        runs[name] = {
            "time": ran.times[look].tolist(),
            "mean_q": q.mean(1)[look].tolist(),
            "mean_abs_q": q.abs().mean(1)[look].tolist(),
            "spread_q": q.std(1)[look].tolist(),
            "identity_error": identity if name in ("gradient descent", "label noise") else None,
        }
    return {"variants": runs}


def judge_conservation(result: StudyResult) -> list[Verdict]:
    runs, paths = [series["variants"] for series in result.series], result.config["paths"]

    def left(variant: str) -> list[float]:
        """What is left of the mean of |Q|, seed by seed."""
        return [run[variant]["mean_abs_q"][-1] / run[variant]["mean_abs_q"][0] for run in runs]

    isotropic = [run["isotropic noise"] for run in runs]
    drift = max(
        abs(run["mean_q"][-1] - run["mean_q"][0]) / (run["spread_q"][-1] / math.sqrt(paths)) for run in isotropic
    )
    collapse = max(left("label noise")) < 0.1 and max(left("weight decay")) < 0.1
    conserved = min(left("gradient descent")) > 0.8 and drift < 5
    error = max(run[name]["identity_error"] for run in runs for name in ("gradient descent", "label noise"))
    verdict = "reproduced" if min(left("isotropic noise")) < 0.1 else ("direction only" if collapse else "refuted")
    found = Verdict(
        claim="Noise along symmetry orbits averages out, and only minimal-norm representatives survive",
        source=f"{SDSD} §2, Proposition 1",
        verdict=verdict if collapse and conserved else "not reproduced",
        rule="reproduced if isotropic noise takes |Q| = |u² − v²| below a tenth; direction only if label noise and "
        "weight decay do, while gradient descent and, on average, isotropic noise conserve Q",
        seed_figure="minimal norm as t → ∞, for any noise of mean zero",
        our_figure=mean_interval(left("label noise"), "of |Q| is left under label noise"),
        corrected="It depends on the noise. Gradient flow conserves Q, gradient descent nearly "
        f"({_mean(left('gradient descent')):.2f} left); isotropic noise conserves its mean and spreads it "
        f"(mean |Q| × {_mean(left('isotropic noise')):.1f}); label noise collapses it by ∏(1 − η²r²), which holds to "
        f"{error:.0e}; weight decay collapses it ({_mean(left('weight decay')):.2f} left).",
    )
    return [found]


def draw_conservation(result: StudyResult) -> Any:
    runs = result.series[0]["variants"]
    figure, (left, right) = figures.new_figure(10.6, 4.1, columns=2)
    colours = dict(zip(VARIANTS, (figures.INK, figures.BLUE, figures.ORANGE, figures.GREEN), strict=True))
    times = runs["isotropic noise"]["time"]
    draw_curves(
        left,
        times,
        {name: [max(q, 1e-4) for q in run["mean_abs_q"]] for name, run in runs.items()},
        colours=colours,
        xlabel="time",
        ylabel="mean of |Q|",
        log_y=True,
        legend="lower left",
    )
    figures.set_title(left, "What collapses the symmetry, and what does not")
    run = runs["isotropic noise"]
    band = tuple([m + sign * s for m, s in zip(run["mean_q"], run["spread_q"], strict=True)] for sign in (-1, 1))
    draw_curves(
        right,
        times,
        {"isotropic noise": run["mean_q"]},
        bands={"isotropic noise": (band[0], band[1])},
        colours=colours,
        xlabel="time",
        ylabel="Q: mean ± standard deviation",
        legend="",
    )
    draw_level(right, run["mean_q"][0], "at the start", at=0.98)
    figures.set_title(right, "Isotropic noise keeps the mean and spreads Q")
    return figure


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


STUDIES = (
    Study(
        name="phase",
        summary="where the loss stops falling in bowls, against Γ = 1 and Γ_H = 1; the phase diagram",
        claim="Γ = 1 separates learning from dissolving",
        source=f"{SDSD} §4",
        quick={"paths": 1000, "grid": 9, "paths_a_cell": 24},
        measure=measure_phase,
        judge=judge_phase,
        draw=draw_phase,
        expected_seconds=15,
    ),
    Study(
        name="multiplicative",
        summary="noise in proportion to the state: exact mean square, sampled mean and typical path",
        claim="Convergence is almost sure iff Γ > 1",
        source=f"{SDSD} §4",
        quick={"paths": 500, "time": 10.0},
        measure=measure_multiplicative,
        judge=judge_multiplicative,
        draw=draw_multiplicative,
        expected_seconds=30,
    ),
    Study(
        name="well",
        summary="paths that leave a saturating well, by diffusion and by time",
        claim="Learning dissolves below Γ = 1, at a phase transition",
        source=f"{SDSD} §4",
        quick={"paths": 200, "step_size": 0.2, "times": (20, 200)},
        measure=measure_well,
        judge=judge_well,
        draw=draw_well,
        expected_seconds=45,
    ),
    Study(
        name="conservation",
        summary="u·v = 1: what gradient descent, noise and weight decay do to u² − v²",
        claim="Noise collapses symmetry to minimal norm (Proposition 1)",
        source=f"{SDSD} §2",
        quick={"paths": 100},
        measure=measure_conservation,
        judge=judge_conservation,
        draw=draw_conservation,
        expected_seconds=10,
    ),
)
