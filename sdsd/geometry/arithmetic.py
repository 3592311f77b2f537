"""What long calls share: plain arithmetic whatever surrounds them, powers of two that keep it in range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sdsd_kernels import exact_float32

UNSEEN = -(2**20)
"""Exponent of a neuron that has been zero so far."""
WINDOW = {torch.float32: (-30, 40, 126), torch.float64: (-300, 400, 1022)}
"""A neuron is left unscaled if its first peak is in 2^(low, high): squares of what its mean hides, 2^-24 of the peak,
stay normal, and so do sums over 2^40 samples. It is scaled anew when it grows by 2^high. The third bounds the scale."""
PEAK_ELEMENTS = 2**18
"""Values read together for their size, so that what is read twice is in the cache (1 MiB in float32)."""
ORDINARY = (2.0**-56, 2.0**76)
"""Sums of squares that tell a neuron inside every WINDOW without a look at its largest value."""


SQUARED = (2.0**-500, 2.0**500)
"""Norms whose squares float64 holds with all their digits, over any number of samples."""


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, products of float32 in float32, and memory that later calls may write.

    Tensors made under torch.inference_mode, where hooks often run, refuse to be written outside it.
    """
    with (
        exact_float32(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def widened(tensor: Tensor) -> Tensor:
    """In float64, complex numbers in complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64, exactly, for integers; no less than 2^-1022."""
    return ((exponent.long().clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


def peaks(rows: Tensor, dtype: torch.dtype, memory: Callable[[int, int], Tensor] | None = None) -> Tensor:
    """How large the values of every row of a matrix are: √Σx² where that is ordinary, else max |x|.  # shape: (rows,)

    In `dtype`, float32 or float64; NaN or infinite exactly where a row has such a value. Squares take one pass over
    memory, max |x| two.

    Args:
        memory: gives room of so many rows and columns for squares, in `dtype`; None: torch's.
    """
    pieces = rows.split(max(1, PEAK_ELEMENTS // max(1, rows.shape[0])), 1)
    if memory is None:
        scratch = torch.empty_like(pieces[0], dtype=dtype)
    else:  # laid out as torch would
        height, width = pieces[0].shape
        by_column = pieces[0].stride(0) < pieces[0].stride(1)
        scratch = memory(width, height).T if by_column else memory(height, width)
    square = torch.zeros(rows.shape[0], dtype=dtype, device=rows.device)
    for piece in pieces:
        wide = piece.to(dtype)
        square += torch.mul(wide, wide, out=scratch[:, : piece.shape[1]]).sum(1)
    peak = square.sqrt()
    # Written so that NaN does not count as ordinary.
    others = (~((square > ORDINARY[0]) & (square < ORDINARY[1]))).nonzero().flatten()
    if len(others):
        peak[others] = torch.stack([piece[others].to(dtype).abs().amax(1) for piece in pieces]).amax(0)
    return peak


def norms_of(rows: Tensor) -> Tensor:
    """√Σx² of each of `rows` (n, …), also where squares leave the range of float64.  # shape: (n,), float64

    At most float64's largest number where all values are finite.
    """
    rows = rows.flatten(1)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    odd = (~((norms > SQUARED[0]) & (norms < SQUARED[1]))).nonzero().flatten()
    if rows.dtype == torch.float64 and len(odd):
        norms[odd] = _norms_out_of_range(rows[odd])
    return norms


def _norms_out_of_range(rows: Tensor) -> Tensor:
    peak = rows.abs().amax(1)
    exponent = torch.frexp(torch.where(peak.isfinite() & (peak > 0), peak, 1.0)).exponent
    scale = power_of_two(-exponent)
    scaled = torch.linalg.vector_norm(rows * scale[:, None], dim=1) / scale
    return torch.where(peak.isfinite(), scaled.clamp_max(torch.finfo(torch.float64).max), scaled)


def exponents_after(exponent: Tensor, peak: Tensor, dtype: torch.dtype) -> Tensor:
    """The exponents of neurons that had `exponent`, after values with these peaks; products are in `dtype`."""
    low, high, bound = WINDOW[dtype]
    alive = peak.isfinite() & (peak > 0)
    # frexp puts the mantissa in [1/2, 1).
    own = torch.frexp(torch.where(alive, peak, 1.0)).exponent.clamp(-bound, bound)
    first = torch.where((own > low) & (own < high), 0, own)
    later = torch.where(own > exponent + high, own, exponent)
    return torch.where(alive, torch.where(exponent == UNSEEN, first, later), exponent)


def blas_reads(matrix: Tensor) -> bool:
    """Whether one of the two dimensions is adjacent in memory and the other does not overlap it."""
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)
