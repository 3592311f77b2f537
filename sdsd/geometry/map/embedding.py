"""What a cosine matrix looks like: points whose distances are 1 − cosine, groups, and how many directions there are.

Nothing here makes a float64 copy of an (n, n) matrix but Ward's tree, which needs half of one, and that for at most
`MOST_TREE` neurons; larger layers are embedded block by block, and grouped from products of the matrix with a few
vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdsd_kernels import checks

from ..._extras import require

METHODS = ("smacof", "umap")
MOST_SMACOF = 2000
"""Up to here scikit-learn's SMACOF, with a few (n, n) matrices in float64; beyond, the same steps block by block."""
STEPS = 500
STEP_PAIRS = 2**28
"""Steps × n² in a large layer: 67 of them for 2,001 neurons, 10 for 5,000 and more."""
SMALL_STEP = 1e-5
"""SMACOF ends where a step lowers the loss by less than this share."""
MOST_TREE = 2000
MOST_CLUSTERS = 10
SPECTRAL_DIMENSIONS = 16
BLOCK = 512
ROUNDING = 1e-6
"""Distances below it are those of equal neurons in float32."""
KRYLOV, SPARE = 8, 8
"""Products of the matrix with each starting vector, and vectors beyond those asked for."""
LEAST_SHARE = 1e-6
"""An eigenvalue below this share of the largest cannot be told from rounding in float32."""
DENSE = 64
"""Up to so many neurons eigenvectors come from a dense decomposition."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """Points in few dimensions.

    Attributes:
        points: centred, long axis first.  # shape: (n, dimensions), float32
        stress: Kruskal's stress-1, √(Σ (shown − wanted)² / Σ wanted²) over distances; 0 is a faithful picture.
        method: "smacof", "short smacof" where a large layer ended it before it settled, or "umap".
    """

    points: np.ndarray
    stress: float
    method: str


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of neurons.

    Attributes:
        labels: the group of each neuron, counted from 0 in the order below.
        order: neurons group by group; near ones side by side where a tree was built.
        silhouette: of the groups, −1 to 1; None where there are none to speak of (fewer than four neurons).
        method: "ward", "k-means" in a large layer, "none".
    """

    labels: list[int]
    order: list[int]
    silhouette: float | None
    method: str


def embed(cosine: Tensor, dimensions: int = 3, *, method: str = "smacof", seed: int = 0) -> Embedding:
    """Place neurons so that distances are 1 − cosine as well as a few dimensions allow, or by UMAP.

    Classical scaling (the leading eigenvectors of −½ J D² J, D = 1 − cosine, J = I − 11ᵀ/n) gives the start, and
    SMACOF lowers the stress from there: scikit-learn's, or for more than `MOST_SMACOF` neurons the same steps without
    further (n, n) matrices. Steps × n² are bounded, so layers beyond some 5,000 neurons are placed less faithfully.

    UMAP (McInnes et al. 2018) keeps neighbours together and pays for it in distances, which its picture does not show;
    it is scaled so that they fit as well as a factor can make them, and the stress says how well that is.

    Args:
        cosine: of neurons that all have a direction.  # shape: (n, n)
        dimensions: of the points.
        method: "smacof" | "umap".
        seed: of the vector that eigenvectors are found from, and of UMAP.

    Raises:
        ValueError: a matrix that is not square, or holds a NaN; dimensions < 1; an unknown method; too few neurons for
            UMAP.
        MissingExtraError: scikit-learn, or umap-learn for that method, is not installed.
    """
    checks.check_choice(method, "method", METHODS)
    if method == "umap":
        return _by_umap(_checked(cosine), checks.check_count(dimensions, "dimensions"), seed)
    require("sklearn", extra="report", purpose="the neuron map")
    cosine = _checked(cosine)
    dimensions = checks.check_count(dimensions, "dimensions")
    n = cosine.shape[0]
    points, method = classical_scaling(cosine, dimensions, seed=seed), "smacof"
    if points.any():
        flat = ~points.any(axis=0)  # SMACOF would never leave the plane it starts in
        points[:, flat] = np.random.default_rng(seed).normal(0, 1e-3 * points.std(), (n, int(flat.sum())))
        if n > MOST_SMACOF:
            points, settled = _smacof_by_block(points, cosine)
            method = "smacof" if settled else "short smacof"
        else:
            points = _smacof(points, cosine)
    points = _along_axes(points)
    return Embedding(points, _stress(points, cosine), method)


