"""The theory's figures: what must not fail, and where names of lines stand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdsd.report import figures

pytest.importorskip("matplotlib")


def test_edge_cases_are_drawn(tmp_path):
    figure, axes = figures.new_figure(12, 8, rows=2, columns=2)
    figures.draw_curves(
        axes[0, 0],
        [1, 10, 100],
        {"a": [1e-30, math.nan, 1.0], "b": [1.0, 2.0, 3.0]},
        bands={"a": ([1e-31, 0, 0.5], [1e-29, 1, 2.0])},
        log_x=True,
        log_y=True,
    )
    figures.draw_curves(axes[0, 1], [0], {"one point": [0.5]}, legend="")
    figures.draw_dots(axes[1, 0], {"a": (0.0, 0.0, 0.0), "b": (2.3e-25, 1e-25, 3e-25)})
    k = np.logspace(-1, 1, 5)
    ratio = k[:, None] / k[None]
    figures.draw_phase_diagram(axes[1, 1], k, k, -np.log(ratio), ratio, ratio * k[:, None])
    figures.save_png(figure, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 1000


def test_names_of_lines_stay_inside():
    figure, axes = figures.new_figure(4, 3)
    figures.draw_curves(axes, [1, 1000], {"a": [0, 1]}, log_x=True, legend="")
    for value in (2, 900):
        figures.draw_level(axes, value, "a name that is long", vertical=True)
    figures.draw_level(axes, 0.5, "another", at=0.02)
    figure.canvas.draw()
    box = axes.get_window_extent()
    for text in axes.texts:
        extent = text.get_window_extent()
        assert box.x0 - 1 <= extent.x0
        assert extent.x1 <= box.x1 + 1
