"""The nearest neurons of each by approximate search, for dictionaries of millions, with its measured recall."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdsd_kernels import checks

from ..._extras import require
from ..._progress import Progress, reporter
from ..arithmetic import peaks, plain_arithmetic
from ..arrays import neurons_first
from .neighbours import neuron_neighbors

if TYPE_CHECKING:
    import numpy as np

LINKS = 32
"""Of every neuron in the graph, as Malkov and Yashunin 2018 write it: M."""
TOGETHER = 4096
"""Neurons that are added, or looked up, between two reports."""
TIE = 1e-5
"""Cosines that differ by less are the same neighbour as far as recall goes: float32 rounds so much."""
LOW_RECALL = 0.9


@dataclass(frozen=True, eq=False)
class ApproximateNeighbors:
    """The k nearest, or farthest, neurons of every neuron as far as the search found them; row i belongs to neuron i.

    Attributes:
        values: their cosines, best first, NaN where there are fewer than k.  # shape: (neurons, k), float32
        indices: which neurons they are, −1 where there are fewer than k.  # shape: (neurons, k), int64
        recall: the share of a sample's true neighbours that were found, against exact search.
        recall_interval: Wilson's 95% interval of it, neurons counted as trials.
        checked: how many neurons the sample held.
    """

    values: Tensor
    indices: Tensor
    recall: float
    recall_interval: tuple[float, float]
    checked: int

    def __str__(self) -> str:
        low, high = self.recall_interval
        return (
            f"{self.values.shape[1]} neighbours of {len(self.values):,} neurons by approximate search, recall "
            f"{self.recall:.4f} [{low:.4f}, {high:.4f}] on {self.checked:,} of them"
        )


def approximate_neighbors(
    activations: Tensor | np.ndarray,
    k: int = 10,
    farthest: bool = False,
    *,
    neuron_dim: int | None = None,
    center: bool = False,
    effort: int = 128,
    check: int = 500,
    seed: int = 0,
    progress: Progress = False,
) -> ApproximateNeighbors:
    """The k neurons whose activations are most alike, for every neuron, by a graph of neighbours (HNSW, in faiss).

    For so many neurons that exact search, whose time grows with n², takes too long: here time grows with n log n, but
    at 20,000 neurons and 64 samples `neuron_neighbors` is still five times as fast on a CPU. What the search misses is
    measured: a random sample of neurons is looked up exactly, and the share of their true neighbours that was found is
    returned, printed with `progress=True`, and warned of where it is low.

    Runs on the CPU, in float32, with a copy of the activations and `LINKS` × 8 bytes a neuron beside.

    Args:
        activations: as `neuron_cosine_matrix` takes them.
        k: how many neighbours, from 1 to n − 1.
        farthest: the lowest cosines instead. The graph is one of near neurons: look at the recall.
        neuron_dim: the dimension that counts neurons; None means the last for two and three dimensions, 1 from four up.
        center: subtract each neuron's mean over samples first: Pearson's correlations.
        effort: neurons that a search keeps in view (efSearch): more find more, in more time.
        check: how many neurons are looked up exactly; fewer where there are not so many.
        seed: of that sample.
        progress: True for lines on standard error, or a function called with (done, total).

    Returns:
        `ApproximateNeighbors`. Neurons that are zero on every sample, or not finite, are nobody's neighbours.

    Raises:
        TypeError, ValueError: as `neuron_neighbors`; effort or check below 1.
        MissingExtraError: faiss is not installed.

    Source:
        Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
        Small World graphs".

    Example:
        >>> _ = torch.manual_seed(0)
        >>> found = approximate_neighbors(torch.randn(50, 300), k=3)
        >>> found.indices.shape, found.recall > 0.9
        (torch.Size([300, 3]), True)
    """
    faiss: Any = require("faiss", extra="neighbours", purpose="approximate search")
    rows = neurons_first(activations, neuron_dim).flatten(1)
    count = len(rows)
    if not rows.shape[1]:
        raise ValueError(f"activations: expected at least one sample, got shape {tuple(activations.shape)}.")
    k = checks.check_integer(k, "k", least=1)
    if k >= count:
        raise ValueError(f"k: expected at most {count - 1} neighbours for {count} neurons, got {k}.")
    effort, check = checks.check_count(effort, "effort"), checks.check_count(check, "check")
    seed = checks.check_integer(seed, "seed")
    report = reporter(progress, "approximate neighbours")
    with plain_arithmetic(rows.device):
        units = _unit_rows(rows, center)
    live = (units.isfinite().all(1) & (units != 0).any(1)).nonzero().flatten()
    index = faiss.IndexHNSWFlat(units.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efSearch = max(effort, k + 1)
    parts = live.split(TOGETHER) if len(live) else ()
    for done, part in enumerate(parts, 1):
        index.add(units[part].numpy())
        report(done, 2 * len(parts))
    values = torch.full((count, k), math.nan)
    indices = torch.full((count, k), -1)
    for done, part in enumerate(parts, len(parts) + 1):
        nearest = index.search((-units[part] if farthest else units[part]).numpy(), min(k + 1, len(live)))
        scores, where = torch.from_numpy(nearest[0]), torch.from_numpy(nearest[1])
        values[part], indices[part] = _without_self(scores, where, live, part, k)
        report(done, 2 * len(parts))
    if farthest:
        values.neg_()
    recall, interval, checked = _recall(
        units, live, values, k, farthest=farthest, check=min(check, len(live)), seed=seed
    )
    result = ApproximateNeighbors(values.to(rows.device), indices.to(rows.device), recall, interval, checked)
    if progress is True:
        print(result)
    if recall < LOW_RECALL:
        warnings.warn(
            f"approximate_neighbors: {recall:.1%} of the true neighbours of {checked} neurons were found. A larger "
            f"effort than {effort} finds more; neuron_neighbors finds all.",
            RuntimeWarning,
            stacklevel=2,
        )
    return result


def _unit_rows(rows: Tensor, center: bool) -> Tensor:
    """Neurons as unit vectors in float32 on the CPU, zero or NaN where there is no direction.  # shape: (n, samples)"""
    values = rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
    peak = peaks(values, values.dtype)
    values = values / torch.where((peak > 0) & peak.isfinite(), peak, 1)[:, None]
    if center:
        constant = (values == values[:, :1]).all(1)
        values = torch.where(constant[:, None], 0.0, values - values.mean(1, keepdim=True))
    return normalize(values, eps=1e-30).float().cpu().contiguous()


