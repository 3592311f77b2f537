"""A neuron map as files people look at: a point cloud (PLY), a picture (PNG), an interactive page (HTML).

The page holds everything it needs, plotly.js included, and a content policy under which a browser fetches nothing.
plyfile, matplotlib and plotly are imported when the first such file is written (the extra "report").
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._drafts import draft_of
from ..._drawing import figure_and_axes
from ..._extras import MissingExtraError, require

if TYPE_CHECKING:
    from .neuron_map import NeuronMap

CLUSTER_COLOURS = (
    "#3b78e7",
    "#ee8a2c",
    "#2fa572",
    "#9467d4",
    "#df5452",
    "#2ba3b8",
    "#b8923a",
    "#d765a8",
    "#7f8c9b",
    "#6d8f3c",
)
GRID = "#dde2e8"
BUTTONS = {
    "left": "turn left",
    "right": "turn right",
    "up": "tilt up",
    "down": "tilt down",
    "nearer": "closer",
    "farther": "farther",
}
"""Ways to look at a map (map_controls.js), and what stands on their buttons."""
HINT = (
    "Drag to turn, scroll or pinch to zoom, point at a neuron for its nearest neighbours or choose it below the map, "
    "click the legend to hide a cluster."
)
SIZE = "The larger a point, the more strongly the neuron answers."
STRESS = "Stress is how far distances on the map are from those meant: 0 would be exact."
NEIGHBOURS = 5
SMALLEST, LARGEST = 5.0, 16.0
"""Diameters of points on the page, in pixels: of a neuron with norm 0 and of that with the largest."""

OFFLINE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; img-src data: blob:"
)
"""What a page of this library may load: what stands in it. plotly.js compiles its shader code with Function()."""


def save_ply(neuron_map: NeuronMap, path: str | Path) -> Path:
    """Write a binary PLY file: one vertex a live neuron, one edge a nearest pair.

    A vertex has x, y, z, its cluster's colour (red, green, blue), `neuron`, `cluster` and `norm` (0 if not known).

    Raises:
        MissingExtraError: plyfile is not installed.
        OSError: the file cannot be written.
    """
    plyfile = require("plyfile", extra="report", purpose="writing a PLY file")
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in CLUSTER_COLOURS]
    norms = np.zeros(len(neuron_map.alive)) if neuron_map.norms is None else neuron_map.norms.numpy()
    vertices = np.array(
        [
            (*point, *colours[cluster % len(colours)], neuron, cluster, norms[neuron])
            for point, cluster, neuron in zip(
                neuron_map.points.tolist(), neuron_map.clusters, neuron_map.order, strict=True
            )
        ],
        dtype=[
            *((name, "f4") for name in "xyz"),
            *((name, "u1") for name in ("red", "green", "blue")),
            ("neuron", "i4"),
            ("cluster", "i4"),
            ("norm", "f4"),
        ],
    )
    edges = np.array(neuron_map.links(), dtype=[("vertex1", "i4"), ("vertex2", "i4")])
    elements = [plyfile.PlyElement.describe(vertices, "vertex"), plyfile.PlyElement.describe(edges, "edge")]
    path = Path(path)
    with draft_of(path) as draft:
        plyfile.PlyData(elements, byte_order="<", comments=[f"sdsd neuron map {neuron_map.layer}".strip()]).write(draft)
    return path


def save_png(neuron_map: NeuronMap, path: str | Path, *, dpi: int = 144) -> Path:
    """Draw the map in perspective: colour by cluster, size by norm, lines between nearest pairs.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure, _ = draw(neuron_map)
    figure.text(0.01, 0.01, summary_of(neuron_map), fontsize=8.5, color="#66707d")
    path = Path(path)
    figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})
    return path


