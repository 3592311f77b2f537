"""Launch configurations of the kernels on GPUs and the choice among methods there, each with what it rests on.

Times and ratios are those of prototypes of the same structure on an H100 (bfloat16, 132 multiprocessors); "× plain" is
against the weight gradient of cuBLAS or cuDNN alone; README.md has times of the kernels here. "Compiled" marks what
rests on ahead-of-time compilation: registers, spills, shared memory, matrix instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._device import DeviceRecord


@dataclass(frozen=True)
class Tile:
    """One program: block_p × block_d of the weight gradient, block_t positions of a sample a step."""

    block_p: int
    block_d: int
    block_t: int
    num_warps: int
    num_stages: int
    resident: int = 1
    """Programs a multiprocessor holds, by registers and shared memory: what a split over samples tries to fill."""
    rate: float = 1.0
    """Multiply-adds a second of a full multiprocessor, as a share of the best tile's."""


DIRECT, ONE_TERM, THREE_TERMS = "direct", "one float16 term", "three float16 terms"
"""How values reach the matrix unit."""

# Linear layers. N 16, T 1024, 1024 → 4096: 1.10 × plain with the first. N 8, T 1024, 768 → 768: .96 with the second.
# 3072 → 768, 144 tiles of 128² on 132 multiprocessors: 1.76 with the third; it was best, too, for 768 → 2304, 1.09, and
# N 64, T 128, 1024 → 1024, 1.30, where the first is chosen. Rates: steps of half the length, tiles of half the size.
LINEAR = (
    Tile(128, 128, 128, num_warps=8, num_stages=3),
    Tile(128, 128, 64, num_warps=8, num_stages=5, rate=0.92),
    Tile(64, 128, 64, num_warps=4, num_stages=4, resident=2, rate=0.8),
)
# Two accumulators of this size do not fit the registers, but the total is touched once a sample. On an H100, N 8,
# T 1024: 1024 → 3072 in 96 µs, with the first tile 114; 1024 → 4096 103, 118; 4096 → 1024 103, 118; 1024 → 32,768 773,
# 892; N 16, 1024 → 4096 191, 222. Not for few tiles: 1024 → 1024 takes 36 µs with either.
WIDE = (Tile(128, 256, 64, num_warps=8, num_stages=3, rate=1.17), *LINEAR)
# Convolutions. 3 × 3: 256 × 8², 128 → 128 in .54 × plain, 64 × 14², 256 → 256 in .35; 1 × 1: 64 × 28²,
# 512 → 128 in .96.
BOXES = (Tile(64, 128, 64, num_warps=4, num_stages=4, resident=2),)
# 3 × 3: 64 × 56², 64 → 64 in 1.08 × plain.
NARROW = (Tile(64, 64, 64, num_warps=4, num_stages=5, resident=3),)
# Compiled: a scale takes the registers of a third accumulator, and addresses; tiles 128 wide, and 4 warps, spill.
SCALED = (Tile(64, 64, 64, num_warps=8, num_stages=4),)
# Compiled: 196 KiB and 230 registers. The cosines of 4096 × 4096 by the same three terms took 364 µs.
THREE = (Tile(128, 128, 64, num_warps=8, num_stages=3),)
# Compiled: with the addresses of strides and sets, and on sm_100, 128 × 128 spills or takes 240 KiB.
THREE_BOXES = (Tile(64, 128, 64, num_warps=8, num_stages=3),)
# Compiled: a sample's sum, the total and the three terms' sum, and the scale.
THREE_NARROW = (Tile(64, 64, 64, num_warps=8, num_stages=3),)

# Compiled: without the copy engine addresses take registers, and 64 KiB of shared memory on AMD hold two stages.
POINTER_HALF = (Tile(128, 128, 32, num_warps=8, num_stages=3),)
POINTER_HALF_SMALL = (Tile(64, 64, 32, num_warps=4, num_stages=3, resident=2),)
POINTER_FLOAT = (Tile(64, 64, 32, num_warps=4, num_stages=3, resident=2),)
POINTER_SCALED = (Tile(64, 64, 32, num_warps=8, num_stages=3),)
POINTER_FLOAT_SCALED = (Tile(64, 32, 32, num_warps=8, num_stages=3),)
HIP_HALF = (Tile(128, 128, 32, num_warps=8, num_stages=2),)
HIP_FLOAT = (Tile(64, 64, 32, num_warps=4, num_stages=2, resident=2),)
# Compiled: few channels, whose columns run over all taps: 27 of a 3 × 3 kernel on three channels fill a tile of 32.
FEW_CHANNELS = (Tile(64, 32, 64, num_warps=4, num_stages=3, resident=3),)
FEW_CHANNELS_HIP = (Tile(64, 32, 32, num_warps=4, num_stages=2, resident=3),)

