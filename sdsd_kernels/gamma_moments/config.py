"""Launch configurations of the moments kernel: a tile is as many rows as fit on chip and enough columns to stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`rows` × `columns` is the tile a program holds in registers; `num_warps` spreads it."""

    rows: int
    columns: int
    num_warps: int


# 16 to 32 float32 values of the tile a thread leave registers for the row sums: ahead-of-time compilation shows no
# spill on sm_80, sm_90, sm_100 or gfx942 (1024 rows did spill). At least 32 columns, so that a row of the tile fills a
# 128-byte line. 32 and 128, the common batch sizes, have a tile of their own; between tiles, masked rows cost no reads.
RESIDENT = (
    Config(rows=4, columns=512, num_warps=4),
    Config(rows=16, columns=256, num_warps=4),
    Config(rows=32, columns=128, num_warps=4),
    Config(rows=64, columns=64, num_warps=4),
    Config(rows=128, columns=64, num_warps=8),
    Config(rows=256, columns=32, num_warps=8),
    Config(rows=512, columns=32, num_warps=16),
)
RESIDENT_ROWS = RESIDENT[-1].rows
"""Most rows one tile holds; above it a program walks over chunks of CHUNKED.rows rows."""
# Half the values a thread of the resident tiles: the loop over chunks carries a float64 mean of its own.
CHUNKED = Config(rows=128, columns=32, num_warps=8)

PROGRAMS_PER_MULTIPROCESSOR = 4
"""Enough resident programs to hide memory latency at 4 to 8 warps each; more only adds partial results."""
MAX_PARTIAL_ELEMENTS = 2**24
"""Bound on (programs × result row), 128 MB of float64: at N = 65,536 it leaves 113 programs."""


def choose_config(n: int) -> Config:
    """The configuration for N gradients: the smallest tile that holds every row, or chunks of rows."""
    return next((config for config in RESIDENT if config.rows >= n), CHUNKED)
