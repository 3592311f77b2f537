"""Cosines in float64, and what every matrix of them promises."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.helpers import assert_within, cosine_error, relative_error, unit_roundoff
from tests.kernels.cosines import exact_cosines, exact_rows, flat

NAN, INF = float("nan"), float("inf")

TRUNCATED = 2.0
"""The interpreter converts float32 to bfloat16 by truncation, which errs twice as much as rounding."""


def oracle(x: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """The diagonal of the living is 1."""
    rows = exact_rows(x, neuron_dim, center)
    alive = (rows * rows).sum(1) > 0
    return torch.where(torch.eye(len(rows), dtype=torch.bool) & alive, 1.0, exact_cosines(rows, rows))


def rounded_way(x: Tensor, precision: str) -> Tensor:
    """Cosines from products of factors rounded as `precision` says, and float64 but for that, whatever the machine."""
    rows = flat(x.float())
    # Powers of two bring what float16 multiplies into its range.
    rows = torch.ldexp(rows, -torch.frexp(rows.abs().amax(1, keepdim=True)).exponent)
    rounded = rows.double() if precision == "float32" else rows.half().double()
    norms = rows.double().norm(dim=1)
    return rounded @ rounded.T / (norms[:, None] * norms[None, :])


def check_promises(cosine: Tensor, dead: Tensor | None = None) -> None:
    """Symmetric bit for bit, at most 1, exactly 1 on the diagonal of the living."""
    values = torch.nan_to_num(cosine.cpu(), nan=7.0)
    assert torch.equal(values, values.T)
    assert ((values.abs() <= 1) | (values == 7)).all()
    diagonal = cosine.diagonal().cpu()
    if dead is not None:
        diagonal = diagonal[~dead]
    assert (diagonal == 1).all()


def check_values(cosine: Tensor, x: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    """Every cosine is within what float32 (float64 for float64) and one rounding to its dtype may err."""
    wanted = oracle(x, neuron_dim, center)
    dtype = torch.promote_types(x.dtype, torch.float32)
    rounded = TRUNCATED * unit_roundoff(cosine.dtype) * wanted.abs() if cosine.dtype.itemsize < 4 else 0.0
    assert_within(cosine, wanted, cosine_error(flat(x, neuron_dim), center=center, dtype=dtype) + rounded)


def check(cosine: Tensor, x: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    check_promises(cosine)
    check_values(cosine, x, neuron_dim, center)


def check_precision(cosine: Tensor, x: Tensor, precision: str, center: bool = False) -> None:
    """Beyond what float32 may err, at most twice what rounding factors as `precision` says makes of it."""
    rows = flat(x)
    shifted = (rows - rows.double().mean(1, keepdim=True)).float() if center else rows.float()
    exact = oracle(x, center=center)
    rounding = relative_error(rounded_way(shifted.T, precision), oracle(shifted.T))
    allowed = 2 * rounding + (cosine_error(rows, center=center).norm() / exact.norm()).item()
    assert relative_error(cosine, exact) <= allowed