def _by_umap(cosine: Tensor, dimensions: int, seed: int) -> Embedding:
    umap = require("umap", extra="umap", purpose="placing neurons by UMAP")
    n = len(cosine)
    if n < dimensions + 3:
        raise ValueError(
            f'method="umap": expected at least {dimensions + 3} neurons that are alive, got {n}. Use method="smacof".'
        )
    distance = _distances(cosine, slice(0, n))
    reducer = umap.UMAP(
        n_components=dimensions, n_neighbors=min(15, n - 1), metric="precomputed", random_state=seed, n_jobs=1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="using precomputed metric")
        points = _along_axes(reducer.fit_transform(distance.numpy()))
    shown = torch.cdist(torch.from_numpy(points), torch.from_numpy(points)).to(distance.dtype)
    size = shown.square().sum()
    points *= float((shown * distance).sum() / size) if size > 0 else 1.0
    return Embedding(points, _stress(points, cosine), "umap")


def _smacof(points: np.ndarray, cosine: Tensor) -> np.ndarray:
    from sklearn.manifold import smacof

    distance = _distances(cosine, slice(0, len(points))).numpy()
    if not distance.any():
        return points
    placed, _ = smacof(
        distance, init=points, n_init=1, max_iter=STEPS, eps=SMALL_STEP, normalized_stress=False, metric=True
    )
    return placed


