"""Launch configurations of the passes over the triangle of cosines, and what they and pairs take of memory.

They rest on compiling ahead of time (no spill, shared memory within bounds), on counting tiles, and on what
../pairwise/config.py knows of the products. None has been timed.
"""

from __future__ import annotations

from ..pairwise.config import Tile

_SMALL = Tile(64, 64, 64, num_warps=8, num_stages=3, resident=1)
_LARGE = Tile(128, 128, 64, num_warps=8, num_stages=3, resident=1)
_AMPERE = Tile(64, 64, 32, num_warps=8, num_stages=2, resident=1)
_INTERPRETED = Tile(32, 32, 32, num_warps=4, num_stages=1, resident=1)
TILES = {"sm_90": _SMALL, "sm_100": _SMALL, "sm_80": _AMPERE, "hip": _AMPERE, "interpreted": _INTERPRETED}
"""By family. Counting bins, and placing pairs inside a tile, takes the registers that tiles of 128² would need."""
SUMS_TILES = {("sm_90", False): _LARGE, ("sm_90", True): _LARGE, ("sm_100", False): _LARGE}
"""Of row sums, by family and whether products have three terms, where there is another."""
SMALLEST = 32
"""Neurons of the smallest tile."""

BAND = 64
"""Tile rows that walk their columns together where pairs are counted."""
LEAST_BINS = 32
"""A histogram is spread over a warp."""
MOST_BINS = 512
"""Counters live in registers, BINS / 32 a thread."""
VECTORS = 32
"""Bytes a neuron of vectors, of the result and its like."""


def tile(family: str, kind: str, three: bool) -> Tile:
    """The tile of a pass: a "histogram", "pairs", or a kind of row sums."""
    small = TILES[family]
    return small if kind in ("histogram", "pairs") else SUMS_TILES.get((family, three), small)


def chunk(tiles: int) -> int:
    """Tile columns a program of the threshold pass walks.

    One counter a row and chunk is kept: chunks of 16 tiles of 64 take n²/256 bytes and as much again twice for offsets.
    Small matrices have shorter chunks, for enough programs: 2048 neurons make 272 with chunks of 2.
    """
    return max(1, min(16, tiles // 16))


def pairs_bytes(neurons: int, block: int) -> int:
    """Bytes of counters, offsets and vectors of the threshold pass."""
    tiles = -(-neurons // block)
    return neurons * -(-tiles // chunk(tiles)) * 12 + neurons * VECTORS


class TooManyPairsError(Exception):
    """More pairs are past the threshold than the memory allowed holds; op.py turns it into advice.

    Arguments: how many there are, how many could be returned, and the bytes that all of them take, scratch included.
    """


def most_pairs(itemsize: int, scratch: int, max_bytes: int) -> int:
    """How many pairs, two int64 and a cosine, fit into `max_bytes` beside `scratch` bytes.

    On the way there pairs never take more: what was held before is given back in parts.
    """
    return max(0, max_bytes - scratch) // (16 + itemsize)


def check_room(count: int, itemsize: int, scratch: int, max_bytes: int) -> None:
    """Raise TooManyPairsError unless `count` pairs fit into `max_bytes` beside `scratch` bytes."""
    most = most_pairs(itemsize, scratch, max_bytes)
    if count > most:
        raise TooManyPairsError(count, most, scratch + count * (16 + itemsize))
