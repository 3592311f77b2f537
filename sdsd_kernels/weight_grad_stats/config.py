"""Launch configurations of the fused kernel, each with the reason for it.

They rest on compiling ahead of time: registers, spills, shared memory, matrix instructions. None has been tuned on a
GPU. A thread holds two float32 accumulators, the sample's and the total's: of a 128 × 128 tile on 8 warps, 128
registers. 4 warps would need 256 and spill.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """One program: a BLOCK_P × BLOCK_D tile of the weight gradient, BLOCK_T positions of a sample a step."""

    block_p: int
    block_d: int
    block_t: int
    num_warps: int
    num_stages: int
    resident: int
    """Programs a multiprocessor holds, by registers: what a split over samples tries to fill."""


HALF, FLOAT32 = "half", "float32"

SMALL = {
    # A scale needs registers for its own tile: with one, every tile 128 wide spills on NVIDIA.
    HALF: Config(64, 64, 64, num_warps=4, num_stages=3, resident=2),
    FLOAT32: Config(64, 64, 32, num_warps=4, num_stages=3, resident=2),
}
LARGE = {
    "sm_80": {
        HALF: Config(128, 128, 32, num_warps=8, num_stages=3, resident=1),
        # tf32x3 splits its operands in registers: 64 × 64 takes all 255 as it is.
        FLOAT32: SMALL[FLOAT32],
    },
    "sm_90": {
        # 64 positions are 128 bytes of bfloat16, the width of a swizzled row; HGMMA, 184 registers.
        HALF: Config(128, 128, 64, num_warps=8, num_stages=3, resident=1),
        # HGMMA, 255 registers and no spill; nesting the loop over positions in that over samples spills 157.
        FLOAT32: Config(128, 128, 32, num_warps=8, num_stages=3, resident=1),
    },
    "sm_100": {
        HALF: Config(128, 128, 64, num_warps=8, num_stages=3, resident=1),
        FLOAT32: SMALL[FLOAT32],
    },
    "hip": {
        # 64 KiB of shared memory, and two stages are what the compiler overlaps.
        HALF: Config(128, 128, 32, num_warps=8, num_stages=2, resident=1),
        FLOAT32: Config(128, 128, 32, num_warps=8, num_stages=2, resident=1),
    },
}
SMALL_SM80_HALF = Config(64, 64, 32, num_warps=4, num_stages=3, resident=2)
"""64 positions a step are not needed where there is no HGMMA, and cost registers."""
SMALL_HIP = Config(64, 64, 32, num_warps=4, num_stages=2, resident=2)

INTERPRETED = Config(16, 32, 16, num_warps=4, num_stages=1, resident=1)
"""Small and not square, so that small shapes have several tiles and a mistaken dimension shows."""


def dot_precision(dtype: torch.dtype, arch: str) -> str:
    """How float32 is multiplied. Products of halves are exact in float32 and take "ieee", which changes nothing.

    tf32x3 keeps float32's digits on the matrix unit. On AMD only one architecture has tf32.
    """
    return "tf32x3" if dtype == torch.float32 and arch.startswith("sm_") else "ieee"


def small_config(kind: str, arch: str) -> Config:
    """The 64 × 64 tile of an architecture."""
    if arch == "hip":
        return SMALL_HIP
    return SMALL_SM80_HALF if arch == "sm_80" and kind == HALF else SMALL[kind]


def choose_config(dtype: torch.dtype, arch: str, *, p: int, d: int, scaled: bool) -> Config:
    """64 × 64 with a scale or where the weight has no more than 64 rows or columns, else the large tile."""
    if arch == "interpreted":
        return INTERPRETED
    kind = FLOAT32 if dtype == torch.float32 else HALF
    return small_config(kind, arch) if scaled or min(p, d) <= 64 else LARGE[arch][kind]
