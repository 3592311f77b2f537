"""Activations in batches, and what every result promises."""

from __future__ import annotations

import torch
from torch import Tensor

from sdsd.geometry.gram.accumulator import GramAccumulator
from tests.helpers import assert_within, cosine_error, unit_roundoff

NAN, INF = float("nan"), float("inf")


def products(x: Tensor, center: bool = False) -> Tensor:
    """Σ_s x_si x_sj of samples × neurons in float64, values taken from their mean in float64 if centred."""
    rows = x.detach().double().T
    if center:
        rows = rows - rows[:, :1]
        rows = rows - rows.sum(1, keepdim=True) / rows.shape[1]
    return torch.einsum("is,js->ij", rows, rows)


def oracle(x: Tensor, center: bool = False) -> Tensor:
    gram = products(x, center)
    square = gram.diagonal()
    cosine = gram / torch.sqrt(square[:, None] * square[None, :])
    return torch.where(torch.eye(len(gram), dtype=torch.bool) & (square > 0), 1.0, cosine)


def check_values(cosine: Tensor, x: Tensor, center: bool = False) -> None:
    """Within what one float32 (float64 for float64) product of all samples may err, and a rounding to a half."""
    wanted, dtype = oracle(x, center), torch.promote_types(x.dtype, torch.float32)
    rounded = unit_roundoff(cosine.dtype) * wanted.abs() if cosine.dtype.itemsize < 4 else 0.0
    assert_within(cosine, wanted, cosine_error(x.T, center=center, dtype=dtype) + rounded)


def check_promises(cosine: Tensor, dead: Tensor | None = None) -> None:
    """Symmetric bit for bit, at most 1, exactly 1 on the diagonal of the living."""
    values = torch.nan_to_num(cosine, nan=7.0)
    assert torch.equal(values, values.T)
    assert ((values.abs() <= 1) | (values == 7)).all()
    diagonal = cosine.diagonal() if dead is None else cosine.diagonal()[~dead]
    assert (diagonal == 1).all()


def streamed(x: Tensor, sizes: int | list[int], **options) -> GramAccumulator:
    gram = GramAccumulator(x.shape[1], **options)
    for batch in x.split(sizes):
        gram.update(batch)
    return gram


def bits(gram: GramAccumulator) -> dict:
    """What state_dict returns, in a form that == compares by bits."""
    return {
        name: value.view(torch.uint8).tolist() if isinstance(value, Tensor) else value
        for name, value in gram.state_dict().items()
    }


def least_bytes(n: int) -> int:
    return 32 * n
