"""Cosine matrix in torch: half the products by recursion, then scale and mirror in place.

Raw products first, norms from their diagonal, scale last: the input is read by the matrix products alone, and nothing
of its size is allocated. Where the diagonal shows that squares left the range of the dtype, the products are taken
again with every neuron scaled by a power of two. Serves every device and every dtype; on a CPU it is the default.

The halves a matrix of products falls into are [[A, B], [Bᵀ, D]]: B is one large matrix product, A and D are the same
problem again. BLAS has a routine for it (SYRK), but torch does not offer it, and NumPy's brings a second thread pool
that knows nothing of torch.set_num_threads and a slow mirror; the recursion measured as fast or faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

STRIP = 128
"""Neurons of a strip, the width of what is computed on both sides of the diagonal. 64 to 256 measured within 10 %."""
STRIPS = 4
"""So many strips are cheaper than halving on: 1.05 times as fast at 512 neurons, one thread; 8 or 32 are slower."""
FINISH = 384
"""Blocks scaled and mirrored at a time are FINISH². 128, 256, 384, 512: 4.0, 2.7, 3.0, 3.2 ms at 1024 neurons, 64, 47,
42, 47 ms at 4096, where half of it is memory touched for the first time; two threads alike."""
SCRATCH_ELEMENTS = 2**22
"""Bound on converted input at a time (16 MiB in float32), unless 256 samples already exceed it."""

SUMMED = 2**14
"""Samples of one product. BLAS adds up the samples of a few neurons one after the other, and float32 sums of ten
million drift by more than 1e-4; products of so many are added instead, which is as fast."""
SMALL = 2**14
"""Up to so many products the sum of earlier ones is kept out of BLAS, which would add one sample at a time to it."""

SQUARES = {torch.float32: (2.0**-80, 2.0**120), torch.float64: (2.0**-800, 2.0**1000)}
"""Range of ‖x‖² in which no product that matters is subnormal and r_i r_j is normal."""
FAR = {torch.float32: 64, torch.float64: 512}
"""Neurons beyond 2^±this are brought nearer to 1 by as much before their means are taken: sums of larger ones, and
differences, leave the range of the dtype, and means of subnormal ones have few digits."""


def cosine_matrix_torch(rows: Tensor, *, out_dtype: torch.dtype, zero: str, center: bool) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER) and its inverse norms (N,): 0 or NaN for a neuron without direction."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    gram = rows.new_empty((rows.shape[0],) * 2, dtype=dtype)
    mean = _means(rows, dtype, None) if center else None
    with _exact_float32():
        if mean is None and _multiplies_in_place(rows, dtype):
            for number, part in enumerate(rows[:, 0].split(SUMMED, 1)):
                _upper_products(part, gram, accumulate=number > 0)
        else:
            _upper_products_by_chunk(rows, gram, mean, None)
        inverse_norm = _inverse_norms(rows, gram, mean, zero)
    _scale_and_mirror(gram, inverse_norm)
    return gram.to(out_dtype), inverse_norm


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Keep torch.set_float32_matmul_precision("high" or "medium") out of the products."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _multiplies_in_place(rows: Tensor, dtype: torch.dtype) -> bool:
    """Whether BLAS takes `rows` as they lie: one sample stride, and neurons or samples adjacent."""
    neurons, outer, inner = rows.shape
    stride_neuron, _, stride_inner = rows.stride()
    by_neuron = stride_inner == 1 and stride_neuron >= inner
    by_sample = stride_neuron == 1 and stride_inner >= neurons
    return rows.dtype == dtype and outer == 1 and (by_neuron or by_sample)


def _upper_products(a: Tensor, out: Tensor, *, accumulate: bool) -> None:
    """out (+)= a aᵀ on and above the diagonal; below it only inside the STRIP² blocks on the diagonal."""
    neurons = a.shape[0]
    if neurons <= STRIPS * STRIP:
        for top in range(0, neurons, STRIP):
            _product(a[top : top + STRIP], a[top:], out[top : top + STRIP, top:], accumulate)
        return
    half = -(-neurons // (2 * STRIP)) * STRIP
    _product(a[:half], a[half:], out[:half, half:], accumulate)
    _upper_products(a[:half], out[:half, :half], accumulate=accumulate)
    _upper_products(a[half:], out[half:, half:], accumulate=accumulate)


def _product(a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> None:
    if accumulate and out.numel() <= SMALL:
        out.add_(torch.mm(a, b.T))
    elif accumulate:
        out.addmm_(a, b.T)
    else:
        torch.mm(a, b.T, out=out)


def _chunks(rows: Tensor) -> Iterator[Tensor]:
    """`rows` (N, OUTER, INNER) as views that hold all neurons and a bounded number of samples."""
    neurons, outer, inner = rows.shape
    most = min(SUMMED, max(256, SCRATCH_ELEMENTS // neurons))
    together = max(1, most // inner)
    for first_outer in range(0, outer, together):
        for first_inner in range(0, inner, most):
            yield rows[:, first_outer : first_outer + together, first_inner : first_inner + most]


def _converted(chunk: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a chunk in `dtype`, whose memory has neurons or samples adjacent as the chunk has."""
    neurons, outer, inner = chunk.shape
    if chunk.stride(0) < chunk.stride(2):
        copy = chunk.new_empty((outer, inner, neurons), dtype=dtype).permute(2, 0, 1)
    else:
        copy = chunk.new_empty((neurons, outer, inner), dtype=dtype)
    return copy.copy_(chunk)


