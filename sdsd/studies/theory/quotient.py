"""The quotient S/G on real digits: what moves along an orbit, and what does not."""

from __future__ import annotations

import math
from typing import Any

from ...report import figures
from ...report.figures import draw_curves, draw_dots
from ..documents import SDSD
from ..engine import Progress, Study, StudyResult, Verdict, geometric_interval
from ..rules import RULES
from .orbit_experiment import mixing_experiment, orbit_experiment


def measure(seed: int, progress: Progress, *, hidden: int = 32, points: int = 12) -> dict[str, Any]:
    """One trained network, and random points that compute the same function."""
    progress.say(f"seed {seed}: walking along an orbit")
    mixed = mixing_experiment(hidden=hidden, mixes=points, seed=seed)
    return {**orbit_experiment(seed=seed, hidden=hidden, points=points).to_dict(), "mixed": mixed}


def _spread(values: list[float]) -> float:
    return max(values) / min(values)


def judge(result: StudyResult) -> list[Verdict]:
    runs = result.series
    moved = [_spread(run["squared_gradients"]) for run in runs]
    still = max(_spread(gammas) - 1 for run in runs for gammas in (run["quotient_gammas"], run["mixed"]["gammas"]))
    vertical = {name: math.fsum(run["vertical"][name] for run in runs) / len(runs) for name in runs[0]["vertical"]}
    low, high = min(min(run["gammas"]) for run in runs), max(max(run["gammas"]) for run in runs)
    uncut = [_spread(run["mixed"]["uncut_gammas"]) for run in runs]
    judged = Verdict(
        claim="The gradient and Γ on the quotient S/G are properties of the function, free of its symmetries",
        source=f"{SDSD} §2, §4",
        verdict=_word(min(moved), still, min(uncut) - 1),
        published="no procedure is given",
        our_figure=geometric_interval(moved, "is the factor by which ‖∇L‖² moves over an orbit"),
        corrected=f"A gradient is horizontal (vertical share {vertical['gradient']:.0e}), yet its length and Γ change "
        f"along the orbit (Γ from {low:.3f} to {high:.3f}). Γ at the point of least norm stays (within {still:.0e}) "
        "over the moves that are analysed, mixing of adjacent linear layers among them: it belongs to their orbit. It "
        "is no property of the function: mixing two neurons that a ReLU cuts on no sample, which is not analysed, "
        f"moves it by a factor of {min(uncut):.2g} to {max(uncut):.2g}, seed by seed. "
        f"The projection matters for what is no gradient: vertical share {vertical['Adam step']:.3f} of an Adam step, "
        f"{vertical['weight decay']:.3f} of weight decay, {vertical['isotropic noise']:.3f} of isotropic noise.",
        **RULES["quotient"].stated(),
    )
    return [judged]


def _word(moved: float, still: float, mixed: float) -> str:
    if still < 1e-5:
        return "direction only" if mixed > 0.01 else "reproduced"
    return "refuted" if still > 0.01 and moved > 2 else "inconclusive"


def draw(result: StudyResult) -> Any:
    run = result.series[0]
    figure, (left, right) = figures.new_figure(11.2, 4.2, columns=2, width_ratios=(1, 1.15))
    points = list(range(len(run["gammas"])))
    draw_curves(
        left,
        points,
        {
            name: [value / run[key][0] for value in run[key]]
            for name, key in (("‖∇L‖²", "squared_gradients"), ("Γ", "gammas"), ("Γ of the quotient", "quotient_gammas"))
        },
        colours={"Γ of the quotient": figures.INK},
        log_y=True,
        marker="o",
        legend="best",
        xlabel="points of one orbit (0: as trained)",
        ylabel="relative to the point as trained",
    )
    left.set_xticks(points)
    figures.set_title(left, "Only Γ of the quotient stays")
    # Below 1e-12 a share is rounding in float64.
    shares = {name.replace(", ", ",\n").replace(" ", "\n", 1): s * (s > 1e-12) for name, s in run["vertical"].items()}
    draw_dots(right, {name: (share, share, share) for name, share in shares.items()}, ylabel="share along the orbit")
    right.set_ylim(bottom=-0.03 * max(shares.values()))
    figures.set_title(right, "How much of an update moves along the orbit")
    return figure


STUDIES = (
    Study(
        name="quotient",
        summary="gradient, Γ and Γ of the quotient at points that compute the same function",
        claim="Γ on S/G is free of the model's symmetries",
        source=f"{SDSD} §2, §4",
        quick={"hidden": 16, "points": 4},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=10,
        needs=("sklearn",),
    ),
)
