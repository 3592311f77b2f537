"""From neurons to launches. All that shapes, strides and choices decide is settled once; one look-up finds it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import interpreting
from .._device import DeviceRecord, device_record
from .._launch import Launch, kept, on_device
from . import config
from .config import Tile
from .kernel import TRITON, Panels, rectangle_kernel, reduce_kernel, triangle_kernel
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


class Prepared(NamedTuple):
    """Neurons that are ready for products."""

    operands: Tensor
    """Halves: the neurons where they lie, or their parts.  # shape: (1 or 2, N, pitch)"""
    scale: Tensor | None
    """Powers of two; None where all are 1.  # shape: (N,), float32"""
    inverse: Tensor
    """1 / ‖a‖; 0 or NaN without direction; negative where products take `scale` first.  # shape: (N,), float32"""
    rest: Tensor | None
    """Mean less the first sample, where that is what was subtracted.  # shape: (N,), float64"""


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
        precision: str,
        center: bool,
        zero_as_nan: bool = False,
        shifted: bool = False,
        guarded: bool = False,
        rewrite: bool = False,
    ) -> None:
        """`guarded`: products look for marked neurons, so bfloat16 may stay where it lies; `rewrite`: nothing does."""
        neurons, outer, inner = rows.shape
        samples = outer * inner
        halves, self.three = config.served(precision, rows.dtype, center=center or shifted)
        self.neurons, self.samples, self.record = neurons, samples, record
        readable = descriptors_can_read(rows) and (guarded or rows.dtype == torch.float16)
        self.in_place = halves and readable and not rewrite
        self.adjacent = self.in_place and rows.stride(2) != 1
        self.guard = self.in_place and rows.dtype == torch.bfloat16
        self.dtype = rows.dtype if halves else torch.float16
        self.center = center
        self.pitch = rows.stride(2 if self.adjacent else 0) if self.in_place else -(-samples // 16) * 16
        self.shape = (1 + self.three, neurons, self.pitch)
        self.scratch = 0 if self.in_place else (1 + self.three) * neurons * self.pitch * 2
        # float16 has no values whose squares leave float32.
        scaled = "guard" if self.guard else "none" if halves and rows.dtype == torch.float16 else "all"
        self.scaled = scaled != "none"
        along = abs(rows.stride(2)) <= abs(rows.stride(0))
        known: dict[str, Any] = {"neurons": neurons, "samples": samples, "inner": inner, "pitch": self.pitch}
        known |= {"CENTER": center, "SCALE": scaled, "TARGET": 14 if self.dtype == torch.float16 else 0}
        known |= {"ZERO_AS_NAN": zero_as_nan, "NESTED": outer > 1, "LOW": self.three, "BLOCK": config.DIRECTIONS}
        known |= zip(("stride_neuron", "stride_outer", "stride_inner"), rows.stride(), strict=True)
        block_neurons, block_samples, num_warps = config.prepare_block(config.MEASURE, along, record)
        programs = -(-neurons // block_neurons)
        known["range_samples"] = config.measured_samples(programs, samples, block_samples, record)
        self.ranges = -(-samples // known["range_samples"])
        self.measure = Launch(
            measure_kernel,
            (programs, self.ranges, 1),
            known | {"BLOCK_NEURONS": block_neurons, "BLOCK_SAMPLES": block_samples},
            num_warps=num_warps,
        )
        self.directions: Launch | None = None
        if self.ranges > 1:
            grid = (-(-neurons // config.DIRECTIONS), 1, 1)
            self.directions = Launch(directions_kernel, grid, known | {"ranges": self.ranges}, num_warps=4)
        self.write: Launch | None = None
        if not self.in_place:
            block_neurons, block_samples, num_warps = config.prepare_block(config.WRITE, along, record)
            programs = -(-neurons // block_neurons) * -(-samples // block_samples)
            self.write = Launch(
                write_kernel,
                (programs, 1, 1),
                known | {"BLOCK_NEURONS": block_neurons, "BLOCK_SAMPLES": block_samples},
                num_warps=num_warps,
            )

    def panels(self, block: int, samples: int) -> Panels | None:
        """Descriptors of blocks of so many neurons and samples; None where pointers serve."""
        if not config.reads_boxes(self.record):
            return None
        if self.adjacent:
            return Panels((self.samples, self.neurons), self.pitch, (samples, block), self.dtype)
        return Panels((self.shape[0] * self.neurons, self.samples), self.pitch, (block, samples), self.dtype)

    def __call__(self, rows: Tensor, shift: Tensor | None = None) -> Prepared:
        device = rows.device
        vectors = torch.empty((2, self.neurons), dtype=torch.float32, device=device)
        scale = vectors[0] if self.scaled else None
        inverse = vectors[1]
        rest = torch.empty(self.neurons, dtype=torch.float64, device=device) if self.center else None
        if self.directions is None:
            self.measure(rows, shift, None, rest, scale, inverse)
        else:
            sums = torch.empty((self.ranges, 2, self.neurons), dtype=torch.float64, device=device)
            self.measure(rows, shift, sums, rest, scale, inverse)
            self.directions(sums, rest, scale, inverse)
        if self.write is None:
            return Prepared(rows, scale, inverse, rest)
        parts = torch.empty(self.shape, dtype=self.dtype, device=device)
        self.write(rows, shift, rest, scale, parts)
        return Prepared(parts, scale, inverse, rest)


class Triangle:
    """How the products of all pairs of one set of neurons are taken, over ranges of samples where tiles are few."""

    def __init__(self, prepared: Preparation, store: str, *, strips: int = 0, guard: bool = False) -> None:
        """`strips`: rows of a strip of the sum, which then lies as `sum_places` says; 0 for a whole matrix.

        `guard`: marked neurons are scaled first.
        """
        record, neurons, samples, three = prepared.record, prepared.neurons, prepared.samples, prepared.three
        tile = config.tile_of(record, neurons, samples, three=three)
        tiles = config.pieces(neurons, tile)
        length = config.range_samples(tiles, samples, neurons, tile, record)
        self.ranges = -(-samples // length)
        self.neurons = neurons
        self.rows = prepared.panels(tile.rows, tile.samples)
        self.columns = None if tile.columns == tile.rows else prepared.panels(tile.columns, tile.samples)
        settled = product_settings(prepared, tile) | {"tiles": tiles, "range_samples": length, "GUARD": guard}
        settled |= {"STORE": store if self.ranges == 1 else "partial"}
        settled |= {"STRIPS": strips, "STRIP": config.strip(tile, record)}
        programs = min(tiles * self.ranges, tile.resident * record.multiprocessors)
        self.product = Launch(
            triangle_kernel, (programs, 1, 1), settled, num_warps=tile.num_warps, num_stages=tile.num_stages
        )
        self.reduce: Launch | None = None
        if self.ranges > 1:
            side = -(-neurons // config.REDUCE)
            known = {"ranges": self.ranges, "neurons": neurons, "STORE": store, "STRIPS": strips}
            known |= {"BLOCK": config.REDUCE, "GROUP": 8}
            self.reduce = Launch(reduce_kernel, (side * (side + 1) // 2, 1, 1), known, num_warps=4)

    def __call__(
        self,
        operands: Tensor,
        scale: Tensor | None,
        inverse: Tensor | None,
        weight: Tensor | None,
        delta: Tensor | None,
        before: Tensor | None,
        out: Tensor,
    ) -> None:
        rows = operands if self.rows is None else self.rows.of(operands)
        columns = None if self.columns is None else self.columns.of(operands)
        if self.reduce is None:
            self.product(rows, columns, scale, inverse, weight, delta, before, out)
            return
        partial = torch.empty((self.ranges, self.neurons, self.neurons), dtype=torch.float32, device=out.device)
        self.product(rows, columns, scale, inverse, None, None, None, partial)
        self.reduce(partial, scale, inverse, weight, delta, before, out)


def product_settings(prepared: Preparation, tile: Tile) -> dict[str, Any]:
    """What every kernel that takes products of these operands with this tile is told."""
    return {
        "neurons": prepared.neurons,
        "samples": prepared.samples,
        "THREE": prepared.three,
        "EVERY": config.sums_every(tile, prepared.samples, prepared.record, three=prepared.three),
        "pitch": prepared.pitch,
        "ADJACENT": prepared.adjacent,
        "GUARD": prepared.guard,
        "POINTERS": not config.reads_boxes(prepared.record),
        "INTERPRET": interpreting(),
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "SAMPLES": tile.samples,
        "GROUP": tile.group,
    }


def key_of(rows: Tensor, *choices: Any) -> tuple[Any, ...]:
    """What plans are told apart by. A kernel is compiled for an address that is, or is not, a multiple of 16 bytes."""
    return (rows.shape, rows.stride(), rows.dtype, rows.device, rows.data_ptr() % 16, *choices)


def has_room_for_a_guard(rows: Tensor) -> bool:
    """Whether products of `rows` may look for marked neurons: scaling takes registers that a wide tile has not."""
    samples = rows.shape[1] * rows.shape[2]
    tile = config.tile_of(device_record(rows.device), rows.shape[0], samples, three=False)
    return tile.rows == tile.columns


_matrices: dict[tuple[Any, ...], tuple[Preparation, Triangle]] = {}


def launch_cosine_matrix(
    rows: Tensor, *, precision: str, out_dtype: torch.dtype, zero: str, center: bool
) -> tuple[Tensor, Tensor]:
    """Cosine matrix of `rows` (N, OUTER, INNER), float32 or half, and its inverse norms (N,): 0 or NaN if dead."""
    key = (rows.shape, rows.stride(), rows.dtype, rows.device, rows.data_ptr() % 16, precision, zero == "nan", center)
    plan = _matrices.get(key)
    if plan is None:
        prepared = Preparation(
            rows,
            device_record(rows.device),
            precision=precision,
            center=center,
            zero_as_nan=zero == "nan",
            guarded=has_room_for_a_guard(rows),
        )
        plan = kept(_matrices, key, (prepared, Triangle(prepared, "matrix", guard=prepared.guard)))
    return on_device(rows, _cosine_matrix, plan, rows, out_dtype)


def _cosine_matrix(plan: tuple[Preparation, Triangle], rows: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    prepare, triangle = plan
    # The kernels' float32 result holds every digit it has; float64 is a cast.
    kept_dtype = torch.float32 if out_dtype == torch.float64 else out_dtype
    out = torch.empty((triangle.neurons, triangle.neurons), dtype=kept_dtype, device=rows.device)
    operands, scale, inverse, _ = prepare(rows)
    triangle(operands, scale, inverse, None, None, None, out)
    return out if out_dtype is kept_dtype else out.to(out_dtype), inverse


_sums: dict[tuple[Any, ...], tuple[Preparation, Triangle]] = {}


def launch_gram_accumulate(
    gram: Tensor, rows: Tensor, shift: Tensor | None, scale: Tensor | None, *, precision: str
) -> None:
    """Add the products of `rows` (N, OUTER, INNER), float32 or half, to the upper triangle of `gram`."""
    key = key_of(rows, precision, gram.dtype, shift is None, scale is None)
    plan = _sums.get(key)
    if plan is None:
        prepared = Preparation(
            rows, device_record(rows.device), precision=precision, center=False, shifted=shift is not None, guarded=True
        )
        plan = kept(_sums, key, (prepared, Triangle(prepared, "add")))
    on_device(rows, _gram_accumulate, plan, gram, rows, shift, scale)


def _gram_accumulate(
    plan: tuple[Preparation, Triangle], gram: Tensor, rows: Tensor, shift: Tensor | None, weight: Tensor | None
) -> None:
    prepare, triangle = plan
    if prepare.in_place:
        triangle(rows, None, None, weight, None, gram, gram)
        return
    operands, scale, inverse, _ = prepare(rows, shift)
    triangle(operands, scale, inverse, weight, None, gram, gram)


class Rectangle(NamedTuple):
    """How the products of one set of neurons with another are taken."""

    left: Preparation
    right: Preparation
    rows: Panels | None
    columns: Panels | None
    product: Launch


_rectangles: dict[tuple[Any, ...], Rectangle] = {}


def plan_rectangle(rows: Tensor, others: Tensor, record: DeviceRecord, **options: Any) -> Rectangle:
    """What `launch_cosine_between` does with tensors like these."""
    left, right = prepared_alike(rows, others, record, **options)
    tile = config.tile_of(record, min(left.neurons, right.neurons), left.samples, three=left.three)
    settled = product_settings(left, tile) | {"others": right.neurons, "column_pitch": right.pitch}
    tiles = -(-left.neurons // tile.rows) * -(-right.neurons // tile.columns)
    programs = min(tiles, tile.resident * record.multiprocessors)
    product = Launch(rectangle_kernel, (programs, 1, 1), settled, num_warps=tile.num_warps, num_stages=tile.num_stages)
    panels = left.panels(tile.rows, tile.samples), right.panels(tile.columns, tile.samples)
    return Rectangle(left, right, *panels, product)


def prepared_alike(
    rows: Tensor, others: Tensor, record: DeviceRecord, **options: Any
) -> tuple[Preparation, Preparation]:
    """Preparations of two sets of neurons whose operands lie alike."""
    left, right = (Preparation(each, record, **options) for each in (rows, others))
    if left.adjacent != right.adjacent:
        left, right = (Preparation(each, record, rewrite=True, **options) for each in (rows, others))
    return left, right


def launch_cosine_between(rows: Tensor, others: Tensor, *, center: bool, zero: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines (N, M) of `rows` (N, OUTER, INNER) with `others` (M, OUTER, INNER), and the inverse norms of both."""
    key = key_of(rows, key_of(others), center, zero == "nan")
    plan = _rectangles.get(key)
    if plan is None:
        options: dict[str, Any] = {"precision": "float32", "center": center, "zero_as_nan": zero == "nan"}
        plan = kept(_rectangles, key, plan_rectangle(rows, others, device_record(rows.device), **options))
    return on_device(rows, _cosine_between, plan, rows, others)


def _cosine_between(plan: Rectangle, rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, right = plan.left(rows), plan.right(others)
    out = torch.empty((plan.left.neurons, plan.right.neurons), dtype=torch.float32, device=rows.device)
    operands = left.operands if plan.rows is None else plan.rows.of(left.operands)
    columns = right.operands if plan.columns is None else plan.columns.of(right.operands)
    plan.product(operands, columns, left.inverse, right.inverse, out)
    return out, left.inverse, right.inverse
