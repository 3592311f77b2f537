"""Launch configurations of pairs of neurons, by kind of GPU and number of neurons, each with what it rests on.

Microseconds are those of the products alone, cold L2 cache, on an H100, or on an H200 (†, whose multiprocessors are the
same), in brackets those of torch's product of the same dtype, which computes both triangles. "Compiled" marks what
rests on ahead-of-time compilation alone: no spill, and shared memory within bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._device import DeviceRecord
from .._progress import Progress


class Request(NamedTuple):
    """What a call asks of whoever computes it, kernels or torch."""

    center: bool
    max_bytes: int | None = None
    progress: Progress | None = None
    precision: str = "float32"


class How(NamedTuple):
    """What every function that takes products of a tile is told at compile time."""

    rows: int
    columns: int
    samples: int
    """Of a step."""
    three: bool
    """Whether operands have low parts: a product is high·high + high·low + low·high."""
    every: int
    """Steps after which the matrix unit's sum, which truncates, is added to a float32 total; 0: never."""
    adjacent: bool
    """Whether operands lie samples by neurons."""
    pointers: bool
    """Whether pointers read them, not tensor descriptors."""
    interpret: bool


@dataclass(frozen=True)
class Tile:
    """One piece of work: BLOCK_ROWS × BLOCK_COLUMNS neurons, BLOCK_SAMPLES samples a step."""

    rows: int
    columns: int
    samples: int
    num_warps: int
    num_stages: int
    resident: int
    """Programs a multiprocessor holds at once, by registers and shared memory."""
    group: int = 8
    """Tile rows that walk their columns together. 8 cut panel reads about 2× at 8192 neurons, and 1.1× at 4096."""


ONE_TERM = {
    "sm_90": (
        # 8192²: 747†, but bfloat16 is rewritten first, for 65; 20,000 × 512: 893† (595)
        (12_288, Tile(128, 256, 64, num_warps=8, num_stages=4, resident=1)),
        # 4096²: 116† (175), 4 stages 124, tiles of 128 × 256 157; 8192²: 797† (1,366)
        (2560, Tile(128, 128, 64, num_warps=8, num_stages=5, resident=1)),
        # 2048²: 30† (27), tiles of 128² 43; 1024²: 11† (9), two ranges 16
        (0, Tile(64, 64, 64, num_warps=4, num_stages=4, resident=3)),
    ),
    "sm_100": (
        (2048, Tile(128, 128, 64, num_warps=8, num_stages=4, resident=1)),  # compiled
        (0, Tile(64, 64, 64, num_warps=8, num_stages=4, resident=3)),  # compiled; with 4 warps partial sums spill
    ),
    "sm_80": (
        (2048, Tile(128, 128, 32, num_warps=8, num_stages=3, resident=1)),  # compiled
        (0, Tile(64, 64, 32, num_warps=4, num_stages=3, resident=2)),  # compiled
    ),
    "hip": (
        (2048, Tile(128, 128, 32, num_warps=8, num_stages=2, resident=1)),  # compiled; 64 KiB of shared memory in all
        (0, Tile(64, 64, 32, num_warps=4, num_stages=2, resident=2)),  # compiled
    ),
    "interpreted": (
        (64, Tile(16, 32, 32, num_warps=4, num_stages=1, resident=1, group=2)),
        (0, Tile(16, 16, 32, num_warps=4, num_stages=1, resident=1, group=2)),
    ),
}
"""By family: (least neurons, tile), largest tile first, for products of halves as they are."""
THREE_TERMS = {
    "sm_90": (
        # 4096²: 344† (2,724), tiles of 64² 385; 8192²: 2,804†
        (2560, Tile(128, 128, 64, num_warps=8, num_stages=3, resident=1)),
        # 2048²: 56† (386), tiles of 128² 105; 1024²: 19 (62), tiles of 128² 33
        (0, Tile(64, 64, 64, num_warps=4, num_stages=3, resident=2)),
    ),
    "sm_100": (
        (2048, Tile(64, 128, 64, num_warps=8, num_stages=3, resident=1)),  # compiled; 128² spills
        (0, Tile(64, 64, 64, num_warps=4, num_stages=3, resident=2)),  # compiled
    ),
    "sm_80": (
        (2048, Tile(64, 128, 32, num_warps=8, num_stages=3, resident=2)),  # compiled; sums of 128² spill
        (0, Tile(64, 64, 32, num_warps=4, num_stages=2, resident=2)),  # compiled; with 3 stages partial sums spill
    ),
    "hip": (
        (2048, Tile(64, 128, 32, num_warps=8, num_stages=2, resident=1)),  # compiled
        (0, Tile(64, 64, 32, num_warps=4, num_stages=2, resident=2)),  # compiled
    ),
    "interpreted": ((0, Tile(32, 32, 32, num_warps=4, num_stages=1, resident=1, group=2)),),
}
"""The same for products of a high and a low part, which are added to a float32 total after every step."""

LONG = 8192
"""Samples from which the matrix unit's sums of halves are added to a float32 total too, and their error stops
growing: 6e-7 of a cosine at 8192 normal samples, and 8e-8 so, which takes 5 to 15% longer."""
ADDED_SAMPLES = {"interpreted": 64}
"""Samples that the matrix unit sums of so many, by family; 1,024 elsewhere."""