def _without_self(cosines: Tensor, where: Tensor, live: Tensor, part: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What a search for k + 1 neurons gave, the neuron itself left out, as numbers of neurons; NaN and −1 for none."""
    wanted = torch.where(where >= 0, live[where.clamp_min(0)], -1)
    own = (wanted == part[:, None]) | (wanted < 0)
    order = own.to(torch.int8).sort(dim=1, stable=True).indices[:, :k]
    cosines, wanted, own = (each.gather(1, order) for each in (cosines, wanted, own))
    short = k - cosines.shape[1]
    cosines, wanted = cosines.masked_fill(own, math.nan), wanted.masked_fill(own, -1)
    return (
        torch.nn.functional.pad(cosines, (0, short), value=math.nan),
        torch.nn.functional.pad(wanted, (0, short), value=-1),
    )


def _recall(
    units: Tensor, live: Tensor, values: Tensor, k: int, *, farthest: bool, check: int, seed: int
) -> tuple[float, tuple[float, float], int]:
    """How many of the true neighbours of a sample were found, by the cosines of the worst of them."""
    wanted = min(k, len(live) - 1)
    if wanted < 1:
        return 1.0, (0.0, 1.0), 0
    drawn = live[torch.randperm(len(live), generator=torch.Generator().manual_seed(int(seed)))[:check]]
    everyone = units[live]
    exact = neuron_neighbors(units[drawn], wanted + 1, farthest, other=everyone, neuron_dim=0)
    own = live[exact.indices] == drawn[:, None]
    sign = -1 if farthest else 1
    # Without the neuron itself, the worst of the rest is the last; where equal neurons hid it, the last is left out.
    scores = (sign * exact.values).masked_fill(own, -math.inf).sort(dim=1, descending=True).values[:, :wanted]
    right = ((sign * values[drawn][:, :wanted]) >= scores[:, -1:] - TIE).sum().item()
    trials = check * wanted
    share, z = right / trials, 1.96
    centre = (share + z * z / (2 * check)) / (1 + z * z / check)
    half = z / (1 + z * z / check) * math.sqrt(share * (1 - share) / check + z * z / (4 * check * check))
    return share, (max(0.0, centre - half), min(1.0, centre + half)), check
