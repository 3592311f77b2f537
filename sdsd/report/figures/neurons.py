"""Neurons on a plane, their cosines, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .style import CLUSTER_COLOURS, INK, MUTED, PAPER, styled


def frame_map(axes: Any) -> None:
    """A plane in which distances count and coordinates do not: equal scales, a frame, no ticks."""
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)


@styled
def draw_neuron_map(
    axes: Any,
    points: np.ndarray,
    clusters: Sequence[int],
    names: Sequence[int],
    pairs: Sequence[tuple[int, int]] = (),
    sizes: Sequence[float] | None = None,
    *,
    dotted: Sequence[tuple[int, int]] = (),
    dotted_means: str = "",
    labels: bool = True,
    legend: bool = True,
) -> None:
    """Neurons as points in the plane, coloured by cluster; `pairs` (positions in `points`) are linked and named.

    A name that would lie on another is left out; the legend counts the neurons of each cluster.

    Args:
        axes: matplotlib's, to draw into.
        points: one row a neuron.  # shape: (n, 2)
        clusters, names: of each neuron.
        pairs: (first, second) each, as rows of `points`.
        sizes: of the points; None: all alike.
        dotted: more pairs, whose lines are dotted.
        dotted_means: what the legend says of them.
        labels, legend: whether they are drawn.
    """
    lines = {"-": ("nearest pair", pairs), ":": (dotted_means, dotted)}
    for style, (_, some) in lines.items():
        for first, second in some:
            axes.plot(*points[[first, second]].T, color=INK, linewidth=1.6, linestyle=style, zorder=1)
    colours = [CLUSTER_COLOURS[cluster % len(CLUSTER_COLOURS)] for cluster in clusters]
    area = 58.0 if sizes is None else 24 + 90 * np.asarray(sizes) / max(float(np.max(sizes)), 1e-30)
    axes.scatter(*points.T, s=area, c=colours, edgecolors=PAPER, linewidths=0.9, zorder=2)
    frame_map(axes)
    if legend and clusters:
        _cluster_legend(axes, clusters, {style: words for style, (words, some) in lines.items() if some})
    if labels and (pairs or dotted):
        _name_pairs(axes, points, names, [*pairs, *dotted])


def _cluster_legend(axes: Any, clusters: Sequence[int], lines: Mapping[Any, str]) -> None:
    """Which colour is which cluster, and what each style of line joins."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="none",
            markersize=6,
            markeredgewidth=0,
            color=CLUSTER_COLOURS[group % len(CLUSTER_COLOURS)],
            label=f"{group} ({list(clusters).count(group)})",
        )
        for group in sorted(set(clusters))
    ]
    for style, words in lines.items():
        handles.append(Line2D([], [], color=INK, linewidth=1.6, linestyle=style, label=words))
    axes.legend(
        handles=handles,
        title="cluster (neurons)",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=min(len(handles), 5),
        fontsize=8.5,
        title_fontsize=8.5,
        handletextpad=0.3,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _name_pairs(axes: Any, points: np.ndarray, names: Sequence[int], pairs: Sequence[tuple[int, int]]) -> None:
    """Write the neurons' numbers beside the pairs' ends, each only where no earlier one stands."""
    axes.figure.draw_without_rendering()
    renderer = axes.figure.canvas.get_renderer()
    taken: list[Any] = []
    for first, second in pairs:
        outward = points[first] - points[second]
        outward = outward / max(float(np.linalg.norm(outward)), 1e-30)
        for position, way in ((first, outward), (second, -outward)):
            label = axes.annotate(
                str(names[position]),
                points[position],
                xytext=tuple(10.5 * way),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=7.5,
                color=MUTED,
            )
            box = label.get_window_extent(renderer)
            if any(box.overlaps(other) for other in taken):
                label.remove()
            else:
                taken.append(box)


@styled
def draw_cosine_matrix(axes: Any, cosine: np.ndarray, boundaries: Sequence[float] = (), lowest: float = 0.0) -> None:
    """The cosine matrix in the order given, with cluster boundaries; the colour scale starts at `lowest`.

    Args:
        axes: matplotlib's, to draw into.
        cosine: of every pair.  # shape: (n, n)
        boundaries: where clusters end, in neurons.
        lowest: the cosine at the dark end of the scale.
    """
    from matplotlib.colors import LinearSegmentedColormap

    if lowest < 0:
        colours, low = ["#2c6fbb", "#f4f1ec", "#c8502d"], -1.0
    else:
        colours, low = ["#f7f3ea", "#f2b872", "#d1603d", "#6b1d45"], 0.0
    image = axes.imshow(
        cosine, cmap=LinearSegmentedColormap.from_list("cosine", colours), vmin=low, vmax=1, interpolation="nearest"
    )
    for boundary in boundaries:
        axes.axhline(boundary, color=INK, linewidth=0.7)
        axes.axvline(boundary, color=INK, linewidth=0.7)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.set_label("cosine of activations", color=MUTED)


@styled
def draw_pair_scatter(axes: Any, first: np.ndarray, second: np.ndarray, names: tuple[int, int], colour: str) -> None:
    """What two neurons say about the same images, one against the other.

    Args:
        axes: matplotlib's, to draw into.
        first, second: the neurons' activations, one a sample.
        names: their numbers.
        colour: any of matplotlib's.
    """
    axes.scatter(first, second, s=14, color=colour, alpha=0.55, linewidths=0)
    axes.set_xlabel(f"neuron {names[0]}")
    axes.set_ylabel(f"neuron {names[1]}")
    axes.margins(0.05)
    axes.locator_params(nbins=5)


@styled
def draw_images(axes: Any, images: np.ndarray) -> None:
    """A row of small grey images."""
    count, height, width = images.shape
    gap = 1
    strip = np.full((height, count * (width + gap) - gap), np.nan)
    for index, image in enumerate(images):
        strip[:, index * (width + gap) : index * (width + gap) + width] = image
    axes.imshow(strip, cmap="gray_r", interpolation="nearest", vmin=0)
    axes.axis("off")
