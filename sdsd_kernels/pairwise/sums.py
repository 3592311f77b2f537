"""Sums of products over batches, in strips of their triangle, where Triton serves: what an accumulator keeps.

A strip of rows [start, start + STRIP) holds columns [start, N), row by row; strips follow each other in flat memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._backend import choose_backend
from .._rows import as_rows
from .config import operand_bytes

STRIP = 256
"""Rows of a strip: a multiple of every tile's, so that a tile lies in one strip."""


def served(device: torch.device, backend: str | None) -> bool:
    """Whether kernels serve on `device`."""
    return choose_backend(backend, device) == "triton"


def batch_bytes(samples: int, neurons: int, dtype: torch.dtype, *, center: bool) -> int:
    """The most that `add_batch` takes of memory for a batch beside its result."""
    return operand_bytes(neurons, samples, dtype, "float32", center=center)


def add_batch(
    before: Tensor | None,
    activations: Tensor,
    out: Tensor,
    *,
    weight: Tensor | None = None,
    mean: Tensor | None = None,
    count: int = 0,
    center: bool = False,
    precision: str = "float32",
) -> Tensor | None:
    """out = before + products of a batch of samples: of a = weight · x, or of that less its mean over all samples.

    One launch, after those that find norms and write halves where the batch cannot be multiplied as it lies, and one
    for the means. Nothing waits for the device.

    Args:
        before: sums so far, float64, in strips; None: none.
        activations: the batch, neurons first: (N, …), float32, float16 or bfloat16; any strides.
        out: memory for the new sums; may be `before`.
        weight: (N,), float32; None: 1.
        mean: of all samples so far, times `weight`, float64; None where there were none.  # shape: (N,)
        count: how many samples there were.
        center: whether sums are about the mean of all samples.
        precision: "float32" or "fp16", as in `cosine_matrix`.

    Returns:
        The mean of all samples, times `weight`, or None without centring.  # shape: (N,)
    """
    from .launch import launch_sums

    rows = as_rows(activations, 0)
    options = {"weight": weight, "mean": mean, "count": count, "center": center, "precision": precision}
    return launch_sums(before, rows, out, strips=STRIP, **options)


def expand(triangle: Tensor, factor: Tensor, shift: Tensor | None, out: Tensor, *, cosine: bool) -> None:
    """Write (T[i, j] + shift_i shift_j) · (factor_i factor_j) into `out` (N, N), a whole symmetric matrix.

    Args:
        triangle: T, float64, in strips.
        factor: (N,), float64; for cosines inverse norms, 0 or NaN for a neuron without direction.
        shift: (N,), float64, or None.
        out: of any floating-point dtype.
        cosine: within ±1, and exactly 1 on the diagonal of neurons that have a direction.
    """
    from .launch import launch_expand

    launch_expand(triangle, factor, shift, out, strips=STRIP, cosine=cosine)
