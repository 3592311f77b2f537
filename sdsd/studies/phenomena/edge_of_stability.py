"""The edge of stability: gradient descent sharpens until its steps are too long, and goes on learning there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ..digits import split_digits
from ..documents import EXPLANATION
from ..engine import Progress, Study, StudyResult, Verdict, mean_interval, unshown
from ..rules import RULES
from .training import (
    Batch,
    Series,
    Watch,
    column,
    mean,
    mean_curve,
    separation,
    train,
)

LARGE, SMALL = "large", "small"


def measure(
    seed: int,
    progress: Progress,
    *,
    samples: int = 300,
    hidden: int = 32,
    steps: int = 1200,
    every: int = 6,
    geometry_every: int = 20,
    batch: int = 64,
    learning_rate: float = 0.3,
    small_learning_rate: float = 0.05,
) -> dict[str, Any]:
    """Full-batch descent from one start at a large and at a small learning rate."""
    known = split_digits(seed)
    data = known.images[:samples], one_hot(known.labels[:samples], 10).float()
    watch = Watch(batch, every=every, geometry_every=geometry_every, layers=(("0", "2"),), canonical=False)
    rates = {LARGE: learning_rate, SMALL: small_learning_rate}
    arms: dict[str, Series] = {}
    for arm in progress.each(list(rates), f"seed {seed}: descending at two learning rates"):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))
        probe = _Probe(model, data, rates[arm], seed)
        optimizer = torch.optim.SGD(model.parameters(), rates[arm])
        arms[arm] = train(model, data, _loss, optimizer, watch, steps=steps, evaluate=probe.look)
    return {"arms": arms}


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return 5 * mse_loss(model(batch[0]), batch[1])  # ½ Σ over classes, mean over samples


class _Probe:
    """Looks at the step about to be made: sharpness by power iteration, going on from the last, and what it does."""

    def __init__(self, model: nn.Module, data: Batch, rate: float, seed: int) -> None:
        self.model, self.data, self.rate = model, data, rate
        self.parameters = list(model.parameters())
        generator = torch.Generator().manual_seed(seed)
        self.direction = [torch.randn(p.shape, generator=generator) for p in self.parameters]
        self.iterations = 50

    def look(self) -> dict[str, float]:
        """η/2 times the largest curvature, and times that along the gradient; the loss and how the step changes it."""
        loss = _loss(self.model, self.data)
        gradient = torch.autograd.grad(loss, self.parameters, create_graph=True)
        sharpness = 0.0
        for _ in range(self.iterations):
            norm = _inner(self.direction, self.direction) ** 0.5
            unit = [part / norm for part in self.direction]
            self.direction = list(torch.autograd.grad(gradient, self.parameters, unit, retain_graph=True))
            sharpness = _inner(self.direction, unit)
        self.iterations = 4
        fixed = [part.detach() for part in gradient]
        bent = torch.autograd.grad(gradient, self.parameters, fixed)
        along = _inner(bent, fixed) / _inner(fixed, fixed)
        with torch.no_grad():
            moved = {
                name: parameter - self.rate * part
                for (name, parameter), part in zip(self.model.named_parameters(), fixed, strict=True)
            }
            after = 5 * mse_loss(torch.func.functional_call(self.model, moved, (self.data[0],)), self.data[1])
        return {
            "loss": loss.item(),
            "change": after.item() - loss.item(),
            "sharpness": self.rate / 2 * sharpness,
            "curvature_along": self.rate / 2 * along,
        }


def _inner(first: Any, second: Any) -> float:
    return sum((a * b).sum().item() for a, b in zip(first, second, strict=True))


def _settled(rows: Series) -> slice:
    """The second half of a run, which at the large rate is spent at the edge."""
    return slice(len(rows["step"]) // 2, None)


def judge(result: StudyResult) -> list[Verdict]:
    large, small = (column(result.series, "arms", arm) for arm in (LARGE, SMALL))
    edge = [mean(rows["sharpness"][_settled(rows)]) for rows in large]
    rises = [mean([float(change > 0) for change in rows["change"]]) for rows in large]
    calm = max(max(rows["sharpness"][_settled(rows)]) for rows in small)
    calm_rises = sum(change > 0 for rows in small for change in rows["change"])
    fall = mean([rows["loss"][-1] / rows["loss"][0] for rows in large])
    at_edge = all(0.9 < value < 1.2 for value in edge) and min(rises) > 0.1 and fall < 0.5
    if not at_edge:
        shown = unshown([0.9 < value < 1.2 for value in edge])
    else:
        shown = "reproduced" if calm < 0.9 and calm_rises == 0 else "direction only"
    told = [separation(rows["gamma"], [change < 0 for change in rows["change"]]) for rows in large]
    exact = [separation(rows["curvature_along"], [change > 0 for change in rows["change"]]) for rows in large]
    above = mean([float(gamma > 1) for rows in large for gamma in rows["gamma"]])
    if not at_edge:
        held = "untestable here"
    elif min(told) >= 0.9:
        held = "reproduced"
    else:
        held = "direction only" if min(told) > 0.6 else "refuted"
    rate, batch = result.config["learning_rate"], result.config["batch"]
    return [
        Verdict(
            claim="Full-batch gradient descent sharpens until η/2 times the largest curvature is 1 and stays there; "
            "the loss goes up and down and falls in the long run",
            source="Cohen et al. 2021, arXiv:2103.00065",
            verdict=shown,
            published="η/2 · sharpness just above 1",
            our_figure=mean_interval(edge, f"η/2 · sharpness at η = {rate:g}"),
            corrected=f"At η = {rate:g} {mean(rises):.0%} of the steps raise the loss, and yet it ends at {fall:.0%} "
            f"of where it began; at η = {result.config['small_learning_rate']:g} η/2 · sharpness is at most {calm:.2g} "
            f"and {calm_rises or 'no'} steps raise it.",
            **RULES["edge-of-stability"].stated(),
        ),
        Verdict(
            claim="SDSD explains the edge of stability: a step with Γ > 1 converges, with Γ < 1 it dissolves",
            source=EXPLANATION,
            verdict=held,
            published="Γ = 1 between convergence and dissolution",
            our_figure=mean_interval(told, "of such pairs in the order that Γ foretells") if at_edge else None,
            corrected="The edge is one of curvature, and a full-batch step has no noise that Γ could weigh. η/2 times "
            f"the curvature along the gradient puts {mean(exact):.0%} of the pairs right; Γ of batches of {batch} is "
            f"above 1 in {above:.0%} of all looks, whatever the step does."
            if at_edge
            else "Too few steps raise the loss to compare them with the others.",
            **RULES["edge-of-stability: Γ"].stated(),
        ),
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(13.2, 4.1, columns=3)
    large, small = (column(result.series, "arms", arm) for arm in (LARGE, SMALL))
    steps = large[0]["step"]
    rates = {
        f"η = {result.config['learning_rate']:g}": (large, figures.ORANGE),
        f"η = {result.config['small_learning_rate']:g}": (small, figures.BLUE),
    }
    for place, key, title, label in (
        (axes[0], "sharpness", "It sharpens to the edge and stays", "η/2 · largest curvature"),
        (axes[1], "loss", "The loss jumps about, and falls", "loss"),
    ):
        curves = {name: mean_curve([rows[key] for rows in runs]) for name, (runs, _) in rates.items()}
        draw_curves(
            place,
            steps,
            {name: runs[0][key] for name, (runs, _) in rates.items()},
            bands={name: each[1] for name, each in curves.items()},
            colours={name: colour for name, (_, colour) in rates.items()},
            xlabel="step",
            ylabel=label,
            log_y=key == "loss",
            legend="best" if key == "sharpness" else "",
        )
        figures.set_title(place, title)
    axes[0].set_ylim(0, 1.5)
    draw_level(axes[0], 1.0, "unstable above", at=0.02)
    _draw_steps(axes[2], large, result.config["batch"])
    figures.set_title(axes[2], "Γ > 1 where steps raise the loss, too")
    return figure


@figures.styled
def _draw_steps(axes: Any, runs: list[Series], batch: int) -> None:
    """Γ of every look against what the step did to the loss."""
    for rises, colour, name in ((False, figures.GREEN, "step lowers the loss"), (True, figures.RED, "raises it")):
        points = [
            (rows["gamma"][k], 100 * change / rows["loss"][k])
            for rows in runs
            for k, change in enumerate(rows["change"])
            if (change > 0) == rises and rows["gamma"][k] > 0 and k >= 5
        ]
        axes.scatter(
            [x for x, _ in points], [y for _, y in points], s=12, color=colour, alpha=0.55, linewidths=0, label=name
        )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    figures.log_axis(axes.xaxis, low, high)
    axes.axhline(0, color=figures.MUTED, linewidth=1.2)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([-10, -1, 0, 1, 10], ["−10", "−1", "0", "1", "10"])
    axes.set_xlabel(f"Γ of a batch of {batch}")
    axes.set_ylabel("change of the loss (%)")
    axes.legend(loc="upper left", fontsize=9.5, borderaxespad=0.2, handletextpad=0.2)
    draw_level(axes, 1.0, "Γ = 1", vertical=True, at=0.06)


STUDIES = (
    Study(
        name="edge-of-stability",
        summary="full-batch gradient descent on digits at a large and a small rate, sharpness and Γ of every step",
        claim="SDSD explains the edge of stability",
        source=EXPLANATION,
        quick={"steps": 400, "every": 5, "geometry_every": 40},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=20,
        needs=("sklearn",),
    ),
)
