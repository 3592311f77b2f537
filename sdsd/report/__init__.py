"""Figures and self-contained HTML pages.

==================================================  ==================================================================
`new_figure`, `save_png`, `to_svg`, `to_panels`     a figure in the house style, as a file, and as parts of a page
`draw_noise_scale`, `draw_layer_gamma`              signal and noise over steps
`draw_accuracy`                                     accuracy over steps
`draw_neuron_map`, `draw_cosine_matrix`             neurons on a plane, and their cosines
`draw_pair_scatter`                                 what two neurons answer to the same samples
`draw_merges`, `draw_batch_merges`                  what merging pairs costs, one at a time and all at once
`plain_number`                                      a number as people write it
`figures/`                                          these and more, with the colours of the style
`html.py`                                           one page from plain sections; the standard library alone
`geometry_page.py`                                  parts of a page about neurons
`live/`                                             the page of `sdsd watch`
==================================================  ==================================================================

A `draw_…` function fills given axes and computes nothing. matplotlib is imported when the first figure is made (the
extra "report")::

    from sdsd import report

    figure, axes = report.new_figure(6, 5)
    report.draw_neuron_map(axes, neurons.plane().points, neurons.clusters, neurons.order, neurons.links())
    report.save_png(figure, "map.png")
"""

from . import geometry_page as geometry_page
from . import html
from .figures import (
    draw_accuracy,
    draw_batch_merges,
    draw_cosine_matrix,
    draw_layer_gamma,
    draw_merges,
    draw_neuron_map,
    draw_noise_scale,
    draw_pair_scatter,
    new_figure,
    plain_number,
    save_png,
    to_panels,
    to_svg,
)

__all__ = [
    "draw_accuracy",
    "draw_batch_merges",
    "draw_cosine_matrix",
    "draw_layer_gamma",
    "draw_merges",
    "draw_neuron_map",
    "draw_noise_scale",
    "draw_pair_scatter",
    "html",
    "new_figure",
    "plain_number",
    "save_png",
    "to_panels",
    "to_svg",
]
