"""Cosine matrix in torch: half the products by recursion, then scale and mirror in place.

Raw products first, norms from their diagonal, scale last: the input is read by the matrix products alone. Where the
diagonal shows that squares left the range of the dtype, products are taken again of neurons scaled by powers of two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._precision import exact_float32
from ..pairwise.products import symmetric_cosines, upper_products
from ..pairwise.reading import Values, out_of_range, scales, summed_in, values_of


def cosine_matrix_torch(rows: Tensor, *, out_dtype: torch.dtype, zero: str, center: bool) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER) and its inverse norms (N,): 0 or NaN for a neuron without direction."""
    gram = rows.new_empty((rows.shape[0],) * 2, dtype=summed_in(rows.dtype))
    with exact_float32():
        _fill_upper(gram, values_of(rows, center=center))
        square = gram.diagonal()
        suspicious = out_of_range(square, gram.dtype)
        if bool(suspicious.any()):
            if (scale := scales(rows, suspicious)) is not None:
                _fill_upper(gram, values_of(rows, scale, center=center))
            square = torch.where(square.isfinite(), square, torch.nan)
            square.masked_fill_(square == 0, torch.nan if zero == "nan" else torch.inf)  # 1 / √∞ is 0
    inverse_norm = square.rsqrt()
    symmetric_cosines(gram, inverse_norm)
    return gram.to(out_dtype), inverse_norm


def _fill_upper(gram: Tensor, values: Values) -> None:
    """Products of neurons on and above the diagonal."""
    for number, a in enumerate(values.chunks(copy=values.converts)):
        upper_products(a, gram, accumulate=number > 0)
