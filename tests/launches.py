"""Holds launches under Triton's interpreter to what a GPU would demand of them.

A `Launch` compiles its kernel for the arguments of its first call and hands later ones to what was compiled. The
interpreter compiles nothing, so it would not notice a plan that serves a call it was not made for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdsd_kernels._launch import Launch

LAUNCHING = Launch.__call__
"""The real one."""
ENGINE_BYTES = 16
MOST_PROGRAMS = (2**31 - 1, 65_535, 65_535)
"""Of a launch on a GPU of NVIDIA's, by dimension of the grid."""
LARGEST_BOX = 256
"""Of a tensor descriptor, in every dimension."""


def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without conftest.py's poison and without `Launches`, which take calls of their own, where calls are counted."""
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted"):
        monkeypatch.setattr(torch, name, getattr(torch._C._VariableFunctions, name))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, getattr(torch._C.TensorBase, name))
    monkeypatch.setattr(Launch, "__call__", LAUNCHING)


def assumed(value: Any, *, specialized: bool, wide: bool) -> tuple[Any, ...]:
    """What a kernel is compiled for: its type, and what it may take for granted.

    `specialized`: whether Triton looks at the value of a number; `wide`: whether it is declared to have 64 bits.
    """
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0, False
    if hasattr(value, "block_shape"):
        return ("descriptor", value.base.dtype, tuple(value.block_shape)), True, False
    if isinstance(value, int) and not isinstance(value, bool):
        bits = 64 if wide or not -(2**31) <= value < 2**31 else 32
        return bits, specialized and value % 16 == 0, specialized and value == 1
    return type(value), False, False


def check_descriptor(value: Any) -> None:
    """What the copy engine demands."""
    size = value.base.element_size()
    assert value.base.data_ptr() % ENGINE_BYTES == 0
    assert 1 <= len(value.shape) <= 5
    assert all(1 <= extent < 2**32 for extent in value.shape), value.shape
    assert all(0 < stride * size < 2**40 for stride in value.strides), value.strides
    assert all(stride * size % ENGINE_BYTES == 0 for stride in value.strides[:-1]), value.strides
    assert value.strides[-1] == 1
    assert all(1 <= extent <= LARGEST_BOX for extent in value.block_shape), value.block_shape


class Launches:
    """Stands in for `Launch.__call__`."""

    def __init__(self) -> None:
        self._compiled: dict[int, tuple[Any, list[tuple[Any, ...]]]] = {}

    def __call__(self, launch: Any, tensors: tuple[Any, ...], grid: tuple[int, int, int] | None) -> None:
        self.check(launch, tensors, grid)
        LAUNCHING(launch, *tensors, grid=grid)

    def check(self, launch: Any, tensors: tuple[Any, ...], grid: tuple[int, int, int] | None) -> None:
        kernel = launch.kernel
        if not hasattr(kernel, "fn"):
            return  # a test's stand-in
        for programs, most in zip(grid or launch.grid, MOST_PROGRAMS, strict=True):
            assert 1 <= programs <= most, (kernel.__name__, grid or launch.grid)
        fixed = (getattr(kernel, "kwargs", None) or {}).get("do_not_specialize") or ()
        annotations = kernel.fn.__annotations__
        now = []
        for name, value in zip(kernel.arg_names, (*tensors, *launch.settled), strict=True):
            if hasattr(value, "block_shape"):
                check_descriptor(value)
            wide = str(annotations.get(name)) == "tl.int64"
            now.append(assumed(value, specialized=name not in fixed and not name.isupper(), wide=wide))
        _, first = self._compiled.setdefault(id(launch), (launch, now))
        for name, (kind, multiple, one), (kind_now, multiple_now, one_now) in zip(
            kernel.arg_names, first, now, strict=True
        ):
            told = f"{kernel.__name__}({name}): compiled for {kind}, {multiple=}, {one=}"
            assert kind == kind_now, f"{told}; now {kind_now}"
            assert multiple_now or not multiple, f"{told}; now no multiple of 16"
            assert one_now or not one, f"{told}; now not 1"