# Small and not square, so that small shapes have several tiles and a mistaken dimension shows.
INTERPRETED = (Tile(16, 32, 16, num_warps=4, num_stages=1),)

FLAT_BELOW = 16
"""With fewer channels than this, and several taps, the columns of a tile run over all taps."""


def reads_boxes(record: DeviceRecord) -> bool:
    """Whether the copy engine reads tiles: where there is one, and shared memory for them."""
    return record.copy_engine and record.family != "sm_80"


def tiles(
    record: DeviceRecord,
    kind: str,
    *,
    itemsize: int,
    pointers: bool,
    flat: bool,
    boxes: bool,
    narrow: bool,
    scaled: bool,
) -> tuple[Tile, ...]:
    """What `best_plan` chooses among. `narrow`: no more than 64 rows or columns; `boxes`: a convolution."""
    hip = record.family == "hip"
    if record.family == "interpreted":
        return INTERPRETED
    if pointers:
        if flat:
            return FEW_CHANNELS_HIP if hip else FEW_CHANNELS
        if scaled and not hip:
            return POINTER_FLOAT_SCALED if itemsize == 4 else POINTER_SCALED
        if itemsize == 4:
            return HIP_FLOAT if hip else POINTER_FLOAT
        if scaled or narrow:
            return HIP_FLOAT if hip else POINTER_HALF_SMALL
        return HIP_HALF if hip else POINTER_HALF
    if kind == THREE_TERMS:
        if scaled or narrow:
            return THREE_NARROW
        return THREE if record.family == "sm_90" and not boxes else THREE_BOXES
    if scaled:
        return SCALED
    if narrow:
        return NARROW
    if boxes:
        return BOXES
    return WIDE if record.family == "sm_90" else LINEAR


