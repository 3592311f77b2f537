"""How far training moves the tangent kernel of networks of growing width, and whether that is what generalises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...report import figures
from ...report.figures import draw_curves
from ...theory import kernel_change, tangent_kernel
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES

SOURCE = f"{MOVES}, What's Known: Neural Tangent Kernel"
FALLS = Effect(nothing=0.0, published=-1.0, above=False)
GAINS = Effect(nothing=0.0, negligible=0.02)


class Wide(nn.Module):
    """√(2/width) Σ v_j relu(w_j·x / √d), every parameter a standard normal: the scaling whose limit is a kernel.

    Less its own output at the start, so that training begins at 0.
    """

    def __init__(self, inputs: int, width: int, draw: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(width, inputs, generator=draw))
        self.outer = nn.Parameter(torch.randn(width, generator=draw))
        self.start = (self.inner.detach().clone(), self.outer.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        scale = math.sqrt(2 / len(self.outer))
        x = x / math.sqrt(x.shape[-1])
        now = (x @ self.inner.mT).relu() @ self.outer
        inner, outer = self.start
        return (scale * (now - (x @ inner.mT).relu() @ outer))[..., None]


def measure(
    seed: int,
    progress: Progress,
    *,
    widths: Sequence[int] = (32, 128, 512, 2048),
    inputs: int = 10,
    samples: int = 100,
    steps: int = 1500,
    learning_rate: float = 0.3,
) -> dict[str, Any]:
    """Change of the kernel and errors on new data: of the network, and of regression with its first kernel."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(samples + 1000, inputs, generator=draw)
    y = (x[:, 0] * x[:, 1]).tanh() + x[:, 2].tanh()
    known, new = slice(0, samples), slice(samples, None)
    measured: dict[str, list[float]] = {"change": [], "network": [], "kernel": [], "loss": []}
    for width in progress.each(widths, f"seed {seed}: widths"):
        model = Wide(inputs, width, draw)
        before = tangent_kernel(model, x)
        for _ in range(steps):
            loss = (model(x[known])[:, 0] - y[known]).square().mean()
            gradients = torch.autograd.grad(loss, [model.inner, model.outer])
            with torch.no_grad():
                for parameter, gradient in zip((model.inner, model.outer), gradients, strict=True):
                    parameter.sub_(learning_rate * gradient)
        after = tangent_kernel(model, x[known])
        measured["change"].append(kernel_change(before[known, known], after))
        # Descent of so many steps on ½‖Kα − y‖² with the kernel as it was: its exact solution.
        values, vectors = torch.linalg.eigh(before[known, known])
        passed = 1 - (1 - 2 * learning_rate / samples * values).pow(steps)
        solution = vectors @ (passed / values.clamp_min(1e-12) * (vectors.mT @ y[known].double()))
        variance = y[new].var().item()
        measured["kernel"].append(((before[new, known] @ solution - y[new]).square().mean() / variance).item())
        with torch.no_grad():
            measured["network"].append(((model(x[new])[:, 0] - y[new]).square().mean() / variance).item())
        measured["loss"].append(loss.item())
    return measured


def judge(result: StudyResult) -> list[Verdict]:
    widths = result.config["widths"]
    logs = torch.tensor(widths, dtype=torch.float64).log()
    logs = logs - logs.mean()
    slopes = [(logs @ torch.tensor(s["change"]).double().log() / (logs @ logs)).item() for s in result.series]
    slope = mean_interval(slopes, "is the power of the width with which the kernel's change falls", against=0)
    first, last = (mean_interval([series["change"][place] for series in result.series]) for place in (0, -1))
    gain = mean_interval(
        [series["kernel"][0] - series["network"][0] for series in result.series],
        f"of the variance is what the network of width {widths[0]} errs less than its first kernel",
        against=0,
    )
    wide = mean_interval([series["kernel"][-1] - series["network"][-1] for series in result.series])
    return [
        Verdict(
            claim="Infinite-width networks behave like kernel methods",
            source=SOURCE,
            verdict=FALLS.verdict(slope),
            published="known; −1 to leading order",
            our_figure=slope,
            corrected=f"Training changes the tangent kernel by {first} of itself at width {widths[0]} and by {last} at "
            f"width {widths[-1]}.",
            effect=FALLS,
            **RULES["tangent-kernel: width"].stated(),
        ),
        Verdict(
            claim="The tangent kernel does not explain how networks of finite width generalise",
            source=SOURCE,
            verdict=GAINS.verdict(gain),
            published="known, without a number",
            our_figure=gain,
            corrected=f"On new data the network of width {widths[0]} errs less than regression with its first kernel "
            f"by {gain.value:.3f} of the variance, that of width {widths[-1]} by {wide}: one problem, and what moves "
            "the kernel is what makes the difference.",
            effect=GAINS,
            **RULES["tangent-kernel: generalisation"].stated(),
        ),
    ]


def draw(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(10.4, 4.1, columns=2)
    widths = result.config["widths"]

    def curve(key: str) -> tuple[list[float], tuple[list[float], list[float]]]:
        columns = list(zip(*(series[key] for series in result.series), strict=True))
        return [sum(c) / len(c) for c in columns], (list(map(min, columns)), list(map(max, columns)))

    centre, band = curve("change")
    draw_curves(
        left,
        widths,
        {"change": centre},
        bands={"change": band},
        log_x=True,
        log_y=True,
        marker="o",
        xlabel="width",
        ylabel="‖K' − K‖ / ‖K‖",
        legend="",
    )
    figures.set_title(left, "The wider, the less the kernel moves")
    curves = {"network": curve("network"), "its first kernel": curve("kernel")}
    draw_curves(
        right,
        widths,
        {name: each[0] for name, each in curves.items()},
        bands={name: each[1] for name, each in curves.items()},
        log_x=True,
        marker="o",
        xlabel="width",
        ylabel="error on new data / variance",
    )
    figures.set_title(right, "And the less the network gains on it")
    return figure


STUDIES = (
    Study(
        name="tangent-kernel",
        summary="how far training moves the tangent kernel, by width, and what the network gains on it",
        claim="Wide networks are kernel methods, finite ones are not explained by it",
        source=SOURCE,
        quick={"widths": (32, 256), "steps": 500},
        quick_seeds=5,
        seeds=5,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=35,
    ),
)
