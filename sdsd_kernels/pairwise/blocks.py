"""Blocks of the cosine matrix in torch, for calls that never hold the whole of it.

    C[i, j] = (a_i · b_j) · (r_i r_j),    a_i = x_i · s_i − mean_i,    r_i = 1 / ‖a_i‖

s_i is a power of two that brings a neuron out of range back into it. A block has the promises of the whole matrix:
|C| ≤ 1, NaN wherever a neuron has one, 1 on the diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._precision import exact_float32
from .._progress import Progress
from .products import STRIP, SUMMED, product, symmetric_cosines, upper_products
from .reading import PASS_ELEMENTS, Values, in_range

SAMPLES_AT_ONCE = 1024
"""Samples of a panel converted together; more make the products no faster."""
FINISH_ELEMENTS = 2**17
"""Products scaled together: half a MiB stays in the cache. 2**15 is as fast on one thread, but too little for two."""
SMALLEST_SIDE = 64
"""Blocks get no smaller than this: below it a product takes longer to start than to compute."""


@dataclass(frozen=True, kw_only=True)
class Neurons(Values):
    """Neurons that have been read once and are ready for products.

    Attributes:
        inverse_norm: of the centred, scaled neuron; 0 for one that is zero, NaN for one with a NaN or an infinity.
            # shape: (N,)
        unit: whether `rows` have unit length, so that their products are cosines.
        rooms: where panels are converted to, for rows of a block and for columns. New memory for each would leave holes
            in the C heap.
    """

    inverse_norm: Tensor
    unit: bool = False
    rooms: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def directed(self) -> Tensor:
        """Whether a neuron has a direction, so that it can have neighbours.  # shape: (N,)"""
        return self.inverse_norm > 0

    @property
    def kept_bytes(self) -> int:
        """What stays of reading neurons: mean, scale, inverse norm, and flags of one side of a block."""
        return self.rows.shape[0] * (3 * self.dtype.itemsize + 1)

    def panels(self, which: slice, copy: bool, name: str) -> Iterable[Tensor]:
        """`chunks` of some neurons; copies lie in the room of that name."""
        if not copy:
            return self.rows[which, 0].split(SUMMED, 1)
        some, room = self.some(which), self.rooms.get(name)
        size = len(some.rows) * min(self.rows[0].numel(), SAMPLES_AT_ONCE)
        if room is None or room.numel() < size:
            room = self.rooms[name] = self.rows.new_empty(size, dtype=self.dtype)
        return some.chunks(copy=True, most=SAMPLES_AT_ONCE, room=room)


def prepare(rows: Tensor, *, center: bool = False) -> Neurons:
    """Read `rows` (N, OUTER, INNER) for means, scales and norms."""
    # Squares of float32 cannot leave the range of float64, so only float64 neurons need the second reading.
    values, square = in_range(
        rows, lambda values: values.reduced(lambda some: some.double().square_().sum(1)), center=center
    )
    inverse_norm = torch.where(square == 0, 0.0, square.rsqrt().to(values.dtype))
    return Neurons(**vars(values), inverse_norm=inverse_norm)


def normalized(neurons: Neurons) -> Neurons:
    """The same neurons as a copy of unit length, which takes their size in float32 (float64) and saves each block two
    passes: where samples are few, those are a quarter of its products."""
    unit = neurons.copy().mul_(neurons.inverse_norm[:, None])
    return Neurons(unit[:, None], neurons.dtype, inverse_norm=neurons.inverse_norm, unit=True)


