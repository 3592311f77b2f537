"""What sums over batches take beside the products: running means, and the whole matrix from a triangle of sums.

`mean_kernel`: one step of the mean of all samples, and δ, whose products make sums about the batch's own mean into sums
about that of all. `expand_kernel`: a tile of sums as cosines or products, stored with its mirror image.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile_kernel import store_symmetric, sum_places, tile_place


# fmt: off
@triton.jit(do_not_specialize=["count", "samples"])
def mean_kernel(
    rows_ptr, rest_ptr, weight_ptr, before_ptr,  # the neuron's mean is its first sample plus the rest; before: or None
    mean_ptr, delta_ptr, count: tl.int64, samples: tl.int64, neurons, stride_neuron, BLOCK: tl.constexpr,
):
    """μ of `count` samples before and `samples` now, and δ = √(n₁ n₂ / n) (m − μ); 0 where there were none."""
    neuron = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = neuron < neurons
    mean = tl.load(rows_ptr + neuron.to(tl.int64) * stride_neuron, mask=live, other=0.0).to(tl.float64)
    mean += tl.load(rest_ptr + neuron, mask=live, other=0.0)
    if weight_ptr is not None:
        mean *= tl.load(weight_ptr + neuron, mask=live, other=1.0).to(tl.float64)
    if before_ptr is not None:
        before = tl.load(before_ptr + neuron, mask=live, other=0.0)
        total = count.to(tl.float64) + samples.to(tl.float64)
        share = samples.to(tl.float64) / total
        step = mean - before
        tl.store(delta_ptr + neuron, step * tl.sqrt(count.to(tl.float64) * share), mask=live)
        mean = before + step * share
    tl.store(mean_ptr + neuron, mean, mask=live)


@triton.jit
def expand_kernel(
    sum_ptr, factor_ptr, shift_ptr,  # strips, float64; (N,) float64; (N,) float64 or None
    out_ptr, neurons,
    COSINE: tl.constexpr, STRIPS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):
    """(T[i, j] + shift_i shift_j) · (factor_i factor_j), COSINE within ±1 and with what belongs on the diagonal."""
    row_start, column_start = tile_place(tl.program_id(0), neurons, GROUP, BLOCK, BLOCK)
    row = row_start + tl.arange(0, BLOCK)
    column = column_start + tl.arange(0, BLOCK)
    inside = (row < neurons)[:, None] & (column < neurons)[None, :]
    value = tl.load(sum_places(sum_ptr, row, column, row_start, neurons, STRIPS), mask=inside, other=0.0)
    if shift_ptr is not None:
        down = tl.load(shift_ptr + row, mask=row < neurons, other=0.0)
        across = tl.load(shift_ptr + column, mask=column < neurons, other=0.0)
        value += down[:, None] * across[None, :]
    down = tl.load(factor_ptr + row, mask=row < neurons, other=0.0)
    across = tl.load(factor_ptr + column, mask=column < neurons, other=0.0)
    # factor_i factor_j first, so that an entry does not depend on the order of its neurons.
    value *= down[:, None] * across[None, :]
    if COSINE:
        # NaN is neither above nor below.
        value = tl.where(value > 1.0, 1.0, tl.where(value < -1.0, -1.0, value))
    itself = None
    if COSINE:
        itself = tl.where(down > 0, 1.0, down)
    store_symmetric(value, itself, row_start, column_start, out_ptr, neurons)
