"""Products of neurons in torch, half of them by recursion: what every path without kernels multiplies with.

The halves a matrix of products falls into are [[A, B], [Bᵀ, D]]: B is one large matrix product, A and D are the same
problem again. BLAS has a routine for it (SYRK), but torch does not offer it, and NumPy's brings a second thread pool
that knows nothing of torch.set_num_threads and a slow mirror; the recursion measured as fast or faster.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 128
"""Neurons of a strip, the width of what is computed on both sides of the diagonal. 64 to 256 measured within 10 %."""
STRIPS = 4
"""So many strips are cheaper than halving on: 1.05 times as fast at 512 neurons, one thread; 8 or 32 are slower."""
SUMMED = 2**14
"""Samples of one product. BLAS adds up the samples of a few neurons one after the other, and float32 sums of ten
million drift by more than 1e-4; products of so many are added instead, which is as fast."""
FINISH = 384
"""Blocks scaled and mirrored at a time are FINISH². 128, 256, 384, 512: 4.0, 2.7, 3.0, 3.2 ms at 1024 neurons, 64, 47,
42, 47 ms at 4096, where half of it is memory touched for the first time; two threads alike."""
SMALL = 2**14
"""Up to so many products the sum of earlier ones is kept out of BLAS, which would add one sample at a time to it."""
WAITING = 2**22
"""Bound on products that wait to be added to sums of another dtype (16 MiB), unless one row already exceeds it."""


def upper_products(a: Tensor, out: Tensor, *, accumulate: bool) -> None:
    """out (+)= a aᵀ on and above the diagonal; below it only inside the STRIP² blocks on the diagonal."""
    if len(a) <= STRIPS * STRIP:
        for top in range(0, len(a), STRIP):
            product(a[top : top + STRIP], a[top:], out[top : top + STRIP, top:], accumulate=accumulate)
        return
    half = -(-len(a) // (2 * STRIP)) * STRIP
    product(a[:half], a[half:], out[:half, half:], accumulate=accumulate)
    upper_products(a[:half], out[:half, :half], accumulate=accumulate)
    upper_products(a[half:], out[half:, half:], accumulate=accumulate)


def product(a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool) -> None:
    """out (+)= a bᵀ; `out` may have another dtype where it accumulates."""
    if accumulate and (out.numel() <= SMALL or out.dtype != a.dtype):
        height = max(1, WAITING // len(b))
        for some, sums in zip(a.split(height), out.split(height), strict=True):
            sums.add_(torch.mm(some, b.T))
    elif accumulate:
        out.addmm_(a, b.T)
    else:
        torch.mm(a, b.T, out=out)


def symmetric_cosines(products: Tensor, inverse_norm: Tensor, *, unit: bool = False) -> None:
    """Turn products, or, if `unit`, cosines on and above the diagonal into the whole cosine matrix, in place."""
    tiles = [strip.split(FINISH, 1) for strip in products.split(FINISH)]
    norms = inverse_norm.split(FINISH)
    for i, row in enumerate(tiles):
        for j in range(i, len(tiles)):
            # r_i r_j first: multiplying by one and then by the other would depend on which neuron comes first.
            cosine = (row[j].clone() if unit else torch.outer(norms[i], norms[j]).mul_(row[j])).clamp_(-1, 1)
            if i == j:
                row[i].copy_(cosine.triu().add_(transposed(cosine.triu(1))))
            else:
                row[j].copy_(cosine)
                tiles[j][i].copy_(transposed(cosine))
    # 1 for a live neuron, else what stands for the inverse norm of a neuron without direction: 0 or NaN.
    products.diagonal().copy_(torch.where(inverse_norm > 0, 1.0, inverse_norm))


def transposed(block: Tensor) -> Tensor:
    """A contiguous copy of the transpose of a contiguous block.

    torch copies a transpose element by element; the shuffle of g · c channels laid out last, which is the transpose of
    (g, c), has a vectorised loop for float32: 9 µs against 25 for 128 by 256, 12 against 64 out of cache.
    """
    rows, columns = block.shape
    if block.device.type != "cpu" or block.dtype != torch.float32 or rows == 1 or columns == 1:
        return block.T.contiguous()
    size = rows * columns
    channels_last = block.as_strided((1, size, 1, 1), (size, 1, size, size))
    return torch.native_channel_shuffle(channels_last, rows).view(columns, rows)
