"""Pictures of statistics of gradients; matplotlib is imported when the first is drawn (the extra "report")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .._drawing import BLUE, ORANGE, figure_and_axes

if TYPE_CHECKING:
    from .history import GammaHistory
    from .stats import GammaStats

MOST_NAMES = 40
"""Parameters in one picture: more cannot be read."""


def plot_history(history: GammaHistory, parameter: str, axes: Any = None) -> tuple[Any, Any]:
    """The noise scale over steps: see `GammaHistory.plot`."""
    steps = history.column("step", parameter)
    if not steps:
        raise ValueError("history: expected at least one measured step to draw, got none.")
    figure, axes = figure_and_axes(axes, 7.2, 3.8)
    names = ("smoothed_noise_scale", "noise_scale_low", "noise_scale_high", "batch_size")
    scale, low, high, batch = (history.column(name, parameter) for name in names)
    levels = sorted({level for level in history.column("confidence", parameter) if level is not None})
    shown = [value for value in (*scale, *low, *high, *batch) if 0 < value < math.inf]
    bottom, top = min(shown) / 2, max(shown) * 2
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.fill_between(
        steps,
        [bottom if math.isnan(value) else max(value, bottom) for value in low],
        [top if math.isnan(value) else min(value, top) for value in high],
        where=[not math.isnan(value) for value in low],
        color=BLUE,
        alpha=0.2,
        linewidth=0,
        label=" and ".join(f"{100 * level:g}%" for level in levels) + " interval" if levels else "interval",
    )
    # What is infinite lies on the upper edge, so that a gap means that nothing was measured.
    axes.plot(steps, [min(value, top) for value in scale], color=BLUE, label="noise scale")
    axes.plot(steps, batch, color=ORANGE, linestyle=(0, (5, 2)), label="batch size")
    axes.set_xlabel("step")
    axes.set_ylabel("samples")
    axes.set_title(f"Noise scale, {parameter}", loc="left", fontsize=10.5)
    axes.legend(frameon=False)
    return figure, axes


def plot_stats(stats: GammaStats, axes: Any = None) -> tuple[Any, Any]:
    """The noise scale of every parameter: see `GammaStats.plot`."""
    parts = {**stats.parameters, "total": stats}
    if len(parts) > MOST_NAMES:
        loudest = sorted(stats.parameters, key=lambda name: stats.parameters[name].noise, reverse=True)
        kept = set(loudest[: MOST_NAMES - 1])
        parts = {name: part for name, part in parts.items() if name in kept or name == "total"}
    figure, axes = figure_and_axes(axes, 7.2, 1.2 + 0.24 * len(parts))
    places = range(len(parts))
    finite = [part.noise_scale for part in parts.values() if 0 < part.noise_scale < math.inf]
    top = 10 * max([*finite, stats.batch_size])
    for place, part in zip(places, parts.values(), strict=True):
        if part.noise_scale_interval is not None:
            low, high = part.noise_scale_interval
            axes.plot([low, min(high, top)], [place, place], color=BLUE, linewidth=3, alpha=0.3)
        if not math.isnan(part.noise_scale):
            axes.plot(min(part.noise_scale, top), place, ">" if part.noise_scale > top else "o", color=BLUE)
    axes.axvline(stats.batch_size, color=ORANGE, linestyle=(0, (5, 2)))
    axes.set_title(f"Noise scale by parameter; dashed: the batch size, {stats.batch_size}", loc="left", fontsize=10.5)
    axes.set_xscale("log")
    axes.set_yticks(list(places), list(parts), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("noise scale (samples); an arrow: no signal to tell from the noise")
    return figure, axes
