"""What merging pairs of neurons costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .numbers import limits_of, log_axis, plain_number
from .style import BLUE, COHORT_COLOURS, INK, MUTED, styled


@styled
def draw_merges(axes: Any, cohorts: Mapping[str, Sequence[float]], seed: int = 0, *, unit: str = "") -> None:
    """|loss change| of each single merge, one strip a cohort, on a log axis, with its median as a bar.

    Args:
        axes: matplotlib's, to draw into.
        cohorts: name → changes of the loss, one a merge.
        seed: of the sideways spread of points.
        unit: of the loss, "nats" for a cross entropy; "" where it has no name.
    """
    jitter = np.random.default_rng(seed)
    sizes = [abs(value) for values in cohorts.values() for value in values if value]
    bottom, top = limits_of(sizes, pad=1.8)
    bottom = max(bottom, top * 1e-6)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    labels = []
    for position, (name, values) in enumerate(cohorts.items()):
        colour = COHORT_COLOURS.get(name, BLUE)
        heights = np.maximum(np.abs(np.asarray(values, dtype=float)), bottom)
        across = position + jitter.uniform(-0.2, 0.2, len(heights))
        axes.scatter(across, heights, s=30, color=colour, alpha=0.75, linewidths=0, zorder=3)
        median = float(np.median(heights)) if len(heights) else math.nan
        axes.plot([position - 0.3, position + 0.3], [median, median], color=INK, linewidth=2.4, zorder=4)
        labels.append(f"{name}\n{plain_number(median)}")
    axes.set_xlim(-0.5, len(cohorts) - 0.5)
    axes.set_xticks(range(len(cohorts)), labels)
    _emphasise_ticks(axes)
    axes.grid(False, axis="x")
    axes.set_ylabel(_in("|loss change|", unit))
    log_axis(axes.yaxis, bottom, top)


@styled
def draw_batch_merges(axes: Any, cohorts: Mapping[str, Sequence[float]], *, unit: str = "") -> None:
    """Loss change when a whole cohort is merged at once: a dot for each cohort, several for random pairings.

    Args:
        axes: matplotlib's, to draw into.
        cohorts: name → changes of the loss.
        unit: of the loss, as in `draw_merges`.
    """
    everything = [value for values in cohorts.values() for value in values]
    low, high = min([0.0, *everything]), max([0.0, *everything])
    room = (high - low) or 1.0
    axes.axhline(0.0, color=MUTED, linewidth=1.2)
    labels = []
    for position, (name, values) in enumerate(cohorts.items()):
        colour = COHORT_COLOURS.get(name, BLUE)
        across = position + np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else [position]
        axes.scatter(across, values, s=62 if len(values) == 1 else 34, color=colour, linewidths=0, zorder=3)
        mean = float(np.mean(values))
        if len(values) > 1:
            axes.plot([position - 0.3, position + 0.3], [mean, mean], color=INK, linewidth=2.4, zorder=4)
        sign = "+" if mean > 0 else ""
        labels.append(f"{name}\n{'mean ' if len(values) > 1 else ''}{sign}{plain_number(mean)}")
    axes.set_ylim(low - 0.08 * room, high + 0.08 * room)
    axes.set_xlim(-0.5, len(cohorts) - 0.5)
    axes.set_xticks(range(len(cohorts)), labels)
    _emphasise_ticks(axes)
    axes.grid(False, axis="x")
    axes.set_ylabel(_in("loss change", unit))


def _in(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _emphasise_ticks(axes: Any) -> None:
    axes.tick_params(axis="x", labelcolor=INK, length=0, pad=6)
