"""From neurons to launches. All that shapes, strides and choices decide is settled once; one look-up finds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._backend import interpreting
from .._device import DeviceRecord, device_record
from .._launch import Launch, device_of, kept
from .._progress import Progress
from . import config
from .config import How, Tile
from .kernel import TRITON, described, placed, rectangle_kernel, reduce_kernel, triangle_kernel
from .prepare_kernel import directions_kernel, measure_kernel, write_kernel


def descriptors_can_read(rows: Tensor) -> bool:
    """Whether tensor descriptors can read halves `rows` (N, OUTER, INNER) where they lie."""
    neurons, outer, inner = rows.shape
    stride_neuron, _, stride_inner = rows.stride()
    if outer > 1 or rows.element_size() != 2 or rows.data_ptr() % 16 or max(neurons, inner) >= 2**31:
        return False
    # Strides are multiples of 16 bytes, but of 16 elements for the interpreter of Triton 3.5.
    multiple = 16 if interpreting() and TRITON.startswith("3.5.") else 8
    if stride_inner == 1:
        return stride_neuron >= inner and stride_neuron % multiple == 0
    return stride_neuron == 1 and stride_inner >= neurons and stride_inner % multiple == 0


class Preparation:
    """How neurons of one shape, layout and dtype are measured and, unless they lie well, rewritten.

    Attributes:
        three: whether there are low parts.
        adjacent: whether operands have neurons adjacent.
        guard: whether neurons may be marked.
        scratch: bytes of operands that are written.
    """

    def __init__(
        self,
        rows: Tensor,
        record: DeviceRecord,
        *,
        precision: str = "float32",
        center: bool,
        zero_as_nan: bool = False,
        shifted: bool = False,
        guarded: bool = False,
        rewrite: bool = False,
    ) -> None:
        """`guarded`: products look for marked neurons, so bfloat16 may stay where it lies; `rewrite`: nothing does."""
        neurons, outer, inner = rows.shape
        samples = outer * inner
        if max(neurons, samples) >= 2**31:
            raise ValueError(
                f"activations: expected fewer than 2³¹ neurons and samples for the kernels, got {neurons:,} and "
                f"{samples:,}. Use backend='torch', or batches of them with GramAccumulator."
            )
        halves, self.three = config.served(precision, rows.dtype, center=center or shifted)
        self.neurons, self.samples, self.record, self.center = neurons, samples, record, center
        readable = descriptors_can_read(rows) and (guarded or rows.dtype == torch.float16)
        self.in_place = halves and readable and not rewrite
        self.adjacent = self.in_place and rows.stride(2) != 1
        self.guard = self.in_place and rows.dtype == torch.bfloat16
        self.dtype = rows.dtype if halves else torch.float16
        self.pitch = rows.stride(2 if self.adjacent else 0) if self.in_place else -(-samples // 16) * 16
        self.shape = (1 + self.three, neurons, self.pitch)
        self.scratch = 0 if self.in_place else 2 * math.prod(self.shape)
        # float16 has no values whose squares leave float32.
        self.scaled = "guard" if self.guard else "none" if halves and rows.dtype == torch.float16 else "all"
        along = abs(rows.stride(2)) <= abs(rows.stride(0))
        known: dict[str, Any] = {"neurons": neurons, "samples": samples, "inner": inner, "pitch": self.pitch}
        known |= {"CENTER": center, "SCALE": self.scaled, "TARGET": 14 if self.dtype == torch.float16 else 0}
        known |= {"ZERO_AS_NAN": zero_as_nan, "NESTED": outer > 1, "LOW": self.three, "BLOCK": config.DIRECTIONS}
        known |= zip(("stride_neuron", "stride_outer", "stride_inner"), rows.stride(), strict=True)
        block, block_samples, num_warps = config.prepare_block(config.MEASURE, along, record)
        programs = -(-neurons // block)
        known["range_samples"] = config.measured_samples(programs, samples, block_samples, along, record)
        self.ranges = known["ranges"] = -(-samples // known["range_samples"])
        blocks = {"BLOCK_NEURONS": block, "BLOCK_SAMPLES": block_samples}
        self.measure = Launch(measure_kernel, (programs, self.ranges, 1), known | blocks, num_warps=num_warps)
        self.directions = Launch(directions_kernel, (-(-neurons // config.DIRECTIONS), 1, 1), known, num_warps=4)
        self.write: Launch | None = None
        if not self.in_place:
            block, block_samples, num_warps = config.prepare_block(config.WRITE, along, record)
            grid = (-(-neurons // block) * -(-samples // block_samples), 1, 1)
            blocks = {"BLOCK_NEURONS": block, "BLOCK_SAMPLES": block_samples}
            self.write = Launch(write_kernel, grid, known | blocks, num_warps=num_warps)

    def panels(self, block: int, samples: int) -> Any:
        """How kernels read operands in blocks of so many neurons and samples: as `placed` takes it."""
        if not config.reads_boxes(self.record):
            return None
        if self.adjacent:
            return described((self.samples, self.neurons), self.pitch, (samples, block), self.dtype)
        return described((self.shape[0] * self.neurons, self.samples), self.pitch, (block, samples), self.dtype)

    def __call__(
        self, rows: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Operands, scale, inverse norm, and, where it was subtracted, the mean less the first sample, float64.

        Operands are the neurons where they lie, or halves (1 or 2, N, pitch). Scales, float32, are powers of two; None:
        all are 1. Inverse norms, float32, are 0 or NaN without direction, negative where products take `scale` first.
        """
        device = rows.device
        vectors = torch.empty((2, self.neurons), dtype=torch.float32, device=device)
        scale, inverse = None if self.scaled == "none" else vectors[0], vectors[1]
        rest = torch.empty(self.neurons, dtype=torch.float64, device=device) if self.center else None
        sums = None
        if self.ranges > 1:
            sums = torch.empty((self.ranges, 2, self.neurons), dtype=torch.float64, device=device)
        self.measure(rows, shift, sums, rest, scale, inverse)
        if self.ranges > 1:
            self.directions(sums, rest, scale, inverse)
        operands = rows
        if self.write is not None:
            operands = torch.empty(self.shape, dtype=self.dtype, device=device)
            self.write(rows, shift, rest, scale, operands)
        return operands, scale, inverse, rest


