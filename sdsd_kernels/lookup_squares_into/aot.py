"""What of the kernels is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from .._aot import AotCase, aligned, compiled_ahead, target_of
from .kernel import add_shares_kernel, lookup_kernel
from .launch import BLOCK, SHARES


def aot_cases() -> Iterator[AotCase]:
    """float32 and bfloat16 with adjacent features, as embeddings give them."""
    for record in compiled_ahead():
        target = target_of(record)
        for stored in ("fp32", "bf16"):
            signature = dict.fromkeys(lookup_kernel.arg_names, "i32") | {
                "grads": f"*{stored}",
                "ordered": "*i64",
                "order": "*i64",
                "shares": "*fp64",
                "padding": "i64",
                "b_d": "constexpr",
                "BLOCK": "constexpr",
                "BLOCK_K": "constexpr",
            }
            constants = {"b_d": 1, "BLOCK": BLOCK[0], "BLOCK_K": BLOCK[1]}
            given = aligned(signature, "grads", "ordered", "order", "shares", "features", "b_n", "b_t")
            yield AotCase(
                f"lookup {stored}",
                lookup_kernel,
                signature,
                constants,
                target,
                {"num_warps": 4, "num_stages": 3},
                attrs=given,
                thorough=stored == "bf16",
            )
        signature = {"shares": "*fp64", "square_norms": "*fp64", "row": "i32", "count": "i32", "width": "i32"}
        signature |= {"BLOCK": "constexpr"}
        yield AotCase(
            "add shares",
            add_shares_kernel,
            signature,
            {"BLOCK": SHARES},
            target,
            {"num_warps": 4, "num_stages": 3},
            attrs=aligned(signature, "shares", "square_norms"),
        )
