"""gamma_moments on every backend against exact or extended-precision sums, within bounds that follow from rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sdsd_kernels import available_backends, gamma_moments

BACKENDS = available_backends("cuda" if torch.cuda.is_available() else "cpu")
TRITON = pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton that runs here")
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


def bounds(grads: Tensor, unit: float, resident: int = 1024) -> dict[str, np.ndarray | float]:
    """What rounding with unit roundoff `unit` may do to each moment, by the operations that lead to it.

    With B the columns, any order of N, or B, additions errs by at most N − 1, or B − 1, units of Σ|terms|; a column's mean
    therefore by e = (N + 2) u max|g − g_0| once the values are shifted, plus u|mean| where it is rounded itself, and each
    deviation by the same plus two operations of its own. Sums over columns are blocked: at most 64 terms in `unit`, all
    others in float64, whose share the last term holds.
    """
    G = np.abs(grads.detach().cpu().double().numpy().reshape(grads.shape[0], -1))
    signed = grads.detach().cpu().double().numpy().reshape(grads.shape[0], -1)
    n, columns = G.shape
    mean = np.abs(signed.mean(0))
    d = np.abs(signed - signed.mean(0))
    spread = np.abs(signed - signed[0]).max(0)
    e = (n + 2) * unit * spread + unit * mean * (unit < U32)
    e_d = e + 3 * unit * (d + spread)
    e_mean = e + 2 * unit * mean
    chain = min(columns, 64 if unit == U32 else columns) + n
    # A sum over columns in float64, whatever `unit`.
    sums = chain * unit + (columns + n) * U64
    size = (d**2).sum()
    quads = n // 4 * 4
    one = np.abs(signed[0:quads:4] - signed[1:quads:4])
    two = np.abs(signed[2:quads:4] - signed[3:quads:4])
    e_one = e_d[0:quads:4] + e_d[1:quads:4]
    e_two = e_d[2:quads:4] + e_d[3:quads:4]
    return {
        "signal": (2 * mean * e_mean + e_mean**2).sum() + sums * (mean**2).sum(),
        "squares": (2 * d * e_d + e_d**2).sum() + sums * size + (n + 1) * n * U64 * size,
        "deviations": (2 * d * e_d + e_d**2).sum(1) + sums * (d**2).sum(1),
        "projections": (d * e_mean + mean * e_d + e_d * e_mean).sum(1) + sums * (d * mean).sum(1),
        "products": (one * e_two + two * e_one + e_one * e_two).sum(1) / 2 + sums * (one * two).sum(1) / 2,
    }


def unit_of(dtype: torch.dtype) -> float:
    """float64 input is summed in float64; for all others float32 is what is promised."""
    return U64 if dtype == torch.float64 else U32


def assert_moments(grads: Tensor, backend: str, unit: float | None = None) -> None:
    """Every moment within its bound, with and without per-sample moments, and the input untouched."""
    unit = unit_of(grads.dtype) if unit is None else unit
    before = grads.clone()
    got, brief = gamma_moments(grads, per_sample=True, backend=backend), gamma_moments(grads, backend=backend)
    assert torch.equal(grads, before), "the input was changed"
    assert brief.deviations is brief.projections is brief.products is None
    wanted, allowed = oracle(grads), bounds(grads, unit)
    for moments in (got, brief):
        for name, value in moments._asdict().items():
            if value is None:
                continue
            found = value[0].cpu().numpy()
            assert found.shape == np.shape(wanted[name])
            error = np.abs(found - wanted[name])
            assert np.all(error <= allowed[name]), f"{name}: error {error}, allowed {allowed[name]}"
