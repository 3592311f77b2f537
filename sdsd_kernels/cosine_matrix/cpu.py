"""Cosine matrix in torch: half the products by recursion, then scale and mirror in place.

Raw products first, norms from their diagonal, scale last: the input is read by the matrix products alone, and nothing
of its size is allocated. Where the diagonal shows that squares left the range of the dtype, the products are taken
again with every neuron scaled by a power of two. Serves every device and every dtype; on a CPU it is the default.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..pairwise.products import SUMMED, exact_float32, multiplies_in_place, transposed, upper_products
from ..pairwise.reading import chunks, means, out_of_range, scales

FINISH = 384
"""Blocks scaled and mirrored at a time are FINISH². 128, 256, 384, 512: 4.0, 2.7, 3.0, 3.2 ms at 1024 neurons, 64, 47,
42, 47 ms at 4096, where half of it is memory touched for the first time; two threads alike."""


def cosine_matrix_torch(rows: Tensor, *, out_dtype: torch.dtype, zero: str, center: bool) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER) and its inverse norms (N,): 0 or NaN for a neuron without direction."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    gram = rows.new_empty((rows.shape[0],) * 2, dtype=dtype)
    mean = means(rows, dtype, None) if center else None
    with exact_float32():
        if mean is None and multiplies_in_place(rows, dtype):
            for number, part in enumerate(rows[:, 0].split(SUMMED, 1)):
                upper_products(part, gram, accumulate=number > 0)
        else:
            _upper_products_by_chunk(rows, gram, mean, None)
        inverse_norm = _inverse_norms(rows, gram, center, zero)
    _scale_and_mirror(gram, inverse_norm)
    return gram.to(out_dtype), inverse_norm


def _upper_products_by_chunk(rows: Tensor, out: Tensor, mean: Tensor | None, scale: Tensor | None) -> None:
    """out = a aᵀ on and above the diagonal, with a = rows · scale − mean made a chunk at a time."""
    for number, a in enumerate(chunks(rows, out.dtype, mean, scale)):
        upper_products(a, out, accumulate=number > 0)


def _inverse_norms(rows: Tensor, gram: Tensor, center: bool, zero: str) -> Tensor:
    """1/‖a_i‖ from the diagonal of `gram`, which is computed again with scaled neurons where its range was left."""
    square = gram.diagonal()
    suspicious = out_of_range(square, gram.dtype)
    if not bool(suspicious.any()):
        return square.rsqrt()
    scale = scales(rows, gram.dtype, suspicious)
    if scale is not None:
        _upper_products_by_chunk(rows, gram, means(rows, gram.dtype, scale) if center else None, scale)
    inverse_norm = torch.where(square.isfinite(), square, torch.nan).rsqrt_()
    return inverse_norm.masked_fill_(square == 0, torch.nan if zero == "nan" else 0.0)


def _scale_and_mirror(gram: Tensor, inverse_norm: Tensor) -> None:
    """Turn products on and above the diagonal into the whole cosine matrix, in place, a block at a time."""
    tiles = [strip.split(FINISH, 1) for strip in gram.split(FINISH)]
    scales = inverse_norm.split(FINISH)
    upper = torch.ones_like(tiles[0][0], dtype=torch.bool).triu_()
    for i, row in enumerate(tiles):
        for j in range(i, len(tiles)):
            # r_i r_j first: multiplying by one and then by the other would depend on which neuron comes first.
            cosine = torch.outer(scales[i], scales[j]).mul_(row[j]).clamp_(-1, 1)
            if i == j:
                size = cosine.shape[0]
                row[i].copy_(torch.where(upper[:size, :size], cosine, transposed(cosine)))
            else:
                row[j].copy_(cosine)
                tiles[j][i].copy_(transposed(cosine))
    # 1 for a live neuron, else what stands for the inverse norm of a neuron without direction: 0 or NaN.
    gram.diagonal().copy_(torch.where(inverse_norm > 0, 1.0, inverse_norm))
