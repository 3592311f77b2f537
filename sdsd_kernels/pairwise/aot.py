"""What of the kernels of pairs is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from .._aot import AotCase, compiled_ahead, target_of
from .._device import DeviceRecord
from .._launch import Launch
from . import config, sums
from .launch import Preparation, Triangle, plan_rectangle

CLAMP = ("min.NaN.f32", "max.NaN.f32")
"""In PTX: the plain instructions turn NaN into a bound."""
POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
POINTERS |= {torch.int64: "*i64", torch.int32: "*i32"}


def case_of(name: str, launch: Launch, record: DeviceRecord, *tensors: str | None, **expected: Any) -> AotCase:
    """A launch as the compiler sees it; `tensors` are types of its first arguments, None for one that is left out."""
    names = launch.kernel.arg_names
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible = []
    values = (*tensors, *launch.settled)
    for position, (argument, value) in enumerate(zip(names, values, strict=True)):
        is_type = position < len(tensors) and value is not None
        if is_type:
            signature[argument] = str(value)
        elif value is None or isinstance(value, (bool, str)) or value == 1 or argument.isupper():
            signature[argument] = "constexpr"
            constants[argument] = value
        elif isinstance(value, float):
            signature[argument] = "fp32"
        else:
            signature[argument] = "i32"
        if (is_type and signature[argument].startswith("*")) or (
            signature[argument] == "i32" and isinstance(value, int) and value % 16 == 0
        ):
            divisible.append(position)
    # What the interpreter is told says nothing of a GPU.
    if "INTERPRET" in constants:
        constants["INTERPRET"] = False
    return AotCase(
        name,
        launch.kernel,
        signature,
        constants,
        target_of(record),
        launch.options,
        attrs={(position,): [["tt.divisibility", 16]] for position in divisible},
        **expected,
    )


def panels_type(prepared: Preparation, block: int, samples: int) -> str:
    """The type of descriptors of blocks of so many neurons and samples."""
    stored = POINTERS[prepared.dtype][1:]
    if not config.reads_boxes(prepared.record):
        return POINTERS[prepared.dtype]
    return (
        f"tensordesc<{stored}[{samples},{block}]>" if prepared.adjacent else f"tensordesc<{stored}[{block},{samples}]>"
    )


def neurons_of(
    neurons: int,
    samples: int,
    dtype: torch.dtype,
    record: DeviceRecord,
    *,
    adjacent: bool = False,
    center: bool = False,
    precision: str = "float32",
    nested: bool = False,
    shifted: bool = False,
) -> Preparation:
    """The preparation of neurons with that many samples, or neurons adjacent."""
    rows = torch.empty((neurons, 1, samples), dtype=dtype, device="meta")
    if adjacent:
        rows = torch.empty((1, samples, neurons), dtype=dtype, device="meta").permute(2, 0, 1)
    if nested:
        rows = torch.empty((samples // 64, neurons, 64), dtype=dtype, device="meta").transpose(0, 1)
    tile = config.tile_of(record, neurons, samples, three=False)
    return Preparation(
        rows, record, precision=precision, center=center, shifted=shifted, guarded=tile.rows == tile.columns
    )


def _prepare_cases(record: DeviceRecord) -> Iterator[AotCase]:
    """Not thorough: centred sums, which hold twice as many, and what writes two parts of them."""
    for center, adjacent, nested in (
        (True, False, False),
        (False, False, False),
        (False, True, False),
        (True, True, True),
    ):
        made = neurons_of(4096, 4096, torch.float32, record, adjacent=adjacent, center=center, nested=nested)
        marks = " ".join(mark for mark, on in (("centred", center), ("adjacent", adjacent), ("nested", nested)) if on)
        rest = "*fp64" if center else None
        thorough = not (center and not nested)
        vectors = (rest, "*fp32", "*fp32")
        yield case_of(f"measure {marks}", made.measure, record, "*fp32", None, None, *vectors, thorough=thorough)
        assert made.write is not None
        yield case_of(f"write {marks}", made.write, record, "*fp32", None, rest, "*fp32", "*fp16", thorough=thorough)
    few = neurons_of(64, 2**20, torch.float32, replace(record, multiprocessors=132), center=True)
    assert few.directions is not None
    yield case_of(
        "measure a range", few.measure, record, "*fp32", None, "*fp64", "*fp64", "*fp32", "*fp32", thorough=True
    )
    yield case_of("directions", few.directions, record, "*fp64", "*fp64", "*fp32", "*fp32")
    halves = neurons_of(4096, 4096, torch.bfloat16, record)
    yield case_of("measure a guard", halves.measure, record, "*bf16", None, None, None, "*fp32", "*fp32", thorough=True)


def triangle_case(
    record: DeviceRecord,
    prepared: Preparation,
    store: str,
    out: str = "*fp32",
    *,
    thorough: bool,
    weight: bool = False,
    strips: int = 0,
) -> AotCase:
    """The product kernel with the tile that serves `prepared`."""
    triangle = Triangle(prepared, store, strips=strips, guard=prepared.guard)
    tile = config.tile_of(record, prepared.neurons, prepared.samples, three=prepared.three)
    rows = panels_type(prepared, tile.rows, tile.samples)
    columns = None if triangle.columns is None else panels_type(prepared, tile.columns, tile.samples)
    terms = "three terms" if prepared.three else f"one {str(prepared.dtype).removeprefix('torch.')}"
    adjacent = ", neurons adjacent" if prepared.adjacent else ""
    long = ", long" if prepared.samples >= config.LONG else ""
    shape = f"{tile.rows}×{tile.columns}×{tile.samples} w{tile.num_warps} s{tile.num_stages}"
    stores = dict(zip(triangle.product.kernel.arg_names[8:], triangle.product.settled, strict=True))["STORE"]
    inverse = "*fp32" if store == "matrix" or prepared.guard or not prepared.in_place else None
    scale = inverse if prepared.scaled else None
    return case_of(
        f"{terms} {shape}{adjacent}{long}, {stores} {out}",
        triangle.product,
        record,
        rows,
        columns,
        scale,
        inverse,
        "*fp32" if weight else None,
        "*fp64" if strips and prepared.three else None,
        out if store == "add" else None,
        out,
        expect_mma=record.matrix_instruction,
        expect_tma=config.reads_boxes(record),
        expect_ptx=CLAMP if stores == "matrix" and record.family != "hip" else (),
        thorough=thorough,
    )


def _rectangle_case(record: DeviceRecord, dtype: torch.dtype) -> AotCase:
    rows = torch.empty((8192, 1, 4096), dtype=dtype, device="meta")
    plan = plan_rectangle(rows, rows, record, precision="float32", center=False)
    tile = config.tile_of(record, 8192, 4096, three=plan.left.three)
    return case_of(
        f"rectangle {'three terms' if plan.left.three else 'one term'} {tile.rows}×{tile.columns}",
        plan.product,
        record,
        panels_type(plan.left, tile.rows, tile.samples),
        panels_type(plan.left, tile.columns, tile.samples),
        "*fp32",
        "*fp32",
        "*fp32",
        expect_mma=record.matrix_instruction,
        expect_tma=config.reads_boxes(record),
        expect_ptx=CLAMP if record.family != "hip" else (),
        thorough=plan.left.three,
    )


def _sums_cases(record: DeviceRecord) -> Iterator[AotCase]:
    mean, expand = sums.mean_launch(4096, 1), sums.expand_launch(4096, cosine=True, strips=256)
    yield case_of("mean", mean, record, "*fp32", "*fp64", "*fp32", "*fp64", "*fp64", "*fp64", "i32", "i32")
    yield case_of("expand", expand, record, "*fp64", "*fp64", "*fp64", "*fp32")


def aot_cases() -> list[AotCase]:
    """Every kernel, shipped tile and target. Not `thorough` are those that take the most registers."""
    cases: list[AotCase] = []
    for each in compiled_ahead():
        # What a card has of multiprocessors decides how many ranges there are, not what is compiled for one or several.
        record, many = replace(each, multiprocessors=1), replace(each, multiprocessors=132)
        cases += [*_prepare_cases(record), *_sums_cases(record)]
        for dtype, table in ((torch.bfloat16, config.ONE_TERM), (torch.float32, config.THREE_TERMS)):
            for least, tile in table[record.family]:
                largest = tile is table[record.family][0][1]
                made = neurons_of(max(least, 1024), 4096, dtype, record)
                cases.append(triangle_case(record, made, "matrix", thorough=not largest))
                cases.append(triangle_case(record, made, "add", "*fp64", thorough=not largest, strips=256))
            least = table[record.family][0][0]
            if dtype == torch.bfloat16:
                long = neurons_of(least, config.LONG, dtype, record)
                cases.append(triangle_case(record, long, "matrix", thorough=record.family != "sm_90"))
                for other, neurons, adjacent in (
                    (torch.float16, least, False),
                    (torch.float16, least, True),
                    (torch.bfloat16, 4096, True),
                ):
                    made = neurons_of(neurons, 4096, other, record, adjacent=adjacent)
                    cases.append(triangle_case(record, made, "matrix", thorough=record.family != "sm_90"))
            cases.append(_rectangle_case(record, dtype))
        few = neurons_of(64, 2**20, torch.float32, many)
        cases.append(triangle_case(many, few, "matrix", thorough=True))
        for store, out in (("matrix", "*fp32"), ("add", "*fp64")):
            reduce = Triangle(few, store).reduce
            assert reduce is not None
            cases.append(
                case_of(
                    f"reduce {store}",
                    reduce,
                    record,
                    "*fp32",
                    "*fp32",
                    "*fp32",
                    None,
                    None,
                    out if store == "add" else None,
                    out,
                    thorough=store == "add",
                )
            )
    return cases
