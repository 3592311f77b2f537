"""Launch configurations of the k nearest neurons, each with the reason for it.

They rest on compiling ahead of time (registers, spills, shared memory, matrix instructions) and on counting tiles.
None has been tuned on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("float32", "tf32", "bf16")
"""What a caller may ask for; `dot_precision` of ../cosine_matrix/config.py says what the kernel then does."""
MOST_NEIGHBORS = 32
"""Neighbours a program keeps in registers. torch selects from whole rows beyond."""
LEAST_LANES = 4


@dataclass(frozen=True)
class TopKConfig:
    """One program: BLOCK_ROWS neurons against tiles of BLOCK_COLUMNS, BLOCK_SAMPLES samples a step."""

    block_rows: int
    block_columns: int
    block_samples: int
    num_warps: int
    num_stages: int


LARGE: dict[str, dict[str, TopKConfig]] = {
    "sm_80": {
        # 32 samples a step spill 7 to 31 values, with 4 warps and with 8: the split operands need the registers.
        "tf32x3": TopKConfig(64, 64, 16, num_warps=8, num_stages=3),
        "tf32": TopKConfig(64, 128, 32, num_warps=8, num_stages=3),
        "bf16": TopKConfig(64, 128, 32, num_warps=8, num_stages=3),
        "native": TopKConfig(64, 128, 32, num_warps=8, num_stages=4),
    },
    "sm_90": {
        # 32 samples a step spill 11 values.
        "tf32x3": TopKConfig(64, 128, 16, num_warps=8, num_stages=3),
        "tf32": TopKConfig(64, 128, 32, num_warps=8, num_stages=3),
        "bf16": TopKConfig(64, 128, 32, num_warps=8, num_stages=3),
        # 128² spills where neurons are adjacent or scaled; 64 rows it is, which read the columns twice as often.
        "native": TopKConfig(64, 128, 64, num_warps=8, num_stages=3),
    },
    "sm_100": {
        # 4 warps spill 82 values, 128² of halves 123.
        "tf32x3": TopKConfig(64, 64, 32, num_warps=8, num_stages=3),
        "tf32": TopKConfig(64, 128, 32, num_warps=8, num_stages=3),
        "bf16": TopKConfig(64, 128, 32, num_warps=8, num_stages=3),
        "native": TopKConfig(64, 128, 64, num_warps=8, num_stages=3),
    },
    "hip": {
        # 64 KiB of shared memory in all, and two stages are what the compiler overlaps.
        "ieee": TopKConfig(64, 64, 32, num_warps=4, num_stages=2),
        "bf16": TopKConfig(64, 128, 32, num_warps=8, num_stages=2),
        "native": TopKConfig(64, 128, 32, num_warps=8, num_stages=2),
    },
}
"""By architecture and kind of product. Beside the tile a program holds 64 lists of up to 32 cosines and columns."""

INTERPRETED = TopKConfig(16, 32, 32, num_warps=4, num_stages=1)
"""Small tiles, so that small shapes have several."""

FIRST_TILES = 4
"""What filling an empty list costs, in tiles: that much a program loses where a row is split among several."""
MOST_SPLITS = 32
SPLIT_GAIN = 1.1
"""Lists to merge for less than this are not worth it."""


def topk_config(arch: str, dot: str) -> TopKConfig:
    return INTERPRETED if arch == "interpreted" else LARGE[arch][dot]


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
