"""Pairs of neurons, and what all pairs together look like, without the matrix of their cosines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdsd_kernels import CosineHistogram as _CosineHistogram
from sdsd_kernels import checks, cosine_pairs, cosine_row_sums
from sdsd_kernels import cosine_histogram as _cosine_histogram
from sdsd_kernels import disjoint_pairs as _disjoint_pairs

from ..._drawing import figure_and_axes
from ..._progress import Progress, Report, reporter
from ..arrays import as_tensor
from .costs import Costs, chosen_by_cost
from .neighbours import NeuronPair
from .similarity import as_similarity

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class NeuronPairs:
    """Pairs of neurons of one layer; iterating gives `NeuronPair`s (first, second, cosine).

    Attributes:
        first: the lower neuron of each pair.  # shape: (pairs,), int64
        second: the higher one.  # shape: (pairs,), int64
        cosine: of their activations.  # shape: (pairs,), float64 for float64 activations, else float32
    """

    first: Tensor
    second: Tensor
    cosine: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[NeuronPair]:
        columns = (column.tolist() for column in (self.first, self.second, self.cosine))
        return (NeuronPair(*pair) for pair in zip(*columns, strict=True))


class CosineHistogram(_CosineHistogram):
    """How the cosines of all pairs i < j of neurons are distributed.

    Attributes:
        counts: pairs in each bin; the last includes 1.  # shape: (bins,), int64
        edges: of the bins, from −1 to 1.  # shape: (bins + 1,), float64
        zero_pairs: pairs without a cosine, for a neuron is zero on every sample.  # shape: (), int64
        nan_pairs: pairs without one, for a neuron has a NaN or an infinity.  # shape: (), int64
    """

    __slots__ = ()

    def plot(self, *, axes: Any = None) -> tuple[Any, Any]:
        """Draw the histogram; pairs without a cosine are named in its title.

        Args:
            axes: matplotlib axes to draw into; None makes a figure.

        Returns:
            The figure and the axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure, axes = figure_and_axes(axes, 6.0, 3.6)
        edges = self.edges.tolist()
        axes.stairs(self.counts.tolist(), edges, fill=True)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("cosine")
        axes.set_ylabel("pairs of neurons")
        without = int(self.zero_pairs) + int(self.nan_pairs)
        left_out = f", {without:,} more without a cosine" if without else ""
        axes.set_title(f"{int(self.counts.sum()):,} pairs{left_out}", loc="left", fontsize=10.5)
        return figure, axes


def neuron_pairs(
    activations: Tensor | np.ndarray,
    *,
    above: float | None = None,
    below: float | None = None,
    neuron_dim: int | None = None,
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress = False,
    backend: str | None = None,
) -> NeuronPairs:
    """All pairs of neurons whose cosine is at least `above`, or at most `below`.

    The matrix of cosines is never stored, so memory grows with the pairs found, 20 bytes each (24 for float64). Where
    they would take more than `max_bytes`, an error says how many there are, and a threshold that leaves few enough.
    Neurons that are zero on every sample, or have a NaN or an infinity, are in no pair. Cosines of equal neurons are
    within rounding of 1: look for duplicates with above=0.9999, not above=1. Not differentiable.

    Args:
        activations: as `neuron_cosine_matrix` takes them.
        above: the least cosine, in [−1, 1]. Either this or `below`.
        below: the largest cosine, in [−1, 1].
        neuron_dim: the dimension that counts neurons; None means the last for two and three dimensions, 1 from four up.
        center: subtract each neuron's mean over samples first: correlations.
        max_bytes: bound on memory beyond the activations, the result included; None means 1 GiB.
        progress: True for a line on standard error, or a function called with (done, total).
        backend: "triton" | "torch"; None takes SDSD_BACKEND, or Triton on a GPU and torch elsewhere.

    Returns:
        `NeuronPairs`, ordered by first and then second neuron, on the device of `activations`.

    Raises:
        TypeError: no tensor or array of floating-point numbers; a threshold that is no number; max_bytes no int.
        ValueError: both or neither of above and below; a threshold outside [−1, 1]; more pairs than fit; max_bytes
            that is not enough for one block; shapes, neuron_dim and backend as in `neuron_cosine_matrix`.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]])  # two samples, three neurons
        >>> [(pair.first, pair.second) for pair in neuron_pairs(activations, above=0.9)]
        [(0, 1)]
    """
    activations, neuron_dim = _tensor_and_dim(activations, neuron_dim)
    pairs = cosine_pairs(
        activations,
        above=above,
        below=below,
        neuron_dim=neuron_dim,
        center=center,
        max_bytes=max_bytes,
        progress=_reporter(progress, "pairs of neurons"),
        backend=backend,
    )
    return NeuronPairs(*pairs)