def draw(neuron_map: NeuronMap, axes: Any = None) -> tuple[Any, Any]:
    """The map in matplotlib axes: see `NeuronMap.plot`."""
    figure, axes = figure_and_axes(axes, 6.4, 5.6, projection="3d")
    deep = hasattr(axes, "get_zlim")
    points, clusters = neuron_map.points, np.asarray(neuron_map.clusters, dtype=int)
    if not deep:
        points = neuron_map.plane().points
    for first, second in neuron_map.links():
        axes.plot(*points[[first, second]].T, color="#1b2430", linewidth=1.0)
    sizes = (0.6 * np.asarray(_diameters(neuron_map))) ** 2
    for group in range(clusters.max() + 1 if len(clusters) else 0):
        here = clusters == group
        axes.scatter(
            *points[here].T,
            s=sizes[here],
            color=CLUSTER_COLOURS[group % len(CLUSTER_COLOURS)],
            edgecolors="white",
            linewidths=0.6,
            label=f"cluster {group}",
        )
    if 1 < len(set(neuron_map.clusters)) <= len(CLUSTER_COLOURS):
        # In the plane beside the neurons; in space the corners are free.
        place = {} if deep else {"bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
        axes.legend(loc="upper left", fontsize=8, frameon=False, **place)
    if not deep:
        axes.set_aspect("equal", adjustable="datalim")
    elif len(points):
        axes.set_box_aspect(np.maximum(np.ptp(points, axis=0), 1e-3 * max(np.ptp(points), 1e-30)))
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis) if deep else ():
        axis.set_ticks_position("none")
        axis.set_ticklabels([])
        axis.set_pane_color((0.97, 0.973, 0.978, 1.0))
        axis.line.set_color(GRID)
        axis._axinfo["grid"]["color"] = GRID
    axes.set_title(title_of(neuron_map), fontsize=10.5, loc="left")
    return figure, axes


def notebook_view(neuron_map: NeuronMap) -> str:
    """An element for notebooks: see `NeuronMap._repr_html_`."""
    lines = [f"<b>{escape(title_of(neuron_map))}</b><br>{escape(summary_of(neuron_map))}"]
    lines += [f"<br>{escape(note)}" for note in neuron_map.notes]
    with contextlib.suppress(MissingExtraError):
        figure, _ = draw(neuron_map)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=96, metadata={"Software": None})
        image = base64.b64encode(picture.getvalue()).decode()
        lines.append(f'<br><img alt="{escape(title_of(neuron_map), quote=True)}" src="data:image/png;base64,{image}">')
    for name, pairs in (("nearest", neuron_map.nearest), ("farthest", neuron_map.farthest)):
        cells = "".join(f"<td>{first} – {second}<br>{cosine:.3f}</td>" for first, second, cosine in pairs)
        if cells:
            lines.append(f"<table><tr><th>{name}</th>{cells}</tr></table>")
    return f"<div>{''.join(lines)}</div>"


