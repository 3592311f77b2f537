"""Launch configurations of the moments kernels, by dtype, N and device, each with what it rests on.

Milliseconds are of these kernels on an H100 (read ceiling 3.09 TB/s), with "×" the multiple of the time that one read
takes; those of WIDE in float32 are of a program a block. "Compiled" marks what rests on ahead-of-time compilation:
16-byte loads, no spill, and at most 99 KiB of shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._device import DeviceRecord

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Stream:
    """Signal and squares alone: a program owns `columns`, of which a thread owns a few, and takes `rows` at a time."""

    rows: int
    columns: int
    wide: bool
    """Sums in float64; otherwise chunks of `rows` in float32, merged in float64."""
    num_warps: int = 4
    spread: bool = False
    """Rows of a tile lie in several warps, for matrices of so few columns that warps would be short of work."""


@dataclass(frozen=True)
class Samples:
    """With per-sample sums: a program holds `rows` × `columns` and walks on by column blocks."""

    rows: int
    columns: int
    num_warps: int
    stages: int
    """Tiles in flight, the one at work included."""
    resident: int
    """Programs a multiprocessor holds, by registers; the grid has no more."""


# 16 bytes a thread and row, and all rows of a column in one thread: sums over rows need no exchange.
WIDE = {
    F32: Stream(4, 512, True),  # 32 × 30M: 1.25, 1.00 ×; 128 × 8M: 1.33, .99 ×; 1024 × 1M: 1.35, 1.01 ×
    BF16: Stream(8, 1024, True),  # 32 × 30M: .736, 1.17 ×; 128 × 8M: .704, 1.05 ×, with 4 rows .744 and .777
    F16: Stream(8, 1024, True),  # the bytes of bfloat16
    F64: Stream(4, 256, True),  # compiled
}
CHUNKED_FROM = 4096
"""Rows from which chunks pay in spite of fast float64: 4096 × 250k in a prototype took 1.447, 1.08 ×, against 1.59."""
CHUNKED = {
    F32: Stream(8, 512, False),  # 4096 × 250k: 1.403, 1.04 ×; with 4 rows 1.725
    BF16: Stream(8, 256, True, 4, spread=True),  # 4096 × 250k: .847, 1.26 ×; chunks of 8 rows, which spill, .885
    F16: Stream(8, 256, True, 4, spread=True),
}
# Merging is a fixed number of float64 operations a chunk, so where they are slow a chunk is as tall as registers allow.
CHUNKED_SLOW_FLOAT64 = {F32: Stream(8, 512, False), BF16: Stream(8, 1024, False), F16: Stream(8, 1024, False)}
SPREAD = {
    F32: Stream(16, 128, True, 4, spread=True),  # 512 × 65,536: 73 µs, against 101
    BF16: Stream(16, 256, True, 4, spread=True),  # 512 × 65,536: 56 µs
    F16: Stream(16, 256, True, 4, spread=True),
    F64: Stream(16, 64, True, 4, spread=True),  # compiled
}
TALL_FROM = 2048
TALL = {
    F32: Stream(64, 32, True, 4, spread=True),  # 4096 × 16,384: 107 µs, 1.22 ×; spread 16 × 128 takes 186
    BF16: Stream(64, 64, True, 8, spread=True),  # 4096 × 16,384: 75 µs, 1.71 ×; spread 16 × 256 takes 192
    F16: Stream(64, 64, True, 8, spread=True),
    F64: Stream(64, 16, True, 4, spread=True),  # compiled
}
FEW_BLOCKS = 2
"""Fewer column blocks a multiprocessor than this leave it waiting for memory: 4096 × 16,384 float32 took 7 ×."""
STREAM_PROGRAMS = 32
"""Programs a multiprocessor at most, which walk on by column blocks: 32 × 30M bfloat16 took .672 ms, 1.07 ×, with so
many, and .784 with a program a block."""

_HALF_SAMPLES = (
    Samples(8, 128, 1, 3, 16),  # 8 × 60M: .357, 1.13 ×; four others 1.63 to 2.26
    Samples(16, 128, 2, 3, 8),  # 16 × 30M: .466, 1.48 ×; 64 columns on one warp .352, 1.12 ×, which spill on sm_100
    Samples(32, 64, 2, 3, 8),  # 32 × 30M: .750, 1.19 ×; twelve others 1.19 to 3.85
    Samples(64, 32, 2, 3, 6),  # 64 × 16M: .869, 1.29 ×
    Samples(128, 64, 4, 3, 2),  # 128 × 8M: .748, 1.11 ×
    Samples(256, 64, 8, 3, 1),  # 256 × 4M: .773, 1.15 ×
    Samples(512, 32, 8, 3, 1),  # 512 × 2M: .846, 1.26 ×
    Samples(1024, 16, 8, 3, 1),  # 1024 × 1M: 1.362, 2.03 ×
)
SAMPLES = {
    F32: (
        Samples(8, 512, 4, 3, 3),  # 8 × 60M: .652, 1.04 ×
        Samples(16, 256, 4, 3, 3),  # 16 × 30M: .662, 1.05 ×
        Samples(32, 128, 4, 3, 3),  # 32 × 30M: 1.428, 1.13 ×
        Samples(64, 64, 4, 3, 3),  # 64 × 16M: 1.407, 1.05 ×
        Samples(128, 32, 4, 3, 3),  # 128 × 8M: 1.405, 1.05 ×
        Samples(256, 32, 8, 3, 1),  # 256 × 4M: 1.456, 1.08 ×
        Samples(512, 16, 8, 3, 1),  # 512 × 2M: 1.735, 1.29 ×
        Samples(1024, 8, 16, 3, 1),  # 1024 × 1M: 2.914, 2.17 ×; 2.484 with 16 columns, which spill on sm_100
    ),
    BF16: _HALF_SAMPLES,
    F16: _HALF_SAMPLES,
    F64: (
        Samples(8, 128, 4, 3, 4),
        Samples(16, 64, 4, 3, 4),
        Samples(32, 32, 4, 3, 4),  # 32 × 15M: 1.338, 1.06 ×
        Samples(64, 32, 4, 3, 2),  # 64 × 4M: .800, 1.19 ×
        Samples(128, 32, 8, 3, 1),
        Samples(256, 16, 8, 3, 1),
        Samples(512, 16, 16, 2, 1),
        Samples(1024, 8, 16, 2, 1),
    ),  # the others compiled
}
RESIDENT_ROWS = 1024
"""Most rows one tile holds; above it a column block is read twice."""
_HALF_TWO_WALKS = Samples(64, 128, 8, 1, 2)  # 4096 × 250k: 4.040, 6.02 ×; with 4 warps, which spill, 3.894
TWO_WALKS = {
    F32: Samples(64, 128, 8, 1, 2),  # 4096 × 250k: 4.676, 3.48 ×; six others 3.80 to 4.51
    BF16: _HALF_TWO_WALKS,
    F16: _HALF_TWO_WALKS,
    F64: Samples(32, 32, 4, 1, 4),  # compiled
}
MAX_PARTIAL_ELEMENTS = 2**24
"""Bound on (programs × result row), 128 MiB of float64: at N = 65,536 it leaves 113 programs."""

FINISH_TWO = (2048, 2, 8)
"""Rows, columns and warps of the finishing kernel where a row of partial results is signal and squares."""
FINISH_SAMPLES = (64, 32, 4)


def stream_config(dtype: torch.dtype, n: int, record: DeviceRecord, count: int = 0) -> Stream:
    """How signal and squares of N gradients are summed; `count`: columns of the only matrix, or 0."""
    if dtype != F64 and not record.fast_float64:
        return CHUNKED_SLOW_FLOAT64[dtype]
    usual = CHUNKED[dtype] if dtype != F64 and n >= CHUNKED_FROM else WIDE[dtype]
    few = 0 < count < FEW_BLOCKS * record.multiprocessors * usual.columns
    if not few:
        return usual
    return TALL[dtype] if n >= TALL_FROM else SPREAD[dtype]


def samples_config(dtype: torch.dtype, n: int) -> Samples:
    """The smallest tile that holds every row, or the chunk of rows that is walked twice."""
    return next((config for config in SAMPLES[dtype] if config.rows >= n), TWO_WALKS[dtype])


def samples_wide(dtype: torch.dtype, n: int, record: DeviceRecord) -> bool:
    """Whether products are formed in float64: of halves only where two walks are needed, for a thread has many."""
    if dtype == F64:
        return True
    return record.fast_float64 and (dtype == F32 or n > RESIDENT_ROWS)
