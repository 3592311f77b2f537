"""Figures that need no display; matplotlib is imported when the first is drawn (the extra "report")."""

from __future__ import annotations

from typing import Any

from ._extras import require

BLUE, ORANGE, GREY = "#3b78e7", "#ee8a2c", "#66707d"


def figure_and_axes(axes: Any, width: float, height: float, projection: str | None = None) -> tuple[Any, Any]:
    """Given axes with their figure, or new ones that no display is needed for.

    Args:
        axes: matplotlib's, or None.
        width, height: of a new figure, in inches.
        projection: of new axes, "3d" for example.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="report", purpose="drawing")
    if axes is not None:
        return axes.figure, axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Of axes in space matplotlib 3.8 takes no measure that a layout could use.
    figure = Figure(figsize=(width, height), facecolor="white", layout=None if projection == "3d" else "constrained")
    FigureCanvasAgg(figure)
    if projection == "3d":
        return figure, figure.add_axes((0.02, 0.02, 0.96, 0.9), projection=projection)
    return figure, figure.add_subplot(projection=projection)