RANGE_SAMPLES = {"interpreted": 64}
"""Fewest samples of a range, by family; 2,048 elsewhere: a range costs its tile twice more in memory, and a launch."""
MOST_RANGES = 64
MOST_PARTIAL_BYTES = 256 * 2**20
"""Partial sums of ranges never take more memory than this."""
REDUCE = 32
"""Side of a tile of the finishing pass: 512 neurons are 136 of them."""

PROGRESS_STEPS = 16
"""Launches of a kernel that reports progress."""
MOST_PROGRAMS = 2**30
"""Of a launch: CUDA takes twice as many."""

MEASURE = {True: (4, 512, 8), False: (32, 128, 8)}
"""Neurons, samples and warps of a program that measures; True where samples are adjacent. 32 neighbouring float32 are
the 128 bytes that one load fetches anyway."""
MEASURED_TOGETHER = {True: 8192, False: 2048}
"""Fewest samples of a range of the norms, which costs a launch. Where neurons are adjacent, a step of 128 samples took
1.4 µs with one program on a multiprocessor as with four (H200), so that 4,096 samples of 4,096 bfloat16 neurons, whose
memory takes 8 µs to read, took 44 in one range; two have not been timed."""
WRITE = {True: (8, 512, 4), False: (64, 64, 4)}
INTERPRETED_PREPARE = (16, 32, 4)
DIRECTIONS = 128


def sums_every(tile: Tile, samples: int, record: DeviceRecord, *, three: bool) -> int:
    """Steps after which the matrix unit's sum is added to a float32 total; 0 is never."""
    if three:
        return 1
    added = ADDED_SAMPLES.get(record.family, 1024)
    return added // tile.samples if samples >= (LONG if record.family != "interpreted" else 2 * added) else 0


def tile_of(record: DeviceRecord, neurons: int, samples: int, three: bool) -> Tile:
    """The tile that serves so many neurons; of long ones, whose sums are kept twice, none of more than 128²."""
    table = (THREE_TERMS if three else ONE_TERM)[record.family]
    return next(
        tile
        for least, tile in table
        if neurons >= least and (tile.columns <= 128 or not sums_every(tile, samples, record, three=three))
    )


def strip(tile: Tile, record: DeviceRecord) -> int:
    """Columns of a tile stored together: with 256 columns, and sums on sm_100, more than 32 spill. 4096²: all alike."""
    return 32 if tile.columns > 128 or record.family == "sm_100" else 64


def reads_boxes(record: DeviceRecord) -> bool:
    """Whether the copy engine reads tiles: where there is one, and shared memory for them."""
    return record.copy_engine and record.family != "sm_80"


def pieces(neurons: int, tile: Tile) -> int:
    """Tiles on and above the diagonal."""
    across = -(-neurons // tile.columns)
    return across * (across + 1) // 2 * (tile.columns // tile.rows)


def range_samples(work: int, samples: int, neurons: int, tile: Tile, record: DeviceRecord) -> int:
    """Samples of a range, a multiple of a step, where `work` tiles alone leave multiprocessors idle."""
    wanted = tile.resident * record.multiprocessors // work
    most = samples // RANGE_SAMPLES.get(record.family, 2048)
    ranges = max(1, min(wanted, most, MOST_RANGES, MOST_PARTIAL_BYTES // (4 * neurons * neurons)))
    return -(-samples // (ranges * tile.samples)) * tile.samples


def measured_samples(programs: int, samples: int, block: int, samples_adjacent: bool, record: DeviceRecord) -> int:
    """Samples of a range of the norms, where `programs` alone leave multiprocessors idle."""
    most = samples // RANGE_SAMPLES.get(record.family, MEASURED_TOGETHER[samples_adjacent])
    ranges = max(1, min(4 * record.multiprocessors // programs, most))
    return -(-samples // (ranges * block)) * block


def prepare_block(
    table: dict[bool, tuple[int, int, int]], samples_adjacent: bool, record: DeviceRecord
) -> tuple[int, int, int]:
    """Neurons, samples and warps of a program that measures or writes."""
    return INTERPRETED_PREPARE if record.family == "interpreted" else table[samples_adjacent]


def served(precision: str, dtype: torch.dtype, *, center: bool) -> tuple[bool, bool]:
    """(halves as they are, three terms): products of halves are exact, and centred halves are no longer halves."""
    exact = dtype in (torch.float16, torch.bfloat16) and not center
    return exact, not exact and precision == "float32"


def operand_bytes(neurons: int, samples: int, dtype: torch.dtype, precision: str, *, center: bool) -> int:
    """Bytes of neurons rewritten as halves, and of their vectors."""
    _, three = served(precision, dtype, center=center)
    return (1 + three) * neurons * -(-samples // 16) * 32 + 16 * neurons


def lacks(
    *neurons: Tensor, center: bool, max_bytes: int | None, precision: str = "float32", beside: int = 0
) -> str | None:
    """Why kernels cannot take `neurons` (N, OUTER, INNER), and `beside` bytes more than their halves; None: they do."""
    dtype = neurons[0].dtype
    if dtype == torch.float64:
        return "the kernel has no float64"
    if max_bytes is None:
        return None
    needed = beside + sum(
        operand_bytes(each.shape[0], each.shape[1] * each.shape[2], dtype, precision, center=center) for each in neurons
    )
    return None if needed <= max_bytes else f"max_bytes={max_bytes:,} is less than the {needed:,} that its halves take"
