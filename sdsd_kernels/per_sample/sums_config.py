"""Launch configurations on GPUs.

On an H100, both launches, against torch's own: layer norm 8 × 1024 × 1024 float32 44 µs against 52 (to read it once
takes 22), bias 8 × 1024 × 4096 bfloat16 39 against 50 (22), group norm 256 × 1024 × 32 float32 with positions last 42
(22). Other blocks were not tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._device import DeviceRecord
from .._launch import NORMS_WIDTH

PROGRAMS = 4
"""Programs of the first launch that a multiprocessor is to have, where positions can be split for it."""
STEPS = 4
"""Steps over positions that a program has at least, if it is one of several for a sample."""


@dataclass(frozen=True)
class Block:
    block_t: int
    block_c: int
    num_warps: int = 4


CHANNELS_LAST = Block(32, 64)
CHANNELS_LAST_SHIFT = Block(64, 64)
POSITIONS_LAST = Block(256, 4)
INTERPRETED = Block(8, 16)


def block(record: DeviceRecord, scaled: bool, positions_last: bool) -> Block:
    if record.family == "interpreted":
        return INTERPRETED
    if positions_last:
        return POSITIONS_LAST
    return CHANNELS_LAST if scaled else CHANNELS_LAST_SHIFT


def splits(record: DeviceRecord, programs: int, positions: int, block_t: int) -> int:
    """How many programs share the positions of one sample and block of channels."""
    wanted = -(-record.multiprocessors * PROGRAMS // programs)
    return max(1, min(wanted, positions // (block_t * STEPS)))


def finish_block(record: DeviceRecord, samples: int, channels: int) -> tuple[int, int]:
    """Samples and channels of a program of the second launch; no more programs than a row of `square_norms` holds."""
    # Many samples are many steps, so that more programs with fewer channels share them; 32 bytes are read at once.
    least = 8 if record.family == "interpreted" or samples >= 64 else 32
    block_c = max(least, _power(-(-channels // NORMS_WIDTH)))
    return max(1, min(_power(samples), 2048 // block_c)), block_c


def _power(value: int) -> int:
    """The least power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
