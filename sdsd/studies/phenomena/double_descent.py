"""Double descent: the test error of random features peaks where they can just fit the training labels, and falls again.

Gradient flow from zero is solved exactly, w(t) = V diag((1 − exp(−t s²/n)) / s) Uᵀ Y with Φ = U diag(s) Vᵀ, and ends at
the least-norm solution. Γ is measured on its way there, where given fractions of what can be learned are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ...theory import telling_angle
from ..digits import split_digits
from ..documents import EXPLANATION
from ..engine import Progress, Study, StudyResult, Verdict, geometric_interval, unshown
from ..rules import RULES
from .training import (
    SHOWN,
    Batch,
    Series,
    Watch,
    column,
    gamma_at,
    gamma_of_batch,
    geometry,
    mean,
    mean_curve,
)

NOISY, CLEAN = "15% wrong labels", "no wrong labels"
ARMS = (NOISY, CLEAN)
WIDTHS = (20, 50, 100, 150, 200, 250, 280, 300, 320, 350, 400, 500, 700, 1000, 2000)
NOISE = {NOISY: 0.15, CLEAN: 0.0}
HEADLINE = 0.1
"""What is left of the loss where the verdict looks at Γ."""


def measure(
    seed: int,
    progress: Progress,
    *,
    samples: int = 300,
    widths: Sequence[int] = WIDTHS,
    noise: Mapping[str, float] = NOISE,
    left: Sequence[float] = (0.5, HEADLINE, 0.01),
    batch: int = 32,
) -> dict[str, Any]:
    """Random features of every width, with and without wrong labels."""
    arms: dict[str, Series] = {arm: {"geometry": {}} for arm in noise}
    for width in progress.each(widths, f"seed {seed}: random features, more and more"):
        for arm, share in noise.items():
            numbers, shape = _fit(width, share, seed, count=samples, fractions=left, batch=batch)
            for rows, values in ((arms[arm], numbers), (arms[arm]["geometry"], shape)):
                for name, value in values.items():
                    rows.setdefault(name, []).append(value)
    return {"arms": arms}


def _fit(
    width: int, noise: float, seed: int, *, count: int, fractions: Sequence[float], batch: int
) -> tuple[dict[str, Any], dict[str, float]]:
    known = split_digits(seed)
    images, labels = torch.cat((known.images, known.held_out_images)), torch.cat((known.labels, known.held_out_labels))
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(count, generator=generator) < noise
    drawn = torch.randint(0, 10, (count,), generator=generator)
    given = torch.where(wrong, drawn, labels[:count])
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10, bias=False)).double()
    generator.manual_seed(1000 + seed)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8).requires_grad_(False)
    images, targets = images.double(), one_hot(given, 10).double()
    features = model[:2](images)
    u, s, v = torch.linalg.svd(features[:count], full_matrices=False)
    along = u.mT @ targets

    def left(time: float) -> float:
        """Of the loss that can be got rid of, what is left."""
        return ((along * (-time * s.square() / count).exp()[:, None]).square().sum() / along.square().sum()).item()

    def weights(time: float) -> Tensor:
        return v.mT @ (along * (-torch.expm1(-time * s.square() / count) / s)[:, None])

    solution = weights(math.inf)
    outputs = features @ solution
    data = features[:count], targets
    gammas: list[float] = []
    shape: dict[str, float] = {}
    for fraction in fractions:
        model[2].weight.data = weights(_time(left, fraction)).mT
        gammas.append(gamma_of_batch(gamma_at(model[2], data, _loss, 1, population=count), batch))
        if fraction == HEADLINE:
            angle = telling_angle(count, 65)  # one for all widths, that of the peak
            watch = Watch(batch, every=1, layers=(("0", "2"),), canonical=False, angle=angle)
            optimizer = torch.optim.SGD(model[2].parameters(), count / s[0].item() ** 2)
            shape = geometry(model, (images[:count], targets), _loss, watch, optimizer)
    numbers = {
        "test_error": (outputs.argmax(1) != labels)[count:].double().mean().item(),
        "train_error": (outputs[:count].argmax(1) != given).double().mean().item(),
        "norm": torch.linalg.norm(solution).item(),
        "gamma": gammas,
    }
    return numbers, shape


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return 5 * mse_loss(model(batch[0]), batch[1])


def _time(left: Callable[[float], float], fraction: float) -> float:
    """When `left` has come down to `fraction`, by bisection in the logarithm."""
    low, high = -30.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if left(math.exp(middle)) > fraction else (low, middle)
    return math.exp(high)


def _nearest(widths: Sequence[int], wanted: float) -> int:
    return min(widths, key=lambda width: abs(math.log(width / wanted)))


def _gammas(rows: Series, config: Mapping[str, Any]) -> list[float]:
    return [each[list(config["left"]).index(HEADLINE)] for each in rows["gamma"]]


def judge(result: StudyResult) -> list[Verdict]:
    config, count = result.config, result.config["samples"]
    widths = list(config["widths"])
    noisy, clean = (column(result.series, "arms", arm) for arm in ARMS)

    def around(values: list[float]) -> tuple[float, float, float]:
        """At a third of n, at n and at the widest."""
        third, peak = (_nearest(widths, factor * count) for factor in (1 / 3, 1))
        return values[widths.index(third)], values[widths.index(peak)], values[-1]

    errors = [around(rows["test_error"]) for rows in noisy]
    quiet = [around(rows["test_error"])[1] for rows in clean]
    bumps = [peak / max(narrow, wide) for narrow, peak, wide in errors]
    more = all(peak > other for (_, peak, _), other in zip(errors, quiet, strict=True))
    if min(bumps) < 2:
        shown = unshown([bump >= 2 for bump in bumps])
    else:
        shown = "reproduced" if more else "direction only"
    gammas = [_gammas(rows, config) for rows in noisy]
    peaks = [widths[max(range(len(widths)), key=rows["test_error"].__getitem__)] for rows in noisy]
    dips = [widths[min(range(len(widths)), key=values.__getitem__)] for values in gammas]
    depths = [max(narrow, wide) / at for narrow, at, wide in map(around, gammas)]
    crosses = all(around(values)[1] < 1 < min(around(values)[0], around(values)[2]) for values in gammas)
    together = all(abs(math.log(dip / peak)) < math.log(1.25) for dip, peak in zip(dips, peaks, strict=True))
    if shown not in SHOWN:
        held = "untestable here"
    else:
        held = "reproduced" if crosses else "direction only" if together else "refuted"
    narrow, peak, wide = (mean(each) for each in zip(*errors, strict=True))
    low, high = min(map(min, gammas)), max(map(max, gammas))
    shape = column(noisy, "geometry")
    growing = all(a < b for each in shape for key in ("entropy", "volume") for a, b in pairwise(each[key]))
    return [
        Verdict(
            claim="Test error peaks where the features can just fit the training labels, and falls again beyond; wrong "
            "labels raise the peak",
            source="Belkin, Hsu, Ma and Mandal 2019, arXiv:1812.11118",
            verdict=shown,
            published="a peak at P = n",
            our_figure=geometric_interval(bumps, "times the larger error on either side"),
            corrected=f"Error {narrow:.2f} at P = n/3, {peak:.2f} at P = n = {count}, {wide:.2f} at P = "
            f"{widths[-1]:,}; {mean(quiet):.2f} at P = n without wrong labels.",
            **RULES["double-descent"].stated(),
        ),
        Verdict(
            claim="SDSD explains double descent: the peak is a phase transition, where Γ crosses 1",
            source=EXPLANATION,
            verdict=held,
            published="Γ = 1 at the transition",
            our_figure=geometric_interval(depths, "times lower at P = n than on either side"),
            corrected=f"Γ is lowest at P = {_list(dips)}, the error highest at P = {_list(peaks)}; but Γ is between "
            f"{low:.1g} and {high:.1g} at all widths. What is left to learn at P = n lies in "
            "directions of little curvature, which gradients hardly show. H_G and V "
            + ("only grow with the width." if growing else "do not simply grow with the width."),
            **RULES["double-descent: Γ"].stated(),
        ),
    ]


def _list(values: list[int]) -> str:
    return " and ".join(f"{value:,}" for value in sorted(set(values)))


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(13.2, 4.1, columns=3)
    config, count = result.config, result.config["samples"]
    widths = config["widths"]
    titles = {"reproduced": "Γ crosses 1 there", "direction only": "Γ dips there, far from 1"}
    seen = titles.get(result.verdicts[1].verdict, "Γ has nothing there")
    colours = {NOISY: figures.RED, CLEAN: figures.BLUE}
    for place, values, title, label in (
        (axes[0], lambda rows: rows["test_error"], "Worst where it can just fit", "test error"),
        (axes[1], lambda rows: _gammas(rows, config), seen, f"Γ of {config['batch']} samples"),
        (axes[2], lambda rows: rows["geometry"]["entropy"], "H_G grows with the width", "H_G (nats)"),
    ):
        curves = {arm: mean_curve([values(rows) for rows in column(result.series, "arms", arm)]) for arm in ARMS}
        draw_curves(
            place,
            widths,
            {arm: each[0] for arm, each in curves.items()},
            bands={arm: each[1] for arm, each in curves.items()},
            colours=colours,
            log_x=True,
            marker="o",
            log_y=place is axes[1],
            xlabel="random features P",
            ylabel=label,
            legend="best" if place is axes[0] else "",
        )
        figures.set_title(place, title)
    axes[0].set_ylim(0, 1)
    axes[1].set_ylim(top=3)
    figures.log_axis(axes[1].yaxis, *axes[1].get_ylim())
    draw_level(axes[1], 1.0, "Γ = 1", at=0.02)
    for place in axes:
        draw_level(place, count, "P = n", vertical=True, at=0.98 if place is axes[0] else 0.7)
    return figure


STUDIES = (
    Study(
        name="double-descent",
        summary="random features on digits, with and without wrong labels, gradient flow solved exactly, Γ on its way",
        claim="SDSD explains double descent",
        source=EXPLANATION,
        quick={"samples": 150, "widths": (20, 50, 100, 130, 150, 170, 250, 500, 1000)},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=20,
        needs=("sklearn",),
    ),
)
