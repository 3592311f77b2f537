"""Results from sums: norms, and whole symmetric matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdsd_kernels import gram_strips

from ..._progress import Report
from ..arithmetic import UNSEEN, power_of_two
from .layout import Plan
from .sums import Sums

BLOCK_COLUMNS = 512
"""Columns finished together. Transposed writes of 256 rows by 512 columns stay in the cache."""

LARGEST, SMALLEST = 2.0**511.5, 2.0**-511
"""Norms whose squares are float64 numbers."""


def squares(plan: Plan, sums: Sums, shift: Tensor | None) -> Tensor:
    """The diagonal of T + shift shiftᵀ, NaN for nonfinite neurons.  # shape: (n,)"""
    assert sums.gram is not None
    square = plan.triangle.diagonal(sums.gram)
    if shift is not None:
        square += shift * shift
    return torch.where(sums.nonfinite, math.nan, square)


def units(sums: Sums, exponent: Tensor | None = None) -> Tensor:
    """2^e, by which scaled values are multiplied to be what they were, or that divided by 2^exponent.  # shape: (n,)"""
    own = torch.where(sums.exponent == UNSEEN, 0, sums.exponent)
    return power_of_two(own if exponent is None else own - exponent)


def products(plan: Plan, sums: Sums, shift: Tensor | None, exponent: Tensor | None) -> Tensor:
    """T + shift shiftᵀ of neurons divided by 2^exponent, whole; None: as they are, or a ValueError."""
    square = squares(plan, sums, shift)
    if exponent is None:
        require_sums(square.sqrt() * units(sums))
    factor = units(sums, exponent) * torch.where(square.isnan(), math.nan, 1.0)
    return expanded(plan, sums.gram, factor, shift, dtype=torch.float64, bound=None, report=lambda done, total: None)


def require_sums(norms: Tensor) -> None:
    """ValueError where products of neurons with these norms leave the range of float64."""
    finite = norms[~norms.isnan()]
    largest = finite.max().item() if len(finite) else 0.0
    if largest > LARGEST or 0 < largest < SMALLEST:
        raise ValueError(
            f"gram: expected neurons whose sums of products are within the range of float64, got norms up to "
            f"{largest:.3g}. cosine_matrix() and norms() do not need that; for sums, divide activations by a number "
            "first."
        )


def expanded(
    plan: Plan,
    gram: Tensor | None,
    factor: Tensor,
    shift: Tensor | None,
    *,
    dtype: torch.dtype,
    bound: float | None,
    report: Report,
) -> Tensor:
    """(T[i, j] + shift_i shift_j) · (factor_i factor_j), within ±bound, as a whole symmetric matrix."""
    assert gram is not None
    out = torch.empty((plan.n, plan.n), dtype=dtype, device=plan.device)
    if plan.through_kernel():
        gram_strips.expand(gram, factor, shift, out, cosine=bound is not None)
        report(plan.n, plan.n)
        return out
    for which, block in plan.blocks(gram):
        for left in range(which.start, plan.n, BLOCK_COLUMNS):
            columns = slice(left, min(left + BLOCK_COLUMNS, plan.n))
            # factor_i factor_j first, so that an entry does not depend on the order of its neurons.
            piece = factor[which, None] * factor[None, columns]
            sums = block[:, left - which.start : columns.stop - which.start]
            piece.mul_(sums if shift is None else sums.addr(shift[which], shift[columns]))
            if bound is not None:
                piece.clamp_(-bound, bound)
            piece = piece.to(dtype)
            if left == which.start:
                corner = piece[:, : which.stop - which.start]
                corner.copy_(corner.triu() + corner.triu(1).T)
            out[which, columns] = piece
            out[columns, which] = piece.T
        report(which.stop, plan.n)
    return out


def inverse_norms(square: Tensor, zero: str, centred: bool) -> Tensor:
    """1 / √square, and what `zero` says for a neuron without direction; ValueError for "raise" and one of these."""
    dead = square == 0
    if zero == "raise" and bool(dead.any()):
        which = dead.nonzero().flatten().tolist()
        what = "the same on every sample, so zero after centring" if centred else "zero on every sample"
        raise ValueError(
            f"zero: expected every neuron to have a direction, got {len(which)} that are {what} "
            f"(first: {which[:5]}). Leave them out, or use zero='zero' or zero='nan'."
        )
    return torch.where(dead, math.nan if zero == "nan" else 0.0, square.rsqrt())