def _upper_products_by_chunk(rows: Tensor, out: Tensor, mean: Tensor | None, scale: Tensor | None) -> None:
    """out = a aᵀ on and above the diagonal, with a = rows · scale − mean made a chunk at a time."""
    for number, chunk in enumerate(_chunks(rows)):
        a = shifted(_converted(chunk, out.dtype), scale, mean)
        _upper_products(a.flatten(1), out, accumulate=number > 0)


def shifted(values: Tensor, scale: Tensor | None, mean: Tensor | None) -> Tensor:
    """values · scale − mean of neurons in front, in place. Scales are powers of two, so that this order rounds as the
    other does, and numbers near the ends of the range do not leave it."""
    if scale is not None:
        values.mul_(scale[:, None, None])
    return values if mean is None else values.sub_(mean[:, None, None])


def far_exponents(peak: Tensor) -> Tensor | None:
    """By how many powers of two neurons with these peaks are divided before their means are taken; None: by none."""
    far = FAR[peak.dtype]
    exponent = torch.where((peak > 2.0**far) & peak.isfinite(), far, 0)
    exponent = torch.where((peak < 2.0**-far) & (peak > 0), -far, exponent)
    return exponent if bool(exponent.any()) else None


def scales_of(peak: Tensor, far: Tensor | None, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Powers of two that bring neurons near 1, and their means times these.

    Args:
        peak, mean: of neurons that were divided by 2^far.
    """
    # frexp puts the mantissa in [1/2, 1); the bounds keep the scale itself a normal number.
    bound = 126 if peak.dtype == torch.float32 else 1022
    exponent = torch.frexp(peak).exponent
    exponent = (exponent if far is None else exponent + far).clamp(-bound, bound)
    scale = torch.ldexp(torch.ones_like(peak), -exponent)
    return scale, None if mean is None else torch.ldexp(mean, (0 if far is None else far) - exponent)


def _means(rows: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """Mean of every neuron, of x · scale. Sums of x − x_0 are as small as the spread, and a constant neuron's mean is
    exactly x_0."""
    first = rows[:, 0, 0].to(dtype)
    first = first if scale is None else first * scale
    total = torch.zeros_like(first)
    for chunk in _chunks(rows):
        total += shifted(_converted(chunk, dtype), scale, first).sum((1, 2))
    return first + total / (rows.shape[1] * rows.shape[2])


def _peaks(rows: Tensor, dtype: torch.dtype, scale: Tensor | None, mean: Tensor | None) -> Tensor:
    """max |x · scale − mean| of every neuron; NaN if it has one."""
    peak = rows.new_zeros(rows.shape[0], dtype=dtype)
    for chunk in _chunks(rows):
        peak = torch.maximum(peak, shifted(_converted(chunk, dtype), scale, mean).abs_().amax((1, 2)))
    return peak


def _inverse_norms(rows: Tensor, gram: Tensor, mean: Tensor | None, zero: str) -> Tensor:
    """1/‖a_i‖ from the diagonal of `gram`, which is computed again with scaled neurons where its range was left."""
    smallest, largest = SQUARES[gram.dtype]
    square = gram.diagonal().clone()
    # Written so that NaN counts as suspicious.
    suspicious = ~((square >= smallest) & (square <= largest))
    if not bool(suspicious.any()):
        return square.sqrt_().reciprocal_()
    far = None if mean is None else far_exponents(_peaks(rows, gram.dtype, None, None))
    nearer = None if far is None else torch.ldexp(torch.ones_like(square), -far)
    if nearer is not None:
        mean = _means(rows, gram.dtype, nearer)
    peak = _peaks(rows, gram.dtype, nearer, mean)
    alive = peak.isfinite() & (peak > 0)
    if bool((suspicious & alive).any()):
        scale, scaled_mean = scales_of(torch.where(alive, peak, 1.0), far, mean)
        _upper_products_by_chunk(rows, gram, scaled_mean, scale)
        square = gram.diagonal().clone()
    inverse_norm = square.sqrt_().reciprocal_()
    inverse_norm[peak == 0] = float("nan") if zero == "nan" else 0.0
    inverse_norm[~peak.isfinite()] = float("nan")
    return inverse_norm


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
                row[i].copy_(torch.where(upper[:size, :size], cosine, _transposed(cosine)))
            else:
                row[j].copy_(cosine)
                tiles[j][i].copy_(_transposed(cosine))
    # 1 for a live neuron, else what stands for the inverse norm of a neuron without direction: 0 or NaN.
    gram.diagonal().copy_(torch.where(inverse_norm > 0, 1.0, inverse_norm))


def _transposed(block: Tensor) -> Tensor:
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
