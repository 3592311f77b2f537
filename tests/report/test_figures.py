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


def test_a_loss_is_drawn_with_its_unit():
    _, (left, right) = figures.new_figure(6, 3, columns=2)
    figures.draw_merges(left, {"near": [1e-4]}, unit="nats")
    figures.draw_batch_merges(right, {"near": [1e-4]}, unit="nats")
    assert (left.get_ylabel(), right.get_ylabel()) == ("|loss change| (nats)", "loss change (nats)")
    figures.draw_batch_merges(right, {"near": [1e-4]})
    assert right.get_ylabel() == "loss change"


def test_every_style_of_line_on_a_map_is_explained_and_its_ends_are_named():
    _, axes = figures.new_figure(4, 4)
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    names = [10, 11, 12, 13]
    figures.draw_neuron_map(axes, points, [0] * 4, names, [(0, 1)], dotted=[(2, 3)], dotted_means="dearer")
    legend = {text.get_text(): line for text, line in zip(*_texts_and_lines(axes.get_legend()), strict=True)}
    assert (legend["nearest pair"].get_linestyle(), legend["dearer"].get_linestyle()) == ("-", ":")
    assert {text.get_text() for text in axes.texts} == set(map(str, names))


def _texts_and_lines(legend):
    return legend.get_texts(), legend.get_lines()


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


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2e-7, 0.3, ["10⁻⁶", "10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1"]),
        (0.4, 3000, ["1", "10", "100", "1,000"]),
        (4, 60, ["5", "10", "20", "50"]),
        (3e6, 8e6, ["5 · 10⁶"]),
        (1e-9, 1e9, ["10⁻⁹", "10⁻⁶", "0.001", "1", "1,000", "10⁶", "10⁹"]),
    ],
)
def test_log_axes_have_powers_of_ten(low, high, ticks):
    figure, axes = figures.new_figure(4, 3)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    figures.log_axis(axes.yaxis, low, high)
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_yticklabels()] == ticks


def drawn(svg: str) -> set[str]:
    return {text for text in re.findall(r">([^<>]+)</text>", svg) if text.strip()}


def test_a_panel_holds_its_own_axes_and_colour_bar_alone():
    figure, (left, right) = figures.new_figure(8, 3, columns=2)
    figures.draw_pair_scatter(left, np.arange(9), np.arange(9), (1, 2), figures.BLUE)
    figures.draw_cosine_matrix(right, np.eye(5))
    whole = drawn(figures.to_svg(figure, "whole"))
    panels = figures.to_panels(figure, "f").split("<div>")[1:]
    one, two = map(drawn, panels)
    assert {"neuron 1", "neuron 2"} <= one
    assert "cosine of activations" in two
    assert not {"neuron 1", "cosine of activations"} & (one & two)
    assert one | two == whole
    sizes = [tuple(map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', panel).groups())) for panel in panels]
    assert sizes[0] == pytest.approx(sizes[1])
    assert len(set(re.findall(r'\bid="([^"]+)"', panels[0])) & set(re.findall(r'\bid="([^"]+)"', panels[1]))) == 0


def test_a_wide_figure_comes_twice_and_a_narrow_one_once():
    for width, count in ((7.6, 2), (4.7, 1)):
        figure, axes = figures.new_figure(width, 3)
        axes.plot([1, 2])
        text = figures.to_panels(figure, "f")
        assert text.count("<svg") == count
        assert text.count('class="phone"') == count - 1
    widths = [float(found) for found in re.findall(r'<svg[^>]*width="([\d.]+)pt"', text)]
    assert widths == [pytest.approx(4.7 * 72)]


def test_rows_of_one_column_stay_together():
    figure, (upper, lower) = figures.new_figure(7.6, 5, rows=2)
    upper.set_title("upper")
    lower.set_title("lower")
    assert all({"upper", "lower"} <= drawn(part) for part in figures.to_panels(figure, "f").split("<div ")[1:])


def test_names_on_a_map_do_not_lie_on_one_another():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.001, 0.0], [1.001, 0.0], [0.5, 1.0], [0.5, 0.5]])
    figure, axes = figures.new_figure(4.7, 4.5)
    names = [101, 102, 103, 104, 105, 106]
    figures.draw_neuron_map(axes, points, [0, 0, 0, 1, 1, 1], names, [(0, 1), (2, 3), (4, 5)])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(two) for place, one in enumerate(boxes) for two in boxes[:place])
    assert {text.get_text() for text in axes.texts} == {"101", "102", "105", "106"}
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["0 (3)", "1 (3)", "nearest pair"]
