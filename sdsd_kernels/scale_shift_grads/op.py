"""Public function → checks → backend → the operator `sdsd::scale_shift_grads`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_device, check_dtype, check_float_tensor, check_integer, check_shape
from .._launch import check_square_norms
from .._register import register
from ..per_sample import sums_cpu as cpu


class ScaleShiftGrads(NamedTuple):
    scale_grad: Tensor | None
    """(C,); None without a scale_row."""
    shift_grad: Tensor | None
    """(C,); None without a shift_row."""


def scale_shift_grads(
    output_grads: Tensor,
    square_norms: Tensor,
    *,
    inputs: Tensor | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    scale_row: int | None = None,
    shift_row: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> ScaleShiftGrads:
    """Gradients of a norm's weight and bias, or of a bias alone, and the squares of their per-sample gradients.

    In plain PyTorch, for output gradients b (N, T, C) of out = x̂ · scale + shift, x̂ = (inputs − mean) · rstd::

        scale = (b * (inputs - mean) * rstd).sum(1)        # (N, C): never stored whole
        shift = b.sum(1)                                   # (N, C)
        scale_grad, shift_grad = scale.sum(0), shift.sum(0)
        square_norms[scale_row].sum() == scale.square().sum()
        square_norms[shift_row].sum() == shift.square().sum()

    On a GPU two launches give all four. Squares go into a row of a tensor that the caller allocates, so that those of a
    whole model are added up by one launch. Halves are widened to float32; squares are summed in float64. Same input,
    same bits. Not differentiable: inputs are detached.

    Args:
        output_grads: b, shape (N, T, C); float64, float32, float16 or bfloat16; any strides.
        square_norms: shape (rows, 64), float64, contiguous: its rows `scale_row` and `shift_row`, zero before, are
            written to.
        inputs: shape (N, T, C), any floating-point dtype; wanted with `scale_row`, and only then.
        mean: shape (N, T, 1), a number a position (layer norm), or (N, 1, G), a number for every one of G groups of
            channels (group norm); None where nothing is subtracted.
        rstd: the inverse deviations, as `mean`; None where nothing is multiplied.
        scale_row: where the scale's squares go; None where its gradient is not wanted.
        shift_row: the same of the shift.
        dtype: of the gradients, that of the parameters; None: that of `output_grads`.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. The kernel has no float64.

    Returns:
        `ScaleShiftGrads`.

    Raises:
        TypeError: an argument that is not a dense tensor of a supported floating-point dtype, a row that is no int.
        ValueError: shapes that do not fit, an empty tensor, devices that differ, a row out of range, no row at all,
            Triton asked for where it cannot serve.

    Source:
        README.md in this folder.
    """
    scale, shift = -1 if scale_row is None else scale_row, -1 if shift_row is None else shift_row
    if not torch.compiler.is_compiling():
        _check(output_grads, inputs, mean, rstd, square_norms, scale, shift, dtype)
    lacks = None
    if any(t is not None and t.dtype == torch.float64 for t in (output_grads, inputs, mean, rstd)):
        lacks = "the kernel has no float64"
    chosen = choose_backend(backend, output_grads.device, kernel_lacks=lacks)
    scale_grad, shift_grad = _operator(
        output_grads.detach(),
        None if inputs is None else inputs.detach(),
        mean,
        rstd,
        square_norms,
        scale,
        shift,
        dtype or output_grads.dtype,
        chosen,
    )
    return ScaleShiftGrads(scale_grad if scale >= 0 else None, shift_grad if shift >= 0 else None)


_MAX_KEPT = 4096
_checked: set[tuple[Any, ...]] = set()
"""Calls that passed, by all that their checks look at."""


def _check(
    output_grads: Any, inputs: Any, mean: Any, rstd: Any, square_norms: Any, scale_row: Any, shift_row: Any, dtype: Any
) -> None:
    tensors = (output_grads, inputs, mean, rstd, square_norms)
    key = None
    plain = all(t is None or (isinstance(t, Tensor) and not t.is_nested) for t in tensors)
    if plain and type(scale_row) is type(shift_row) is int:
        known = (None if t is None else (t.shape, t.dtype, t.layout, t.device) for t in tensors)
        written = square_norms is not None and (
            square_norms.is_contiguous(),
            square_norms.is_neg(),
            square_norms.requires_grad,
        )
        key = (*known, scale_row, shift_row, dtype, written)
        try:
            if key in _checked:
                return
        except TypeError:  # a dtype that cannot be hashed is none
            key = None
    _look(*tensors, scale_row, shift_row, dtype)
    if key is not None:
        if len(_checked) >= _MAX_KEPT:
            _checked.clear()
        _checked.add(key)


def _look(
    output_grads: Any, inputs: Any, mean: Any, rstd: Any, square_norms: Any, scale_row: Any, shift_row: Any, dtype: Any
) -> None:
    check_float_tensor(output_grads, "output_grads")
    if output_grads.ndim != 3 or 0 in output_grads.shape:
        raise ValueError(
            f"output_grads: expected shape (N, T, C) with at least one element, got {tuple(output_grads.shape)}. Join "
            "the dimensions between samples and channels, for example with output_grads.flatten(1, -2)."
        )
    samples, positions, channels = output_grads.shape
    if dtype is not None:
        check_dtype(dtype, "dtype")
    check_square_norms(square_norms, output_grads, "output_grads")
    for name, row in (("scale_row", scale_row), ("shift_row", shift_row)):
        check_integer(row, name, least=-1)
        if row >= square_norms.shape[0]:
            raise ValueError(f"{name}: expected a row of square_norms, below {square_norms.shape[0]}, got {row}.")
    if scale_row < 0 and shift_row < 0:
        raise ValueError("scale_row: expected a row for the scale or for the shift, got neither. Name one.")
    if scale_row == shift_row:
        raise ValueError(f"shift_row: expected another row than the scale's, got {shift_row} for both.")
    if (inputs is None) != (scale_row < 0):
        raise ValueError(
            "inputs: expected with a scale_row, and only then, got "
            f"{'none' if inputs is None else 'them'} with scale_row={None if scale_row < 0 else scale_row}."
        )
    if inputs is not None:
        check_float_tensor(inputs, "inputs")
        check_shape(inputs, "inputs", tuple(output_grads.shape), ", that of output_grads", "Both are of one call.")
        check_device(inputs, "inputs", output_grads, "output_grads")
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        if statistic is None:
            continue
        if inputs is None:
            raise ValueError(f"{name}: expected only with inputs, got it without. A shift needs none.")
        check_float_tensor(statistic, name)
        check_device(statistic, name, output_grads, "output_grads")
        shape = tuple(statistic.shape)
        of_groups = len(shape) == 3 and shape[:2] == (samples, 1) and shape[2] and channels % shape[2] == 0
        if shape != (samples, positions, 1) and not of_groups:
            raise ValueError(
                f"{name}: expected shape ({samples}, {positions}, 1), a number a position, or ({samples}, 1, G), one "
                f"for each of G groups of the {channels} channels, got {shape}."
            )
    if mean is not None and rstd is not None and mean.shape != rstd.shape:
        raise ValueError(f"rstd: expected the shape of mean, {tuple(mean.shape)}, got {tuple(rstd.shape)}.")


@functools.cache
def _kernels() -> Any:
    from .launch import launch

    return launch


def _compute(
    output_grads: Tensor,
    inputs: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    square_norms: Tensor,
    scale_row: int,
    shift_row: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    compute = _kernels() if backend == "triton" else cpu.scale_shift_grads
    scale, shift = compute(output_grads, inputs, mean, rstd, square_norms, scale_row, shift_row, dtype)
    if scale is None:
        scale = torch.empty(0, dtype=dtype, device=output_grads.device)
    if shift is None:
        shift = torch.empty(0, dtype=dtype, device=output_grads.device)
    return scale, shift


def _fake(
    output_grads: Tensor,
    inputs: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    square_norms: Tensor,
    scale_row: int,
    shift_row: int,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    _look(output_grads, inputs, mean, rstd, square_norms, scale_row, shift_row, dtype)
    scale, shift = (
        output_grads.new_empty(output_grads.shape[2] if row >= 0 else 0, dtype=dtype) for row in (scale_row, shift_row)
    )
    return scale, shift


_operator = register(
    "scale_shift_grads(Tensor output_grads, Tensor? inputs, Tensor? mean, Tensor? rstd, Tensor(a!) square_norms, "
    "int scale_row, int shift_row, ScalarType dtype, str backend) -> (Tensor, Tensor)",
    _compute,
    fake=_fake,
)
