"""Launch configurations of the k nearest neurons, each with what it rests on.

Milliseconds are those of prototypes of the same structure on an H100, 65,536 neurons of 1,024 samples and k = 10;
"compiled" marks what rests on ahead-of-time compilation alone: no spill, and shared memory within bounds.
"""

from __future__ import annotations

from ..pairwise.config import Tile

MOST_NEIGHBORS = 32
"""Neighbours a program keeps in registers. torch selects from whole rows beyond."""
LEAST_LANES = 4

ONE_TERM = {
    "sm_90": (
        (16, Tile(128, 256, 64, num_warps=8, num_stages=3, resident=1)),  # 17.6
        (32, Tile(128, 128, 64, num_warps=8, num_stages=4, resident=1)),  # 23.6
    ),
    "sm_100": ((32, Tile(128, 128, 64, num_warps=8, num_stages=4, resident=1)),),  # compiled
    "sm_80": ((32, Tile(64, 128, 64, num_warps=8, num_stages=2, resident=1)),),  # compiled; 32 samples spill
    "hip": ((32, Tile(64, 128, 32, num_warps=8, num_stages=2, resident=1)),),  # compiled
    "interpreted": ((32, Tile(16, 32, 32, num_warps=4, num_stages=1, resident=1)),),
}
"""By family: (most places in a list, tile), for products of halves as they are."""
THREE_TERMS = {
    "sm_90": ((32, Tile(128, 128, 64, num_warps=8, num_stages=3, resident=1)),),  # 65.5
    "sm_100": ((32, Tile(64, 128, 64, num_warps=8, num_stages=3, resident=1)),),  # compiled
    "sm_80": ((32, Tile(64, 128, 32, num_warps=8, num_stages=2, resident=1)),),  # compiled
    "hip": ((32, Tile(64, 64, 32, num_warps=4, num_stages=2, resident=1)),),  # compiled
    "interpreted": ((32, Tile(16, 32, 32, num_warps=4, num_stages=1, resident=1)),),
}

FIRST_TILES = 4
"""What filling an empty list costs, in tiles: that much a program loses where a row is split among several."""
MOST_SPLITS = 32
SPLIT_GAIN = 1.1
"""Lists to merge for less than this are not worth it."""


def topk_tile(family: str, places: int, three: bool) -> Tile:
    """The tile for lists of so many places."""
    return next(tile for most, tile in (THREE_TERMS if three else ONE_TERM)[family] if places <= most)


def lanes(k: int) -> int:
    """Places in the list of a row: a power of two, so that one compiled kernel serves several k."""
    return max(LEAST_LANES, 1 << (k - 1).bit_length())


def splits(row_tiles: int, column_tiles: int, multiprocessors: int) -> int:
    """Among how many programs the columns of a row are divided.

    With S programs for each of R row tiles, P multiprocessors take ⌈R S / P⌉ turns of ⌈C / S⌉ tiles and the filling of
    a list. Taken is the fewest S within SPLIT_GAIN of the lowest cost: 4096 neurons are 64 row tiles and 32 column
    tiles, which occupy half of 132 multiprocessors at S = 1 and nearly all at S = 2.
    """

    def cost(count: int) -> int:
        return -(-row_tiles * count // multiprocessors) * (-(-column_tiles // count) + FIRST_TILES)

    counts = range(1, min(MOST_SPLITS, column_tiles) + 1)
    lowest = min(map(cost, counts))
    return next(count for count in counts if cost(count) <= SPLIT_GAIN * lowest)


MERGED_ROWS = 2**15
"""Rows whose lists are merged together, which bounds what the sorts take."""


def list_bytes(rows: int, places: int) -> int:
    """Bytes of the lists of one split, and of merging them."""
    return places * (8 * rows + 40 * min(rows, MERGED_ROWS))
