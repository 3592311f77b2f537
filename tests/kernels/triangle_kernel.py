"""A kernel that shows what `_triangle_tile` gives, for tests."""

import triton
import triton.language as tl

from sdsd_kernels.pairwise.tile_kernel import _triangle_tile


@triton.jit
def triangle_kernel(index_ptr, row_ptr, column_ptr, count, tiles, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + place, mask=place < count, other=0)
    row, column = _triangle_tile(index, tiles, GROUP)
    tl.store(row_ptr + place, row, mask=place < count)
    tl.store(column_ptr + place, column, mask=place < count)
