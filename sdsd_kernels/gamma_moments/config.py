"""Launch configurations of the moments kernels, by dtype, N and device, each with the figure it rests on.

Figures in milliseconds are those of prototypes on an H100 (read ceiling 3.05 TB/s), × the time of one read; the kernels
here have their structure and have not been timed themselves. What is "chosen" rests on ahead-of-time compilation alone:
no spill, 16-byte loads, shared memory within limits on sm_80, sm_90, sm_100 and gfx942.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._device import DeviceRecord


@dataclass(frozen=True)
class Stream:
    """Signal and squares alone: a program owns `columns`, of which a thread owns a few, and takes `rows` at a time."""

    columns: int
    rows: int
    num_warps: int


@dataclass(frozen=True)
class Samples:
    """With per-sample sums: a program holds a tile of `rows` × `columns` and walks on by column blocks."""

    rows: int
    columns: int
    num_warps: int
    stages: int
    """Tiles in flight."""
    resident: int
    """Programs a multiprocessor holds, of a grid that walks all column blocks."""


# 16 bytes a thread and row: a thread's columns are its own, so sums over rows need no exchange.
STREAM = {
    torch.float32: Stream(columns=512, rows=4, num_warps=4),  # 32 × 30M: 1.227, .97 ×; 128 × 8M: .94; 1024 × 1M: 1.00
    torch.bfloat16: Stream(columns=1024, rows=4, num_warps=4),  # 32 × 30M: .626, .99 ×; 128 × 8M: .97
    torch.float16: Stream(columns=1024, rows=4, num_warps=4),  # as bfloat16, whose bytes it has
    torch.float64: Stream(columns=256, rows=4, num_warps=4),  # chosen
}
# The float32 sums of a chunk are merged in float64 once a chunk, so a chunk of 8 rows asks half of one of 4.
CHUNKED = {
    torch.float32: Stream(columns=512, rows=8, num_warps=4),  # 4096 × 250k: 1.447, 1.08 ×, with 4 rows
    torch.bfloat16: Stream(columns=1024, rows=8, num_warps=4),  # chosen
    torch.float16: Stream(columns=1024, rows=8, num_warps=4),  # chosen
}
CHUNKED_FROM = 4096
"""Rows from which chunks were faster in spite of fast float64: 4096 × 250k took 1.447 against 1.59."""
MAX_STREAM_PROGRAMS = 2**16
"""Programs of a streaming launch, 1 MiB of partial results; more columns are walked a block at a time."""
