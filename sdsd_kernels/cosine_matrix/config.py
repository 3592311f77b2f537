"""Launch configurations of the cosine matrix kernels, each with the reason for it.

They rest on compiling ahead of time (registers, spills, shared memory, matrix instructions) and on counting tiles.
None has been tuned on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PRECISIONS = ("float32", "tf32", "bf16")
"""What a caller may ask for; `dot_precision` says what the kernel then does."""


@dataclass(frozen=True)
class NormsConfig:
    """One program of the norms pass: BLOCK_NEURONS neurons, BLOCK_SAMPLES samples a step."""

    block_neurons: int
    block_samples: int
    num_warps: int


@dataclass(frozen=True)
class MatrixConfig:
    """One program of the matrix pass: a BLOCK_NEURONS² tile, BLOCK_SAMPLES samples a step, GROUP tile rows together."""

    block_neurons: int
    block_samples: int
    num_warps: int
    num_stages: int
    group: int = 8
    """8 tile rows sharing the panels they load cut panel reads about 2× at 8192 neurons, and 1.1× at 4096."""


SAMPLES_ADJACENT = NormsConfig(block_neurons=4, block_samples=512, num_warps=4)
"""Few neurons a program, so that 512 neurons still occupy 128 multiprocessors."""
NEURONS_ADJACENT = NormsConfig(block_neurons=32, block_samples=64, num_warps=4)
"""32 neighbouring float32 are the 128 bytes that one load fetches anyway."""

LARGE: dict[str, dict[str, MatrixConfig]] = {
    "sm_80": {
        # 128² accumulators with 4 or 8 warps leave no registers for the split operands: 64² is the largest clean tile.
        "tf32x3": MatrixConfig(64, 32, num_warps=4, num_stages=3),
        "tf32": MatrixConfig(128, 32, num_warps=8, num_stages=3),
        "bf16": MatrixConfig(128, 32, num_warps=8, num_stages=3),
        "native": MatrixConfig(128, 32, num_warps=8, num_stages=4),
    },
    "sm_90": {
        # 8 warps: with 4 a 128² float32 accumulator alone takes 128 registers a thread, and all of these spill.
        "tf32x3": MatrixConfig(128, 32, num_warps=8, num_stages=3),
        "tf32": MatrixConfig(128, 32, num_warps=8, num_stages=3),
        # 64 samples a step spill when float32 neurons lie adjacent: the operands pass through registers to be rounded.
        "bf16": MatrixConfig(128, 32, num_warps=8, num_stages=3),
        "native": MatrixConfig(128, 64, num_warps=8, num_stages=3),
    },
    "sm_100": {
        # 128² spills here, with 16 samples a step too: the accumulator's way out of tensor memory needs the registers.
        "tf32x3": MatrixConfig(64, 32, num_warps=4, num_stages=3),
        "tf32": MatrixConfig(128, 32, num_warps=8, num_stages=3),
        "bf16": MatrixConfig(128, 32, num_warps=8, num_stages=3),
        "native": MatrixConfig(128, 64, num_warps=8, num_stages=3),
    },
    "hip": {
        # 64 KiB of shared memory in all, and two stages are what the compiler overlaps.
        "ieee": MatrixConfig(64, 32, num_warps=4, num_stages=2),
        "bf16": MatrixConfig(128, 32, num_warps=8, num_stages=2),
        "native": MatrixConfig(128, 32, num_warps=8, num_stages=2),
    },
}

SMALL = MatrixConfig(64, 32, num_warps=4, num_stages=3, group=4)
"""2048 neurons are 136 tiles of 128², 1.03 waves of 132 multiprocessors: the second wave costs what was saved."""
SMALL_UP_TO = 3072

INTERPRETED = MatrixConfig(32, 32, num_warps=4, num_stages=1, group=2)
"""Small tiles, so that small shapes have several, of several groups."""


def architecture(device: torch.device) -> str:
    """The set of configurations for a device: sm_80, sm_90, sm_100, hip, or interpreted on the CPU."""
    if device.type == "cpu":
        return "interpreted"
    if torch.version.hip is not None:
        return "hip"
    major = torch.cuda.get_device_capability(device)[0]
    # 12.x has the shared memory and the matrix instructions of 8.x.
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def dot_precision(precision: str, dtype: torch.dtype, *, center: bool, arch: str) -> str:
    """How the kernel multiplies: "native" (halves as they are), "bf16", "tf32", "tf32x3" or "ieee".

    Products of halves are exact in float32, so no precision asks for less. Centred halves are no longer halves.
    On AMD only one architecture has tf32, so both it and float32 mean ieee there.
    """
    if dtype in (torch.float16, torch.bfloat16) and not center:
        return "native"
    if precision == "bf16":
        return "bf16"
    if arch in ("hip", "interpreted"):
        return "ieee"
    return "tf32x3" if precision == "float32" else "tf32"


def norms_config(*, samples_adjacent: bool) -> NormsConfig:
    return SAMPLES_ADJACENT if samples_adjacent else NEURONS_ADJACENT


def matrix_config(arch: str, dot: str, neurons: int) -> MatrixConfig:
    if arch == "interpreted":
        return INTERPRETED
    return SMALL if neurons <= SMALL_UP_TO else LARGE[arch][dot]
