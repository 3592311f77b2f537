"""What of the kernels of pairs is compiled ahead of time, and what must show in the machine code.

Nothing is written down of what a kernel takes: a call is made with tensors of device "meta", and its launches are kept
instead of made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .._aot import AotCase, compiled_ahead, target_of
from .._device import DeviceRecord
from .._launch import Launch
from . import config
from . import launch as engine
from .config import How
from .kernel import rectangle_kernel, reduce_kernel, triangle_kernel
from .prepare_kernel import directions_kernel, measure_kernel, write_kernel
from .sums import add_batch, expand
from .sums_kernel import expand_kernel, mean_kernel

CLAMP = ("min.NaN.f32", "max.NaN.f32")
"""In PTX: the plain instructions turn NaN into a bound."""
TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
TYPES |= {torch.int64: "i64", torch.int32: "i32"}
_ANNOTATED = {"tl.int64": "i64"}


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def neurons(count: int, samples: int, dtype: torch.dtype, layout: str = "") -> Tensor:
    """Neurons with samples adjacent, or laid out as "neurons adjacent" or "nested" says.  # shape: (N, OUTER, INNER)"""
    if layout == "neurons adjacent":
        return meta(1, samples, count, dtype=dtype).permute(2, 0, 1)
    if layout == "nested":
        return meta(samples // 64, count, 64, dtype=dtype).transpose(0, 1)
    return meta(count, 1, samples, dtype=dtype)


def cases_of(record: DeviceRecord, call: Callable[[], Any], *kernels: Any, thorough: bool = True) -> Iterable[AotCase]:
    """What `call`, on tensors of device "meta", launches of `kernels` on such a GPU, each once."""
    seen: list[tuple[Launch, tuple[Any, ...]]] = []
    with (
        patch.object(Launch, "__call__", lambda self, *tensors, grid=None: seen.append((self, tensors))),
        patch.multiple(engine, device_record=lambda device: record, _plans={}),
    ):
        call()
    cases = (_case_of(record, launch, tensors, thorough) for launch, tensors in seen if launch.kernel in kernels)
    return {case.name: case for case in cases}.values()


def _case_of(record: DeviceRecord, launch: Launch, tensors: tuple[Any, ...], thorough: bool) -> AotCase:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    values = (*tensors, *launch.settled)
    for place, (name, value) in enumerate(zip(launch.kernel.arg_names, values, strict=True)):
        kind = _ANNOTATED.get(str(launch.kernel.fn.__annotations__.get(name)))
        kind = kind or _kind(value, settled=place >= len(tensors), name=name)
        signature[name] = kind
        if kind == "constexpr":
            # What the interpreter is told says nothing of a GPU.
            constants[name] = value._replace(interpret=False) if isinstance(value, How) else value
        if kind.startswith("*") or (kind == "i32" and place >= len(tensors) and value % 16 == 0):
            attrs[place,] = [["tt.divisibility", 16]]
    how = constants.get("HOW")
    types = [kind for kind in signature.values() if kind not in ("constexpr", "i32")]
    clamped = record.family != "hip" and (constants.get("STORE") == "matrix" or launch.kernel is rectangle_kernel)
    return AotCase(
        " ".join((launch.kernel.__name__, *types, *_marks(constants), *_marks(launch.options))),
        launch.kernel,
        signature,
        constants,
        target_of(record),
        launch.options,
        attrs=attrs,
        expect_mma=record.matrix_instruction if how else None,
        expect_tma=how is not None and config.reads_boxes(record),
        expect_ptx=CLAMP if clamped else (),
        thorough=thorough,
    )


def _kind(value: Any, *, settled: bool, name: str) -> str:
    """The Triton type of an argument."""
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if hasattr(value, "block_shape"):
        return f"tensordesc<{TYPES[value.base.dtype]}[{','.join(map(str, value.block_shape))}]>"
    if value is None or (settled and (name.isupper() or isinstance(value, (bool, str)) or value == 1)):
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def _marks(constants: dict[str, Any]) -> Iterator[str]:
    """Compile-time arguments as a table shows them; what is None or False is left out."""
    for name, value in constants.items():
        if isinstance(value, How):
            yield from _marks(value._asdict())
        elif value is not None and value is not False:
            yield name if value is True else f"{name}={value}"


def matrix(rows: Tensor, *, center: bool = False) -> Callable[[], Any]:
    options: dict[str, Any] = {"precision": "float32", "out_dtype": torch.float32, "zero": "zero", "center": center}
    return partial(engine.launch_cosine_matrix, rows, **options)


def update(rows: Tensor, *, center: bool, **options: Any) -> Callable[[], Any]:
    sums, mean = meta(1, dtype=torch.float64), meta(len(rows), dtype=torch.float64) if center else None
    return partial(add_batch, sums, rows, sums, mean=mean, center=center, **options)


def aot_cases() -> Iterator[AotCase]:
    """Every kernel, shipped tile and target. Not `thorough` are those that take the most registers.

    With factors, and with sums added to a float32 total, a product does all that it does without, and more. Without is
    what is measured, on sm_90, and elsewhere what small tiles and updates do.
    """
    for card in compiled_ahead():
        # What a card has of multiprocessors decides how many ranges there are, not what is compiled for one or several.
        record, many = replace(card, multiprocessors=1), replace(card, multiprocessors=132)
        hopper = record.family == "sm_90"
        for layout, center in (("", True), ("", False), ("neurons adjacent", False), ("nested", True)):
            call = matrix(neurons(4096, 4096, torch.float32, layout), center=center)
            yield from cases_of(record, call, measure_kernel, write_kernel, thorough=not center or layout == "nested")
        for dtype, table in ((torch.bfloat16, config.ONE_TERM), (torch.float32, config.THREE_TERMS)):
            three = dtype == torch.float32
            for place, (least, _) in enumerate(table[record.family]):
                rows = neurons(max(least, 1024), 4096, dtype)
                added = not (hopper or three or place)
                product = matrix(neurons(len(rows), config.LONG, dtype) if added else rows)
                yield from cases_of(record, product, triangle_kernel, thorough=place > 0)
                if not place or record.family in ("sm_80", "sm_100"):  # where small tiles are short of registers
                    yield from cases_of(record, update(rows, center=three), triangle_kernel, thorough=place > 0)
            both = neurons(8192, 4096, dtype)
            between = partial(engine.launch_cosine_between, both, both, center=False, zero="zero")
            yield from cases_of(record, between, rectangle_kernel, thorough=three)
        rows = neurons(4096, 4096, torch.bfloat16, "neurons adjacent")
        yield from cases_of(record, matrix(rows), triangle_kernel, thorough=not hopper)
        if hopper:
            least = config.ONE_TERM["sm_90"][0][0]
            for rows in (
                neurons(least, config.LONG, torch.bfloat16),
                neurons(least, 4096, torch.float16, "neurons adjacent"),
            ):
                yield from cases_of(record, matrix(rows), triangle_kernel, thorough=False)
        halves = neurons(4096, 4096, torch.bfloat16)
        yield from cases_of(record, matrix(halves), measure_kernel)
        few = neurons(64, 2**20, torch.float32)
        yield from cases_of(many, matrix(few, center=True), measure_kernel, triangle_kernel)
        yield from cases_of(many, matrix(few, center=True), directions_kernel, reduce_kernel, thorough=False)
        yield from cases_of(many, update(few, center=False, strips=0), reduce_kernel)
        centred = update(neurons(4096, 4096, torch.float32, "neurons adjacent"), center=True, weight=meta(4096))
        yield from cases_of(record, centred, mean_kernel, thorough=False)
        sums = meta(1, dtype=torch.float64)
        whole = partial(expand, sums, sums, sums, meta(4096, 4096), cosine=True)
        yield from cases_of(record, whole, expand_kernel, thorough=False)
