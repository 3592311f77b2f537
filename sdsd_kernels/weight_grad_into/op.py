"""The same gradients, their square norms written into a tensor of the caller's: how a whole model is measured.

Operators `sdsd::weight_grad_into` and `sdsd::conv_weight_grad_into`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_integer
from .._launch import check_square_norms
from .._register import register
from ..weight_grad_stats import conv, cpu
from ..weight_grad_stats.geometry import LINEAR, Geometry
from ..weight_grad_stats.layout import weight_strides
from ..weight_grad_stats.method import choose_method
from ..weight_grad_stats.op import check_conv_once, check_pair_once, geometry_of, lacks_kernel


def weight_grad_into(
    inputs: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    *,
    dtype: torch.dtype | None = None,
    max_bytes: int = 64 * 2**20,
    backend: str | None = None,
) -> Tensor:
    """The weight gradient of `weight_grad_stats`, whose square norm goes into `square_norms`.

    `square_norms[row].sum()` is the square norm afterwards, where the row was zero before. So the square norms of all
    layers of a model lie in one tensor and are added up by one launch.

    Args:
        inputs: as in `weight_grad_stats`.
        output_grads: as in `weight_grad_stats`.
        square_norms: shape (rows, 64), float64, contiguous, on the device of `inputs`.
        row: which row of it is written.
        dtype: of the weight gradient, that of the parameter; None: that of `inputs`.
        max_bytes: as in `weight_grad_stats`.
        backend: as in `weight_grad_stats`.

    Returns:
        Σ_n g_n, shape (p, d).

    Raises:
        TypeError, ValueError: as `weight_grad_stats`; `square_norms` of another shape or dtype, a row out of range.
    """
    if not torch.compiler.is_compiling():
        check_pair_once(inputs, output_grads, max_bytes, dtype)
        _check_row(square_norms, row, inputs)
    if inputs.ndim == 2:
        inputs, output_grads = inputs.unsqueeze(1), output_grads.unsqueeze(1)
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks_kernel(inputs, None))
    return _operator(  # type: ignore[no-any-return]
        inputs.detach(), output_grads.detach(), square_norms, row, dtype or inputs.dtype, max_bytes, chosen
    )


def conv_weight_grad_into(
    inputs: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    max_bytes: int = 64 * 2**20,
    backend: str | None = None,
) -> Tensor:
    """The weight gradient of `conv_weight_grad_stats`, whose square norm goes into `square_norms`.

    Args:
        inputs: as in `conv_weight_grad_stats`, and all that is not named here.
        square_norms: as in `weight_grad_into`, `row` too.

    Returns:
        Σ_n g_n, shape (P, C // groups, *kernel_size).

    Raises:
        TypeError, ValueError: as `conv_weight_grad_stats`; `square_norms` of another shape or dtype, a row out of
            range.
    """
    space = inputs.ndim - 2 if isinstance(inputs, Tensor) else 0
    known = geometry_of(space, kernel_size, stride, padding, dilation, groups)
    if not torch.compiler.is_compiling():
        check_conv_once(inputs, output_grads, known, max_bytes, dtype)
        _check_row(square_norms, row, inputs)
    lacks = lacks_kernel(inputs, None) or ("the kernel has no third dimension of space" if space == 3 else None)
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks)
    return _conv_operator(  # type: ignore[no-any-return]
        inputs.detach(), output_grads.detach(), square_norms, row, known.kernel, known.stride, known.padding,
        known.dilation, known.groups, dtype or inputs.dtype, bool(channels_last), max_bytes, chosen,
    )  # fmt: skip


_passed: set[tuple[Any, ...]] = set()


def _check_row(square_norms: Any, row: Any, inputs: Tensor) -> None:
    """Raise unless `row` is one of `square_norms`; looked at once for every row."""
    key = None
    if isinstance(square_norms, Tensor) and type(row) is int:
        key = (
            square_norms.shape, square_norms.dtype, square_norms.layout, square_norms.is_contiguous(),
            square_norms.requires_grad, square_norms.device, inputs.device, row,
        )  # fmt: skip
        if key in _passed:
            return
    check_square_norms(square_norms, inputs, "inputs")
    check_integer(row, "row", least=0)
    if row >= square_norms.shape[0]:
        raise ValueError(f"row: expected one of square_norms, below {square_norms.shape[0]}, got {row}.")
    if key is not None:
        if len(_passed) >= 4096:
            _passed.clear()
        _passed.add(key)


def _compute(
    inputs: Tensor, output_grads: Tensor, square_norms: Tensor, row: int, dtype: torch.dtype, max_bytes: int,
    backend: str,
) -> Tensor:  # fmt: skip
    chosen = choose_method(inputs, output_grads, False, True)
    if backend != "triton":
        total, squares = cpu.weight_grad_stats(inputs, output_grads, None, True, dtype, chosen, max_bytes)
        square_norms[row, 0] = squares
    elif chosen == "fused":
        from ..weight_grad_stats.launch import launch_fused

        total, _ = launch_fused(
            inputs, output_grads, None, LINEAR, True, dtype, False, max_bytes, square_norms, row
        )  # fmt: skip
    else:
        from ..weight_grad_stats.launch import launch_squares

        total = cpu.plain_weight_grad(inputs, output_grads, dtype)
        launch_squares(inputs, output_grads, chosen, square_norms, row)
    assert total is not None
    return total


def _fake(
    inputs: Tensor, output_grads: Tensor, square_norms: Tensor, row: int, dtype: torch.dtype, max_bytes: int,
    backend: str,
) -> Tensor:  # fmt: skip
    check_pair_once(inputs, output_grads, max_bytes, dtype)
    return inputs.new_empty((output_grads.shape[-1], inputs.shape[-1]), dtype=dtype)


def _compute_conv(
    inputs: Tensor, output_grads: Tensor, square_norms: Tensor, row: int, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, dtype: torch.dtype, channels_last: bool, max_bytes: int,
    backend: str,
) -> Tensor:  # fmt: skip
    known = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)
    if backend == "triton":
        from ..weight_grad_stats.launch import launch_fused

        total, _ = launch_fused(
            inputs, output_grads, None, known, True, dtype, channels_last, max_bytes, square_norms, row
        )  # fmt: skip
    else:
        total, squares = conv.conv_weight_grad_stats(
            inputs, output_grads, None, known, True, dtype, channels_last, max_bytes
        )
        square_norms[row, 0] = squares
    assert total is not None
    return total


def _fake_conv(
    inputs: Tensor, output_grads: Tensor, square_norms: Tensor, row: int, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, dtype: torch.dtype, channels_last: bool, max_bytes: int,
    backend: str,
) -> Tensor:  # fmt: skip
    known = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)
    check_conv_once(inputs, output_grads, known, max_bytes, dtype)
    shape = (output_grads.shape[1], inputs.shape[1] // groups, *kernel_size)
    return inputs.new_empty_strided(shape, weight_strides(shape, channels_last), dtype=dtype)


_operator = register(
    "weight_grad_into(Tensor inputs, Tensor output_grads, Tensor(a!) square_norms, int row, ScalarType dtype, "
    "SymInt max_bytes, str backend) -> Tensor",
    _compute,
    fake=_fake,
)
_conv_operator = register(
    "conv_weight_grad_into(Tensor inputs, Tensor output_grads, Tensor(a!) square_norms, int row, int[] kernel_size, "
    "int[] stride, int[] padding, int[] dilation, int groups, ScalarType dtype, bool channels_last, SymInt max_bytes, "
    "str backend) -> Tensor",
    _compute_conv,
    fake=_fake_conv,
)
