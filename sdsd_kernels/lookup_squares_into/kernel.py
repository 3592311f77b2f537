"""Σ_n ‖g_n‖² of an embedding table: row r of g_n is the sum of the output gradients at the positions that read r.

    ‖g_n‖² = Σ_{s, t: token_s = token_t} ⟨b_ns, b_nt⟩

With a sample's positions in the order of their tokens, equal ones are neighbours. A program owns a tile of BLOCK sorted
positions: it multiplies their rows with one another, keeps the products of equal tokens, and goes on to the tiles after
it for as long as its last token goes on there. Those pairs count twice. Products are sums over features, so several
programs share these.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit(do_not_specialize=["padding"])
def lookup_kernel(
    grads,  # b (N, T, d)
    ordered, order,  # (N, T) int64, contiguous: tokens in order, and the positions they come from
    shares,  # (splits, N, tiles) float64
    padding: tl.int64,  # the token that trains nothing; −1 for none
    positions, features, b_n, b_t, b_d,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):
    tiles = tl.cdiv(positions, BLOCK)
    tile = tl.program_id(0) % tiles
    splits = tl.num_programs(1)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    ordered += n * positions
    order += n * positions
    grads += n * b_n
    row = tile * BLOCK + tl.arange(0, BLOCK)
    held = row < positions
    token = tl.load(ordered + row, mask=held, other=-1)
    held = held & (token != padding)
    left_rows = grads + tl.load(order + row, mask=row < positions, other=0)[:, None] * b_t
    last = tl.load(ordered + tl.minimum(tile * BLOCK + BLOCK, positions) - 1)
    lanes = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK,), tl.float64)
    other = tile
    going = True
    while going:
        column = other * BLOCK + tl.arange(0, BLOCK)
        there = column < positions
        second = tl.load(ordered + column, mask=there, other=-1)
        right_rows = grads + tl.load(order + column, mask=there, other=0)[None, :] * b_t
        products = tl.zeros((BLOCK, BLOCK), tl.float32)
        for start in range(tl.program_id(1) * BLOCK_K, features, splits * BLOCK_K):
            feature = start + lanes
            inside = feature < features
            offset = feature.to(tl.int64) * b_d
            left = tl.load(left_rows + offset[None, :], mask=held[:, None] & inside[None, :], other=0.0)
            right = tl.load(right_rows + offset[:, None], mask=inside[:, None] & there[None, :], other=0.0)
            products = tl.dot(left.to(tl.float32), right.to(tl.float32), products, input_precision="ieee")
        same = (token[:, None] == second[None, :]) & held[:, None] & there[None, :]
        kept = tl.sum(tl.where(same, products, 0.0), 1).to(tl.float64)
        total += tl.where(other == tile, kept, 2.0 * kept)
        other += 1
        going = other * BLOCK < positions
        going = going & (tl.load(ordered + tl.minimum(other * BLOCK, positions - 1)) == last)
    share = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(shares + share, tl.sum(total, 0))


@triton.jit(do_not_specialize=["row"])
def add_shares_kernel(shares, square_norms, row, count, width, BLOCK: tl.constexpr):
    """All shares into entry (row, 0), by one program."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        total += tl.load(shares + start + lanes, mask=start + lanes < count, other=0.0)
    tl.store(square_norms + row * width, tl.sum(total, 0))
