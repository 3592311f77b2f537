"""The style of all figures, and its colours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from ..._extras import require

INK, MUTED, GRID, PAPER = "#1b2430", "#66707d", "#dde2e8", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL = "#3b78e7", "#ee8a2c", "#2fa572", "#9467d4", "#df5452", "#2ba3b8"
CLUSTER_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, "#b8923a", "#d765a8", "#7f8c9b", "#6d8f3c")
COHORT_COLOURS = {"near": GREEN, "random": "#8a94a1", "far": ORANGE}
BEHIND_TEXT = {"boxstyle": "square,pad=0.1", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.75}

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


@styled
def set_title(axes: Any, text: str) -> None:
    axes.set_title(text)
