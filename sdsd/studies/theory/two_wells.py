"""Two wells of one depth, one wide and one narrow: where noise leads, and where descent without noise ends anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ...theory.dynamics import simulate
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, mean_interval
from ..rules import RULES

ADDED = Effect(nothing=0.0, negligible=0.01)


@dataclass(frozen=True)
class TwoWells:
    """L = min(k‖s + e‖², K‖s − e‖²)/2 with the first unit vector e: both minima are 0."""

    wide: float
    narrow: float

    def bowls(self, states: Tensor) -> Tensor:
        """Both bowls; shape: (paths, 2)."""
        along, rest = states[:, :1], states[:, 1:].square().sum(1, keepdim=True)
        stiffness = torch.tensor([self.wide, self.narrow], dtype=states.dtype)
        places = torch.tensor([-1.0, 1.0], dtype=states.dtype)
        return stiffness / 2 * ((along - places).square() + rest)

    def __call__(self, states: Tensor) -> Tensor:
        return self.bowls(states).amin(1)

    def gradient(self, states: Tensor) -> Tensor:
        in_wide = self.in_wide(states)[:, None]
        centre = torch.zeros_like(states)
        centre[:, :1] = torch.where(in_wide, -1.0, 1.0)
        return torch.where(in_wide, self.wide, self.narrow) * (states - centre)

    def in_wide(self, states: Tensor) -> Tensor:
        """Whether the wide bowl is the lower one; shape: (paths,)."""
        return self.bowls(states).argmin(1) == 0


def gibbs_share(wells: TwoWells, diffusion: float) -> float:
    """The wide well's share of exp(−L/D) in two dimensions, by the trapezoidal rule."""
    across = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    states = torch.cartesian_prod(across, across)
    weight = (-wells(states) / diffusion).exp()
    return (weight[wells.in_wide(states)].sum() / weight.sum()).item()


def measure(
    seed: int,
    progress: Progress,
    *,
    wide: float = 1.0,
    narrow: float = 25.0,
    diffusion: float = 0.3,
    paths: int = 2000,
    spread: float = 1.5,
    step_size: float = 0.004,
    end: float = 100.0,
    looks: int = 20,
) -> dict[str, Any]:
    """Shares of paths in the wide well over time, with noise and without, from the same starts in the plane."""
    wells = TwoWells(wide, narrow)
    start = spread * torch.randn(paths, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    steps = round(end / step_size)
    ran = simulate(
        wells,
        diffusion,
        start,
        step_size=step_size,
        steps=steps,
        every=steps // looks,
        seed=seed,
        progress=progress.bar(f"seed {seed}: {paths:,} paths"),
    )
    still = simulate(wells, 0.0, start, step_size=step_size, steps=round(10 / step_size), every=round(10 / step_size))
    return {
        "times": ran.times.tolist(),
        "langevin": [wells.in_wide(states).double().mean().item() for states in ran.states],
        "descent": wells.in_wide(still.states[-1]).double().mean().item(),
        "gibbs": gibbs_share(wells, diffusion),
    }


def judge(result: StudyResult) -> list[Verdict]:
    langevin = mean_interval([series["langevin"][-1] for series in result.series])
    descent = mean_interval([series["descent"] for series in result.series])
    gibbs = result.series[0]["gibbs"]
    added = mean_interval(
        [series["langevin"][-1] - series["descent"] for series in result.series],
        "is what noise adds to the share in the wide well",
        against=0,
    )
    word = ADDED.verdict(added)
    settled = langevin.low is not None and langevin.high is not None and langevin.low <= gibbs <= langevin.high
    if word == "reproduced" and not settled:
        word = "direction only"
    config = result.config
    return [
        Verdict(
            claim="Noisy descent is a diffusion that seeks large volumes: it settles in large basins, not small ones",
            source=f"{MOVES}, The Entropic Selection Principle, 2",
            verdict=word,
            published="exponentially more likely",
            our_figure=added,
            corrected=f"Of two wells of one depth and curvatures {config['wide']:g} and {config['narrow']:g} in the "
            f"plane, the wide one holds {langevin} of noisy paths at t = {config['end']:g}; equilibrium would be "
            f"{gibbs:.3f}. Descent without any noise ends there for {descent} of the same starts: most of the "
            "preference is where one starts, and the rest needs isotropic noise, which SGD's is not, and time "
            "to cross.",
            **RULES["two-wells"].stated(),
        )
    ]


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(7.4, 4.1)
    columns = list(zip(*(series["langevin"] for series in result.series), strict=True))
    draw_curves(
        axes,
        result.series[0]["times"],
        {"with noise": [sum(c) / len(c) for c in columns]},
        bands={"with noise": (list(map(min, columns)), list(map(max, columns)))},
        xlabel="time",
        ylabel="share in the wide well",
        marker="o",
        legend="",
    )
    draw_level(axes, result.series[0]["gibbs"], "equilibrium")
    descent = [series["descent"] for series in result.series]
    draw_level(axes, sum(descent) / len(descent), "descent without noise", colour=figures.ORANGE)
    figures.set_title(axes, "Noise adds a little to what the starts decide")
    return figure


STUDIES = (
    Study(
        name="two-wells",
        summary="shares of a wide and a narrow well with noise and without",
        claim="SGD maximises entropy",
        source=f"{MOVES}, The Entropic Selection Principle, 2",
        quick={"paths": 300, "step_size": 0.008, "end": 60.0},
        quick_seeds=4,
        seeds=5,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=45,
    ),
)
