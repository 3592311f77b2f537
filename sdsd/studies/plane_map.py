"""A layer on a plane, for `sdsd map` and the demonstration: who fires together, in which clusters, who is dead."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from ..geometry.neighbours import NeuronPair, alive_neurons
from ..geometry.pairs import disjoint_pairs
from ..geometry.similarity import neuron_cosine_matrix

MOST_EMBEDDED = 600
MOST_CLUSTERED = 3000
MOST_CLUSTERS = 10


@dataclass(frozen=True)
class PlaneMap:
    """What the cosine matrix of one layer says.

    Attributes:
        cosine: the cosine matrix, dead neurons' rows and columns zero.  # shape: (n, n)
        alive: which neurons fire at all.  # shape: (n,)
        nearest, farthest: disjoint pairs of live neurons, most extreme first.
        order: live neurons, cluster by cluster.
        clusters: the cluster of each neuron in `order`, counted from 0 in that order; all 0 in a large layer.
        silhouette: how well the clusters are separated, −1 to 1; NaN where there are none.
        points: the plane that keeps 1 − cosine best, one row a neuron of `order`; None in a large layer.
        stress: Kruskal's stress-1 of the plane, 0 for a faithful picture; NaN without one.
    """

    cosine: Tensor
    alive: Tensor
    nearest: list[NeuronPair]
    farthest: list[NeuronPair]
    order: list[int]
    clusters: list[int]
    silhouette: float
    points: np.ndarray | None
    stress: float

    @property
    def dead(self) -> list[int]:
        return (~self.alive).nonzero().flatten().tolist()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the matrix, as plain values."""
        return {
            "neurons": len(self.alive),
            "dead": self.dead,
            "nearest": [pair._asdict() for pair in self.nearest],
            "farthest": [pair._asdict() for pair in self.farthest],
            "order": self.order,
            "clusters": self.clusters,
            "silhouette": self.silhouette,
            "points": None if self.points is None else self.points.tolist(),
            "stress": self.stress,
        }


def default_neuron_dim(activations: Tensor) -> int:
    """The last dimension of 2-D and 3-D activations, 1 from 4-D up."""
    return 1 if activations.ndim >= 4 else -1


def map_neurons(
    activations: Tensor, *, neuron_dim: int | None = None, pairs: int = 10, center: bool = False, seed: int = 0
) -> PlaneMap:
    """Map a layer from its activations.

    Args:
        activations: a layer's output after the nonlinearity, (samples, neurons), (batch, channels, H, W), …
        neuron_dim: as in `neuron_cosine_matrix`.
        pairs: how many nearest and farthest pairs to list.
        center: subtract each neuron's mean first, so that the cosine is a correlation.
        seed: of the embedding in the plane.
    """
    require("sklearn", extra="report", purpose="the neuron map")
    activations = activations.detach()
    cosine = neuron_cosine_matrix(activations, neuron_dim=neuron_dim, center=center).cpu()
    alive = alive_neurons(activations, default_neuron_dim(activations) if neuron_dim is None else neuron_dim).cpu()
    alive &= cosine.diagonal().isfinite() & (cosine.diagonal() != 0)
    live = alive.nonzero().flatten()
    distance = 1.0 - cosine[live][:, live].double().numpy().clip(-1.0, 1.0)
    np.fill_diagonal(distance, 0.0)
    order, clusters, silhouette = _cluster(distance)
    points, stress = _embed(distance, seed)
    count = min(pairs, len(live) // 2)
    nearest, farthest = (
        list(disjoint_pairs(cosine=cosine, alive=alive, pairs=count, which=which)) if count else []
        for which in ("nearest", "farthest")
    )
    return PlaneMap(
        cosine=cosine,
        alive=alive,
        nearest=nearest,
        farthest=farthest,
        order=live[torch.tensor(order, dtype=torch.long)].tolist(),
        clusters=[clusters[position] for position in order],
        silhouette=silhouette,
        points=None if points is None else points[order],
        stress=stress,
    )


def _cluster(distance: np.ndarray) -> tuple[list[int], list[int], float]:
    """Order of the rows in Ward's tree, the cluster of each row, and the silhouette of the best cut.

    Ward's tree needs Euclidean distances: those of the unit vectors, √(2 (1 − cosine)).
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    count = len(distance)
    if count < 4 or count > MOST_CLUSTERED:
        return list(range(count)), [0] * count, float("nan")
    apart = squareform(np.sqrt(2 * distance), checks=False)
    tree = linkage(apart, "ward", optimal_ordering=count <= MOST_EMBEDDED)
    order = leaves_list(tree).tolist()
    best, labels = float("nan"), np.zeros(count, dtype=int)
    for wanted in range(2, min(MOST_CLUSTERS, count - 1) + 1):
        cut = fcluster(tree, wanted, "maxclust")
        if not 2 <= len(set(cut)) < count:
            continue
        score = float(silhouette_score(distance, cut, metric="precomputed"))
        if not score <= best:
            best, labels = score, cut
    renamed = {label: index for index, label in enumerate(dict.fromkeys(labels[order].tolist()))}
    return order, [renamed[label] for label in labels.tolist()], best


def _embed(distance: np.ndarray, seed: int) -> tuple[np.ndarray | None, float]:
    """Metric multidimensional scaling of `distance` in the plane, turned so that its long axis lies flat."""
    count = len(distance)
    if count < 3 or count > MOST_EMBEDDED or not distance.any():
        return None, float("nan")
    from sklearn.manifold import MDS

    options: dict[str, Any] = {"n_components": 2, "random_state": seed, "n_init": 16, "max_iter": 500}
    known = inspect.signature(MDS).parameters
    if "metric_mds" in known:
        options |= {"metric": "precomputed", "init": "random"}
    else:
        options |= {"dissimilarity": "precomputed"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = MDS(**options).fit_transform(distance)
    points = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    axes = axes * np.where(axes[np.arange(2), np.abs(axes).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    points = points @ axes.T
    shown = np.linalg.norm(points[:, None] - points[None], axis=2)
    return points, float(np.sqrt(((shown - distance) ** 2).sum() / (distance**2).sum()))