def disjoint_pairs(
    activations: Tensor | np.ndarray | None = None,
    pairs: int = 50,
    which: str = "nearest",
    *,
    by: str = "cosine",
    how: str = "mean",
    cosine: Tensor | np.ndarray | None = None,
    outgoing: Tensor | np.ndarray | None = None,
    gram: Tensor | np.ndarray | None = None,
    alive: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    center: bool = False,
    seed: int = 0,
    max_bytes: int | None = None,
    progress: Progress = False,
) -> NeuronPairs:
    """Pairs of neurons, no neuron in two of them: what a merge needs.

    "nearest" takes the pair with the highest cosine, then the highest among the neurons left, and so on; equal cosines
    go to the lower first, then the lower second neuron. "farthest" starts from the lowest cosine. "random" draws
    uniformly. The choice is that from the whole matrix of cosines, which is not stored. Cosines that differ by less
    than rounding may be taken in either order.

    By "cost" the nearest pair is the one whose merge changes least what the readers get, and the farthest the one whose
    merge changes most: see `merge_cost`. A cosine knows neither how loud two neurons are nor what is made of them.
    Computed in float64, in blocks.

    Args:
        activations: as `neuron_cosine_matrix` takes them.
        pairs: how many.
        which: "nearest" | "farthest" | "random".
        by: "cosine" | "cost".
        how: with by="cost", how they will be merged: "mean" | "act" | "absorb". To be absorbed, `second` is the neuron
            whose loss costs less, also where it is the lower one.
        outgoing: with by="cost", the weights that read each neuron, as `outgoing_weights` collects them.
            # shape: (neurons, weights)
        gram: with by="cost", instead of activations: sums Σ_s a_si a_sj, not centred.  # shape: (neurons, neurons)
        cosine: choose from this symmetric matrix instead of activations.  # shape: (neurons, neurons)
        alive: neurons that may be paired. Those that are zero on every sample, or have a NaN or an infinity, never
            are; in a matrix they are known by a diagonal that is not positive.  # shape: (neurons,), bool
        seed: of the random choice.
        max_bytes: bound on memory beyond the activations; None: none, and some 50 MiB and 1 KiB a neuron are taken.
        neuron_dim, center, progress: as in `neuron_pairs`.

    Returns:
        `NeuronPairs` in the order of choice.

    Raises:
        TypeError: no tensor or array of floating-point numbers; pairs, seed or max_bytes that is no int.
        ValueError: both or neither of activations and cosine (by cost: gram); by="cost" without outgoing; a matrix that
            is not square or symmetric, is one of distances, or has a NaN between neurons that may be paired; alive that
            is not one boolean a neuron; more pairs than half the neurons that may be paired; an unknown `which` or
            `by`; max_bytes that is not enough; shapes as in `neuron_cosine_matrix`.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[1.0, 2.0, 0.0, 1.0], [1.0, 2.0, 3.0, 0.0]])
        >>> [(pair.first, pair.second) for pair in disjoint_pairs(activations, 2)]
        [(0, 1), (2, 3)]
    """
    checks.check_choice(by, "by", ("cosine", "cost"))
    alive = as_tensor(alive, "alive") if alive is not None and hasattr(alive, "__array_interface__") else alive
    if by == "cost":
        if outgoing is None or cosine is not None or center:
            got = "no outgoing" if outgoing is None else "cosine" if cosine is not None else "center=True"
            raise ValueError(
                'by="cost": expected outgoing=, from outgoing_weights, with activations or gram=, and neither cosine= '
                f"nor center=True, got {got}."
            )
        costs = Costs(
            activations,
            outgoing,
            how=how,
            gram=gram,
            samples=None if gram is None else 1,
            neuron_dim=neuron_dim,
            max_bytes=max_bytes,
        )
        return NeuronPairs(*chosen_by_cost(costs, pairs, which, alive=alive, seed=seed, progress=progress))
    if by == "cosine" and (outgoing is not None or gram is not None):
        raise ValueError('outgoing, gram: they go with by="cost".')
    if activations is not None:
        activations, neuron_dim = _tensor_and_dim(activations, neuron_dim)
    if cosine is not None:
        cosine = as_similarity(cosine)
    chosen = _disjoint_pairs(
        activations,
        pairs,
        which,
        cosine=cosine,
        alive=alive,
        neuron_dim=-1 if neuron_dim is None else neuron_dim,
        center=center,
        seed=seed,
        max_bytes=max_bytes,
        progress=_reporter(progress, "disjoint pairs"),
    )
    return NeuronPairs(*chosen)