class Pairing:
    """Two sets of neurons that lie alike, or one with itself, and the tile by which kernels take their products.

    Attributes:
        tiles: rows and columns of them.
        scratch: bytes that preparing the neurons takes at most.
    """

    def __init__(
        self, rows: Tensor, others: Tensor | None, record: DeviceRecord, tile_of: Callable[[bool], Tile], **options: Any
    ) -> None:
        """`tile_of`: the tile for products of three terms, or of one."""
        self.left = self.right = Preparation(rows, record, **options)
        if others is not None:
            self.right = Preparation(others, record, **options)
            if self.left.adjacent != self.right.adjacent:
                self.left, self.right = (Preparation(each, record, rewrite=True, **options) for each in (rows, others))
        self.tile = tile = tile_of(self.left.three)
        self.tiles = -(-self.left.neurons // tile.rows), -(-self.right.neurons // tile.columns)
        self.rows = self.left.panels(tile.rows, tile.samples)
        self.columns = self.right.panels(tile.columns, tile.samples)
        self.alike = others is None and tile.rows == tile.columns
        self.scratch = sum(each.scratch + 16 * each.neurons for each in {self.left, self.right})

    def launch(self, kernel: Any, grid: tuple[int, int, int] = (0, 0, 0), **own: Any) -> Launch:
        """A kernel that takes these products, and what is its `own`."""
        left, tile, record = self.left, self.tile, self.left.record
        every = config.sums_every(tile, left.samples, record, three=left.three)
        pointers = not config.reads_boxes(record)
        how = How(tile.rows, tile.columns, tile.samples, left.three, every, left.adjacent, pointers, interpreting())
        known = {"neurons": left.neurons, "others": self.right.neurons, "samples": left.samples, "HOW": how} | own
        known |= {"pitch": left.pitch, "column_pitch": self.right.pitch}
        known |= {"GROUP": tile.group, "STRIP": config.strip(tile, record)}
        return Launch(kernel, grid, known, num_warps=tile.num_warps, num_stages=tile.num_stages)

    def of(self, left: Tensor, right: Tensor) -> tuple[Any, Any]:
        """What kernels read of operands: rows and columns, None where they are the same."""
        return placed(self.rows, left), None if self.alike else placed(self.columns, right)

    def operands(self, rows: Tensor, others: Tensor | None) -> tuple[Any, Any, Tensor, Tensor]:
        """What kernels read, rows and columns, and inverse norms of both."""
        left = self.left(rows)
        right = left if others is None else self.right(others)
        return *self.of(left[0], right[0]), left[2], right[2]


class Triangle:
    """How the products of all pairs of one set of neurons are taken, over ranges of samples where tiles are few."""

    def __init__(
        self, rows: Tensor, record: DeviceRecord, store: str, *, strips: int = 0, guard: bool = True, **options: Any
    ) -> None:
        """`strips`: rows of a strip of the sum, which then lies as `sum_places` says; 0 for a whole matrix.

        `guard`: marked neurons are scaled first, for which the registers of a wide tile do not suffice.
        """
        neurons, samples = rows.shape[0], rows.shape[1] * rows.shape[2]
        tile_of = partial(config.tile_of, record, neurons, samples)
        of_halves = tile_of(False)
        # Triton 3.6 gives up on a tile that is multiplied anew on a B200.
        refused = record.family == "sm_100" and TRITON.startswith("3.6.")
        guarded = not guard or (of_halves.rows == of_halves.columns and not refused)
        self.pairing = Pairing(rows, None, record, tile_of, guarded=guarded, **options)
        self.prepare, tile = self.pairing.left, self.pairing.tile
        self.guard = guard and self.prepare.guard
        tiles = config.pieces(neurons, tile)
        length = config.range_samples(tiles, samples, neurons, tile, record)
        self.neurons, self.ranges = neurons, -(-samples // length)
        own: dict[str, Any] = {"tiles": tiles, "range_samples": length, "GUARD": self.guard, "STRIPS": strips}
        own["STORE"] = store if self.ranges == 1 else "partial"
        grid = (min(tiles * self.ranges, tile.resident * record.multiprocessors), 1, 1)
        self.product = self.pairing.launch(triangle_kernel, grid, **own)
        self.reduce: Launch | None = None
        if self.ranges > 1:
            side = -(-neurons // config.REDUCE)
            own |= {"ranges": self.ranges, "neurons": neurons, "STORE": store, "BLOCK": config.REDUCE, "GROUP": 8}
            self.reduce = Launch(reduce_kernel, (side * (side + 1) // 2, 1, 1), own, num_warps=4)

    def __call__(self, operands: Tensor, scale: Tensor | None, inverse: Tensor | None, *rest: Tensor | None) -> None:
        """`rest`: weights, δ and the sums before, each or None, and the result."""
        panels = self.pairing.of(operands, operands)
        if self.reduce is None:
            self.product(*panels, scale, inverse, *rest)
            return
        sums = operands.new_empty((self.ranges, self.neurons, self.neurons), dtype=torch.float32)
        self.product(*panels, scale, inverse, None, None, None, sums)
        self.reduce(sums, scale, inverse, *rest)


def key_of(rows: Tensor) -> tuple[Any, ...]:
    """What plans are told apart by. A kernel is compiled for an address that is, or is not, a multiple of 16 bytes."""
    return rows.shape, rows.stride(), rows.dtype, rows.device, rows.data_ptr() % 16


_plans: dict[tuple[Any, ...], Any] = {}


def planned(make: Callable[..., Any], rows: Tensor, others: Tensor | None, *, apart: Any = None, **choices: Any) -> Any:
    """make(rows, others, record of their GPU, **choices), made once for neurons that lie like these.

    `apart`: what else compiled kernels are told apart by.
    """
    key = make, key_of(rows), others is not None and key_of(others), apart, *choices.values()
    return _plans.get(key) or kept(_plans, key, make(rows, others, device_record(rows.device), **choices))


def _matrix(rows: Tensor, _: None, record: DeviceRecord, **options: Any) -> Triangle:
    return Triangle(rows, record, "matrix", **options)


def launch_cosine_matrix(
    rows: Tensor, *, precision: str, out_dtype: torch.dtype, zero: str, center: bool
) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER), float32 or half, and its inverse norms (N,): 0 or NaN if dead."""
    # The kernels' float32 result holds every digit it has; float64 is a cast.
    kept_dtype = torch.float32 if out_dtype == torch.float64 else out_dtype
    zero_as_nan = zero == "nan"
    plan = planned(_matrix, rows, None, apart=kept_dtype, precision=precision, center=center, zero_as_nan=zero_as_nan)
    with device_of(rows):
        out = torch.empty((plan.neurons, plan.neurons), dtype=kept_dtype, device=rows.device)
        operands, scale, inverse, _ = plan.prepare(rows)
        plan(operands, scale, inverse, None, None, None, out)
        return out if out_dtype is kept_dtype else out.to(out_dtype), inverse


def _rectangle(rows: Tensor, others: Tensor, record: DeviceRecord, **options: Any) -> tuple[Pairing, Launch]:
    fewer, samples = min(len(rows), len(others)), rows.shape[1] * rows.shape[2]
    pairing = Pairing(rows, others, record, partial(config.tile_of, record, fewer, samples), **options)
    programs = min(math.prod(pairing.tiles), pairing.tile.resident * record.multiprocessors)
    return pairing, pairing.launch(rectangle_kernel, (programs, 1, 1))


def launch_cosine_between(rows: Tensor, others: Tensor, *, center: bool, zero: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines (N, M) of `rows` (N, OUTER, INNER) with `others` (M, OUTER, INNER), and the inverse norms of both."""
    pairing, product = planned(_rectangle, rows, others, center=center, zero_as_nan=zero == "nan")
    with device_of(rows):
        out = torch.empty((len(rows), len(others)), dtype=torch.float32, device=rows.device)
        operands = pairing.operands(rows, others)
        product(*operands, out)
    return out, operands[2], operands[3]


def shares(work: int, progress: Progress | None, device: torch.device) -> Iterator[tuple[int, int]]:
    """(first, end) of all work, or, for `progress` to hear of what the device has done, of PROGRESS_STEPS shares."""
    share = min(config.MOST_PROGRAMS, work if progress is None else -(-work // config.PROGRESS_STEPS))
    for first in range(0, work, share):
        end = min(first + share, work)
        yield first, end
        if progress is not None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            progress(end, work)
