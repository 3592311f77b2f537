"""How a kernel folder says what to compile ahead of time, for GPUs this machine does not have.

A folder's `aot.py` offers `aot_cases()`, which returns one `AotCase` for every kernel, shipped launch configuration and
target, but none for what another does and more: the same kernel and tile on the same target without its factors, its
table or its total. `make aot` and tests/test_aot.py find, compile and check them; nothing at run time reads this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._device import RECORDS, DeviceRecord


@dataclass(frozen=True)
class AotCase:
    """One kernel with one launch configuration for one target.

    Attributes:
        name: what the table shows, for example "two_pass BLOCK_COLUMNS=64 float32".
        function: the `@triton.jit` function.
        signature: argument → Triton type ("*fp32", "i64", "fp32"), in the order of the function's arguments;
            compile-time arguments are "constexpr".
        constexprs: compile-time argument → value.
        target: `target_of` a record, one of `compiled_ahead`.
        options: compiler options, for example {"num_warps": 4, "num_stages": 3}.
        expect_mma: the matrix instruction that must appear in the machine code, for example "HGMMA", or None.
        expect_tma: whether tiles must come by the copy engine of tensor descriptors (UTMALDG).
        expect_load_bits: how wide a thread's loads must be that fetch most of what the code loads, for example 128, or
            None.
        expect_ptx: instructions that must appear in the PTX, for example "min.NaN.f32".
        thorough: a case that is left to `make aot`. The test suite compiles the others: of each kernel and target the
            one that takes the most registers or shared memory, and of each instruction that sm_90 must show one.
        most_stack: bytes of stack a program may use; 0 but where spilling was measured to be faster.
        attrs: what is known of an argument, as the compiler takes it: {(index,): [["tt.divisibility", 16]]}.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    target: tuple[str, int | str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    expect_mma: str | None = None
    attrs: Mapping[tuple[int, ...], Sequence[Sequence[Any]]] = field(default_factory=dict)
    thorough: bool = False
    expect_tma: bool = False
    expect_load_bits: int | None = None
    expect_ptx: tuple[str, ...] = ()
    most_stack: int = 0


def aligned(signature: Mapping[str, str], *names: str) -> dict[tuple[int, ...], list[list[Any]]]:
    """`attrs` that declare the named arguments divisible by 16, as torch's allocations and even sizes are."""
    positions = {name: index for index, name in enumerate(signature)}
    return {(positions[name],): [["tt.divisibility", 16]] for name in names}


def compiled_ahead() -> list[DeviceRecord]:
    """The GPUs that every kernel is compiled for: the records that ask for it."""
    return [record for record in RECORDS.values() if record.compile_ahead]


def target_of(record: DeviceRecord) -> tuple[str, int | str, int]:
    """What an `AotCase` for this GPU names as its target."""
    if record.target is None:
        raise ValueError(f"record: expected that of a GPU, got {record.name!r}, which nothing is compiled for.")
    return record.target
