"""Gram matrix in torch: half the products by recursion, added in place. Serves every device and every dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from .._precision import exact_float32
from ..pairwise.products import upper_products
from ..pairwise.reading import chunks, summed_in

PANEL_ELEMENTS = 2**22
"""Bound on float32 products that wait to be added to a float64 sum (16 MiB), unless one row already exceeds it."""


def gram_accumulate_torch(gram: Tensor, rows: Tensor, shift: Tensor | None, scale: Tensor | None) -> None:
    """gram += a aᵀ on and above the diagonal, with a = (rows − shift) · scale and rows (N, OUTER, INNER)."""
    changed = shift is not None or scale is not None
    with exact_float32():
        for a in chunks(rows, summed_in(rows.dtype), None, None, copy=changed):
            if shift is not None:
                a.sub_(shift[:, None])
            if scale is not None:
                a.mul_(scale[:, None])
            _add_products(a, gram)


def _add_products(a: Tensor, gram: Tensor) -> None:
    """gram += a aᵀ on and above the diagonal; products of a dtype other than `gram`'s pass through a panel of rows."""
    if a.dtype == gram.dtype:
        upper_products(a, gram, accumulate=True)
        return
    neurons = a.shape[0]
    height = max(1, min(neurons, PANEL_ELEMENTS // neurons))
    scratch = a.new_empty((height, neurons))
    for top in range(0, neurons, height):
        bottom = min(top + height, neurons)
        corner = scratch[: bottom - top, : bottom - top]
        upper_products(a[top:bottom], corner, accumulate=False)
        gram[top:bottom, top:bottom] += corner.triu()
        if bottom < neurons:
            beside = torch.mm(a[top:bottom], a[bottom:].T, out=scratch[: bottom - top, : neurons - bottom])
            gram[top:bottom, bottom:] += beside