def cosine_histogram(
    activations: Tensor | np.ndarray,
    bins: int = 100,
    *,
    neuron_dim: int | None = None,
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress = False,
    backend: str | None = None,
) -> CosineHistogram:
    """Histogram of the cosines of all pairs of neurons.

    A pair falls into bin floor((c + 1) · bins / 2), c = 1 into the last; a cosine within rounding of an edge may fall
    to either side. The matrix of cosines is never stored. Not differentiable.

    Args:
        activations: as `neuron_cosine_matrix` takes them.
        bins: how many, of equal width on [−1, 1].
        max_bytes: bound on memory beyond the activations; None: none, and some 10 MiB are taken.
        neuron_dim, center, progress, backend: as in `neuron_pairs`. Triton has at most 512 bins.

    Returns:
        counts (bins,), int64 and exact; edges (bins + 1,), float64; zero_pairs and nan_pairs, how many of the
        n (n − 1) / 2 pairs have no cosine because a neuron is zero on every sample, or has a NaN or an infinity.

    Raises:
        TypeError: no tensor or array of floating-point numbers; bins or max_bytes that is no int.
        ValueError: bins < 1; max_bytes that is not enough for one block; shapes, neuron_dim and backend as in
            `neuron_cosine_matrix`.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]])
        >>> cosine_histogram(activations, 4).counts
        tensor([0, 0, 0, 3])
    """
    activations, neuron_dim = _tensor_and_dim(activations, neuron_dim)
    counted = _cosine_histogram(
        activations,
        bins,
        neuron_dim=neuron_dim,
        center=center,
        max_bytes=max_bytes,
        progress=_reporter(progress, "histogram of cosines"),
        backend=backend,
    )
    return CosineHistogram(*counted)


def row_sums(
    activations: Tensor | np.ndarray,
    kind: str = "cosine",
    *,
    neuron_dim: int | None = None,
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress = False,
    backend: str | None = None,
) -> Tensor:
    """For every neuron the sum over all others of their cosine, or of what filter pruning makes of it.

        "cosine":    Σ_{j≠i} c_ij
        "absolute":  Σ_{j≠i} |c_ij|
        "distance":  Σ_{j≠i} ‖u_i − u_j‖ = Σ_{j≠i} √(2 − 2 c_ij),  u_i = x_i / ‖x_i‖

    The matrix of cosines is never stored. Pairs in which one neuron has no direction add nothing: with L neurons that
    have one, the mean is result / (L − 1), and Σ_{j≠i} (1 − c_ij) is L − 1 − result. A neuron that is zero on every
    sample gets 0, one with a NaN or an infinity NaN. Not differentiable.

    Args:
        activations: as `neuron_cosine_matrix` takes them; a layer's weights serve as well, with neuron_dim=0.
        kind: "cosine" | "absolute" | "distance".
        max_bytes: bound on memory beyond the activations; None: none, and some 10 MiB are taken.
        neuron_dim, center, progress, backend: as in `neuron_pairs`.

    Returns:
        float64, on the device of `activations`.  # shape: (neurons,)

    Raises:
        TypeError: no tensor or array of floating-point numbers; max_bytes that is no int.
        ValueError: an unknown kind; max_bytes that is not enough for one block; shapes, neuron_dim and backend as in
            `neuron_cosine_matrix`.

    Source:
        He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration" prunes
        the filters with the least sum of distances: "distance", for filters scaled to unit length. For the cosine the
        authors' code sums absolute values.

    Example:
        >>> import torch
        >>> row_sums(torch.tensor([[3.0, 0.0, 3.0], [0.0, 2.0, 4.0]]))
        tensor([0.6000, 0.8000, 1.4000], dtype=torch.float64)
    """
    activations, neuron_dim = _tensor_and_dim(activations, neuron_dim)
    return cosine_row_sums(
        activations,
        kind,
        neuron_dim=neuron_dim,
        center=center,
        max_bytes=max_bytes,
        progress=_reporter(progress, "row sums of cosines"),
        backend=backend,
    )


def _tensor_and_dim(activations: Tensor | np.ndarray, neuron_dim: int | None) -> tuple[Tensor, int]:
    tensor = as_tensor(activations)
    if neuron_dim is None:
        neuron_dim = 1 if tensor.dim() >= 4 else -1
    return tensor, neuron_dim


def _reporter(progress: Progress, what: str) -> Report | None:
    """None where nobody listens: a GPU need not be waited for then."""
    return None if progress is False else reporter(progress, what)
