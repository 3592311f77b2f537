"""What of the sums over positions is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .._aot import AotCase, aligned, compiled_ahead, target_of
from . import sums_config as config
from .sums_config import Block
from .sums_kernel import finish_kernel, sums_kernel

_FREE = {"positions", "group", "samples", "splits", "scale_row", "shift_row", "m_t", "r_t", "m_n", "r_n"}
"""Numbers that need not be multiples of 16."""


def _case(
    name: str, function: Any, target: Any, types: dict[str, str], constants: dict[str, Any], num_warps: int, **more: Any
) -> AotCase:
    signature = {
        argument: "constexpr" if argument in constants else types.get(argument, "i32")
        for argument in function.arg_names
    }
    rest = [name for name, kind in signature.items() if kind != "constexpr" and name not in _FREE]
    options = {"num_warps": num_warps, "num_stages": 3}
    return AotCase(name, function, signature, constants, target, options, attrs=aligned(signature, *rest), **more)


def aot_cases() -> Iterator[AotCase]:
    """Norms and biases in both memory orders; of sm_90 the reads that have to be wide."""
    for record in compiled_ahead():
        target = target_of(record)

        def sums(
            name: str,
            block: Block,
            stored: str,
            given: str | None,
            statistic: str | None,
            target: Any = target,
            **more: Any,
        ) -> AotCase:
            types = {"grads": f"*{stored}", "shift_part": "*fp32"}
            constants: dict[str, Any] = dict.fromkeys(("inputs", "mean", "rstd", "scale_part"))
            if given is not None:
                types |= {"inputs": f"*{given}", "scale_part": "*fp32"}
            if statistic is not None:
                types |= {"mean": "*fp32", "rstd": "*fp32"}
            last = block.block_c > block.block_t or block in (config.CHANNELS_LAST, config.CHANNELS_LAST_SHIFT)
            adjacent = "c" if last else "t"
            constants |= {f"b_{adjacent}": 1, f"x_{adjacent}": 1}
            constants = {name: value for name, value in constants.items() if name not in types}
            constants |= {"PER_POSITION": statistic != "group", "BLOCK_T": block.block_t, "BLOCK_C": block.block_c}
            return _case(name, sums_kernel, target, types, constants, block.num_warps, **more)

        yield sums("layer norm fp32", config.CHANNELS_LAST, "fp32", "fp32", "position")
        yield sums("group norm fp32 of bf16", config.CHANNELS_LAST, "bf16", "fp32", "group", thorough=True)
        yield sums("group norm fp32, positions last", config.POSITIONS_LAST, "fp32", "fp32", "group", thorough=True)
        yield sums("scale bf16", config.CHANNELS_LAST, "bf16", "bf16", None, thorough=True)
        yield sums("bias bf16", config.CHANNELS_LAST_SHIFT, "bf16", None, None, thorough=True)
        for block_n, block_c in ((8, 32), (64, 32), (4, 512)):
            parts = ("scale_part", "shift_part", "scale_grad", "shift_grad")
            types = dict.fromkeys(parts, "*fp32") | {"square_norms": "*fp64"}
            constants = {"BLOCK_N": block_n, "BLOCK_C": block_c}
            thorough = block_n != 64
            yield _case(f"finish {block_n}x{block_c}", finish_kernel, target, types, constants, 4, thorough=thorough)
