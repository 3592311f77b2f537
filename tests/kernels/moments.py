"""Moments in float64, and how far a backend may be from them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdsd_kernels import GammaMoments, available_backends, gamma_moments
from sdsd_kernels.gamma_moments import config
from sdsd_kernels.gamma_moments.layout import is_one_matrix

BACKENDS = available_backends("cuda" if torch.cuda.is_available() else "cpu")

TRITON = pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton that runs here")

if "triton" in BACKENDS:
    from sdsd_kernels.gamma_moments import launch

U32, U64 = 2.0**-24, 2.0**-53
"""Unit roundoff: the relative error of one operation."""


def oracle(grads: Tensor) -> dict[str, np.ndarray]:
    """The definition in NumPy's extended precision, one matrix."""
    G = grads.detach().cpu().double().numpy().astype(np.longdouble).reshape(grads.shape[0], -1)
    mean = G.sum(0) / G.shape[0]
    d = G - mean
    return {
        "signal": (mean**2).sum(),
        "squares": (d**2).sum(),
        "deviations": (d**2).sum(1),
        "projections": (d * mean).sum(1),
        "products": np.array([(G[j] - G[j + 1]) @ (G[j + 2] - G[j + 3]) / 2 for j in range(0, len(G) - 3, 4)]),
    }


@dataclasses.dataclass(frozen=True)
class Rounding:
    """What an implementation promises of its sums."""

    unit: float
    """Unit roundoff of its arithmetic; what is added across tiles or blocks is float64 whatever this is."""
    rows: int
    """Most terms that are added in `unit` for a mean."""
    terms: tuple[int, ...]
    """Most products that are added in `unit`, and most of such sums that are added in it, and so on."""
    shifted: bool
    """Whether values are shifted before they are added, so that errors go with their spread, not with their size."""


def growth(terms: int) -> float:
    """By how many units of Σ|terms| a sum in any order may err.

    Certainly by `terms`; by 8 √terms in all but one of 10^13 cases of independent roundings (Higham & Mary 2019, SIAM
    J. Sci. Comput. 41, theorem 2.4).
    """
    return min(terms, 8 * math.sqrt(terms))


def rounding(backend: str, grads: Tensor, per_sample: bool) -> Rounding:
    """As README.md promises it for this input."""
    n, size = grads.shape[0], (grads.numel(),)
    if backend == "torch":
        unit, itemsize = (U64, 8) if grads.dtype == torch.float64 else (U32, 4)
        rows = min(n, 1024)
        columns = min(grads[0].numel(), 2**16, max(1, 2**21 // (itemsize * rows)))
        return Rounding(unit, rows, (columns, rows), shifted=False)
    if grads.dtype == torch.float64:
        return Rounding(U64, n, size, shifted=True)
    record = launch.device_record(grads.device)
    if per_sample and n <= config.RESIDENT_ROWS:
        if config.samples_wide(grads.dtype, n, record):
            return Rounding(U64, n, size, shifted=False)
        return Rounding(U32, n, (16 // grads.element_size(),), shifted=True)
    stream = config.stream_config(grads.dtype, n, record, grads[0].numel() if is_one_matrix(grads) else 0)
    wide, rows = stream.wide, stream.rows
    if per_sample:
        wide, rows = config.samples_wide(grads.dtype, n, record), config.TWO_WALKS[grads.dtype].rows
    return Rounding(U64, n, size, shifted=True) if wide else Rounding(U32, rows, (rows,), shifted=True)


def bounds(grads: Tensor, promise: Rounding) -> dict[str, np.ndarray | float]:
    """How far each moment may be from the truth.

    A mean of values of size s errs by e = (growth(rows) + 3) u s; s is the distance from the first row where values are
    shifted by one of their own. A deviation errs by that and two roundings of its own, a product of factors x, y that
    err by e, f by |x| f + |y| e + e f, and sums of products by growth(terms) units more. Sums in float64 come on top,
    and Σ(g − g_0)² − (Σ(g − g_0))² / N, of terms that are at most N + 1 times Σd².
    """
    G = grads.detach().cpu().double().numpy().reshape(grads.shape[0], -1)
    n, columns = G.shape
    u = promise.unit
    mean, d = np.abs(G.mean(0)), np.abs(G - G.mean(0))
    spread, largest = 2 * np.abs(G - G[0]).max(0), np.abs(G).max(0)
    size = spread if promise.shifted else largest
    e = (growth(promise.rows) + 3) * u * size
    if u == U32:
        e = e + (growth(n) + 3) * U64 * largest  # chunks are merged in float64
    e_d = e + 2 * u * (d + spread * promise.shifted)
    e_mean = e + 2 * u * mean
    sums = sum(growth(terms) + 2 for terms in promise.terms) * u + growth(n * columns) * U64
    wide = (n + 1) * (growth(n) + 4) * U64
    # The torch path takes N ‖mean‖² from Σ‖g‖² where it is no larger than the difference.
    lost = 1 if promise.shifted else 3
    quads = n // 4 * 4
    one, two = np.abs(G[0:quads:4] - G[1:quads:4]), np.abs(G[2:quads:4] - G[3:quads:4])
    e_pair = 2 * e + 2 * u * (one + two + 2 * spread * promise.shifted + d[0:quads:4] + d[2:quads:4])
    return {
        "signal": (2 * mean * e_mean + e_mean**2).sum() + sums * (mean**2).sum(),
        "squares": (2 * d * e_d + e_d**2).sum() + lost * (sums + wide) * (d**2).sum(),
        "deviations": (2 * d * e_d + e_d**2).sum(1) + sums * (d**2).sum(1),
        "projections": (d * e_mean + mean * e_d + e_d * e_mean).sum(1) + sums * (d * mean).sum(1),
        "products": ((one + two) * e_pair + e_pair**2).sum(1) / 2 + sums * (one * two).sum(1) / 2,
    }


def assert_within(moments: GammaMoments, grads: Tensor, promise: Rounding, *names: str) -> None:
    """The moments, or those named, of one matrix within their bounds."""
    wanted, allowed = oracle(grads), bounds(grads, promise)
    for name, value in moments._asdict().items():
        if value is None or (names and name not in names):
            continue
        found = value[0].cpu().numpy()
        assert found.shape == np.shape(wanted[name])
        beyond = float(np.max(np.abs(found - wanted[name]) - allowed[name], initial=-math.inf))
        assert beyond <= 0 or found.size == 0, f"{name}: {beyond:.3e} beyond the bound"


def assert_moments(grads: Tensor, backend: str) -> None:
    """Every moment within its bound, with and without per-sample moments, and the input untouched."""
    before = grads.clone()
    got, brief = gamma_moments(grads, per_sample=True, backend=backend), gamma_moments(grads, backend=backend)
    assert torch.equal(grads, before), "the input was changed"
    assert brief.deviations is brief.projections is brief.products is None
    assert_within(got, grads, rounding(backend, grads, True))
    assert_within(brief, grads, rounding(backend, grads, False))


def row_of(moments: GammaMoments, row: int) -> GammaMoments:
    return GammaMoments(*(None if field is None else field[row : row + 1] for field in moments))
