"""Signal, noise and accuracy over the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .numbers import limits_of, log_axis
from .style import BEHIND_TEXT, BLUE, CLUSTER_COLOURS, GREEN, INK, MUTED, ORANGE, styled


@styled
def draw_noise_scale(
    axes: Any,
    steps: Sequence[int],
    estimate: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    batch_size: int,
    *,
    exact_steps: Sequence[int] = (),
    exact: Sequence[float] = (),
) -> None:
    """Noise scale over training with its interval, the exact values as dots, and the batch size as a line.

    Args:
        axes: matplotlib's, to draw into.
        steps: of the measurements.
        estimate, low, high: noise scale and its interval, in samples, one a step.
        batch_size: in samples.
        exact_steps, exact: where the exact value is known, and what it is.
    """
    bottom, top = limits_of([*estimate, *exact, batch_size], pad=2.2)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)

    def clipped(values: Sequence[float], instead: float) -> list[float]:
        return [instead if math.isnan(value) else min(max(value, bottom), top) for value in values]

    known = [not math.isnan(a) for a in low]
    axes.fill_between(
        steps,
        clipped(low, top),
        clipped(high, top),
        where=known,
        color=BLUE,
        alpha=0.2,
        linewidth=0,
        label="95% interval",
    )
    axes.plot(
        steps, [value if 0 < value < math.inf else math.nan for value in estimate], color=BLUE, label="from the batches"
    )
    if exact:
        axes.plot(
            exact_steps, exact, "o", color=INK, markersize=4, markeredgewidth=0, label="exact, all training images"
        )
    axes.axhline(batch_size, color=ORANGE, linewidth=2, linestyle=(0, (5, 2)))
    span = max(steps) if len(steps) else 1
    axes.set_xlim(0, span * 1.01)
    axes.annotate(
        f"batch size {batch_size}",
        (span, batch_size),
        xytext=(-2, 5),
        textcoords="offset points",
        color=ORANGE,
        ha="right",
        va="bottom",
        fontweight="bold",
        bbox=BEHIND_TEXT,
    )
    axes.set_ylabel("noise scale (images)")
    axes.legend(loc="upper left", fontsize=9.5, borderaxespad=0.2, handlelength=1.6)
    log_axis(axes.yaxis, bottom, top)


@styled
def draw_accuracy(axes: Any, steps: Sequence[int], accuracy: Sequence[float]) -> None:
    """Held-out accuracy over training.

    Args:
        axes: matplotlib's, to draw into.
        steps: of the measurements.
        accuracy: between 0 and 1, one a step.
    """
    axes.plot(steps, [100 * value for value in accuracy], color=GREEN)
    axes.set_ylim(0, 102)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_ylabel("accuracy (%)")
    axes.set_xlabel("training step")
    if accuracy:
        axes.annotate(
            f"{100 * accuracy[-1]:.1f}%",
            (steps[-1], 100 * accuracy[-1]),
            xytext=(-2, -8),
            textcoords="offset points",
            ha="right",
            va="top",
            color=GREEN,
            fontweight="bold",
        )


@styled
def draw_layer_gamma(axes: Any, steps: Sequence[int], layers: Mapping[str, Sequence[float]], batch_size: int) -> None:
    """Γ at the batch size used, one line a layer, on a log axis with the line Γ = 1.

    Args:
        axes: matplotlib's, to draw into.
        steps: of the measurements.
        layers: name → Γ, one a step.
        batch_size: in samples.
    """
    everything = [value for values in layers.values() for value in values]
    bottom, top = limits_of([*everything, 1.0], pad=1.5)
    bottom = max(bottom, 1e-3)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    span = max(steps) if len(steps) else 1
    axes.set_xlim(0, span * 1.01)
    axes.axhspan(1.0, top, color=GREEN, alpha=0.09, linewidth=0)
    axes.axhline(1.0, color=MUTED, linewidth=1.2)
    for (name, values), colour in zip(layers.items(), CLUSTER_COLOURS * 9, strict=False):
        axes.plot(steps, [value if value > 0 else math.nan for value in values], color=colour, label=name)
    inside = (0.99, 1.0)
    blended = axes.get_yaxis_transform()
    axes.annotate(
        "more signal than noise ↑",
        inside,
        xycoords=blended,
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=MUTED,
        fontsize=9.5,
        bbox=BEHIND_TEXT,
    )
    axes.annotate(
        "more noise than signal ↓",
        inside,
        xycoords=blended,
        xytext=(0, -5),
        textcoords="offset points",
        ha="right",
        va="top",
        color=MUTED,
        fontsize=9.5,
        bbox=BEHIND_TEXT,
    )
    axes.set_ylabel(f"Γ of a batch of {batch_size}")
    axes.set_xlabel("training step")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=max(1, len(layers)), borderaxespad=0.3, handlelength=1.6
    )
    log_axis(axes.yaxis, bottom, top)