def block_sides(
    left: Neurons,
    right: Neurons,
    preferred: tuple[int, int],
    *,
    pair_bytes: int,
    max_bytes: int | None,
    fixed_bytes: int = 0,
    whole_rows: bool = False,
) -> tuple[int, int]:
    """Rows and columns of a block: `preferred`, or as much smaller as `max_bytes` asks for.

    Args:
        left: the neurons of the rows.
        right: the neurons of the columns.
        preferred: the fastest block; none is larger than the matrix or, of one set of neurons, higher than wide.
        pair_bytes: what the caller allocates for a pair of neurons in a block, the cosine included.
        max_bytes: bound on all of it, on neurons and their converted panels, and on what `prepare` took; None: none.
        fixed_bytes: what the caller allocates whatever the block.
        whole_rows: keep all columns of `preferred` and take fewer rows, down to one.

    Raises:
        ValueError: even the smallest block, SMALLEST_SIDE squared or one whole row, takes more.
    """
    sides = [min(preferred[0], left.rows.shape[0]), min(preferred[1], right.rows.shape[0])]
    smallest = 1 if whole_rows else SMALLEST_SIDE
    row_bytes = 0
    if left.converts or right.converts:
        row_bytes = min(left.rows.shape[1] * left.rows.shape[2], SAMPLES_AT_ONCE) * left.dtype.itemsize
    fixed_bytes += left.kept_bytes + (right is not left) * right.kept_bytes
    # What `prepare` allocates at most, its result included.
    sizes = ((each.rows.shape[0], each.rows.numel()) for each in (left, right))
    read_bytes = max(20 * min(values, max(PASS_ELEMENTS, count)) + 64 * count for count, values in sizes)
    while True:
        if left is right:
            sides[0] = min(sides)
        needed = fixed_bytes + sides[0] * sides[1] * pair_bytes + sum(sides) * row_bytes
        needed = max(needed, read_bytes)
        if max_bytes is None or needed <= max_bytes:
            return sides[0], sides[1]
        longer = 0 if whole_rows or sides[0] >= sides[1] else 1
        if sides[longer] <= smallest:
            raise ValueError(
                f"max_bytes: expected at least {needed:,} for this input, which one block of {sides[0]} × {sides[1]} "
                f"neurons takes, got {max_bytes:,}. Allow more, or leave max_bytes out."
            )
        sides[longer] = max(smallest, sides[longer] // 2)


def triangle_blocks(
    neurons: Neurons, sides: tuple[int, int], *, fill: float, progress: Progress | None = None
) -> Iterator[tuple[Tensor, int, int]]:
    """(cosines, first row, first column) of blocks that hold each pair once; the buffer is overwritten."""
    places, block_at = block_places(neurons, neurons, sides), blocks_of(neurons, neurons, sides, fill=fill)
    for done, (row, column) in enumerate(places, 1):
        yield block_at(row, column), row, column
        if progress is not None:
            progress(done, len(places))


def block_places(
    left: Neurons, right: Neurons, sides: tuple[int, int], *, triangle: bool = True
) -> list[tuple[int, int]]:
    """First row and column of blocks, strip by strip, from left to right; in a `triangle` from the diagonal on."""
    rows, columns = left.rows.shape[0], right.rows.shape[0]
    return [(row, column) for row in range(0, rows, sides[0]) for column in range(row * triangle, columns, sides[1])]


def blocks_of(
    left: Neurons, right: Neurons, sides: tuple[int, int], *, fill: float, once: bool = True, group: int = 1
) -> Callable[..., Tensor]:
    """What gives the cosines of the block that begins at a row and a column, one after the other in the same buffer.

    `fill` stands where no pair is: a neuron meets itself, or one has no direction; beyond the ends, up to a multiple of
    `group` rows and columns; and, where each pair is wanted only `once`, below the diagonal.
    """
    gaps = [not bool(neurons.directed.all()) for neurons in (left, right)]
    buffer = left.rows.new_empty(math.prod(-(-side // group) * group for side in sides), dtype=left.dtype)

    def block_at(row: int, column: int, sides: Sequence[int] = sides) -> Tensor:
        rows, columns = min(sides[0], left.rows.shape[0] - row), min(sides[1], right.rows.shape[0] - column)
        shape = -(-rows // group) * group, -(-columns // group) * group
        padded = buffer[: shape[0] * shape[1]].view(shape)
        block = padded[:rows, :columns]
        fill_cosines(block, left, row, right, column, once=once)
        if shape != (rows, columns):
            padded[rows:] = fill
            padded[:, columns:] = fill
        if left is right and once and row == column:
            for top in range(0, rows, STRIP):
                corner = block[top : top + STRIP, top : top + STRIP]
                corner.masked_fill_(torch.ones_like(corner, dtype=torch.bool).tril_(), fill)
                block[top : top + STRIP, :top] = fill
        elif left is right:
            block.diagonal(row - column).fill_(fill)
        for side, neurons, start in ((0, left, row), (1, right, column)):
            if gaps[side]:
                without = (~neurons.directed[start : start + block.shape[side]]).nonzero().flatten()
                block.index_fill_(side, without, fill)
        return padded

    return block_at


def fill_cosines(out: Tensor, left: Neurons, row: int, right: Neurons, column: int, *, once: bool = False) -> None:
    """Write C[row:, column:] of `left` against `right` into `out`, as much of it as `out` holds.

    Where `left is right`, a block that starts on the diagonal (row == column), which is no higher than wide, is
    symmetric bit for bit, and exactly 1 on it (0 or NaN for a neuron without direction). Two blocks that are mirror
    images may differ in the last bit, so a symmetric matrix is taken from the blocks on one side of the diagonal.
    """
    rows, columns = out.shape
    side = rows if left is right and row == column else 0
    upper = side if out.device.type == "cpu" else 0  # columns of which only products not below the diagonal are taken
    copy = left.converts or right.converts
    beside = slice(column + upper, column + columns)
    with exact_float32():
        parts = zip(
            left.panels(slice(row, row + rows), copy, "rows"), right.panels(beside, copy, "columns"), strict=True
        )
        for number, (a, b) in enumerate(parts):
            if upper:
                upper_products(a, out[:, :upper], accumulate=number > 0)
            if upper < columns:
                product(a, b, out[:, upper:], accumulate=number > 0)
    unit = left.unit and right.unit
    inverse, column_inverse = left.inverse_norm[row : row + rows], right.inverse_norm[column : column + columns]
    if side and not once:
        symmetric_cosines(out[:, :side], inverse, unit=unit)
        out, column_inverse = out[:, side:], column_inverse[side:]
    if unit:
        out.clamp_(-1, 1)
        return
    step = max(1, FINISH_ELEMENTS // columns) if out.device.type == "cpu" else rows
    for some, factor in zip(out.split(step), inverse[:, None].split(step), strict=True):
        # r_i r_j first: multiplying by one and then by the other would depend on which neuron comes first.
        some.mul_(factor * column_inverse).clamp_(-1, 1)


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk along dimension 1 with equal scores in the order of their places, on every device."""
    best = scores.topk(k, dim=1, sorted=False).values
    worst = best.amin(1, keepdim=True)
    equal = scores == worst
    wanted = (best == worst).sum(1, keepdim=True, dtype=torch.int32)
    kept = (scores > worst) | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted))
    places = kept.nonzero()[:, 1].view(-1, k)
    best, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return best, places.gather(1, order)
