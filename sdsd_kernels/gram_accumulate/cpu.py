"""Gram matrix in torch: half the products by recursion, added in place. Serves every device and every dtype."""

from __future__ import annotations

from torch import Tensor

from .._precision import exact_float32
from ..pairwise.products import upper_products
from ..pairwise.reading import values_of


def gram_accumulate_torch(gram: Tensor, rows: Tensor, shift: Tensor | None, scale: Tensor | None) -> None:
    """gram += a aᵀ on and above the diagonal, with a = (rows − shift) · scale and rows (N, OUTER, INNER)."""
    values = values_of(rows, center=False)
    with exact_float32():
        for a in values.chunks(copy=values.converts or shift is not None or scale is not None):
            if shift is not None:
                a.sub_(shift[:, None])
            if scale is not None:
                a.mul_(scale[:, None])
            upper_products(a, gram, accumulate=True)
