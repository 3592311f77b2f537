"""What of the kernels is compiled ahead of time, and what must show in the machine code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .._device import DeviceRecord
from . import config, sums_aot
from .config import DIRECT, ONE_TERM, THREE_TERMS, Tile
from .kernel import boxes_kernel, depthwise_kernel, finish_kernel
from .launch import precision_of
from .split_kernel import largest_kernel, split_kernel
from .squares_kernel import gram_kernel, rank1_kernel

_STORED = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_FREE = {
    "samples",
    "samples_each",
    "height",
    "width",
    "out_height",
    "out_width",
    "group_d",
    "group_p",
    "taps",
    "kernel_w",
    "stride_h",
    "stride_w",
    "pad_h",
    "pad_w",
    "dilation_h",
    "dilation_w",
    "scale_h",
    "scale_w",
    "total_tap",
    "positions",
    "tiles",
    "ranges",
    "count",
    "programs",
    "elements",
    "row",
    "bias_row",
    "splits",
}
"""Numbers that need not be multiples of 16."""


def _case(
    name: str,
    function: Any,
    record: DeviceRecord,
    types: dict[str, str],
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int = 3,
    **more: Any,
) -> AotCase:
    """A case whose arguments are of the `types`, `constants`, or 32-bit numbers."""
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32")
        for argument in function.arg_names
    }
    rest = [
        argument
        for argument, kind in signature.items()
        if kind != "constexpr"
        and "tensordesc" not in kind
        and argument.rstrip("ab").rstrip("_") not in _FREE
        and argument not in _FREE
        and not argument.startswith(("rows_", "height_", "width_"))
    ]
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return AotCase(
        name, function, signature, constants, target_of(record), options, attrs=aligned(signature, *rest), **more
    )


def _boxes(
    record: DeviceRecord,
    tile: Tile,
    dtype: torch.dtype,
    kind: str = DIRECT,
    *,
    box: tuple[int, int] | None = None,
    strided: bool = False,
    sets: bool = False,
    flat: bool = False,
    scaled: bool = False,
    pointers: bool = False,
    thorough: bool = False,
    most_stack: int = 0,
) -> AotCase:
    """`boxes_kernel` with one tile; `sets`: several groups a tile."""
    three = kind == THREE_TERMS
    stored = _STORED[dtype if kind == DIRECT else torch.float16]
    height, width = box or (1, tile.block_t)
    types = {"total_ptr": f"*{_STORED[dtype]}", "squares_ptr": "*fp64"}
    constants: dict[str, Any] = {"a_low": None, "b_low": None, "a_factor": None, "b_factor": None, "scale_ptr": None}
    if pointers:
        types |= {"a": f"*{stored}", "b": f"*{stored}"}
        constants |= {"a_c": 1, "b_c": 1}
    else:
        shape_a = f"1,{height},1,{width}" if strided else f"1,{height},{width}"
        types["a"] = f"tensordesc<{stored}[{shape_a},{tile.block_d}]>"
        types["b"] = f"tensordesc<{stored}[1,{height},{width},{tile.block_p}]>"
        constants |= dict.fromkeys((f"{name}_{axis}" for name in "ab" for axis in "nhwc"), 0)
    if three:
        types |= {"a_low": types["a"], "b_low": types["b"]}
    if kind != DIRECT:
        types |= {"a_factor": "*fp32", "b_factor": "*fp32"}
    if scaled:
        types["scale_ptr"] = "*fp32"
        constants["scale_d"] = 1
    constants = {name: value for name, value in constants.items() if name not in types}
    constants |= {"total_d": 1, "POINTERS": pointers, "FLAT": flat, "STRIDED": strided, "MASKED": strided or sets}
    constants |= {"SEVERAL": sets, "THREE": three, "PRECISION": precision_of(dtype, record, False)}
    constants |= {"WEIGHT_GRAD": True, "INTERPRET": False, "BLOCK_P": tile.block_p, "BLOCK_D": tile.block_d}
    constants |= {"BLOCK_H": height, "BLOCK_W": width, "GROUP": 8}
    features = {"strided": strided, "sets": sets, "all taps": flat, "scaled": scaled, "pointers": pointers}
    said = [f"{_STORED[dtype]}" if kind == DIRECT else f"{_STORED[dtype]} as {kind}"]
    said += [f"{tile.block_p}x{tile.block_d}x{height}x{width} w{tile.num_warps} s{tile.num_stages}"]
    return _case(
        " ".join([*said, *(name for name, present in features.items() if present)]),
        boxes_kernel,
        record,
        types,
        constants,
        tile.num_warps,
        tile.num_stages,
        expect_mma=record.matrix_instruction,
        expect_tma=not pointers,
        thorough=thorough,
        most_stack=most_stack,
    )


def _gram(
    record: DeviceRecord, dtype: torch.dtype, positions: int, pointers: bool, thorough: bool, *, long: bool = True
) -> AotCase:
    chosen = config.gram_config(record, dtype.itemsize, positions)
    stored = _STORED[dtype]
    box = f"tensordesc<{stored}[1,{chosen.block_t},{chosen.block_k}]>"
    types = {"a": f"*{stored}" if pointers else box, "b": f"*{stored}" if pointers else box, "squares_ptr": "*fp64"}
    constants: dict[str, Any] = (
        {"a_d": 1, "b_p": 1} if pointers else dict.fromkeys(("a_n", "a_t", "a_d", "b_n", "b_t", "b_p"), 0)
    )
    constants |= {"POINTERS": pointers, "PRECISION": precision_of(dtype, record, False), "INTERPRET": False}
    constants |= {"BLOCK_T": chosen.block_t, "BLOCK_K": chosen.block_k}
    constants |= {"EVERY": config.gram_every(record, config.LONG_FEATURES if long else 1)}
    return _case(
        f"gram {stored} {chosen.block_t}x{chosen.block_k}{' pointers' if pointers else ''}{' long' if long else ''}",
        gram_kernel,
        record,
        types,
        constants,
        chosen.num_warps,
        chosen.num_stages,
        expect_mma=record.matrix_instruction,
        expect_tma=not pointers,
        thorough=thorough,
    )


def _small(record: DeviceRecord) -> Iterator[AotCase]:
    """The kernels without a matrix product."""
    pair = {"a": "*bf16", "b": "*bf16", "squares_ptr": "*fp64"}
    chosen = config.DEPTHWISE_CHANNELS_LAST
    constants = {"scale_ptr": None, "a_c": 1, "b_c": 1, "WEIGHT_GRAD": True, "BLOCK_P": chosen.block_p}
    constants |= {"BLOCK_T": chosen.block_t}
    types = pair | {"total_ptr": "*bf16"}
    yield _case("depthwise", depthwise_kernel, record, types, constants, chosen.num_warps)
    rows, features = config.RANK1_BLOCK
    constants = {"a_d": 1, "b_p": 1, "BLOCK_N": rows, "BLOCK_K": features}
    yield _case("rank1", rank1_kernel, record, pair, constants, 4)
    types = {"partial_ptr": "*fp32", "squares_ptr": "*fp64", "total_ptr": "*bf16", "square_norm_ptr": "*fp64"}
    types |= {"bias_part": "*fp32", "bias_total": "*bf16"}
    together = config.MOST_TOGETHER
    constants = {"BLOCK": config.FINISH_BLOCK // together, "RANGES": together, "SHARES": config.FINISH_BLOCK}
    constants |= {"BIAS_BLOCKS": 8, "BLOCK_N": 8, "BLOCK_C": 32}
    yield _case("finish", finish_kernel, record, types, constants, 4)
    if not config.reads_boxes(record):
        return  # nothing is split
    block = {"a_c": 1, "b_c": 1, "ROWS": config.SPLIT_BLOCK[0], "CHANNELS": config.SPLIT_BLOCK[1]}
    types = dict.fromkeys(("a", "b", "factor_a", "factor_b"), "*fp32") | {"largest": "*i32"}
    types |= dict.fromkeys(("high_a", "low_a", "high_b", "low_b"), "*fp16")
    yield _case("largest", largest_kernel, record, types, block, 4)
    yield _case("split", split_kernel, record, types, block, 4)


def aot_cases() -> Iterator[AotCase]:
    """Those of the products, and of sums_aot.py."""
    yield from _products()
    yield from sums_aot.aot_cases()


def _products() -> Iterator[AotCase]:
    """Every tile, the worst of each target in the brief list: strided, several groups a tile, scaled.

    Few channels in halves, and Gram products by pointers where the copy engine reads tiles, are compiled for sm_90
    alone: elsewhere few channels are in float32, which takes more.
    """
    bf16, fp32 = torch.bfloat16, torch.float32
    for record in compiled_ahead():
        main = record.family == "sm_90"
        if not config.reads_boxes(record):
            hip = record.family == "hip"
            large = (config.HIP_HALF if hip else config.POINTER_HALF)[0]
            small = (config.HIP_FLOAT if hip else config.POINTER_HALF_SMALL)[0]
            wide = (config.HIP_FLOAT if hip else config.POINTER_FLOAT)[0]
            scaled = (config.HIP_FLOAT if hip else config.POINTER_SCALED)[0]
            few = (config.FEW_CHANNELS_HIP if hip else config.FEW_CHANNELS)[0]
            worst = (config.HIP_FLOAT if hip else config.POINTER_FLOAT_SCALED)[0]
            yield _boxes(record, worst, fp32, box=(2, 16), sets=True, scaled=True, pointers=True)
            yield _boxes(record, wide, fp32, box=(2, 16), sets=True, pointers=True, thorough=True)
            yield _boxes(record, large, bf16, pointers=True, sets=True, thorough=True)
            yield _boxes(record, small, bf16, pointers=True, sets=True, thorough=True)
            yield _boxes(record, scaled, bf16, pointers=True, sets=True, scaled=True, thorough=True)
            yield _boxes(
                record, few, fp32, box=(2, few.block_t // 2), flat=True, scaled=True, pointers=True, thorough=True
            )
            for dtype in (bf16, fp32):
                yield _gram(record, dtype, 128, True, thorough=dtype == fp32)
            yield from _small(record)
            continue
        yield _boxes(record, config.THREE_BOXES[0], fp32, THREE_TERMS, box=(4, 16), strided=True, sets=True)
        yield _boxes(
            record, config.SCALED[0], bf16, box=(8, 8), strided=True, sets=True, scaled=True, thorough=not main
        )
        if main:  # elsewhere LINEAR[0] with factors
            yield _boxes(record, config.LINEAR[0], bf16)
            yield _boxes(record, config.THREE[0], fp32, THREE_TERMS, thorough=True)
            yield _boxes(record, config.WIDE[0], bf16, thorough=True, most_stack=192)
        yield _boxes(record, config.LINEAR[0], fp32, ONE_TERM, thorough=True)
        yield _boxes(
            record,
            config.THREE_NARROW[0],
            fp32,
            THREE_TERMS,
            box=(8, 8),
            strided=True,
            sets=True,
            scaled=True,
            thorough=True,
        )
        yield _boxes(record, config.LINEAR[1], bf16, thorough=True)
        rated_alike = (replace(tile, rate=1.0) for tile in (*config.LINEAR[2:], *config.BOXES, *config.NARROW))
        for tile in dict.fromkeys(rated_alike):
            yield _boxes(record, tile, bf16, box=(4, tile.block_t // 4), strided=True, sets=True, thorough=True)
        for dtype in (bf16, fp32):
            yield _gram(record, dtype, 1024, False, thorough=dtype == fp32)
            if main:  # without the total in float32
                yield _gram(record, dtype, 1024, False, thorough=True, long=False)
                yield _gram(record, dtype, 64, True, thorough=True)
        for dtype in (bf16, fp32) if main else (fp32,):
            yield _boxes(
                record, config.FEW_CHANNELS[0], dtype, box=(4, 16), flat=True, scaled=True, pointers=True, thorough=True
            )
        yield from _small(record)
