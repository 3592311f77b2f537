"""Launch configurations of the symmetric products, each with the reason for it.

They rest on compiling ahead of time (registers, spills, shared memory, matrix instructions) and on counting tiles.
None has been tuned on a GPU. Which of them serves a size is up to `waves.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PRECISIONS = ("float32", "tf32", "bf16x3", "bf16", "fp16")
"""What a caller may ask for; `dot_precision` says what the kernel then does."""
SUM_PRECISIONS = ("float32", "tf32", "bf16x3", "bf16")
"""What a caller may ask of a sum of products. float16 needs operands scaled, and a sum has them as they are."""


@dataclass(frozen=True)
class NormsConfig:
    """One program of the norms pass: BLOCK_NEURONS neurons, BLOCK_SAMPLES samples a step."""

    block_neurons: int
    block_samples: int
    num_warps: int


@dataclass(frozen=True)
class MatrixConfig:
    """One piece of a symmetric product: a tile of BLOCK_ROWS × BLOCK_COLUMNS neurons, BLOCK_SAMPLES samples a step."""

    block_rows: int
    block_columns: int
    block_samples: int
    num_warps: int
    num_stages: int
    resident: int
    """Programs a multiprocessor holds at once, by registers and shared memory."""
    group: int = 8
    """Tile rows that walk their columns together. 8 cut panel reads about 2× at 8192 neurons, and 1.1× at 4096."""


SAMPLES_ADJACENT = NormsConfig(block_neurons=4, block_samples=512, num_warps=4)
"""Few neurons a program, so that 512 neurons still occupy 128 multiprocessors."""
NEURONS_ADJACENT = NormsConfig(block_neurons=32, block_samples=256, num_warps=8)
"""32 neighbouring float32 are the 128 bytes that one load fetches anyway; 256 samples keep 16 to 32 KiB under way in
each of the few programs that N / 32 makes."""

INTERPRETED_NORMS = NormsConfig(block_neurons=16, block_samples=32, num_warps=4)
"""Few programs, each of several steps where shapes are small."""

# Pointers: any strides. 128² needs 8 warps: with 4 the accumulator alone takes 128 registers a thread, and all spill.
SMALL = MatrixConfig(64, 64, 32, num_warps=4, num_stages=3, resident=2)
"""2048 neurons are 136 tiles of 128², 1.03 waves of 132 multiprocessors: the second wave costs what was saved."""
SMALL_8_WARPS = MatrixConfig(64, 64, 32, num_warps=8, num_stages=3, resident=2)
"""On sm_100 the way out of tensor memory needs registers, and products of split operands spill with 4 warps."""
LARGE = MatrixConfig(128, 128, 32, num_warps=8, num_stages=3, resident=1)
LARGE_HALF = MatrixConfig(128, 128, 64, num_warps=8, num_stages=3, resident=1)
"""64 samples are 128 bytes of a half, the width of a swizzled row of shared memory. Float32 operands that pass through
registers to be rounded spill with as many."""
HIP_SMALL = MatrixConfig(64, 64, 32, num_warps=4, num_stages=2, resident=2)
HIP_LARGE = MatrixConfig(128, 128, 32, num_warps=8, num_stages=2, resident=1)
"""64 KiB of shared memory in all, and two stages are what the compiler overlaps."""

# Tensor descriptors: the copy engine brings tiles, so their addresses take no registers.
DESCRIPTOR_SMALL = MatrixConfig(64, 64, 64, num_warps=4, num_stages=4, resident=3)
DESCRIPTOR_LARGE = MatrixConfig(128, 128, 64, num_warps=8, num_stages=4, resident=1)
DESCRIPTOR_WIDE = MatrixConfig(128, 256, 64, num_warps=8, num_stages=4, resident=1)
"""A third fewer bytes of panels an operation than 128²; 255 registers, and no spill since results leave in strips."""
DESCRIPTOR_FLOAT32 = MatrixConfig(128, 128, 32, num_warps=8, num_stages=3, resident=1)

POINTER: dict[str, dict[str, tuple[MatrixConfig, ...]]] = {
    "sm_80": {
        "native": (LARGE, SMALL),
        "bf16": (LARGE, SMALL),
        "fp16": (LARGE, SMALL),
        "bf16x3": (LARGE, SMALL),
        "tf32": (LARGE, SMALL),
        # A 128² accumulator leaves no registers for the split operands.
        "tf32x3": (SMALL,),
    },
    "sm_90": {
        "native": (LARGE_HALF, SMALL),
        "bf16": (LARGE, SMALL),
        "fp16": (LARGE, SMALL),
        "bf16x3": (LARGE, SMALL),
        "tf32": (LARGE, SMALL),
        "tf32x3": (LARGE, SMALL),
    },
    "sm_100": {
        "native": (LARGE_HALF, SMALL),
        "bf16": (LARGE, SMALL),
        "fp16": (LARGE, SMALL),
        "bf16x3": (LARGE, SMALL_8_WARPS),
        "tf32": (LARGE, SMALL),
        "tf32x3": (LARGE, SMALL_8_WARPS),
    },
    "hip": {
        "native": (HIP_LARGE, HIP_SMALL),
        "bf16": (HIP_LARGE, HIP_SMALL),
        "fp16": (HIP_LARGE, HIP_SMALL),
        "bf16x3": (HIP_LARGE, HIP_SMALL),
        "ieee": (HIP_LARGE, HIP_SMALL),
    },
}
DESCRIPTOR: dict[str, dict[str, tuple[MatrixConfig, ...]]] = {
    arch: {
        "native": (DESCRIPTOR_WIDE, DESCRIPTOR_LARGE, DESCRIPTOR_SMALL),
        "bf16": (DESCRIPTOR_FLOAT32,),
        "bf16x3": (DESCRIPTOR_FLOAT32,),
        "tf32": (DESCRIPTOR_FLOAT32,),
        "tf32x3": (DESCRIPTOR_FLOAT32,),
    }
    for arch in ("sm_90", "sm_100")
}

INTERPRETED = MatrixConfig(32, 32, 32, num_warps=4, num_stages=1, resident=1, group=2)
"""Small tiles, so that small shapes have several, of several groups."""
INTERPRETED_DESCRIPTOR = MatrixConfig(16, 32, 32, num_warps=4, num_stages=1, resident=1, group=2)
"""Not square, as DESCRIPTOR_WIDE is not."""
REDUCE_NEURONS = 32
"""Side of a tile of the finishing pass: 512 neurons are 136 of them."""


def dot_precision(precision: str, dtype: torch.dtype, *, center: bool, arch: str) -> str:
    """How the kernel multiplies: "native" (halves as they are), "bf16", "fp16", "bf16x3", "tf32", "tf32x3" or "ieee".

    Products of halves are exact in float32, so no precision asks for less. Centred halves are no longer halves.
    On AMD only one architecture has tf32, so both it and float32 mean ieee there.
    """
    if dtype in (torch.float16, torch.bfloat16) and not center:
        return "native"
    if precision in ("bf16", "fp16", "bf16x3"):
        return precision
    if arch in ("hip", "interpreted"):
        return "ieee"
    return "tf32x3" if precision == "float32" else "tf32"


def scales_operands(dot: str, *, center: bool) -> bool:
    """Whether operands are multiplied by the neuron's power of two on load, whatever their size.

    float16 ends at 65504 and loses digits below 6e-5, so its operands are brought into [-2, 2] first. Centring touches
    every operand as it is.
    """
    return center or dot == "fp16"


def norms_config(rows: Tensor) -> NormsConfig:
    """What the norms pass over `rows` (N, OUTER, INNER) is launched with."""
    if rows.device.type == "cpu":
        return INTERPRETED_NORMS
    return SAMPLES_ADJACENT if abs(rows.stride(2)) <= abs(rows.stride(0)) else NEURONS_ADJACENT


def pointer_configs(arch: str, dot: str) -> tuple[MatrixConfig, ...]:
    """What the pointer kernel is launched with, largest tile first."""
    return (INTERPRETED,) if arch == "interpreted" else POINTER[arch][dot]


def descriptor_configs(arch: str, dot: str) -> tuple[MatrixConfig, ...]:
    """What the descriptor kernel is launched with; none where it does not serve."""
    if arch == "interpreted":
        return () if dot == "fp16" else (INTERPRETED_DESCRIPTOR,)
    return DESCRIPTOR.get(arch, {}).get(dot, ())


def redo_config(arch: str, dot: str) -> MatrixConfig:
    """What tiles out of range are redone with: the smallest tile, which has registers to spare for scaling."""
    return pointer_configs(arch, dot)[-1]