def _smacof_by_block(points: np.ndarray, cosine: Tensor) -> tuple[np.ndarray, bool]:
    """SMACOF's steps (de Leeuw 1977), and whether they settled.

    x_i ← 1/n Σ_j (D_ij / d_ij) (x_i − x_j),   d the distances shown, D those wanted
    """
    n = len(points)
    places, before = torch.from_numpy(points).to(cosine.dtype), torch.inf
    for _ in range(max(10, min(STEPS, STEP_PAIRS // n**2))):
        moved, loss = torch.empty_like(places), 0.0
        for top in range(0, n, BLOCK):
            rows = slice(top, top + BLOCK)
            shown, wanted = torch.cdist(places[rows], places), _distances(cosine, rows)
            loss += (shown - wanted).square_().sum().item()
            ratio = wanted.div_(shown.clamp_min_(1e-12))
            moved[rows] = (ratio.sum(1, keepdim=True) * places[rows] - ratio @ places) / n
        if before - loss <= SMALL_STEP * loss:
            return places.numpy(), True
        places, before = moved, loss
    return places.numpy(), False


def classical_scaling(cosine: Tensor, dimensions: int, *, seed: int = 0) -> np.ndarray:
    """Coordinates along the leading eigenvectors of −½ J D² J, zero where an eigenvalue is not positive, float32."""
    n = cosine.shape[0]
    count = min(dimensions, n)
    if n <= DENSE:
        square = (1 - cosine).square_()
        centred = square - square.mean(0) - square.mean(1, keepdim=True) + square.mean()
        values, vectors = (part.numpy() for part in torch.linalg.eigh(-centred / 2))
        values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    else:
        values, vectors = _leading(cosine, count, seed)
    points = np.zeros((n, dimensions), dtype=np.float32)
    points[:, :count] = vectors * np.sqrt(np.maximum(values, 0))
    return points


def _leading(cosine: Tensor, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of A = −½ J D² J and their vectors; zeros for what cannot be told from rounding.

    Rayleigh–Ritz in the span of X, AX, …, A^k X for a few random vectors X (Musco and Musco 2015, "Randomized block
    Krylov methods"): a fixed number of products, whatever the rank.
    """
    n = cosine.shape[0]

    def product(x: Tensor) -> Tensor:
        x = x - x.mean(0)
        y = torch.cat([(1 - cosine[top : top + BLOCK]).square_() @ x for top in range(0, n, BLOCK)])
        return (y - y.mean(0)) / -2

    generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
    x = torch.randn(n, min(count + SPARE, n), generator=generator, dtype=torch.float64).to(cosine.dtype)
    span = [torch.linalg.qr(x).Q]
    for _ in range(min(KRYLOV, n // x.shape[1]) - 1):
        span.append(torch.linalg.qr(product(span[-1])).Q)
    basis = torch.linalg.qr(torch.cat(span, 1)).Q
    inside = (basis.T @ product(basis)).double()
    values, turns = torch.linalg.eigh((inside + inside.T) / 2)
    size = values.abs().max().item()
    values, turns = values.flip(0)[:count], turns.flip(1)[:, :count]
    return torch.where(values > LEAST_SHARE * size, values, 0.0).numpy(), (basis @ turns.to(basis.dtype)).numpy()


def cluster(cosine: Tensor, count: int | None = None, *, seed: int = 0) -> Clusters:
    """Group neurons by cosine, into `count` groups, or into the 2 to 10 that have the best silhouette.

    Up to `MOST_TREE` neurons the cuts are those of Ward's tree over √(2 (1 − cosine)), the distance of unit vectors;
    beyond, those of k-means (scikit-learn) on the first coordinates of classical scaling.

    Args:
        cosine: of neurons that all have a direction.  # shape: (n, n)
        count: how many groups. Silhouettes of two layers compare only at the same number; None: the best.
        seed: of k-means.

    Raises:
        ValueError: a matrix that is not square, or holds a NaN; count < 2.
        MissingExtraError: scikit-learn is not installed.
    """
    require("sklearn", extra="report", purpose="the neuron map")
    cosine = _checked(cosine)
    n = cosine.shape[0]
    count = checks.check_count(count, "count", least=2, of="groups", optional=True)
    if n < 4:
        return Clusters([0] * n, list(range(n)), None, "none")
    counts = range(2, min(MOST_CLUSTERS, n - 1) + 1) if count is None else [min(count, n - 1)]
    order, cuts, method = _ward_cuts(cosine, counts) if n <= MOST_TREE else _k_means_cuts(cosine, counts, seed)
    best, labels = None, np.zeros(n, dtype=int)
    for cut in cuts:
        score = silhouette(cosine, torch.as_tensor(cut))
        if score is not None and (best is None or score > best):
            best, labels = score, cut
    if order is None:
        order = np.argsort(labels, kind="stable")
    renamed = {label: index for index, label in enumerate(dict.fromkeys(labels[order].tolist()))}
    return Clusters([renamed[label] for label in labels.tolist()], order.tolist(), best, method)


def _ward_cuts(cosine: Tensor, counts: Iterable[int]) -> tuple[Any, list[Any], str]:
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage

    n = cosine.shape[0]
    upper = cosine[torch.ones(n, n, dtype=torch.bool).triu_(1)]
    tree = linkage((2 * (1 - upper)).clamp_min_(0).sqrt_().numpy(), "ward", optimal_ordering=n <= 600)
    return leaves_list(tree), [fcluster(tree, count, "maxclust") for count in counts], "ward"


def _k_means_cuts(cosine: Tensor, counts: Iterable[int], seed: int) -> tuple[Any, list[Any], str]:
    from sklearn.cluster import KMeans

    points = classical_scaling(cosine, SPECTRAL_DIMENSIONS, seed=seed)
    different = len(np.unique(points.round(4), axis=0))
    counts = [count for count in counts if count <= different]
    cuts = [KMeans(count, n_init=3, random_state=seed).fit_predict(points) for count in counts]
    return None, cuts, "k-means"


def silhouette(cosine: Tensor, labels: Tensor) -> float | None:
    """How well groups are separated, −1 to 1 (Rousseeuw 1987, with distances 1 − cosine).

        mean over neurons of (b − a) / max(a, b)

    a is the mean distance to the neuron's own group, b that to the nearest other one. Neurons alone in their group
    count 0. None for fewer than two groups, or as many as neurons.

    Args:
        cosine: of every pair of neurons.  # shape: (n, n)
        labels: the group of each neuron.  # shape: (n,)
    """
    n = cosine.shape[0]
    groups, own = labels.unique(return_inverse=True)
    if not 2 <= len(groups) < n:
        return None
    sizes = own.bincount().double()
    members = torch.nn.functional.one_hot(own).to(cosine.dtype)
    total = 0.0
    for top in range(0, n, BLOCK):
        rows = slice(top, min(top + BLOCK, n))
        block = 1 - cosine[rows]
        block.diagonal(top).zero_()
        sums = (block @ members).double()  # shape: (rows, groups)
        mine = own[rows, None]
        inside = sums.gather(1, mine).squeeze(1) / (sizes[own[rows]] - 1).clamp_min(1)
        outside = (sums / sizes).scatter_(1, mine, torch.inf).amin(1)
        width = torch.maximum(inside, outside)
        score = torch.where((sizes[own[rows]] > 1) & (width > 0), (outside - inside) / width, 0.0)
        total += score.sum().item()
    return total / n


def effective_rank(correlation: Tensor) -> float | None:
    """How many directions neurons vary in: exp of the entropy of the eigenvalues of their correlation matrix.

        exp(−Σ p_k log p_k),   p_k = λ_k / Σ λ

    (Roy and Vetterli 2007, "The effective rank", here of the eigenvalues.) 1 if all neurons say the same, n if they
    share nothing. None without a neuron that varies. O(n³).

    Args:
        correlation: centred cosine; rows and columns of neurons that do not vary are zero.  # shape: (n, n)
    """
    varying = correlation.diagonal() > 0
    if not bool(varying.any()):
        return None
    correlation = correlation if bool(varying.all()) else correlation[varying][:, varying]
    values = torch.linalg.eigvalsh(correlation).double().clamp_min_(0)
    share = values[values > 0] / values.sum()
    return (-(share * share.log()).sum()).exp().item()


def _checked(cosine: Tensor) -> Tensor:
    """The matrix on the CPU, float32 unless it is float64 already."""
    if not isinstance(cosine, Tensor) or cosine.ndim != 2 or cosine.shape[0] != cosine.shape[1]:
        got = f"shape {tuple(cosine.shape)}" if isinstance(cosine, Tensor) else type(cosine).__name__
        raise ValueError(f"cosine: expected a square (n, n) tensor, got {got}.")
    cosine = cosine.detach().cpu()
    cosine = cosine if cosine.dtype in (torch.float32, torch.float64) else cosine.float()
    if cosine.numel() and not bool(torch.stack(cosine.aminmax()).isfinite().all()):
        raise ValueError("cosine: expected finite values, got a NaN or an infinity. Leave those neurons out.")
    return cosine


def _along_axes(points: np.ndarray) -> np.ndarray:
    """Centred, with the long axis first; of the two directions of an axis, that in which its largest entry is."""
    points = points - points.mean(axis=0, keepdims=True) if len(points) else points
    if len(points) < 2:
        return points.astype(np.float32)
    _, axes = np.linalg.eigh(points.T.astype(np.float64) @ points)
    points = points @ axes[:, ::-1]
    largest = points[np.abs(points).argmax(axis=0), np.arange(points.shape[1])]
    return (points * np.where(largest < 0, -1.0, 1.0)).astype(np.float32)


def _distances(cosine: Tensor, rows: slice) -> Tensor:
    """1 − cosine, zero where that is rounding."""
    distance = 1 - cosine[rows]
    distance[distance < ROUNDING] = 0
    distance.diagonal(rows.start).zero_()
    return distance


def _stress(points: np.ndarray, cosine: Tensor) -> float:
    places = torch.from_numpy(points).to(cosine.dtype)
    wrong, wanted = 0.0, 0.0
    for top in range(0, len(places), BLOCK):
        distance = _distances(cosine, slice(top, top + BLOCK))
        wanted += distance.square().sum().item()
        wrong += (torch.cdist(places[top : top + BLOCK], places) - distance).square_().sum().item()
    return (wrong / wanted) ** 0.5 if wanted else 0.0
