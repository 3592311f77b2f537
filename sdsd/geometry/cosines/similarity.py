"""How similar neurons are: the cosine of every pair, in one layer or between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdsd_kernels import cosine_between as _cosine_between
from sdsd_kernels import cosine_matrix

from ..._progress import Progress, reporter
from ..arrays import as_tensor, neuron_dim_of_both

if TYPE_CHECKING:
    import numpy as np


def neuron_cosine_matrix(
    activations: Tensor | np.ndarray,
    *,
    neuron_dim: int | None = None,
    precision: str = "float32",
    out_dtype: torch.dtype | None = None,
    zero: str = "zero",
    center: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Cosine similarity of every pair of neurons of a layer.

        C[i, j] = Σ_s x_si x_sj / √(Σ_s x_si²  Σ_s x_sj²),        s over all samples

    Symmetric bit for bit, |C| ≤ 1, and exactly 1 on the diagonal for every neuron that has a direction. A neuron with
    a NaN or an infinity has NaN in its row and column and nowhere else. Differentiable, in reverse and forward mode and
    under torch.func, and usable in torch.compile.

    Args:
        activations: as layers give them: (samples, neurons), (batch, tokens, neurons), (batch, channels, height,
            width), …, as a tensor or a NumPy array in float64, float32, float16 or bfloat16, with any strides.
        neuron_dim: the dimension that counts neurons; all others are samples. None means the last dimension for two
            and three dimensions and dimension 1 from four up. The output of Conv1d, (batch, channels, length), has
            three dimensions and needs neuron_dim=1.
        precision: what factors may be rounded to by the kernels of a GPU: "float32" (more accurate than torch's float32
            product, at the price of tf32) | "fp16" (a third of the time, errors up to 2e-5 among 512 neurons of 4096
            normal samples). Products of float16 and bfloat16 activations are exact at both unless they are centred.
            torch on any device, and so a CPU, always computes in float32, or float64 for float64. "tf32", "bf16" and
            "bf16x3" of earlier releases are taken with a warning.
        out_dtype: dtype of the result; None gives float64 for float64 and float32 for all others.
        zero: row and column of a neuron that is zero on every sample: "zero" | "nan" | "raise" (a ValueError).
        center: subtract each neuron's mean over samples first: Pearson's correlation.
        backend: "triton" | "torch"; None takes SDSD_BACKEND, or Triton on a GPU and torch elsewhere. float64 is
            served by torch on every device.

    Returns:
        (neurons, neurons), on the device of `activations`.

    Raises:
        TypeError: no tensor or array, or one that is integer, complex, sparse or quantised; a bad out_dtype.
        ValueError: fewer than two dimensions, no neuron or no sample, neuron_dim out of range, an unknown precision,
            zero policy or backend, Triton where it cannot serve, a zero neuron with zero="raise".

    Example:
        >>> import torch
        >>> activations = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 3.0]])  # two samples, three neurons
        >>> neuron_cosine_matrix(activations)
        tensor([[1.0000, 1.0000, 0.7071],
                [1.0000, 1.0000, 0.7071],
                [0.7071, 0.7071, 1.0000]])
    """
    activations = as_tensor(activations)
    if neuron_dim is None:
        neuron_dim = 1 if activations.dim() >= 4 else -1
    return cosine_matrix(
        activations,
        neuron_dim=neuron_dim,
        precision=precision,
        out_dtype=out_dtype,
        zero=zero,
        center=center,
        backend=backend,
    )


