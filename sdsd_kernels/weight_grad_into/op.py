"""The same gradients, their square norms written into a tensor of the caller's: how a whole model is measured.

Operators `sdsd::weight_grad_into` and `sdsd::conv_weight_grad_into`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_integer
from .._launch import check_square_norms
from .._register import register
from ..per_sample import convolution_cpu, cpu, sums_cpu
from ..per_sample.checks import check_conv_once, check_pair_once, convolution_of, lacks_kernel
from ..per_sample.convolution import Convolution
from ..per_sample.layout import weight_strides
from ..per_sample.method import choose_method


class LayerGrads(NamedTuple):
    weight_grad: Tensor
    """Σ_n g_n."""
    bias_grad: Tensor | None
    """Of the bias, the output gradients' sum; None without a bias_row."""


def weight_grad_into(
    inputs: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    *,
    bias_row: int | None = None,
    dtype: torch.dtype | None = None,
    max_bytes: int = 64 * 2**20,
    backend: str | None = None,
) -> LayerGrads:
    """The gradients of a linear layer's weight and bias, whose square norms go into rows of `square_norms`.

    Where the rows were zero before, `square_norms[row].sum()` is the square norm that `weight_grad_stats` returns, and
    `square_norms[bias_row].sum()` is Σ‖Σ_t b_n‖², that of the bias. So the square norms of all layers of a model lie
    in one tensor and are added up by one launch.

    Args:
        inputs: as in `weight_grad_stats`.
        output_grads: as in `weight_grad_stats`.
        square_norms: shape (rows, 64), float64, contiguous, on the device of `inputs`.
        row: which row of it the weight's square norm goes into.
        bias_row: that of the bias; None where there is none.
        dtype: of the gradients, that of the parameters; None: that of `inputs`. On a CPU the product of halves is
            rounded to their dtype before, as autograd's is.
        max_bytes: as in `weight_grad_stats`.
        backend: as in `weight_grad_stats`.

    Returns:
        `LayerGrads`: weight_grad (p, d), bias_grad (p,) or None.

    Raises:
        TypeError, ValueError: as `weight_grad_stats`; `square_norms` of another shape or dtype, a row out of range.
    """
    if not torch.compiler.is_compiling():
        check_pair_once(inputs, output_grads, max_bytes, dtype)
        _check_rows(square_norms, row, bias_row, inputs)
    if inputs.ndim == 2:
        inputs, output_grads = inputs.unsqueeze(1), output_grads.unsqueeze(1)
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks_kernel(inputs, None))
    of_bias = -1 if bias_row is None else bias_row
    weight, bias = _operator(
        inputs.detach(), output_grads.detach(), square_norms, row, of_bias, dtype or inputs.dtype, max_bytes, chosen
    )
    return LayerGrads(weight, None if bias_row is None else bias)


def conv_weight_grad_into(
    inputs: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    kernel_size: int | Sequence[int],
    *,
    bias_row: int | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    max_bytes: int = 64 * 2**20,
    backend: str | None = None,
) -> LayerGrads:
    """The gradients of a convolution's weight and bias, whose square norms go into rows of `square_norms`.

    Args:
        inputs: as in `conv_weight_grad_stats`, and all that is not named here.
        square_norms: as in `weight_grad_into`, `row`, `bias_row` and `dtype` too.

    Returns:
        `LayerGrads`: weight_grad (P, C // groups, *kernel_size), bias_grad (P,) or None.

    Raises:
        TypeError, ValueError: as `conv_weight_grad_stats`; `square_norms` of another shape or dtype, a row out of
            range.
    """
    space = inputs.ndim - 2 if isinstance(inputs, Tensor) else 0
    known = convolution_of(space, kernel_size, stride, padding, dilation, groups)
    if not torch.compiler.is_compiling():
        check_conv_once(inputs, output_grads, known, max_bytes, dtype)
        _check_rows(square_norms, row, bias_row, inputs)
    lacks = lacks_kernel(inputs, None) or ("the kernel has no third dimension of space" if space == 3 else None)
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks)
    of_bias = -1 if bias_row is None else bias_row
    weight, bias = _conv_operator(
        inputs.detach(),
        output_grads.detach(),
        square_norms,
        row,
        of_bias,
        known.kernel,
        known.stride,
        known.padding,
        known.dilation,
        known.groups,
        dtype or inputs.dtype,
        bool(channels_last),
        max_bytes,
        chosen,
    )
    return LayerGrads(weight, None if bias_row is None else bias)


_passed: set[tuple[Any, ...]] = set()


