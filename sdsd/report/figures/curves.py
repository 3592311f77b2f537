"""Curves with bands, reference lines, dots with intervals, and the phase diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .numbers import log_axis, plain_number
from .style import BEHIND_TEXT, BLUE, CLUSTER_COLOURS, INK, MUTED, ORANGE, styled

Bounds = tuple[Sequence[float], Sequence[float]]


@styled
def draw_curves(
    axes: Any,
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    bands: Mapping[str, Bounds] | None = None,
    colours: Mapping[str, str] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log_x: bool = False,
    log_y: bool = False,
    marker: str = "",
    legend: str = "best",
) -> None:
    """Lines by name over `x`, each with a band (low, high) where there is one; "" as `legend` leaves it out."""
    for (name, values), fallback in zip(curves.items(), CLUSTER_COLOURS * 3, strict=False):
        colour = (colours or {}).get(name, fallback)
        axes.plot(x, values, color=colour, label=name, marker=marker, markersize=5, markeredgewidth=0)
        if bands and name in bands:
            axes.fill_between(x, *bands[name], color=colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    for wanted, axis, scale in ((log_x, axes.xaxis, axes.set_xscale), (log_y, axes.yaxis, axes.set_yscale)):
        if wanted:
            scale("log")
            _log_ticks(axis, *(axes.get_xlim() if axis is axes.xaxis else axes.get_ylim()))
    if legend:
        axes.legend(loc=legend, fontsize=9.5, handlelength=1.6, borderaxespad=0.3)


def _log_ticks(axis: Any, low: float, high: float) -> None:
    """Plain numbers, or matplotlib's powers of ten where plain numbers would be all zeros."""
    if low >= 1e-7:
        log_axis(axis, low, high)


@styled
def draw_level(
    axes: Any, value: float, text: str, *, vertical: bool = False, colour: str = MUTED, at: float = 0.98
) -> None:
    """A dashed line at `value`, named; `at` is where along it the name stands (0 … 1). Draw it after the curves."""
    line = axes.axvline if vertical else axes.axhline
    line(value, color=colour, linewidth=1.6, linestyle=(0, (5, 2)), zorder=1)
    blended = axes.get_xaxis_transform() if vertical else axes.get_yaxis_transform()
    across = axes.transAxes.inverted().transform(axes.transData.transform((value, value)))[0] if vertical else at
    right = across > 0.5
    axes.annotate(
        text,
        (value, at) if vertical else (at, value),
        xycoords=blended,
        xytext=(-5 if right else 5, 0) if vertical else (0, 4),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top" if vertical else "bottom",
        color=colour,
        fontsize=9.5,
        bbox=BEHIND_TEXT,
    )


@styled
def draw_dots(
    axes: Any,
    rows: Mapping[str, tuple[float, float, float]],
    *,
    ylabel: str = "",
) -> None:
    """One dot with its interval (value, low, high) for each name, the value written beside it."""
    for position, (value, low, high) in enumerate(rows.values()):
        axes.plot([position, position], [low, high], color=BLUE, linewidth=2.4, solid_capstyle="round", zorder=3)
        axes.plot([position], [value], "o", color=BLUE, markersize=8, markeredgewidth=0, zorder=4)
        axes.annotate(
            plain_number(value),
            (position, value),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=9.5,
        )
    axes.set_xlim(-0.5, len(rows) - 0.35)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.tick_params(axis="x", labelcolor=INK, length=0, pad=6)
    axes.grid(False, axis="x")
    axes.set_ylabel(ylabel)


@styled
def draw_phase_diagram(
    axes: Any,
    stiffness: np.ndarray,
    diffusion: np.ndarray,
    growth: np.ndarray,
    gamma_h: np.ndarray,
    gamma_published: np.ndarray,
) -> None:
    """The measured growth of the loss over (stiffness, diffusion), and the lines on which each ratio is 1.

    Args:
        stiffness, diffusion: the axes.  # shape: (a,), (b,)
        growth: log of the loss at the end over the loss at the start.  # shape: (a, b)
        gamma_h, gamma_published: at the start.  # shape: (a, b)
    """
    from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

    limit = float(np.abs(growth).max())
    colours = LinearSegmentedColormap.from_list("growth", ["#2c6fbb", "#f4f1ec", "#c8502d"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    image = axes.pcolormesh(
        stiffness, diffusion, growth.T, cmap=colours, norm=TwoSlopeNorm(0, -limit, limit), shading="nearest"
    )
    for values, colour, style, text in (
        (gamma_h, INK, "-", "Γ_H = 1"),
        (gamma_published, ORANGE, (0, (5, 2)), "the document's Γ = 1"),
    ):
        axes.contour(
            stiffness, diffusion, np.log(values.T), levels=[0.0], colors=colour, linestyles=[style], linewidths=2.4
        )
        axes.plot([], [], color=colour, linestyle=style, linewidth=2.4, label=text)
    axes.grid(False)
    axes.set_xlabel("stiffness k")
    axes.set_ylabel("diffusion D")
    log_axis(axes.xaxis, stiffness.min(), stiffness.max())
    log_axis(axes.yaxis, diffusion.min(), diffusion.max())
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, borderaxespad=0.2, handlelength=2.2)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.set_label("← falls    log(loss at the end / at the start)    rises →", color=MUTED)
