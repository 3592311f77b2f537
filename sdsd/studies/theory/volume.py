"""Whether simple functions fill more of parameter space: all functions of four bits, by the length of their formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...report import figures
from ...report.figures import draw_curves
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, fraction_interval, mean_interval, rank_correlation
from ..rules import RULES
from .boolean_experiment import formula_sizes, function_classes, sampled_counts

CLAIM = "The volume of parameters that compute a function falls exponentially with its complexity"
CORRELATION = Effect(nothing=0.0, above=False)


def measure(seed: int, progress: Progress, *, networks: int = 2_000_000, hidden: int = 16) -> dict[str, Any]:
    """Formula size and share of random networks for the 222 classes of functions of four bits."""
    draw = torch.Generator().manual_seed(seed)
    counts = sampled_counts(networks, hidden, draw, progress.bar(f"seed {seed}: {networks:,} random networks"))
    classes = function_classes()
    sizes = formula_sizes(classes)
    one_each, members = classes.unique(return_counts=True)
    reached = torch.zeros_like(counts).index_add_(0, classes, counts)[one_each]
    often = counts >= 5
    return {
        "leaves": sizes[one_each].tolist(),
        "members": members.tolist(),
        "found": reached.tolist(),
        "of_functions": rank_correlation(counts[often], sizes[often]),
    }


def _volumes(series: dict[str, Any], networks: int) -> Tensor:
    """The share of networks of one function of each class."""
    return torch.tensor(series["found"], dtype=torch.float64) / torch.tensor(series["members"]) / networks


def _line(series: dict[str, Any], networks: int) -> tuple[float, float]:
    """Bits a leaf and R² of a straight line through log₂ V of the classes that were found."""
    volumes = _volumes(series, networks)
    seen = volumes > 0
    bits, leaves = volumes[seen].log2(), torch.tensor(series["leaves"], dtype=torch.float64)[seen]
    bits, leaves = bits - bits.mean(), leaves - leaves.mean()
    slope = (leaves @ bits / (leaves @ leaves)).item()
    return slope, 1 - ((bits - slope * leaves).square().sum() / bits.square().sum()).item()


def judge(result: StudyResult) -> list[Verdict]:
    networks = result.config["networks"]
    correlations = [rank_correlation(_volumes(s, networks), torch.tensor(s["leaves"])) for s in result.series]
    slopes, explained = zip(*(_line(series, networks) for series in result.series), strict=True)
    ours = mean_interval(
        correlations, "is Spearman's correlation of volume and formula size over 222 classes", against=0
    )
    word = CORRELATION.verdict(ours)
    if word == "reproduced" and min(explained) < 0.9:
        word = "direction only"
    unseen = [series["found"].count(0) for series in result.series]
    of_functions = mean_interval([series["of_functions"] for series in result.series])
    slope, r_squared = mean_interval(slopes, "bits a leaf"), mean_interval(explained)
    return [
        Verdict(
            claim=CLAIM,
            source=f"{MOVES}, The Entropic Selection Principle, 1",
            verdict=word,
            published="log V ∝ −K",
            our_figure=ours,
            corrected=f"Among all functions of four bits and networks with two hidden layers, volume falls with "
            f"formula size, by {slope}, but the size explains {r_squared} of the variance of log V: functions of one "
            f"size differ by orders of magnitude. {max(unseen)} classes were met by no network. Function by function, "
            f"among those met five times or more, the correlation is {of_functions}. Formula size stands in for "
            "Kolmogorov complexity, which cannot be computed; the volume is the share of random starts.",
            **RULES["volume"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(10.6, 4.2, columns=2)
    series, networks = result.series[0], result.config["networks"]
    volumes = _volumes(series, networks)
    leaves = torch.tensor(series["leaves"])
    seen = volumes > 0
    left.scatter(leaves[seen], volumes[seen], s=14, color=figures.BLUE, alpha=0.6, linewidths=0)
    left.set_yscale("log")
    left.set_xlabel("leaves of the shortest formula")
    left.set_ylabel("share of random networks, one function")
    figures.set_title(left, "Simple functions are common, on the whole")
    sizes = sorted(set(series["leaves"]))
    total = [sum(f for f, k in zip(series["found"], series["leaves"], strict=True) if k == size) for size in sizes]
    shares = [fraction_interval(count, networks) for count in total]
    draw_curves(
        right,
        sizes,
        {"all functions of that size": [share.value for share in shares]},
        bands={"all functions of that size": ([s.low or 0 for s in shares], [s.high or 0 for s in shares])},
        xlabel="leaves of the shortest formula",
        ylabel="share of random networks",
        marker="o",
        legend="",
    )
    right.set_yscale("log")
    figures.set_title(right, "All functions of a size together")
    return figure


STUDIES = (
    Study(
        name="volume",
        summary="how many random networks compute each function of four bits, by the length of its formula",
        claim="log V ∝ −K: simple functions fill more of parameter space",
        source=f"{MOVES}, The Entropic Selection Principle, 1",
        quick={"networks": 100_000},
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=20,
    ),
)
