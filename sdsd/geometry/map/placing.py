"""From a cosine matrix to all that a map of neurons says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdsd_kernels import checks

from ..cosines import disjoint_pairs
from .embedding import METHODS, cluster, effective_rank, embed

MOST_PLACED = 5000
"""Live neurons that are placed and grouped; of a larger layer a random sample is, for steps × n² grow."""


@dataclass(frozen=True)
class Placing:
    """How neurons are placed and grouped, as in `NeuronMap.from_model`."""

    pairs: int
    clusters: int | None
    method: str
    seed: int

    def __post_init__(self) -> None:
        checks.check_integer(self.pairs, "pairs", least=0)
        checks.check_count(self.clusters, "clusters", least=2, of="groups", optional=True)
        checks.check_choice(self.method, "method", METHODS)
        checks.check_integer(self.seed, "seed", least=0, most=2**32 - 1)


@dataclass(frozen=True)
class About:
    """Where the cosines come from, as far as anybody told."""

    layer: str
    taken_after: str = ""
    samples: int = 0
    note: str = ""


def placed_neurons(
    cosine: Tensor, norms: Tensor | None, alive: Tensor, correlation: Tensor | None, placing: Placing, about: About
) -> dict[str, Any]:
    """The attributes of a `NeuronMap` by name."""
    cosine = cosine.detach().cpu()
    alive = alive.bool().cpu() & (cosine.diagonal() > 0)
    live = alive.nonzero().flatten()
    placed = live
    if len(live) > MOST_PLACED:
        drawn = torch.randperm(len(live), generator=torch.Generator().manual_seed(int(placing.seed)))[:MOST_PLACED]
        placed = live[drawn.sort().values]
    inside = cosine if len(placed) == len(alive) else cosine[placed][:, placed]
    groups = cluster(inside, placing.clusters, seed=placing.seed)
    embedding = embed(inside, method=placing.method, seed=placing.seed)
    order = torch.tensor(groups.order, dtype=torch.long)
    count = min(placing.pairs, len(live) // 2)
    near, far = (
        tuple(disjoint_pairs(cosine=cosine, alive=alive, pairs=count, which=which)) if count else ()
        for which in ("nearest", "farthest")
    )
    rank = None
    if correlation is not None:
        correlation = correlation.detach().cpu()
        rank = effective_rank(correlation if len(live) == len(alive) else correlation[live][:, live])
    return {
        "layer": about.layer,
        "taken_after": about.taken_after,
        "samples": about.samples,
        "cosine": cosine,
        "norms": None if norms is None else norms.detach().double().cpu(),
        "alive": alive,
        "nearest": near,
        "farthest": far,
        "order": tuple(placed[order].tolist()),
        "clusters": tuple(groups.labels[position] for position in groups.order),
        "silhouette": groups.silhouette,
        "points": embedding.points[groups.order],
        "stress": embedding.stress,
        "effective_rank": rank,
        "method": placing.method,
        "notes": (*([about.note] if about.note else ()), *_notes(alive, len(placed), embedding.method, groups.method)),
    }


def _notes(alive: Tensor, placed: int, embedded: str, grouped: str) -> Iterator[str]:
    live = int(alive.sum())
    if placed < live:
        yield f"A random sample of {placed:,} of the {live:,} live neurons is placed and grouped; pairs are of all."
    if live < 2:
        yield f"Only {live} of {len(alive)} neurons are alive: there is nothing to compare."
    if embedded == "umap":
        yield "Placed by UMAP: neighbours are together, and distances between groups say little."
    if embedded == "short smacof":
        yield "A layer this large is placed by a bounded number of steps, so distances are less faithful."
    if grouped == "k-means":
        yield "A layer this large is grouped by k-means on its leading coordinates instead of a tree."
