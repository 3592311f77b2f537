"""What of the moments kernels is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .._device import DeviceRecord
from . import config
from .config import BF16, F32, F64
from .kernel import ELEMENTS, finish_kernel, samples_kernel, stream_kernel, two_walks_kernel
from .launch import finish_launch, moments_launch

_POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_TENSORS = ("x", "pieces", "owners", "partials")


def _case(
    record: DeviceRecord,
    dtype: torch.dtype,
    n: int,
    per_sample: bool,
    *,
    table: bool = False,
    few: int = 0,
    thorough: bool = False,
) -> AotCase:
    """The launch for matrices of `dtype` as the compiler sees it, for a device like `record`."""
    launch = moments_launch(dtype, n, per_sample, record, count=few, order="columns", aligned=table)
    function = launch.kernel
    names = [name for name in function.arg_names if name not in _TENSORS]
    settled = dict(zip(names, launch.settled, strict=True))
    signature = {"x": _POINTERS[dtype], "pieces": "constexpr", "owners": "constexpr", "partials": "*fp64"}
    constexprs: dict[str, object] = {"pieces": None, "owners": None, "column_stride": 1}
    known: tuple[str, ...] = ("x", "partials", "count", "row_stride")
    if table:
        signature |= {"x": "constexpr", "pieces": "*i64", "owners": "*i32"}
        constexprs = {"x": None}
        known = ("pieces", "owners", "partials")
    for name in names:
        signature[name] = "i32" if name.islower() and name not in constexprs else "constexpr"
        if signature[name] == "constexpr":
            constexprs.setdefault(name, settled[name])
    kind = {stream_kernel: "stream", samples_kernel: "samples", two_walks_kernel: "two walks"}[function]
    tile = f"{settled['R']}x{settled['C']}{' spread' if settled.get('SPREAD') else ''}"
    accumulator = "float64" if settled["ACC"] == ELEMENTS[torch.float64] else "float32"
    return AotCase(
        name=f"{kind} {tile} {str(dtype).removeprefix('torch.')} in {accumulator}{' by table' if table else ''}",
        function=function,
        signature=signature,
        constexprs=constexprs,
        target=target_of(record),
        options=launch.options,
        attrs=aligned(signature, *known),
        thorough=thorough,
        expect_load_bits=128 if record.family == "sm_90" else None,
    )


def _finish_case(width: int, record: DeviceRecord, *, thorough: bool = False) -> AotCase:
    launch = finish_launch(0, width)
    signature = {"partials": "*fp64", "bounds": "*i64", "table": "*fp64", "rows": "i32", "width": "i32"}
    return AotCase(
        name="finish two sums" if width == 2 else "finish per-sample sums",
        function=finish_kernel,
        signature={**signature, "R": "constexpr", "C": "constexpr"},
        constexprs=dict(zip(("R", "C"), launch.settled[2:], strict=True)),
        target=target_of(record),
        options=launch.options,
        thorough=thorough,
    )


def aot_cases() -> Iterator[AotCase]:
    """The kernels with every tile in float32 and bfloat16, and with two of them in float64.

    float16 is loaded as bfloat16 is. Where N is not a tile's number of rows, rows past the last are masked, which takes
    more registers, so that is what is compiled. Every resident tile is for sm_90, which has to show wide loads;
    elsewhere the widest and the tallest of those with as many values a thread, for registers go by these, and fewer for
    gfx942, where a thread holds half as many values. Not `thorough` are those that take the most registers or shared
    memory, the usual one without per-sample sums, and for sm_90 the usual one of halves and a launch by table.
    """
    two_walks = 2 * config.RESIDENT_ROWS
    for record in compiled_ahead():
        make = functools.partial(_case, record)
        others = record.family != "sm_90"
        yield make(F32, 32, False)
        yield make(BF16, config.CHUNKED_FROM, False)
        yield make(BF16, 32, False, thorough=True)
        yield make(F32, config.CHUNKED_FROM, False, thorough=True)
        yield make(F64, 32, False, thorough=True)
        yield make(F32, 32, False, table=True, thorough=others)
        for rows, dtype in ((32, F32), (32, BF16), (32, F64), (config.TALL_FROM, F32), (config.TALL_FROM, BF16)):
            yield make(dtype, rows, False, few=1024, thorough=others or dtype != BF16)
        hip = record.family == "hip"
        for tile in config.SAMPLES[F32]:
            if not others or tile.rows in ((8, 512, 1024) if hip else (8, 128, 512, 1024)):
                yield make(F32, tile.rows - 1, True, thorough=tile.rows != 512)
        for tile in config.SAMPLES[BF16]:
            if not others or tile.rows in ((8, 128, 1024) if hip else (8, 16, 64, 128, 1024)):
                yield make(BF16, tile.rows - 1, True, thorough=tile.rows != 32)
        yield make(BF16, 31, True, table=True, thorough=True)  # does all that it does without a table, and more
        for n in (31, 1023, two_walks):
            yield make(F64, n, True, thorough=True)
        yield make(BF16, two_walks, True)
        yield make(F32, two_walks, True, thorough=True)
        if record.family == "sm_80":  # whose family the cards of slow float64 belong to
            slow = replace(record, fast_float64=False)
            yield _case(slow, BF16, 32, False, thorough=True)  # float32 as from CHUNKED_FROM rows
            for n in (31, 1023, two_walks):
                yield _case(slow, F32, n, True, thorough=True)
        yield _finish_case(74, record)
        yield _finish_case(2, record, thorough=True)
