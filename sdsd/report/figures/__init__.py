"""Figures in one style, drawn with matplotlib on the Agg canvas.

A `draw_…` function fills given axes and computes nothing; `new_figure` makes them, `save_png` and `to_svg` write them.
In the SVG the style's ink, grid and paper colours become the page's own, so a figure turns dark with its page.
matplotlib is imported when the first figure is made (the extra "report").

==================  ================================================================================================
`style.py`          the style and its colours; `new_figure`, `save_png`, `set_title`
`svg.py`            `to_svg`, `to_panels`: figures as elements of a page
`numbers.py`        `plain_number`, `minus`, `log_axis`: numbers as people write them
`training.py`       signal, noise and accuracy over steps
`neurons.py`        neurons on a plane, their cosines, and what they answer
`merges.py`         what merging pairs costs
`examined.py`       an examined network: its map, costs of merges, silhouettes beside those of controls
`curves.py`         curves with bands, reference lines, dots with intervals, the phase diagram
==================  ================================================================================================
"""

from .curves import draw_curves, draw_dots, draw_level, draw_phase_diagram
from .examined import draw_costs, draw_points, draw_relearning, draw_silhouettes
from .merges import draw_batch_merges, draw_merges
from .neurons import draw_cosine_matrix, draw_images, draw_neuron_map, draw_pair_scatter
from .numbers import log_axis, minus, plain_number
from .style import (
    BLUE,
    CLUSTER_COLOURS,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    TEAL,
    new_figure,
    save_png,
    set_title,
    styled,
)
from .svg import to_panels, to_svg
from .training import draw_accuracy, draw_layer_gamma, draw_noise_scale

__all__ = [
    "BLUE",
    "CLUSTER_COLOURS",
    "GREEN",
    "GRID",
    "INK",
    "MUTED",
    "ORANGE",
    "PURPLE",
    "RED",
    "TEAL",
    "draw_accuracy",
    "draw_batch_merges",
    "draw_cosine_matrix",
    "draw_costs",
    "draw_curves",
    "draw_dots",
    "draw_images",
    "draw_layer_gamma",
    "draw_level",
    "draw_merges",
    "draw_neuron_map",
    "draw_noise_scale",
    "draw_pair_scatter",
    "draw_phase_diagram",
    "draw_points",
    "draw_relearning",
    "draw_silhouettes",
    "log_axis",
    "minus",
    "new_figure",
    "plain_number",
    "save_png",
    "set_title",
    "styled",
    "to_panels",
    "to_svg",
]