def save_html(neuron_map: NeuronMap, path: str | Path) -> Path:
    """Write a page with the map to turn, zoom and point at. It opens without a network and fetches nothing.

    Colour is the cluster, size the norm; pointing at a neuron, or choosing it in the list below the map, shows its
    number, norm and nearest neighbours; a click in the legend hides a cluster. Buttons turn the map by keyboard.

    Raises:
        MissingExtraError: plotly is not installed.
        OSError: the file cannot be written.
    """
    notes = "".join(f"<p>{escape(note)}</p>" for note in neuron_map.notes)
    text = PAGE.substitute(
        policy=OFFLINE_POLICY,
        title=escape(title_of(neuron_map)),
        summary=escape(summary_of(neuron_map)),
        notes=notes,
        library=plot_library(),
        style=MAP_STYLE,
        plot=plot(neuron_map, "map"),
        hint=" ".join([HINT, *[SIZE] * (neuron_map.norms is not None), STRESS]),
    )
    path = Path(path)
    with draft_of(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def plot_library() -> str:
    """Script elements that every page with a `plot` needs once: plotly.js, and the code that draws maps with it."""
    require("plotly", extra="report", purpose="the interactive neuron map")
    from plotly.offline import get_plotlyjs

    here = resources.files(__package__)
    ours = "\n".join(here.joinpath(name).read_text(encoding="utf-8") for name in ("neuron_map.js", "map_controls.js"))
    return f"<script>{get_plotlyjs()}</script>\n<script>{ours}</script>"


def plot(neuron_map: NeuronMap, name: str, height: int = 560) -> str:
    """The map with its controls, on a page with `plot_library` and `MAP_STYLE`; `name` is its id, once a page."""
    buttons = "".join(f'<button type="button" data-way="{way}">{words}</button>' for way, words in BUTTONS.items())
    data = json.dumps(_plot_data(neuron_map), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return (
        f'<div class="neuron-map" id="{name}" style="height:{height}px" role="group" '
        f'aria-label="{escape(title_of(neuron_map), quote=True)}"></div>'
        f'<div class="map-controls" id="{name}-controls"><label>Neuron <select><option value="">choose</option>'
        f'</select></label> {buttons}<output aria-live="polite"></output></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>'
        f'<script>drawNeuronMap("{name}"); mapControls("{name}")</script>'
    )


def title_of(neuron_map: NeuronMap) -> str:
    """For example: Neurons of layer 'hidden1', after relu."""
    layer = f" of layer {neuron_map.layer!r}" if neuron_map.layer else ""
    after = f", after {neuron_map.taken_after}" if neuron_map.taken_after not in ("", "output") else ""
    return f"Neurons{layer}{after}"


def summary_of(neuron_map: NeuronMap) -> str:
    """The map's figures in one line."""
    placed, dead = len(neuron_map.order), len(neuron_map.dead)
    live = len(neuron_map.alive) - dead
    parts = [
        (f"{placed} neurons" if placed == live else f"{placed} of {live} live neurons, a random sample")
        + (f", {dead} dead and left out" if dead else "")
    ]
    if neuron_map.silhouette is not None:
        parts.append(f"{len(set(neuron_map.clusters))} clusters, silhouette {neuron_map.silhouette:.2f}")
    if neuron_map.effective_rank is not None:
        parts.append(f"effective rank {neuron_map.effective_rank:.1f}")
    placed_by = "placed by UMAP" if neuron_map.method == "umap" else "distance ≈ 1 − cosine"
    parts.append(f"{placed_by}, stress {neuron_map.stress:.2f}")
    return " · ".join(parts)


def _diameters(neuron_map: NeuronMap) -> list[float]:
    if neuron_map.norms is None:
        return [(SMALLEST + LARGEST) / 2] * len(neuron_map.order)
    norms = neuron_map.norms[list(neuron_map.order)]
    largest = norms.max().item() if len(norms) else 0.0
    shares = norms / largest if largest > 0 else norms
    return (SMALLEST + (LARGEST - SMALLEST) * shares).tolist()


def _plot_data(neuron_map: NeuronMap) -> dict[str, Any]:
    """What neuron_map.js draws: one trace a cluster, and lines between nearest pairs."""
    points = neuron_map.points.astype(float).round(5).tolist()
    diameters = _diameters(neuron_map)
    indices, cosines = (part.tolist() for part in neuron_map.neighbours(NEIGHBOURS))
    traces = []
    for group in sorted(set(neuron_map.clusters)):
        here = [position for position, cluster in enumerate(neuron_map.clusters) if cluster == group]
        texts = []
        for position in here:
            neuron = neuron_map.order[position]
            norm = "" if neuron_map.norms is None else f" · norm {neuron_map.norms[neuron].item():.3g}"
            near = (
                f"{other} ({cosine:.2f})" for other, cosine in zip(indices[position], cosines[position], strict=True)
            )
            texts.append(f"<b>neuron {neuron}</b> · cluster {group}{norm}<br>nearest: {', '.join(near) or '–'}")
        traces.append(
            {
                "name": f"cluster {group} ({len(here)})",
                "colour": CLUSTER_COLOURS[group % len(CLUSTER_COLOURS)],
                "points": [points[position] for position in here],
                "sizes": [round(diameters[position], 2) for position in here],
                "texts": texts,
            }
        )
    return {"traces": traces, "links": [[points[first], points[second]] for first, second in neuron_map.links()]}


MAP_STYLE = """
.map-controls { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-top: 10px; }
.map-controls output { flex-basis: 100%; }
.map-controls :is(button, select) { font: inherit; font-size: 0.9rem; color: var(--ink); background: var(--surface);
  border: 1px solid var(--grid); border-radius: 8px; padding: 4px 10px; min-height: 32px; cursor: pointer; }
"""
"""How controls look, in the page's --ink, --surface and --grid."""

PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --paper: #ffffff; --surface: #f6f8fa; --ink: #1b2430; --muted: #66707d;
  --grid: #dde2e8; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --surface: #1b2129; --ink: #e6eaf0; --muted: #98a3b1;
  --grid: #323b47; } }
body { margin: 0; padding: 16px 24px; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.3rem; margin: 0; }
p { color: var(--muted); margin: 4px 0; }
.neuron-map { min-height: calc(100vh - 250px); }
@media (max-width: 620px) { body { padding: 12px 16px; } .neuron-map { min-height: 0; } }
$style</style>
$library
</head>
<body>
<main>
<h1>$title</h1>
<p>$summary</p>
$notes
$plot
<p>$hint</p>
</main>
</body>
</html>
"""
)
