"""`NeuronMap`: the neurons of one layer as points in space, near where they do the same job."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._progress import Progress
from ..arithmetic import norms_of
from ..arrays import alive_flags, as_tensor
from ..collect import MOST_BYTES, Forward, LayerActivations, Mask, collect_activations
from ..cosines import NeuronPair, alive_from_norms, as_cosine, neuron_cosine_matrix
from .embedding import BLOCK, Embedding, embed
from .files import load_map, save_map
from .placing import About, Placing, placed_neurons

PAIRS = 10


@dataclass(frozen=True, eq=False)
class NeuronMap:
    """What the cosine matrix of one layer says. Made by `from_model`, `from_activations` or `from_cosine`.

    Neurons that are dead, or have a NaN or an infinity, are listed and left out of everything but the matrix.

    Attributes:
        layer: the layer's name; "" if nobody told.
        taken_after: "output" or the nonlinearity behind the layer; "" if nobody told.
        samples: how many each neuron answered; 0 if nobody told.
        cosine: of every pair of neurons, on the CPU; rows and columns of dead neurons are zero.  # shape: (n, n)
        norms: of the activations; None for a map made from cosines alone.  # shape: (n,), float64
        alive: which neurons are on the map.  # shape: (n,), bool
        nearest, farthest: disjoint pairs of them, the most extreme first.
        order: live neurons, cluster by cluster; of more than 5,000 a random sample.
        clusters: the cluster of each neuron of `order`, counted from 0.
        silhouette: how well clusters are separated, −1 to 1; None for fewer than four live neurons.
        points: one row a neuron of `order`, distances ≈ 1 − cosine.  # shape: (len(order), 3), float32
        stress: Kruskal's stress-1 of the points, 0 for a faithful picture.
        method: what placed them: "smacof" | "umap".
        effective_rank: exp of the entropy of the correlation matrix's eigenvalues; None where it is not known.
        notes: what a reader of the map should know, in sentences.
    """

    layer: str
    taken_after: str
    samples: int
    cosine: Tensor
    norms: Tensor | None
    alive: Tensor
    nearest: tuple[NeuronPair, ...]
    farthest: tuple[NeuronPair, ...]
    order: tuple[int, ...]
    clusters: tuple[int, ...]
    silhouette: float | None
    points: np.ndarray
    stress: float
    effective_rank: float | None
    notes: tuple[str, ...] = ()
    method: str = "smacof"

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        layer: str,
        loader: Iterable[Any],
        *,
        after_nonlinearity: bool | None = None,
        pairs: int = PAIRS,
        clusters: int | None = None,
        method: str = "smacof",
        seed: int = 0,
        neuron_dim: int | None = None,
        max_bytes: int = MOST_BYTES,
        max_batches: int | None = None,
        device: torch.device | str | None = None,
        forward: Forward | None = None,
        mask: Mask = None,
        progress: Progress = False,
    ) -> NeuronMap:
        """Map a layer of a model from its answers to a loader's batches, in memory that does not grow with them.

        Args:
            layer: name of one layer, or a pattern that matches one.
            pairs: how many nearest and farthest pairs to list.
            clusters: how many; None: the 2 to 10 with the best silhouette. Silhouettes of two maps compare only at the
                same number.
            method: what places neurons: "smacof", whose distances are 1 − cosine as well as can be, or "umap", which
                keeps neighbours together and lets distances go.
            seed: of the embedding.
            model, loader, after_nonlinearity, neuron_dim, max_bytes, max_batches, device, forward, mask, progress: as
                in `collect_activations`.

        Raises:
            TypeError, ValueError: as `collect_activations`; a pattern that matches several layers.
            MissingExtraError: scikit-learn, or umap-learn for method="umap", is not installed.

        Example:
            >>> _ = torch.manual_seed(0)
            >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> neurons = NeuronMap.from_model(model, "0", [torch.randn(50, 3)])
            >>> neurons.points.shape, neurons.taken_after, neurons.nearest[0].cosine > neurons.farthest[0].cosine
            ((8, 3), 'relu', True)
        """
        placing = Placing(pairs, clusters, method, seed)
        collected = collect_activations(
            model,
            loader,
            layer,
            after_nonlinearity=after_nonlinearity,
            max_bytes=max_bytes,
            max_batches=max_batches,
            neuron_dim=neuron_dim,
            device=device,
            forward=forward,
            mask=mask,
            progress=progress,
        )
        if len(collected) > 1:
            raise ValueError(f"layer: expected a pattern that matches one layer, got {', '.join(collected)}. Name one.")
        only = next(iter(collected.values()))
        return cls._of_layer(only, placing)

    @classmethod
    def from_activations(
        cls,
        activations: Tensor | np.ndarray | LayerActivations,
        *,
        neuron_dim: int | None = None,
        center: bool = False,
        layer: str = "",
        pairs: int = PAIRS,
        clusters: int | None = None,
        method: str = "smacof",
        seed: int = 0,
    ) -> NeuronMap:
        """Map a layer from activations.

        Args:
            activations: a layer's output after the nonlinearity as `neuron_cosine_matrix` takes it; or what
                `collect_activations` gave for a layer.
            neuron_dim: as in `neuron_cosine_matrix`; what was collected knows it.
            center: map correlations instead of cosines.
            layer: its name, for titles; "": that of what was collected.
            pairs, clusters, method, seed: as in `from_model`.

        Raises:
            TypeError, ValueError: as `neuron_cosine_matrix`; neuron_dim for what was collected.
            MissingExtraError: scikit-learn is not installed.
        """
        placing = Placing(pairs, clusters, method, seed)
        if isinstance(activations, LayerActivations):
            if neuron_dim is not None:
                raise ValueError("neuron_dim: it goes with a tensor; collect_activations takes it where it collects.")
            return cls._of_layer(activations, placing, center, layer)
        tensor = as_tensor(activations)
        if tensor.is_meta:
            raise ValueError("activations: expected values; a tensor on the meta device has none. Use another device.")
        correlation = neuron_cosine_matrix(tensor, neuron_dim=neuron_dim, center=True)
        cosine = correlation if center else neuron_cosine_matrix(tensor, neuron_dim=neuron_dim)
        dim = (1 if tensor.ndim >= 4 else -1) if neuron_dim is None else neuron_dim
        norms = norms_of(rows := tensor.detach().movedim(dim, 0))
        about = About(layer, samples=rows[0].numel())
        return cls(**placed_neurons(cosine, norms, alive_from_norms(norms), correlation, placing, about))

    @classmethod
    def _of_layer(cls, got: LayerActivations, placing: Placing, center: bool = False, layer: str = "") -> NeuronMap:
        correlation = got.cosine_matrix(center=True)
        cosine = correlation if center else got.cosine_matrix()
        about = About(layer or got.layer, got.taken_after, got.samples, got.note)
        return cls(**placed_neurons(cosine, got.norms(), got.alive, correlation, placing, about))

    @classmethod
    def from_cosine(
        cls,
        cosine: Tensor | np.ndarray,
        *,
        norms: Tensor | np.ndarray | None = None,
        alive: Tensor | np.ndarray | None = None,
        correlation: Tensor | np.ndarray | None = None,
        layer: str = "",
        pairs: int = PAIRS,
        clusters: int | None = None,
        method: str = "smacof",
        seed: int = 0,
    ) -> NeuronMap:
        """Map a layer from a cosine matrix, of weights for example, or of a `GramAccumulator`.

        Args:
            cosine: symmetric, 1 on the diagonal of neurons that have a direction.  # shape: (n, n)
            norms: of the neurons, which decide the size of points and who is dead.  # shape: (n,)
            alive: who is on the map; None: by norms, or else all that have a direction.  # shape: (n,), bool
            correlation: for the effective rank: centred cosine.  # shape: (n, n)
            layer, pairs, clusters, method, seed: as in `from_model`.

        Returns:
            The map of neurons that are alive.

        Raises:
            TypeError: no tensors or arrays.
            ValueError: a matrix that is not square or not symmetric, or one of distances; norms, alive or correlation
                of another size; norms below 0; alive that is not booleans.
            MissingExtraError: scikit-learn is not installed.
        """
        cosine = as_cosine(cosine)
        n = cosine.shape[0]
        norms = None if norms is None else as_tensor(norms, "norms")
        correlation = None if correlation is None else as_cosine(correlation, "correlation")
        given = {"norms": (norms, (n,)), "correlation": (correlation, (n, n))}
        for name, (value, shape) in given.items():
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape} for {n} neurons, got {tuple(value.shape)}.")
        if norms is not None and (norms.is_complex() or bool((norms < 0).any())):
            raise ValueError("norms: expected numbers of at least 0, got complex or negative ones.")
        if alive is not None:
            alive = alive_flags(alive, n)
        else:
            alive = torch.ones(n, dtype=torch.bool) if norms is None else alive_from_norms(norms)
        placing = Placing(pairs, clusters, method, seed)
        return cls(**placed_neurons(cosine, norms, alive, correlation, placing, About(layer)))

    @property
    def dead(self) -> list[int]:
        """Neurons that are never on the map: those that do not answer, or not with finite numbers."""
        return (~self.alive).nonzero().flatten().tolist()

    @property
    def not_finite(self) -> list[int]:
        """Those of `dead` that answer with NaN or infinity; [] for a map made without norms."""
        return [] if self.norms is None else (~self.norms.isfinite()).nonzero().flatten().tolist()

    def neighbours(self, count: int) -> tuple[Tensor, Tensor]:
        """The nearest neurons of each one in `order`, of those in it, and their cosines, nearest first.

        Args:
            count: how many of each, cut to the number of others.

        Returns:
            (places in `order`, int64; cosines).  # shape: (len(order), count) each
        """
        order = torch.tensor(self.order, dtype=torch.long)
        count = min(count, max(len(order) - 1, 0))
        indices, cosines = torch.empty(len(order), count, dtype=torch.long), self.cosine.new_empty(len(order), count)
        for top in range(0, len(order), BLOCK):
            rows = self.cosine[order[top : top + BLOCK]][:, order]
            rows.diagonal(top).fill_(-torch.inf)
            cosines[top : top + BLOCK], nearest = rows.topk(count, 1)
            indices[top : top + BLOCK] = order[nearest]
        return indices, cosines

    def links(self, most: int | None = None) -> list[tuple[int, int]]:
        """The first `most` nearest pairs by their places in `order`, without those that a sample left out.

        Args:
            most: how many pairs at most; None: all.

        Returns:
            (first, second) each, places in `order`.
        """
        place = {neuron: position for position, neuron in enumerate(self.order)}
        pairs = [(pair.first, pair.second) for pair in self.nearest[:most]]
        return [(place[first], place[second]) for first, second in pairs if first in place and second in place]

    def plane(self, *, seed: int = 0) -> Embedding:
        """The map in two dimensions, for a picture on paper; one row a neuron of `order`.

        Args:
            seed: of the embedding.

        Returns:
            `Embedding` with points of shape (len(order), 2).
        """
        order = torch.tensor(self.order, dtype=torch.long)
        return embed(self.cosine[order][:, order], 2, method=self.method, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the matrix, as plain values."""
        return {
            "layer": self.layer,
            "taken_after": self.taken_after,
            "samples": self.samples,
            "neurons": len(self.alive),
            "dead": self.dead,
            "not_finite": self.not_finite,
            "nearest": [pair._asdict() for pair in self.nearest],
            "farthest": [pair._asdict() for pair in self.farthest],
            "order": list(self.order),
            "clusters": list(self.clusters),
            "silhouette": self.silhouette,
            "effective_rank": self.effective_rank,
            "points": self.points.tolist(),
            "stress": self.stress,
            "method": self.method,
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        known = [f"{int(self.alive.sum())} of {len(self.alive)} neurons alive", f"{len(set(self.clusters))} clusters"]
        if self.silhouette is not None:
            known.append(f"silhouette {self.silhouette:.2f}")
        if self.effective_rank is not None:
            known.append(f"effective rank {self.effective_rank:.1f}")
        return f"NeuronMap({f'{self.layer!r}: ' if self.layer else ''}{', '.join(known)})"

    def plot(self, *, axes: Any = None) -> tuple[Any, Any]:
        """Draw the map in perspective, or its `plane` into axes that are flat.

        Args:
            axes: matplotlib axes to draw into; None makes a figure.

        Returns:
            The figure and the axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from .export import draw

        return draw(self, axes)

    def _repr_html_(self) -> str:
        """What notebooks show: the figures, extreme pairs and, with matplotlib, the picture."""
        from .export import notebook_view

        return notebook_view(self)

    def save(self, path: str | Path) -> tuple[Path, Path]:
        """Write arrays to `path`.npz and everything else to `path`.json; both are whole or absent. Returns the paths.

        Args:
            path: of both files, without their suffixes.

        Returns:
            The paths of the arrays and of the rest.

        Raises:
            OSError: the files cannot be written.
        """
        return save_map(self, path)

    @classmethod
    def load(cls, path: str | Path) -> NeuronMap:
        """Read what `save` wrote; nothing in the files is run.

        Args:
            path: as given to `save`.

        Returns:
            The map.

        Raises:
            ValueError: a file is missing, damaged, or something else.
        """
        return cls(**load_map(path))

    def save_ply(self, path: str | Path) -> Path:
        """Write a point cloud for MeshLab, CloudCompare or Blender: see `export.save_ply`.

        Args:
            path: the file to write.

        Returns:
            The path.
        """
        from .export import save_ply

        return save_ply(self, path)

    def save_png(self, path: str | Path, *, dpi: int = 144) -> Path:
        """Draw the map in perspective: see `export.save_png`.

        Args:
            path: the file to write.
            dpi: dots an inch.

        Returns:
            The path.
        """
        from .export import save_png

        return save_png(self, path, dpi=dpi)

    def save_html(self, path: str | Path) -> Path:
        """Write an interactive page that needs no network: see `export.save_html`.

        Args:
            path: the file to write.

        Returns:
            The path.
        """
        from .export import save_html

        return save_html(self, path)
