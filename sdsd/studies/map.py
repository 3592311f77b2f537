"""`sdsd map`: the neuron map of saved activations, written to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..geometry import NeuronMap
from ..report import figures
from .engine import prepare_output, versions, write_json

DRAWN = ("cosine_matrix.png", "neuron_map.png", "map.html")
"""What is drawn where a neuron is alive."""


@dataclass(frozen=True)
class MapResult:
    """A map and the files that hold it."""

    neuron_map: NeuronMap
    results: dict[str, Any]
    written: list[Path]


def run_map(
    activations: Tensor,
    out: str | Path,
    *,
    neuron_dim: int | None = None,
    center: bool = False,
    pairs: int = 10,
    source: str = "",
) -> MapResult:
    """Map `activations` and write cosine.npy, results.json, the figures and map.html into `out`.

    Raises:
        ValueError, TypeError: activations that are none, or `out` cannot be written.
    """
    folder = prepare_output(out)
    neuron_map = NeuronMap.from_activations(activations, neuron_dim=neuron_dim, center=center, pairs=pairs)
    results = {
        "study": "map",
        "source": source,
        "shape": list(activations.shape),
        "center": center,
        "versions": versions(),
        **neuron_map.to_dict(),
    }
    written = [folder / "cosine.npy", folder / "results.json"]
    for name in DRAWN:  # of another file, perhaps, that was mapped into this folder before
        (folder / name).unlink(missing_ok=True)
    np.save(written[0], neuron_map.cosine.numpy())
    write_json(written[1], results)
    if neuron_map.order:
        written += draw(neuron_map, folder)
    return MapResult(neuron_map, results, written)


def draw(neuron_map: NeuronMap, folder: Path) -> list[Path]:
    """The cosine matrix by cluster, the map in the plane, and the page on which it can be turned."""
    order, clusters = list(neuron_map.order), neuron_map.clusters
    matrix = neuron_map.cosine[order][:, order].numpy()
    changes = [place - 0.5 for place in range(1, len(order)) if clusters[place] != clusters[place - 1]]
    figure, axes = figures.new_figure(6.0, 5.4)
    figures.draw_cosine_matrix(axes, matrix, changes, float(matrix.min()))
    figures.set_title(axes, f"{len(order)} live neurons, ordered by cluster")
    matrix_file, plane_file, page = (folder / name for name in DRAWN)
    figures.save_png(figure, matrix_file)
    figure, axes = figures.new_figure(6.0, 5.6)
    figures.draw_neuron_map(axes, neuron_map.plane().points, clusters, order, neuron_map.links())
    figures.set_title(axes, "distance ≈ 1 − cosine; lines: nearest pairs")
    figures.save_png(figure, plane_file)
    return [matrix_file, plane_file, neuron_map.save_html(page)]