def box_shape(block_t: int, height: int, width: int) -> tuple[int, int]:
    """The box of `block_t` positions that covers `height` × `width` in the fewest; the widest of equals.

    Measured with 64: 8 × 8 for 8² and 56², 4 × 16 for 14², 2 × 32 for 28².
    """
    best, fewest = (1, block_t), 0
    box_w = block_t
    while box_w >= 1:
        box_h = block_t // box_w
        count = -(-height // box_h) * -(-width // box_w)
        if fewest == 0 or count < fewest:
            best, fewest = (box_h, box_w), count
        box_w //= 2
    return best


ADDING_RANGES = 6.4
"""Multiply-adds of one multiprocessor while one number of a range's weight gradient is written and read: 8 bytes."""


@dataclass(frozen=True)
class Plan:
    """A tile, its box, and how samples are shared out."""

    tile: Tile
    box: tuple[int, int]
    tiles: int
    samples_each: int
    ranges: int


def best_plan(
    candidates: tuple[Tile, ...],
    record: DeviceRecord,
    *,
    samples: int,
    out_size: tuple[int, int],
    d: int,
    p: int,
    sets: int,
    taps: int,
    flat: bool,
    most_ranges: int,
) -> Plan:
    """The candidate that is through first, by the steps that the busiest multiprocessor takes.

    Samples are split into ranges where the tiles alone leave multiprocessors idle.
    """
    best, least = None, 0.0
    for tile in candidates:
        box = box_shape(tile.block_t, *out_size)
        columns = -(-d * taps // tile.block_d) if flat else -(-d // tile.block_d) * taps
        count = sets * -(-p // tile.block_p) * columns
        slots = record.multiprocessors * tile.resident
        each = -(-samples // max(1, min(samples, slots // count, most_ranges)))
        ranges = -(-samples // each)
        boxes = -(-out_size[0] // box[0]) * -(-out_size[1] // box[1])
        programs = -(-count * ranges // record.multiprocessors)
        cost = programs * each * boxes * tile.block_t * tile.block_p * tile.block_d / tile.rate
        if ranges > 1:
            cost += ADDING_RANGES * ranges * sets * d * p * taps
        if best is None or cost < least:
            best, least = Plan(tile, box, count, each, ranges), cost
    assert best is not None
    return best


@dataclass(frozen=True)
class Depthwise:
    """block_p output channels at one tap, block_t positions a step."""

    block_p: int
    block_t: int
    num_warps: int = 4


# Not measured. 32 lanes along what is adjacent in memory read whole lines.
DEPTHWISE_CHANNELS_LAST = Depthwise(64, 32)
DEPTHWISE_CHANNELS_FIRST = Depthwise(4, 256)
DEPTHWISE_INTERPRETED = Depthwise(8, 32)
DEPTHWISE_RESIDENT = 8
"""Programs of it a multiprocessor holds, by registers."""


@dataclass(frozen=True)
class Gram:
    block_t: int
    block_k: int
    num_warps: int
    num_stages: int


# N 64, T 128, 1024 → 1024: 24 µs; N 16, T 1024, 1024 → 4096: 178; N 8, T 2048, 4096 → 4096: 528.
GRAM_HALF = Gram(128, 64, num_warps=8, num_stages=3)
# Compiled: 64 positions are enough where a sample has no more, and two float32 operands of 128 spill.
GRAM_SMALL = Gram(64, 64, num_warps=4, num_stages=3)
GRAM_FLOAT = Gram(64, 32, num_warps=4, num_stages=3)
# Compiled: with 4 warps the second sum of long features spills.
GRAM_FLOAT_SM_80 = Gram(64, 32, num_warps=8, num_stages=2)
GRAM_HIP = Gram(64, 32, num_warps=4, num_stages=2)
GRAM_INTERPRETED = Gram(16, 32, num_warps=4, num_stages=1)


LONG_FEATURES = 2048
"""Features from which "gram" adds the matrix unit's sums to a float32 total: over 4,096 of them, all positive on the
diagonal, truncation took 1.2e-5 of the squares on an H200."""
ADDED_FEATURES = {"interpreted": 64}
"""Features that the matrix unit then sums, by family; 1,024 elsewhere."""


def gram_every(record: DeviceRecord, features: int) -> int:
    """Features after which sums are added to a float32 total; 0 is never. `features`: of the wider operand."""
    added = ADDED_FEATURES.get(record.family, LONG_FEATURES // 2)
    return added if features >= 2 * added else 0


def gram_config(record: DeviceRecord, itemsize: int, positions: int) -> Gram:
    if record.family == "interpreted":
        return GRAM_INTERPRETED
    if record.family == "hip":
        return GRAM_HIP
    if itemsize == 4:
        return GRAM_FLOAT_SM_80 if record.family == "sm_80" else GRAM_FLOAT
    return GRAM_SMALL if positions <= 64 or record.family == "sm_80" else GRAM_HALF


RANK1_BLOCK = (4, 256)
"""Samples of a program, and features at once."""
SPLIT_BLOCK = (32, 64)
"""Rows and channels of a program that makes float16 parts: 128 bytes of a row are read and written together."""
LARGEST_PROGRAMS = 8
"""Programs of a multiprocessor that share the rows when the largest value of every channel is looked for."""
FINISH_BLOCK = 1024
"""Numbers that a program of the last kernel adds up at once, of up to `MOST_TOGETHER` ranges."""
MOST_TOGETHER = 16


RATED_MULTIPROCESSORS = 132
"""Of the GPU whose rates follow."""


@dataclass(frozen=True)
class MethodRates:
    """Multiply-adds a second, and what a launch costs where it is short."""

    plain: float
    fused: float
    gram: float
    launch: float
    block_t: int
    """Positions are taken in steps of so many, whether there are as many or not."""
    finish: int
    """Multiply-adds that squaring, adding and clearing one value of a sample's gradient costs."""


# bfloat16. N 8, T 2048, 4096 → 4096: plain 682 µs, fused 859, gram 528; N 16, T 1024, 1024 → 4096: 198, 218, 178;
# N 64, T 128, 1024 → 1024: 31, 40, 24. The model says 682, 873, 528; 170, 221, 174; 21, 34, 16: with a weight gradient
# "fused" is fastest in all three, without one "gram" is, as measured.
HALF_RATES = MethodRates(plain=4.03e14, fused=3.2e14, gram=2.77e14, launch=5e-6, block_t=64, finish=32)
# Not measured: three terms at a third of the rate of one; plain float32 reached 51 TFLOP/s.
FLOAT_RATES = MethodRates(plain=2.5e13, fused=1.07e14, gram=0.9e14, launch=5e-6, block_t=64, finish=11)
