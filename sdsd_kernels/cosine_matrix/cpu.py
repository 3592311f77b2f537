"""Cosine matrix in torch: half the products by recursion, then scale and mirror in place.

Raw products first, norms from their diagonal, scale last: the input is read by the matrix products alone. Where the
diagonal shows that squares left the range of the dtype, products are taken again of neurons scaled by powers of two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._precision import exact_float32
from ..pairwise.products import symmetric_cosines, upper_products
from ..pairwise.reading import Values, in_range, summed_in


def cosine_matrix_torch(rows: Tensor, *, out_dtype: torch.dtype, zero: str, center: bool) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER) and its inverse norms (N,): 0 or NaN for a neuron without direction."""
    gram = rows.new_empty((rows.shape[0],) * 2, dtype=summed_in(rows.dtype))

    def squares(values: Values) -> Tensor:
        for number, a in enumerate(values.chunks(copy=values.converts)):
            upper_products(a, gram, accumulate=number > 0)
        return gram.diagonal()

    with exact_float32():
        _, square = in_range(rows, squares, center=center)
    inverse_norm = square.masked_fill_(square == 0, torch.nan if zero == "nan" else torch.inf).rsqrt()  # 1 / √∞ is 0
    symmetric_cosines(gram, inverse_norm)
    return gram.to(out_dtype), inverse_norm
