"""The Kakeya picture: segments of all directions in little area, and whether the strips of neurons share area."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ..documents import SDSD
from ..engine import Effect, Progress, Study, StudyResult, Verdict, geometric_interval
from ..rules import RULES

SHARES = Effect(nothing=1.0, above=False, negligible=1.05)


def perron_tree(levels: int, overlap: float) -> Tensor:
    """Left ends of the bases of 2^levels slices of a triangle of base 1, slid over each other; shape: (slices,).

    Neighbouring groups whose common triangle has base b are slid together by 2(1 − overlap) b, level by level; the area
    is then at most overlap^(2 levels) + 2(1 − overlap) of the triangle's (Stein, Harmonic Analysis, X.1).
    """
    count = 2**levels
    left = torch.arange(count, dtype=torch.float64) / count
    base = 1 / count
    for level in range(levels):
        group = torch.arange(count) // 2 ** (level + 1)
        in_right = (torch.arange(count) // 2**level) % 2 == 1
        slide = 2 * (1 - overlap) * base
        # Groups farther right move along, so that every pair of them is again adjacent.
        left = left - slide * (group + in_right.double())
        base *= 2 * overlap
    return left


def area(left: Tensor, slices: int, lines: int = 400) -> float:
    """Area of the union of slices of the triangle with corners (0, 0), (1, 0), (½, 1), each moved to a new left end."""
    heights = (torch.arange(lines, dtype=torch.float64) + 0.5) / lines
    index = torch.arange(slices, dtype=torch.float64)
    width = 1 / slices
    # Every slice narrows towards the apex, which lies at (½ − index·width) from its own left end.
    begin = left[:, None] + heights * (0.5 - index[:, None] * width)
    end = begin + width * (1 - heights)
    order = begin.argsort(0)
    begin, end = begin.gather(0, order), end.gather(0, order).cummax(0).values
    before = torch.cat((begin[:1], end[:-1]))
    return ((end - torch.maximum(begin, before)).clamp_min(0).sum(0).mean()).item()


def strips(weights: Tensor, biases: Tensor, points: Tensor, half_width: float) -> float:
    """Share of `points` within `half_width` of the line on which any neuron switches."""
    distance = (points @ weights.mT + biases) / weights.norm(dim=1)
    return (distance.abs() < half_width).any(1).double().mean().item()


def measure(
    seed: int,
    progress: Progress,
    *,
    hidden: int = 64,
    samples: int = 500,
    steps: int = 3000,
    learning_rate: float = 0.01,
    half_width: float = 0.01,
    shuffles: int = 20,
    levels: int = 10,
) -> dict[str, Any]:
    """Area that the neurons' strips cover, trained and at the start, over that of the same strips elsewhere."""
    torch.manual_seed(seed)
    x = 2 * torch.rand(samples, 2) - 1
    y = ((3 * x[:, 0]).sin() * (3 * x[:, 1]).cos())[:, None]
    points = 2 * torch.rand(20_000, 2) - 1
    first = nn.Linear(2, hidden)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(hidden, 1))
    measured: dict[str, Any] = {"start": _sharing(first, points, half_width, shuffles)}
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for _ in progress.each(range(steps), f"seed {seed}: training"):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    measured["trained"] = _sharing(first, points, half_width, shuffles)
    measured["loss"] = loss.item()
    overlaps = [0.5 + place / 100 for place in range(1, 50)]
    measured["tree"] = [
        min(area(perron_tree(level, overlap), 2**level) for overlap in overlaps) / 0.5 for level in range(levels + 1)
    ]
    return measured


@torch.no_grad()
def _sharing(layer: nn.Linear, points: Tensor, half_width: float, shuffles: int) -> float:
    """The strips' area over the mean of that with offsets exchanged among neurons: below 1 where they share area."""
    weights, biases = layer.weight, layer.bias
    offsets = biases / weights.norm(dim=1)
    own = strips(weights, biases, points, half_width)
    others = [
        strips(weights, offsets[torch.randperm(len(offsets))] * weights.norm(dim=1), points, half_width)
        for _ in range(shuffles)
    ]
    return own / (math.fsum(others) / shuffles)


def judge(result: StudyResult) -> list[Verdict]:
    ours = geometric_interval(
        [series["trained"] for series in result.series],
        "× the area that strips of the same directions cover elsewhere",
        against=1,
    )
    start = geometric_interval([series["start"] for series in result.series])
    tree, levels = result.series[0]["tree"], result.config["levels"]
    return [
        Verdict(
            claim="Networks satisfy many directional constraints with filaments of minimal volume, as in Kakeya sets",
            source=f"{SDSD} §3",
            verdict=SHARES.verdict(ours),
            published="an inspiration",
            our_figure=ours,
            corrected=f"For V it is an image only: V counts directions, and Kakeya's saving ({2**levels} slices of a "
            f"triangle slid into {tree[-1]:.2f} of its area) keeps all directions and moves the segments. Where "
            f"neurons do have a place, as strips round the lines on which they switch in a plane of inputs, training "
            f"leaves them {ours}; at the start it is {start}.",
            effect=SHARES,
            **RULES["kakeya"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(10.4, 4.1, columns=2)
    tree = result.series[0]["tree"]
    draw_curves(
        left,
        [2**level for level in range(len(tree))],
        {"slid": tree},
        log_x=True,
        marker="o",
        xlabel="directions",
        ylabel="area / area of the triangle",
        legend="",
    )
    left.set_ylim(0, 1.05)
    figures.set_title(left, "All directions fit into little area")
    places = list(range(len(result.series)))
    draw_curves(
        right,
        places,
        {name: [series[key] for series in result.series] for name, key in (("start", "start"), ("trained", "trained"))},
        marker="o",
        xlabel="seed",
        ylabel="area / area with offsets exchanged",
    )
    right.set_xticks(places, [str(seed) for seed in result.seeds])
    draw_level(right, 1.0, "no sharing")
    figures.set_title(right, "Strips of neurons in a plane of inputs")
    return figure


STUDIES = (
    Study(
        name="kakeya",
        summary="area of segments of all directions, and of the strips of neurons in a plane of inputs",
        claim="Filaments of minimal volume, as in Kakeya sets",
        source=f"{SDSD} §3",
        quick={"levels": 6, "steps": 600},
        quick_seeds=3,
        seeds=5,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=25,
    ),
)
