"""Figures as elements of a page, panel by panel where they are wide."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

from .style import GRID, INK, MUTED, PAPER, STYLE

PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}


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
        return _panel(figure, name)
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


def _panel(figure: Any, name: str) -> str:
    wide = to_svg(figure, name)
    width, height = figure.get_size_inches()
    if width <= WIDE:
        return f"<div>{wide}</div>"
    figure.set_size_inches(PHONE, max(height * (1 if height < 2 else 0.9), PHONE / 6))
    return f'<div class="desk">{wide}</div><div class="phone">{to_svg(figure, f"{name}-phone")}</div>'


def _columns(figure: Any) -> list[list[Any]]:
    """The figure's axes by column of its grid; what stands in no grid, a colour bar, with what is left of it."""
    columns: dict[int, list[Any]] = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        if place is not None:
            columns.setdefault(place.colspan.start, []).append(axes)
    ordered = [columns[start] for start in sorted(columns)]
    figure.draw_without_rendering()
    for axes in figure.axes:
        if axes.get_subplotspec() is None:
            left = [column for column in ordered if column[0].get_position().x0 <= axes.get_position().x0]
            (left or ordered)[-1].append(axes)
    return ordered


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
