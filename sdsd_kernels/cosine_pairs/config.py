"""Launch configurations of the passes over the triangle of cosines, and what they take of memory.

They rest on compiling ahead of time (no spill, shared memory within bounds), on counting tiles, and on what
../pairwise/config.py knows of the products. None has been timed.
"""

from __future__ import annotations

from ..pairwise.config import Tile

GROUP = 8
"""Tile rows that walk their columns together, so that they share the column panels they load."""

_SMALL = Tile(64, 64, 64, num_warps=8, num_stages=3, resident=1, group=GROUP)
_LARGE = Tile(128, 128, 64, num_warps=8, num_stages=3, resident=1, group=GROUP)
_AMPERE = Tile(64, 64, 32, num_warps=8, num_stages=2, resident=1, group=GROUP)
_INTERPRETED = Tile(32, 32, 32, num_warps=4, num_stages=1, resident=1, group=GROUP)
TILES: dict[str, dict[str, tuple[Tile, Tile]]] = {
    kernel: {
        "sm_90": (_LARGE, _LARGE) if kernel == "row_sums_kernel" else (_SMALL, _SMALL),
        "sm_100": (_LARGE, _SMALL) if kernel == "row_sums_kernel" else (_SMALL, _SMALL),
        "sm_80": (_AMPERE, _AMPERE),
        "hip": (_AMPERE, _AMPERE),
        "interpreted": (_INTERPRETED, _INTERPRETED),
    }
    for kernel in ("histogram_kernel", "row_sums_kernel", "past_threshold_kernel")
}
"""By kernel and family: of one term and of three. Counting bins, and placing pairs inside a tile, takes the registers
that tiles of 128² would need."""
SMALLEST, LARGEST = 32, 128
"""Neurons of the smallest and of the largest tile."""

BAND = 64
"""Tile rows a launch: of 100,000 neurons they make 50,000 programs of 128², hundreds of waves."""
LEAST_BINS = 32
"""A histogram is spread over a warp."""
MOST_BINS = 512
"""Counters live in registers, BINS / 32 a thread."""
VECTORS = 32
"""Bytes a neuron of vectors, of the result and its like."""


def tile(kernel: str, family: str, *, three: bool) -> Tile:
    """The tile of a pass."""
    return TILES[kernel][family][three]


def chunk(tiles: int) -> int:
    """Tile columns a program of the threshold pass walks.

    One counter a row and chunk is kept: chunks of 16 tiles of 64 take n²/256 bytes and as much again twice for offsets.
    Small matrices have shorter chunks, for enough programs: 2048 neurons make 272 with chunks of 2.
    """
    return max(1, min(16, tiles // 16))


def row_sums_bytes(neurons: int, block: int) -> int:
    """Bytes of the partial sums of one row of tiles."""
    return 4 * (block * -(-neurons // block) + neurons)


def pairs_bytes(neurons: int, block: int) -> int:
    """Bytes of counters, offsets and vectors of the threshold pass."""
    tiles = -(-neurons // block)
    return neurons * -(-tiles // chunk(tiles)) * 12 + neurons * VECTORS
