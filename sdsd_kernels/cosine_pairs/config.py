"""Launch configurations of the passes over the triangle of cosines, each with the reason for it.

They rest on compiling ahead of time (registers, spills, shared memory, matrix instructions) and on counting tiles.
None has been tuned on a GPU. Products are always accurate: 3×tf32 or ieee for float32, halves as they are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairsConfig:
    """One program: BLOCK_NEURONS² tiles, BLOCK_SAMPLES samples a step, GROUP tile rows side by side.

    Tile rows of a group walk their columns together, so that they share the column panels they load.
    """

    block_neurons: int
    block_samples: int
    num_warps: int
    num_stages: int
    group: int = 8


SMALL = PairsConfig(64, 32, num_warps=8, num_stages=3)
"""8 warps: with 4, splitting float32 for 3×tf32 or placing pairs inside a tile takes more registers than there are."""
SMALL_HIP = PairsConfig(64, 32, num_warps=8, num_stages=2)
HALVES = PairsConfig(128, 32, num_warps=8, num_stages=3)
HALVES_HIP = PairsConfig(128, 32, num_warps=8, num_stages=2)

HISTOGRAM: dict[str, dict[str, PairsConfig]] = {
    # Counting takes the registers that 3×tf32 would need for 128², on sm_90 by a hair; on sm_100 halves spill too.
    "sm_80": {"tf32x3": SMALL, "native": HALVES},
    "sm_90": {"tf32x3": SMALL, "native": HALVES},
    "sm_100": {"tf32x3": SMALL, "native": SMALL},
    "hip": {"ieee": SMALL_HIP, "native": HALVES_HIP},
}
ROW_SUMS: dict[str, dict[str, PairsConfig]] = HISTOGRAM | {
    "sm_100": {"tf32x3": SMALL, "native": HALVES},
    # 246 registers; 32 samples a step spill where operands are scaled.
    "sm_90": {"tf32x3": PairsConfig(128, 16, num_warps=8, num_stages=3), "native": HALVES},
}
"""By architecture and kind of product."""

INTERPRETED = PairsConfig(32, 32, num_warps=4, num_stages=1, group=2)
"""Small tiles, so that small shapes have several, of several groups."""

BAND = 64
"""Tile rows a launch: of 100,000 neurons they make 50,000 programs of 128², hundreds of waves."""
LEAST_BINS = 32
"""A histogram is spread over a warp."""
MOST_BINS = 512
"""Counters live in registers, BINS / 32 a thread."""


def histogram(arch: str, dot: str, *, scale: bool) -> PairsConfig:
    """With operands scaled on load, 128² spills on sm_90, for halves too."""
    if arch == "interpreted":
        return INTERPRETED
    if scale:
        return SMALL_HIP if arch == "hip" else SMALL
    return HISTOGRAM[arch][dot]


def row_sums(arch: str, dot: str) -> PairsConfig:
    return INTERPRETED if arch == "interpreted" else ROW_SUMS[arch][dot]


def past_threshold(arch: str) -> PairsConfig:
    """64² for halves too: the places of 128² pairs spill."""
    if arch == "interpreted":
        return INTERPRETED
    return SMALL_HIP if arch == "hip" else SMALL


def chunk(tiles: int) -> int:
    """Tile columns a program of the threshold pass walks.

    One counter a row and chunk is kept: chunks of 16 tiles of 64 take n²/256 bytes and as much again twice for offsets.
    Small matrices have shorter chunks, for enough programs: 2048 neurons make 272 with chunks of 2.
    """
    return max(1, min(16, tiles // 16))
