"""Figures: numbers as people write them, SVG that carries nothing from outside, edge cases that must not fail."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from sdsd.report import figures

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.061, "0.061"),
        (0.00041234, "0.00041"),
        (-0.0029, "−0.0029"),
        (3.0, "3"),
        (4.123, "4.1"),
        (36.4, "36"),
        (971.4, "971"),
        (4_632.0, "4,600"),
        (2_100_000.0, "2.1 million"),
        (3.2e-9, "3.2×10^−9"),
        (9.96, "10"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
    ],
)
def test_plain_number(value, text):
    assert figures.plain_number(value) == text


def test_svg_is_self_contained_and_takes_the_colours_of_the_page():
    figure, axes = figures.new_figure(4, 3)
    figures.draw_noise_scale(axes, [1, 2, 3], [50, 80, 200], [40, 60, math.nan], [70, math.inf, math.nan], 128)
    svg = figures.to_svg(figure, "one")
    assert svg.startswith("<svg")
    assert "<metadata" not in svg
    assert "var(--muted)" in svg
    assert figures.INK not in svg
    for target in re.findall(r'(?:href="|url\()([^")]+)', svg):
        assert target.startswith(("#one-", "data:"))
    for identifier in re.findall(r"url\(#([^)]+)\)", svg):
        assert f'id="{identifier}"' in svg


def test_same_figure_same_bytes(tmp_path):
    def drawn(path):
        figure, axes = figures.new_figure(4, 3)
        figures.draw_merges(axes, {"near": [1e-4, -2e-4], "far": [1e-2, 0.0]})
        figures.save_png(figure, path)
        return figures.to_svg(figure, "merges")

    assert drawn(tmp_path / "a.png") == drawn(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_drawing_leaves_the_users_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure, axes = figures.new_figure(4, 3)
    figures.draw_accuracy(axes, [1, 2], [0.5, 0.9])
    figures.to_svg(figure, "a")
    assert dict(matplotlib.rcParams) == before


def test_edge_cases_are_drawn(tmp_path):
    figure, axes = figures.new_figure(12, 8, rows=2, columns=4)
    nan, inf = math.nan, math.inf
    figures.draw_noise_scale(axes[0, 0], [1, 2], [inf, nan], [nan, nan], [nan, nan], 64)
    figures.draw_layer_gamma(axes[0, 1], [1, 2], {"a": [-1.0, nan], "b": [0.0, -0.5]}, 64)
    figures.draw_accuracy(axes[0, 2], [], [])
    figures.draw_merges(axes[0, 3], {"near": [0.0, 0.0], "far": []})
    figures.draw_batch_merges(axes[1, 0], {"near": [0.0], "random": [0.0, 0.0]})
    figures.draw_neuron_map(axes[1, 1], np.zeros((3, 2)), [0, 11, 25], [4, 5, 6], [(0, 1)], [0.0, 0.0, 0.0])
    figures.draw_cosine_matrix(axes[1, 2], np.array([[1.0, -0.5], [-0.5, 1.0]]), lowest=-0.5)
    figures.draw_images(axes[1, 3], np.ones((2, 8, 8)))
    figures.save_png(figure, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 1000
