"""Which neurons are nearest, which are farthest, and which are dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from sdsd_kernels import cosine_topk

from ..._progress import Progress, reporter
from ..arrays import as_tensor, neuron_dim_of_both

if TYPE_CHECKING:
    import numpy as np


class NeuronNeighbors(NamedTuple):
    """The k nearest, or farthest, neurons of every neuron; row i belongs to neuron i, best first."""

    values: Tensor
    """Their cosines, NaN where there are fewer than k; float64 for float64 activations, else float32; (neurons, k)."""
    indices: Tensor
    """Which neurons they are, -1 where there are fewer than k; int64, shape: (neurons, k)."""


def neuron_neighbors(
    activations: Tensor | np.ndarray,
    k: int = 10,
    farthest: bool = False,
    *,
    neuron_dim: int | None = None,
    other: Tensor | np.ndarray | None = None,
    center: bool = False,
    precision: str = "float32",
    max_bytes: int | None = None,
    progress: Progress = False,
    backend: str | None = None,
) -> NeuronNeighbors:
    """The k neurons whose activations are most alike (or least), for every neuron of a layer, by exact search.

        C[i, j] = Σ_s x_si x_sj / √(Σ_s x_si²  Σ_s x_sj²)         the largest C[i, j] of every row i, j ≠ i

    The (n, n) matrix of cosines is never stored: time grows with n², memory with n. Equal cosines are ordered by
    index, and the same call gives the same bits. Cosines of equal neurons are within rounding of 1. A neuron that is
    zero on every sample, or has a NaN or an infinity, is nobody's neighbour and has none: NaN and -1. Not
    differentiable: gather neighbours by their indices and compute what needs a gradient.

    Args:
        activations: as `neuron_cosine_matrix` takes them.
        k: how many neighbours, from 1 to n − 1 (to all neurons of `other`).
        farthest: the lowest cosines, lowest first: opposite neurons before unrelated ones.
        neuron_dim: the dimension that counts neurons; None means the last for two and three dimensions, 1 from four up.
        other: look for neighbours among these neurons, over the same samples in the same order, instead: those of
            another layer, or of another model. A neuron may then be its own neighbour.
        center: subtract each neuron's mean over samples first: Pearson's correlations.
        precision: "float32" | "fp16": what factors may be rounded to on a GPU, as in `neuron_cosine_matrix`.
        max_bytes: bound on the memory beyond activations and result; None takes what is fastest: 20 to 96 MiB a
            thread on a CPU, about 1 GiB of a GPU.
        progress: True for a line on standard error, or a function called with (done, total).
        backend: "triton" | "torch"; None takes SDSD_BACKEND, or Triton on a GPU, for k up to 32, and torch elsewhere.

    Returns:
        `NeuronNeighbors`: `values` and `indices`, both (neurons, k), on the device of `activations`.

    Raises:
        TypeError: no tensor or array of floating-point numbers; k, neuron_dim or max_bytes no int; progress neither
            a bool nor callable.
        ValueError: k out of range; a single neuron; no samples; neuron_dim out of range; `other` with other samples,
            dtype or device; an unknown precision or backend; max_bytes too small for one block.

    Example:
        >>> activations = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]])  # two samples, three neurons
        >>> neighbors = neuron_neighbors(activations, k=1)
        >>> neighbors.indices.flatten().tolist()
        [1, 0, 0]
    """
    x = as_tensor(activations)
    y = None if other is None else as_tensor(other, "other")
    x, y, neuron_dim = neuron_dim_of_both(x, y, neuron_dim)
    report = None if progress is False else reporter(progress, "neuron_neighbors")
    neighbours = cosine_topk(
        x,
        k,
        neuron_dim=neuron_dim,
        other=y,
        farthest=farthest,
        precision=precision,
        center=center,
        max_bytes=max_bytes,
        progress=report,
        backend=backend,
    )
    return NeuronNeighbors(*neighbours)


class NeuronPair(NamedTuple):
    """Two neurons of one layer, `first` < `second`, and the cosine of their activations."""

    first: int
    second: int
    cosine: float


def alive_from_norms(norms: Tensor, threshold: float = 1e-3) -> Tensor:
    """Whether a neuron's norm is finite and at least `threshold` of the layer's largest.  # shape: (n,), bool"""
    finite = norms.isfinite()
    largest = norms[finite].max() if bool(finite.any()) else norms.new_zeros(())
    return finite & (norms >= threshold * largest) & (norms > 0)
