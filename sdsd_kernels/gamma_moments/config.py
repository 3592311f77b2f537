"""Launch configurations of the moments kernels, by dtype, N and device, each with what it rests on.

Milliseconds are those of prototypes of the same structure on an H100 (read ceiling 3.05 TB/s), with "×" the multiple of
the time that one read takes. The kernels here have not been timed. "Compiled" marks what rests on ahead-of-time
compilation alone: 16-byte loads, no spill, and at most 99 KiB of shared memory.
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
    F32: Stream(4, 512, True),  # 32 × 30M: 1.227, .97 ×; 128 × 8M: 1.324, .94 ×; 1024 × 1M: 1.346, 1.00 ×
    BF16: Stream(4, 1024, True),  # 32 × 30M: .626, .99 ×; 128 × 8M: .674, .97 ×
    F16: Stream(4, 1024, True),  # compiled; the bytes of bfloat16
    F64: Stream(4, 256, True),  # compiled
}
CHUNKED_FROM = 4096
"""Rows from which chunks pay in spite of fast float64: 4096 × 250k took 1.447, 1.08 ×, against 1.59."""
CHUNKED = {F32: Stream(4, 512, False), BF16: Stream(4, 1024, False), F16: Stream(4, 1024, False)}
# Merging is a fixed number of float64 operations a chunk, so where they are slow a chunk is as tall as registers allow.
CHUNKED_SLOW_FLOAT64 = {F32: Stream(8, 512, False), BF16: Stream(8, 1024, False), F16: Stream(8, 1024, False)}
MAX_STREAM_PROGRAMS = 2**16
"""Programs of a launch at most, which write 1 MiB; where there are more column blocks, a program takes several."""

_HALF_SAMPLES = (
    # 8 columns are 16 bytes. Of six settings timed for 32 × 30M the best took 1.293, 2.05 ×, by adding up rows across
    # threads in every tile; now a thread keeps its part of every sum.
    Samples(8, 512, 4, 3, 4),  # compiled
    Samples(16, 256, 4, 3, 4),  # compiled
    Samples(32, 128, 4, 3, 4),  # compiled
    Samples(64, 64, 4, 3, 4),  # compiled
    Samples(128, 64, 8, 3, 2),  # 128 × 8M: .724, 1.04 ×, with 4 warps
    Samples(256, 64, 16, 3, 1),  # compiled
    Samples(512, 32, 16, 3, 1),  # compiled
    Samples(1024, 16, 16, 3, 1),  # compiled
)
SAMPLES = {
    F32: (
        Samples(8, 256, 4, 3, 5),  # compiled
        Samples(16, 128, 4, 3, 5),  # compiled
        Samples(32, 128, 4, 3, 3),  # 32 × 30M: 1.279, 1.01 ×
        Samples(64, 64, 4, 3, 3),  # compiled
        Samples(128, 32, 4, 3, 3),  # 128 × 8M: 1.365, .97 ×, with 64 columns on 8 warps
        Samples(256, 32, 8, 3, 1),  # compiled
        Samples(512, 16, 8, 3, 1),  # 512 × 2M: 1.384, 1.03 ×, with 32 columns on 16 warps, which now spill on sm_100
        Samples(1024, 8, 16, 3, 1),  # compiled; 1024 × 1M: 1.794, 1.34 ×, with 16 columns, which now spill on sm_100
    ),
    BF16: _HALF_SAMPLES,
    F16: _HALF_SAMPLES,
    F64: (
        Samples(8, 128, 4, 3, 4),
        Samples(16, 64, 4, 3, 4),
        Samples(32, 64, 4, 3, 3),
        Samples(64, 64, 8, 3, 1),
        Samples(128, 32, 8, 3, 1),
        Samples(256, 16, 8, 3, 1),
        Samples(512, 16, 16, 2, 1),
        Samples(1024, 8, 16, 2, 1),
    ),  # compiled
}
RESIDENT_ROWS = 1024
"""Most rows one tile holds; above it a column block is read twice."""
_HALF_TWO_WALKS = Samples(32, 128, 4, 1, 3)
TWO_WALKS = {
    F32: Samples(32, 64, 4, 1, 4),  # 2 to 3 ×
    BF16: _HALF_TWO_WALKS,  # compiled
    F16: _HALF_TWO_WALKS,
    F64: Samples(32, 32, 4, 1, 4),  # compiled
}
MAX_PARTIAL_ELEMENTS = 2**24
"""Bound on (programs × result row), 128 MiB of float64: at N = 65,536 it leaves 113 programs."""

FINISH_TWO = (2048, 2, 8)
"""Rows, columns and warps of the finishing kernel where a row of partial results is signal and squares."""
FINISH_SAMPLES = (64, 32, 4)


def stream_config(dtype: torch.dtype, n: int, record: DeviceRecord) -> Stream:
    """How signal and squares of N gradients are summed."""
    if dtype == F64:
        return WIDE[dtype]
    if not record.fast_float64:
        return CHUNKED_SLOW_FLOAT64[dtype]
    return CHUNKED[dtype] if n >= CHUNKED_FROM else WIDE[dtype]


def samples_config(dtype: torch.dtype, n: int) -> Samples:
    """The smallest tile that holds every row, or the chunk of rows that is walked twice."""
    return next((config for config in SAMPLES[dtype] if config.rows >= n), TWO_WALKS[dtype])


def samples_wide(dtype: torch.dtype, n: int, record: DeviceRecord) -> bool:
    """Whether products are formed in float64: of halves only where two walks are needed, for a thread has many."""
    if dtype == F64:
        return True
    return record.fast_float64 and (dtype == F32 or n > RESIDENT_ROWS)
