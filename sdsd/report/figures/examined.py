"""Figures of an examined network: its map, what merges cost, what is left at equal size, how controls look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .neurons import frame_map
from .numbers import plain_number
from .style import BLUE, CLUSTER_COLOURS, COHORT_COLOURS, INK, MUTED, PAPER, styled

GREY = COHORT_COLOURS["random"]


@styled
def draw_points(axes: Any, points: Sequence[Sequence[float]], clusters: Sequence[int]) -> None:
    """The first two coordinates of a map, which hold most of it, coloured by cluster."""
    if not len(points):
        return
    flat = np.asarray(points, dtype=float)[:, :2]
    size = float(np.clip(9000 / len(flat), 5, 60))
    colours = [CLUSTER_COLOURS[cluster % len(CLUSTER_COLOURS)] for cluster in clusters]
    axes.scatter(*flat.T, s=size, c=colours, edgecolors=PAPER, linewidths=0.4, alpha=0.9)
    frame_map(axes)


@styled
def draw_costs(axes: Any, costs: Mapping[str, Sequence[float]], best: str, xlabel: str) -> None:
    """Horizontal bars from 0, one a way; dots are single runs, the number is their mean. `best` is coloured."""
    names = list(costs)
    top = max(max(map(abs, values), default=0.0) for values in costs.values()) or 1.0
    for position, name in enumerate(names):
        sizes = np.abs(np.asarray(costs[name], dtype=float))
        mean = float(sizes.mean())
        axes.barh(position, mean, height=0.62, color=COHORT_COLOURS["near"] if name == best else GREY, alpha=0.9)
        if len(sizes) > 1:
            axes.plot(sizes, [position] * len(sizes), ".", color=INK, markersize=5, alpha=0.6)
        axes.annotate(
            plain_number(mean),
            (max(mean, float(sizes.max())), position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=9.5,
        )
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK, length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * top)
    axes.grid(False, axis="y")
    axes.set_xlabel(xlabel)


@styled
def draw_silhouettes(axes: Any, silhouettes: Mapping[str, Sequence[float]]) -> None:
    """How clearly neurons fall into clusters: a bar for the trained network and one for each control."""
    names = list(silhouettes)
    for position, name in enumerate(names):
        values = list(silhouettes[name])
        mean = float(np.mean(values))
        axes.bar(position, mean, width=0.62, color=BLUE if name == "trained" else GREY, alpha=0.9)
        if len(values) > 1:
            axes.plot([position] * len(values), values, ".", color=INK, markersize=5, alpha=0.6)
        axes.annotate(
            plain_number(mean),
            (position, max([mean, 0.0, *values])),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9.5,
        )
    axes.set_xticks(
        range(len(names)), [name.replace(" on ", "\non ").replace("shuffled ", "shuffled\n") for name in names]
    )
    axes.tick_params(axis="x", labelcolor=INK, length=0, pad=6)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.margins(y=0.15)
    axes.grid(False, axis="x")
    axes.set_ylabel("silhouette of clusters")


@styled
def draw_relearning(axes: Any, curves: Mapping[str, Sequence[float]]) -> None:
    """Accuracy after each epoch of training on, for networks merged in different ways."""
    colours = {"geometry": COHORT_COLOURS["near"], "random": GREY, "untouched": BLUE}
    for name, values in curves.items():
        axes.plot(
            range(1, len(values) + 1),
            [100 * value for value in values],
            marker="o",
            markersize=5,
            label=name,
            color=colours.get(name, INK),
        )
    axes.set_xlabel("epochs after the merge")
    axes.set_ylabel("accuracy (%)")
    axes.set_xticks(range(1, max((len(values) for values in curves.values()), default=1) + 1))
    axes.legend(loc="lower right")