def _check_rows(square_norms: Any, row: Any, bias_row: Any, inputs: Tensor) -> None:
    """Raise unless these are rows of `square_norms`; looked at once for each pair."""
    key = None
    plain = isinstance(square_norms, Tensor) and not square_norms.is_nested
    if plain and type(row) is int and type(bias_row) in (int, type(None)):
        key = (
            square_norms.shape,
            square_norms.dtype,
            square_norms.layout,
            square_norms.is_contiguous(),
            square_norms.is_neg(),
            square_norms.requires_grad,
            square_norms.device,
            inputs.device,
            row,
            bias_row,
        )
        if key in _passed:
            return
    check_square_norms(square_norms, inputs, "inputs")
    for name, value in (("row", row), ("bias_row", bias_row)):
        if name == "bias_row" and value is None:
            continue
        check_integer(value, name, least=0)
        if value >= square_norms.shape[0]:
            raise ValueError(f"{name}: expected one of square_norms, below {square_norms.shape[0]}, got {value}.")
    if row == bias_row:
        raise ValueError(f"bias_row: expected another row than the weight's, got {row} for both.")
    if key is not None:
        if len(_passed) >= 4096:
            _passed.clear()
        _passed.add(key)


def _with_bias(
    total: Tensor | None,
    squares: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    bias_row: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The torch path: the square norm in its row, and the bias beside it; `output_grads` (N, T, p)."""
    assert total is not None
    square_norms[row, 0] = squares
    if bias_row < 0:
        return total, output_grads.new_empty(0, dtype=dtype)
    bias = sums_cpu.scale_shift_grads(output_grads, None, None, None, square_norms, -1, bias_row, dtype)[1]
    assert bias is not None
    return total, bias


@functools.cache
def _kernels() -> Any:
    from .launch import launch_into

    return launch_into


def _compute(
    inputs: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    bias_row: int,
    dtype: torch.dtype,
    max_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        return _kernels()(inputs, output_grads, square_norms, row, bias_row, None, dtype, False, max_bytes)  # type: ignore[no-any-return]
    method = choose_method(inputs, output_grads, False, True)
    total, squares = cpu.weight_grad_stats(inputs, output_grads, None, True, dtype, method, max_bytes)
    return _with_bias(total, squares, output_grads, square_norms, row, bias_row, dtype)


def _fake(
    inputs: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    bias_row: int,
    dtype: torch.dtype,
    max_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    check_pair_once(inputs, output_grads, max_bytes, dtype)
    p = output_grads.shape[-1]
    weight = inputs.new_empty((p, inputs.shape[-1]), dtype=dtype)
    return weight, inputs.new_empty(p if bias_row >= 0 else 0, dtype=dtype)


def _compute_conv(
    inputs: Tensor, output_grads: Tensor, square_norms: Tensor, row: int, bias_row: int, *settings: Any
) -> tuple[Tensor, Tensor]:
    *sizes, groups, dtype, channels_last, max_bytes, backend = settings
    known = (*map(tuple, sizes), groups)
    if backend == "triton":
        return _kernels()(inputs, output_grads, square_norms, row, bias_row, known, dtype, channels_last, max_bytes)  # type: ignore[no-any-return]
    total, squares = convolution_cpu.conv_weight_grad_stats(
        inputs, output_grads, None, Convolution(*known), True, dtype, channels_last, max_bytes
    )
    return _with_bias(total, squares, output_grads.flatten(2).mT, square_norms, row, bias_row, dtype)


def _fake_conv(
    inputs: Tensor, output_grads: Tensor, square_norms: Tensor, row: int, bias_row: int, *settings: Any
) -> tuple[Tensor, Tensor]:
    *sizes, groups, dtype, channels_last, max_bytes, _ = settings
    known = Convolution(*(*map(tuple, sizes), groups))
    check_conv_once(inputs, output_grads, known, max_bytes, dtype)
    p = output_grads.shape[1]
    shape = (p, inputs.shape[1] // groups, *known.kernel)
    weight = inputs.new_empty_strided(shape, weight_strides(shape, channels_last), dtype=dtype)
    return weight, inputs.new_empty(p if bias_row >= 0 else 0, dtype=dtype)


_operator = register(
    "weight_grad_into(Tensor inputs, Tensor output_grads, Tensor(a!) square_norms, int row, int bias_row, "
    "ScalarType dtype, SymInt max_bytes, str backend) -> (Tensor, Tensor)",
    _compute,
    fake=_fake,
)
_conv_operator = register(
    "conv_weight_grad_into(Tensor inputs, Tensor output_grads, Tensor(a!) square_norms, int row, int bias_row, "
    "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, ScalarType dtype, "
    "bool channels_last, SymInt max_bytes, str backend) -> (Tensor, Tensor)",
    _compute_conv,
    fake=_fake_conv,
)
