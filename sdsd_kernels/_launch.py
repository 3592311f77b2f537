"""Launches of Triton kernels with everything settled but the tensors."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from ._checks import check_device, check_float_tensor, check_written

NORMS_WIDTH = 64
"""Numbers in a row of a tensor that takes square norms: programs write a share each, the square norm is their sum."""


class Launch:
    """A kernel with all but its tensors settled; compiled by the first call, found in no cache after.

    Later calls hand the compiled kernel to Triton's launcher as its own front end does, without what that looks up.
    """

    __slots__ = ("_compiled", "_run", "grid", "kernel", "options", "settled")

    def __init__(self, kernel: Any, grid: tuple[int, int, int], settled: dict[str, Any], **options: int) -> None:
        self.kernel, self.grid, self.options = kernel, grid, options
        self.settled = tuple(settled[name] for name in kernel.arg_names if name in settled)
        self._compiled: Any = None
        self._run: Any = None

    def __call__(self, *tensors: Any, grid: tuple[int, int, int] | None = None) -> None:
        """`grid`: another than the settled one."""
        grid = grid or self.grid
        compiled = self._compiled
        if compiled is None:
            # None from the interpreter, which has nothing to keep.
            compiled = self.kernel[grid](*tensors, *self.settled, **self.options)
            self._run = getattr(compiled, "run", None)
            self._compiled = compiled  # last: another thread may call now
            return
        stream = torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice())
        self._run(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *tensors, *self.settled)


def on_device(where: Tensor, call: Any, *arguments: Any) -> Any:
    """`call(*arguments)` with the device of `where` as the current one, as launches want it."""
    if where.is_cuda and where.get_device() != torch._C._cuda_getDevice():
        with torch.cuda.device(where.device):
            return call(*arguments)
    return call(*arguments)


_HERE = contextlib.nullcontext()


def device_of(where: Tensor) -> contextlib.AbstractContextManager[Any]:
    """The same for the body of a `with`."""
    if where.is_cuda and where.get_device() != torch._C._cuda_getDevice():
        return torch.cuda.device(where.device)
    return _HERE


MOST_PLANS = 4096


def kept(plans: dict[tuple[Any, ...], Any], key: tuple[Any, ...], plan: Any) -> Any:
    """`plan`, kept in `plans` by all that it rests on."""
    if len(plans) >= MOST_PLANS:
        plans.clear()
    plans[key] = plan
    return plan


def check_square_norms(square_norms: Any, other: Tensor, like: str) -> None:
    """Raise unless `square_norms` can take square norms of what lies on the device of `other`."""
    check_float_tensor(square_norms, "square_norms")
    start = f"torch.zeros(rows, {NORMS_WIDTH}, dtype=torch.float64)"
    if square_norms.dtype != torch.float64 or square_norms.ndim != 2 or square_norms.shape[1] != NORMS_WIDTH:
        raise ValueError(
            f"square_norms: expected float64 of shape (rows, {NORMS_WIDTH}), got {square_norms.dtype} of shape "
            f"{tuple(square_norms.shape)}. Start from {start}."
        )
    check_written(square_norms, "square_norms", start)
    check_device(square_norms, "square_norms", other, like)