def cosine_between(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    neuron_dim: int | None = None,
    zero: str = "zero",
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress = False,
) -> Tensor:
    """Cosine similarity of every neuron of `x` with every neuron of `y`, over the samples both saw.

        C[i, j] = Σ_s x_si y_sj / √(Σ_s x_si²  Σ_s y_sj²)

    What matching the neurons of two models, or of two layers, starts from; with center=True the cross-correlation
    matrix. |C| ≤ 1. A neuron with a NaN or an infinity has NaN in its row or column and nowhere else. Not
    differentiable.

    Args:
        x: activations as `neuron_cosine_matrix` takes them.
        y: those of other neurons for the same samples in the same order, in the same dtype and on the same device.
        neuron_dim: the dimension that counts neurons in both; all others are samples. None means, for each, the last
            dimension for two and three dimensions and dimension 1 from four up.
        zero: row or column of a neuron that is zero on every sample: "zero" | "nan" | "raise" (a ValueError).
        center: subtract each neuron's mean over samples first: Pearson's correlation.
        max_bytes: bound on the memory beyond activations and result; None takes what is fastest.
        progress: True for a line on standard error, or a function called with (done, total).

    Returns:
        (neurons of x, neurons of y), float64 for float64 and float32 for all others, on the device of `x`.

    Raises:
        TypeError: no tensor or array of floating-point numbers; neuron_dim or max_bytes no int; progress neither a
            bool nor callable.
        ValueError: fewer than two dimensions, no neuron or no sample, neuron_dim out of range, other samples, dtype or
            device in `y`, an unknown zero policy, a zero neuron with zero="raise", max_bytes too small for one block.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [1.0, 0.0]])        # two samples, two neurons
        >>> y = torch.tensor([[3.0, 0.0, 1.0], [3.0, 1.0, 0.0]])
        >>> cosine_between(x, y)
        tensor([[1.0000, 0.7071, 0.7071],
                [0.7071, 0.0000, 1.0000]])
    """
    one, two, neuron_dim = neuron_dim_of_both(as_tensor(x, "x"), as_tensor(y, "y"), neuron_dim)
    assert two is not None
    report = None if progress is False else reporter(progress, "cosine_between")
    return _cosine_between(
        one, two, neuron_dim=neuron_dim, zero=zero, center=center, max_bytes=max_bytes, progress=report
    )


MOST_ASYMMETRIC = 1e-3
"""A cosine computed twice, in half precision too, differs by less."""
ROWS = 512
"""Of a matrix, looked at together."""


def as_similarity(matrix: Tensor | np.ndarray, name: str = "cosine") -> Tensor:
    """A symmetric matrix of similarities as a tensor, float32 unless it is float64.

    Raises:
        TypeError: no tensor or array, or not one of floating-point numbers.
        ValueError: not square, not symmetric, or a diagonal of zeros, as distances have it.
    """
    similarity = as_tensor(matrix, name).detach()
    if not similarity.is_floating_point():
        raise TypeError(f"{name}: expected floating-point numbers, got {similarity.dtype}. Pass {name}.float().")
    epsilon = torch.finfo(similarity.dtype).eps
    similarity = similarity if similarity.dtype == torch.float64 else similarity.float()
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"{name}: expected a square (n, n) matrix, got shape {tuple(similarity.shape)}.")
    largest = 0.0
    for top in range(0, len(similarity), ROWS):
        rows = similarity[top : top + ROWS]
        size = rows.nan_to_num(0, 0, 0).abs().max().item()
        largest = max(largest, size)
        bound = (MOST_ASYMMETRIC + epsilon) * max(1.0, size)
        if bool(((rows - similarity[:, top : top + ROWS].T).abs() > bound).any()):
            raise ValueError(
                f"{name}: expected a symmetric matrix, got one whose entries differ from their mirror images. For "
                "neurons of two layers see cosine_between; (C + C.T) / 2 makes one symmetric."
            )
    on_diagonal = similarity.diagonal().nan_to_num(0, 0, 0).abs()
    if len(similarity) and not on_diagonal.max().item() >= (MOST_ASYMMETRIC + 4 * epsilon) * largest:
        raise ValueError(
            f"{name}: expected cosines, got 0 on the whole diagonal, as distances have it. Pass 1 - {name}."
        )
    return similarity


def as_cosine(matrix: Tensor | np.ndarray, name: str = "cosine") -> Tensor:
    """A matrix of cosines as a tensor, float32 unless it is float64.

    Raises:
        TypeError: as `as_similarity`.
        ValueError: as `as_similarity`; entries beyond 1, or a diagonal that is not 1, 0 or NaN.
    """
    cosine = as_similarity(matrix, name)
    bound = MOST_ASYMMETRIC + torch.finfo(as_tensor(matrix, name).dtype).eps
    diagonal = cosine.diagonal()
    directed = diagonal.isfinite() & (diagonal != 0)
    off = (diagonal[directed] - 1).abs()
    if bool((off > bound).any()):
        wrong = diagonal[directed][off.argmax()].item()
        raise ValueError(
            f"{name}: expected 1 on the diagonal of neurons that have a direction, got {wrong:g}. Divide "
            "sums of products by the norms of both neurons, and pass 1 - distance for distances."
        )
    for top in range(0, len(cosine), ROWS):
        largest = cosine[top : top + ROWS].abs().nan_to_num(0, torch.inf).max().item()
        if largest > 1 + bound:
            raise ValueError(f"{name}: expected cosines, -1 to 1, got entries up to {largest:g} in size.")
    return cosine
