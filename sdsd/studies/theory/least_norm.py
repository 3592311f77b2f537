"""Which solution of an underdetermined least-squares problem an optimizer finds: the one of least norm or another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...report import figures
from ...report.figures import draw_dots
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, geometric_interval, mean_interval
from ..rules import RULES

SOURCE = f"{MOVES}, What's Known: Implicit Regularization"
OTHER = Effect(nothing=1.0, negligible=1.01)
OPTIMIZERS = ("gradient descent", "SGD", "momentum", "Adam", "sign descent", "Adam, random start")


def measure(
    seed: int,
    progress: Progress,
    *,
    equations: int = 20,
    unknowns: int = 60,
    problems: int = 10,
    steps: int = 20_000,
    learning_rates: Mapping[str, float] = {"descent": 0.5, "adam": 0.002},
) -> dict[str, Any]:
    """‖w‖ over the least norm, distance to that solution and residual, for each optimizer and problem."""
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(problems, equations, unknowns, dtype=torch.float64, generator=draw) / unknowns**0.5
    target = torch.randn(problems, equations, 1, dtype=torch.float64, generator=draw)
    least = torch.linalg.pinv(matrix) @ target
    start = torch.randn(least.shape, dtype=torch.float64, generator=draw)
    measured: dict[str, Any] = {}
    for name in progress.each(OPTIMIZERS, f"seed {seed}: optimizers"):
        begin = start if "random start" in name else 0 * start
        w = _solved(name, matrix, target, begin, steps=steps, learning_rates=learning_rates, draw=draw)
        measured[name] = {
            "norm": (w.norm(dim=1) / least.norm(dim=1))[:, 0].tolist(),
            "distance": ((w - least).norm(dim=1) / least.norm(dim=1))[:, 0].tolist(),
            "residual": ((matrix @ w - target).norm(dim=1) / target.norm(dim=1))[:, 0].tolist(),
            "largest": (w.abs().amax(1) / least.abs().amax(1))[:, 0].tolist(),
        }
    return measured


def _solved(
    name: str,
    matrix: Tensor,
    target: Tensor,
    start: Tensor,
    *,
    steps: int,
    learning_rates: Mapping[str, float],
    draw: torch.Generator,
) -> Tensor:
    """Where an optimizer ends on all problems at once; steps of Adam and of signs shrink to nothing towards the end."""
    w = start.clone().requires_grad_()
    kind = name.split(",")[0]
    rate = learning_rates["adam" if kind in ("Adam", "sign descent") else "descent"]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam([w], rate) if kind == "Adam" else torch.optim.SGD([w], rate, 0.9 * (kind == "momentum"))
    )
    problems, equations = matrix.shape[:2]
    for step in range(steps):
        residual = matrix @ w.detach() - target
        if kind == "SGD":
            chosen = torch.randint(equations, (problems,), generator=draw)
            keep = torch.nn.functional.one_hot(chosen, equations)[..., None]
            residual = residual * keep
        w.grad = matrix.mT @ residual
        if kind == "sign descent":
            w.grad = w.grad.sign()
        if kind in ("Adam", "sign descent"):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
    return w.detach()


def judge(result: StudyResult) -> list[Verdict]:
    def over(name: str, key: str) -> list[float]:
        return [value for series in result.series for value in series[name][key]]

    def by_seed(name: str, key: str) -> list[float]:
        return [sum(series[name][key]) / len(series[name][key]) for series in result.series]

    distance = max(max(over(name, "distance")) for name in ("gradient descent", "SGD", "momentum"))
    adam = geometric_interval(by_seed("Adam", "norm"), "× the least norm is where Adam ends", against=1)
    largest = mean_interval(by_seed("Adam", "largest"))
    sign = mean_interval(by_seed("sign descent", "norm"))
    random_start = mean_interval(by_seed("Adam, random start", "norm"))
    return [
        Verdict(
            claim="SGD with small learning rates implicitly minimises some norm",
            source=SOURCE,
            verdict="reproduced" if distance < 1e-6 else "refuted",
            published="known, without a number",
            our_figure=mean_interval(
                by_seed("SGD", "distance"), "of the least norm between SGD's solution and it, in least squares"
            ),
            corrected=f"In least squares started from zero, descent, SGD and momentum find the solution of least "
            f"Euclidean norm to {distance:.0e} of it: their steps never leave the span of the data. Networks have no "
            "such theorem.",
            **RULES["least-norm: SGD"].stated(),
        ),
        Verdict(
            claim="Different optimizers have different implicit biases",
            source=SOURCE,
            verdict=OTHER.verdict(adam),
            published="known, without a number",
            our_figure=adam,
            corrected=f"From zero Adam ends at {replace(adam, unit='')} × the least norm, with a largest entry of "
            f"{largest} times that of the least-norm solution, descent by signs at {sign} times the norm; "
            f"from a random start Adam ends at {random_start}.",
            effect=OTHER,
            **RULES["least-norm: others"].stated(),
        ),
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(8.4, 4.1)
    dots = {}
    for name in OPTIMIZERS:
        values = [value for series in result.series for value in series[name]["norm"]]
        dots[name.replace(", ", ",\n").replace(" descent", "\ndescent")] = (
            sum(values) / len(values),
            min(values),
            max(values),
        )
    draw_dots(axes, dots, ylabel="‖w‖ / least norm")
    figures.set_title(axes, "Only descent along gradients finds the solution of least norm")
    return figure


STUDIES = (
    Study(
        name="least-norm",
        summary="which solution of an underdetermined problem each optimizer finds",
        claim="SGD implicitly minimises some norm, and optimizers differ",
        source=SOURCE,
        quick={"problems": 4, "steps": 4500, "learning_rates": {"descent": 0.5, "adam": 0.01}},
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=45,
    ),
)
