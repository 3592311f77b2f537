"""Figures in one style, drawn with matplotlib on the Agg canvas.

A `draw_…` function fills given axes and computes nothing; `new_figure` makes them, `save_png` and `to_svg` write them.
In the SVG the style's ink, grid and paper colours become the page's own, so a figure turns dark with its page.
matplotlib is imported when the first figure is made (the extra "report").
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from ..._extras import require

INK, MUTED, GRID, PAPER = "#1b2430", "#66707d", "#dde2e8", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = "#3b78e7", "#ee8a2c", "#2fa572", "#9467d4", "#df5452", "#2ba3b8"
CLUSTER_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, "#b8923a", "#d765a8", "#7f8c9b", "#6d8f3c")
COHORT_COLOURS = {"near": GREEN, "random": "#8a94a1", "far": ORANGE}
BEHIND_TEXT = {"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.75}
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}

STYLE: dict[Any, Any] = {
    "axes.unicode_minus": True,
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10.5,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.edgecolor": GRID,
    "axes.linewidth": 1.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sdsd",
    "figure.constrained_layout.use": True,
}


Drawing = TypeVar("Drawing", bound=Callable[..., None])


def styled(draw: Drawing) -> Drawing:
    """Run `draw` in the house style: matplotlib reads colours and sizes when an artist is made."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> None:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            draw(*args, **kwargs)

    return cast(Drawing, drawn)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Any, Any]:
    """A figure of `width` × `height` inches and its axes (one, or an array), in the house style.

    Args:
        width, height: in inches.
        rows, columns: of axes.
        grid: matplotlib's `gridspec_kw`.

    Returns:
        (figure, axes).
    """
    matplotlib = require("matplotlib", extra="report", purpose="drawing figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, gridspec_kw=grid or None)
    return figure, axes


def save_png(figure: Any, path: str | Path, dpi: int = 144) -> None:
    """Write `figure` as a PNG on white.

    Args:
        figure: matplotlib's.
        path: the file to write.
        dpi: dots an inch.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=dpi, facecolor=PAPER, metadata={"Software": None})


def to_svg(figure: Any, name: str, **options: Any) -> str:
    """`figure` as an <svg> element to put into a page; its identifiers start with `name`; `options` of savefig.

    Args:
        figure: matplotlib's.
        name: what identifiers on the page start with.
        options: further arguments of savefig.

    Returns:
        The element, as text.
    """
    import matplotlib

    buffer = StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    for colour, variable in PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    return text


WIDE = 5.0
"""Inches from which on a panel is drawn a second time for phones, `PHONE` wide, so that its text stays readable."""
PHONE = 4.3


def to_panels(figure: Any, name: str) -> str:
    """`figure` as elements that a page sets side by side or one under the other: one for each column of its axes.

    A wide panel comes twice, as class "desk" and redrawn narrower as class "phone"; a page shows one of them. The
    figure's size and layout are not what they were afterwards: save it first.

    Args:
        figure: matplotlib's.
        name: what identifiers on the page start with.

    Returns:
        HTML.
    """
    columns = _columns(figure)
    if len(columns) == 1:
        wide = to_svg(figure, name)
        width, height = figure.get_size_inches()
        if width <= WIDE:
            return f"<div>{wide}</div>"
        figure.set_size_inches(PHONE, max(height * (1 if height < 2 else 0.9), PHONE / 6))
        return f'<div class="desk">{wide}</div><div class="phone">{to_svg(figure, f"{name}-phone")}</div>'
    # Laid out once, so that hiding the neighbours of a panel moves nothing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    boxes, panels = _boxes(figure, columns), []
    for number, column in enumerate(columns):
        for axes in figure.axes:
            axes.set_visible(axes in column)
        panels.append(f"<div>{to_svg(figure, f'{name}-{number}', bbox_inches=boxes[number])}</div>")
    for axes in figure.axes:
        axes.set_visible(True)
    return "".join(panels)


def _columns(figure: Any) -> list[list[Any]]:
    """The figure's axes by column of its grid; what stands in no grid, a colour bar, with what is left of it."""
    columns: dict[int, list[Any]] = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        if place is not None:
            columns.setdefault(place.colspan.start, []).append(axes)
    found = [columns[start] for start in sorted(columns)]
    figure.draw_without_rendering()
    for axes in figure.axes:
        if axes.get_subplotspec() is None:
            left = [column for column in found if column[0].get_position().x0 <= axes.get_position().x0]
            (left or found)[-1].append(axes)
    return found


def _boxes(figure: Any, columns: Sequence[Sequence[Any]]) -> list[Any]:
    """What the axes of each column cover, in inches; all equally large, so that all are shown at one scale."""
    from matplotlib.transforms import Bbox

    renderer = figure.canvas.get_renderer()
    covered = [
        Bbox.union([axes.get_tightbbox(renderer) for axes in column]).transformed(figure.dpi_scale_trans.inverted())
        for column in columns
    ]
    width = max(box.width for box in covered) + 0.12
    bottom, top = min(box.y0 for box in covered) - 0.06, max(box.y1 for box in covered) + 0.06
    return [Bbox.from_extents(box.x1 + 0.06 - width, bottom, box.x1 + 0.06, top) for box in covered]


def plain_number(value: float) -> str:
    """A number as people write it on an axis or in a table: 0.06, 4.1, 36, 4,600, 2.1 million.

    Args:
        value: any number.

    Returns:
        Text without an exponent, where people write none.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e6:
        text = f"{size / 1e6:.1f} million"
    elif size >= 1000:
        text = f"{float(f'{size:.2g}'):,.0f}"
    elif size >= 10 or size == 0:
        text = f"{size:.0f}"
    elif size >= 1e-5:
        text = f"{float(f'{size:.2g}'):.6f}".rstrip("0").rstrip(".")
    else:
        text = f"{size:.1e}".replace("e-0", "e-").replace("e-", "×10^−")
    return f"−{text}" if value < 0 else text


@styled
def set_title(axes: Any, text: str) -> None:
    axes.set_title(text)


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def log_axis(axis: Any, low: float, high: float) -> None:
    """Ticks at powers of ten between `low` and `high`; at 1, 2 and 5 of each where there is at most one power."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    powers = [decade for decade in decades if low <= 10.0**decade <= high]
    apart = -(-len(powers) // 7)
    ticks = [10.0**power for power in powers[:: apart or 1]]
    if len(ticks) < 2:
        ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5) if low <= step * 10.0**decade <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """A tick of a logarithmic axis: 0.01, 0.5, 20, 1,000, but 10⁻⁵, 2 · 10⁶."""
    if 0.001 <= value < 1e5:
        return f"{value:,.0f}" if value >= 1 else f"{value:.3f}".rstrip("0")
    power = math.floor(math.log10(value) + 1e-9)
    factor = round(value / 10.0**power)
    return f"{f'{factor} · ' if factor > 1 else ''}10{str(power).translate(SUPERSCRIPTS)}"


def minus(text: str) -> str:
    """A number as text with the minus sign that is used throughout."""
    return text.replace("-", "−")


def _limits(values: Sequence[float], pad: float = 1.6) -> tuple[float, float]:
    positive = [value for value in values if math.isfinite(value) and value > 0]
    if not positive:
        return 0.1, 10.0
    return min(positive) / pad, max(positive) * pad


@styled
def draw_noise_scale(
    axes: Any,
    steps: Sequence[int],
    estimate: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    batch_size: int,
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
    bottom, top = _limits([*estimate, *exact, batch_size], pad=2.2)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)

    def clipped(values: Sequence[float], instead: float) -> list[float]:
        return [instead if math.isnan(value) else min(max(value, bottom), top) for value in values]

    known = [not math.isnan(a) for a in low]
    axes.fill_between(
        steps, clipped(low, top), clipped(high, top), where=known, color=BLUE, alpha=0.2, linewidth=0,
        label="95% interval",
    )  # fmt: skip
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
        f"batch size {batch_size}", (span, batch_size), xytext=(-2, 5), textcoords="offset points",
        color=ORANGE, ha="right", va="bottom", fontweight="bold", bbox=BEHIND_TEXT,
    )  # fmt: skip
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
            f"{100 * accuracy[-1]:.1f}%", (steps[-1], 100 * accuracy[-1]), xytext=(-2, -8),
            textcoords="offset points", ha="right", va="top", color=GREEN, fontweight="bold",
        )  # fmt: skip


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
    bottom, top = _limits([*everything, 1.0], pad=1.5)
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
        "more signal than noise ↑", inside, xycoords=blended, xytext=(0, 4), textcoords="offset points",
        ha="right", va="bottom", color=MUTED, fontsize=9.5, bbox=BEHIND_TEXT,
    )  # fmt: skip
    axes.annotate(
        "more noise than signal ↓", inside, xycoords=blended, xytext=(0, -5), textcoords="offset points",
        ha="right", va="top", color=MUTED, fontsize=9.5, bbox=BEHIND_TEXT,
    )  # fmt: skip
    axes.set_ylabel(f"Γ of a batch of {batch_size}")
    axes.set_xlabel("training step")
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=max(1, len(layers)), borderaxespad=0.3, handlelength=1.6
    )
    log_axis(axes.yaxis, bottom, top)


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
        labels, legend: whether they are drawn.
    """
    for first, second in pairs:
        axes.plot(*points[[first, second]].T, color=INK, linewidth=1.6, zorder=1)
    colours = [CLUSTER_COLOURS[cluster % len(CLUSTER_COLOURS)] for cluster in clusters]
    area = 58.0 if sizes is None else 24 + 90 * np.asarray(sizes) / max(float(np.max(sizes)), 1e-30)
    axes.scatter(*points.T, s=area, c=colours, edgecolors=PAPER, linewidths=0.9, zorder=2)
    frame_map(axes)
    if legend and clusters:
        _cluster_legend(axes, clusters, bool(pairs))
    if labels and pairs:
        _name_pairs(axes, points, names, pairs)


def _cluster_legend(axes: Any, clusters: Sequence[int], linked: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="none", markersize=6, markeredgewidth=0,
               color=CLUSTER_COLOURS[group % len(CLUSTER_COLOURS)], label=f"{group} ({list(clusters).count(group)})")
        for group in sorted(set(clusters))
    ]  # fmt: skip
    if linked:
        handles.append(Line2D([], [], color=INK, linewidth=1.6, label="nearest pair"))
    axes.legend(
        handles=handles, title="cluster (neurons)", loc="upper center", bbox_to_anchor=(0.5, -0.01),
        ncols=min(len(handles), 5), fontsize=8.5, title_fontsize=8.5, handletextpad=0.3, columnspacing=1.2,
        borderaxespad=0.2,
    )  # fmt: skip


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
                str(names[position]), points[position], xytext=tuple(10.5 * way), textcoords="offset points",
                ha="center", va="center", fontsize=7.5, color=MUTED,
            )  # fmt: skip
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
def draw_merges(axes: Any, cohorts: Mapping[str, Sequence[float]], seed: int = 0) -> None:
    """|loss change| of each single merge, one strip a cohort, on a log axis, with its median as a bar.

    Args:
        axes: matplotlib's, to draw into.
        cohorts: name → changes of the loss, one a merge.
        seed: of the sideways spread of points.
    """
    jitter = np.random.default_rng(seed)
    sizes = [abs(value) for values in cohorts.values() for value in values if value]
    bottom, top = _limits(sizes, pad=1.8)
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
    axes.set_ylabel("|loss change|")
    log_axis(axes.yaxis, bottom, top)


@styled
def draw_batch_merges(axes: Any, cohorts: Mapping[str, Sequence[float]]) -> None:
    """Loss change when a whole cohort is merged at once: a dot for each cohort, several for random pairings.

    Args:
        axes: matplotlib's, to draw into.
        cohorts: name → changes of the loss.
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
    axes.set_ylabel("loss change")


def _emphasise_ticks(axes: Any) -> None:
    axes.tick_params(axis="x", labelcolor=INK, length=0, pad=6)


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
