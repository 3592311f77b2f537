"""What `weight_grad_stats` and its like demand of their arguments, looked at once for each combination of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._checks import check_choice, check_device, check_dtype, check_float_tensor, check_max_bytes, check_shape
from .convolution import Convolution, make_convolution
from .method import METHODS

MAX_SCALED_COLUMNS = 2**23
MOST_ROWS = 128
"""Of a tile. Offsets within one of the scale have 32 bits."""
_MAX_KEPT = 4096
_checked: set[tuple[Any, ...]] = set()
"""Calls that passed, by all that their checks look at."""
_convolutions: dict[tuple[Any, ...], Convolution] = {}


def check_once(check: Any, tensors: tuple[Any, Any, Any], *rest: Any) -> None:
    """`check(*tensors, *rest)`, left out where all that it looks at has passed before."""
    inputs, output_grads, scale = tensors
    key: tuple[Any, ...] | None = None
    known = isinstance(inputs, Tensor) and isinstance(output_grads, Tensor) and isinstance(scale, (Tensor, type(None)))
    # A nested tensor has no shape.
    if known and not (inputs.is_nested or output_grads.is_nested or (scale is not None and scale.is_nested)):
        kinds = tuple(map(type, rest))  # True is no number of bytes, though it equals 1
        key = (
            check,
            inputs.shape,
            inputs.dtype,
            inputs.layout,
            inputs.device,
            output_grads.shape,
            output_grads.dtype,
            output_grads.layout,
            output_grads.device,
            rest,
            kinds,
            None if scale is None else (scale.shape, scale.dtype, scale.layout, scale.device),
        )
        try:
            if key in _checked:
                return
        except TypeError:  # an argument that cannot be hashed, and that no check lets pass
            key = None
    check(*tensors, *rest)
    if key is not None:
        if len(_checked) >= _MAX_KEPT:
            _checked.clear()
        _checked.add(key)


def check_pair_once(inputs: Tensor, output_grads: Tensor, max_bytes: int, dtype: torch.dtype | None) -> None:
    check_once(check_pair, (inputs, output_grads, None), None, max_bytes, dtype)


def check_conv_once(
    inputs: Tensor, output_grads: Tensor, known: Convolution, max_bytes: int, dtype: torch.dtype | None
) -> None:
    check_once(check_conv, (inputs, output_grads, None), known, max_bytes, dtype)


def convolution_of(space: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> Convolution:
    """The same `Convolution` for the same arguments, looked at once; a trace looks each time."""
    arguments = (kernel_size, stride, padding, dilation, groups)
    if torch.compiler.is_compiling() or not all([type(value) in (int, tuple) for value in arguments]):  # noqa: C419
        return make_convolution(space, *arguments)
    key = (space, *arguments, *map(type, arguments))
    convolution = _convolutions.get(key)
    if convolution is None:
        convolution = make_convolution(space, *arguments)
        if len(_convolutions) >= _MAX_KEPT:
            _convolutions.clear()
        _convolutions[key] = convolution
    return convolution


def lacks_kernel(inputs: Tensor, scale: Tensor | None) -> str | None:
    """What this call needs that the kernels do not offer."""
    if inputs.dtype == torch.float64:
        return "the kernel has no float64"
    if scale is not None:
        if scale[0].numel() >= MAX_SCALED_COLUMNS:
            return f"the kernel takes a scale of fewer than {MAX_SCALED_COLUMNS} numbers a row"
        tile = zip((MOST_ROWS, *scale.shape[1:]), scale.stride(), strict=True)
        if sum((size - 1) * stride for size, stride in tile) >= 2**31:
            return "the kernel takes a scale whose rows reach over fewer than 2³¹ numbers. Pass scale.contiguous()"
    return None


def check_pair(inputs: Any, output_grads: Any, scale: Any, method: Any, max_bytes: Any, dtype: Any) -> None:
    """Raise unless the arguments of `weight_grad_stats` fit together."""
    check_float_tensor(inputs, "inputs")
    check_float_tensor(output_grads, "output_grads")
    _check_shapes(inputs, output_grads)
    if scale is not None:
        do = f"Use scale.expand({output_grads.shape[-1]}, {inputs.shape[-1]}) for one factor a row or column."
        _check_scale(scale, inputs, (output_grads.shape[-1], inputs.shape[-1]), do)
    _check_method(method, inputs.shape[1] if inputs.ndim == 3 else 1, scale is not None)
    check_max_bytes(max_bytes, optional=False)
    check_dtype(dtype, "dtype")


def check_conv(inputs: Any, output_grads: Any, scale: Any, known: Convolution, max_bytes: Any, dtype: Any) -> None:
    """Raise unless the arguments of `conv_weight_grad_stats` fit together."""
    check_float_tensor(inputs, "inputs")
    check_float_tensor(output_grads, "output_grads")
    shape, other = tuple(inputs.shape), tuple(output_grads.shape)
    if inputs.ndim not in (3, 4, 5):
        raise ValueError(
            f"inputs: expected shape (N, C, *size) with one to three dimensions of space, got shape {shape}. "
            "Give a single image a first dimension with unsqueeze(0)."
        )
    if output_grads.ndim != inputs.ndim:
        raise ValueError(f"output_grads: expected {inputs.ndim} dimensions like inputs, got shape {other}.")
    if shape[0] != other[0]:
        raise ValueError(
            f"output_grads: expected {shape[0]} samples like inputs, got {other[0]} (shapes {shape} and {other}). "
            "Both come from one call of the layer."
        )
    _check_alike(inputs, output_grads)
    for name, value, what in (("inputs", shape[1], "channels"), ("output_grads", other[1], "outputs")):
        if value % known.groups:
            raise ValueError(f"{name}: expected {what} divisible by groups={known.groups}, got {value}.")
    wanted = known.output_size(shape[2:])
    if wanted != other[2:]:
        raise ValueError(
            f"output_grads: expected positions {wanted} for inputs of size {shape[2:]} with {known}, got {other[2:]}. "
            "Pass the layer's own kernel_size, stride, padding and dilation; of a transposed convolution, the output "
            "gradients as inputs and the inputs as output_grads."
        )
    if scale is not None:
        do = "It has the shape of the weight; use scale.expand for factors that repeat."
        _check_scale(scale, inputs, (other[1], shape[1] // known.groups, *known.kernel), do)
    check_max_bytes(max_bytes, optional=False)
    check_dtype(dtype, "dtype")


def _check_shapes(inputs: Tensor, output_grads: Tensor) -> None:
    """Raise unless `inputs` and `output_grads` agree in all but their last dimension."""
    for name, value, last in (("inputs", inputs, "d"), ("output_grads", output_grads, "p")):
        if value.ndim not in (2, 3):
            raise ValueError(
                f"{name}: expected shape (N, T, {last}) or (N, {last}), got shape {tuple(value.shape)}. "
                f"Join the dimensions between samples and features, for example with {name}.flatten(1, -2)."
            )
    if inputs.ndim != output_grads.ndim:
        raise ValueError(
            f"output_grads: expected {inputs.ndim} dimensions like inputs, got shape {tuple(output_grads.shape)} "
            f"for inputs of shape {tuple(inputs.shape)}. Use unsqueeze(1) where there is one position a sample."
        )
    for dim, what in ((0, "samples"), (1, "positions"))[: inputs.ndim - 1]:
        if inputs.shape[dim] != output_grads.shape[dim]:
            raise ValueError(
                f"output_grads: expected {inputs.shape[dim]} {what} like inputs, got {output_grads.shape[dim]} "
                f"(shapes {tuple(inputs.shape)} and {tuple(output_grads.shape)}). Both come from one call of the layer."
            )
    _check_alike(inputs, output_grads)


def _check_alike(inputs: Tensor, output_grads: Tensor) -> None:
    """Raise unless neither is empty and both share dtype and device."""
    for name, value in (("inputs", inputs), ("output_grads", output_grads)):
        if 0 in value.shape:
            raise ValueError(f"{name}: expected at least one element, got shape {tuple(value.shape)}.")
    if inputs.dtype != output_grads.dtype:
        raise TypeError(
            f"output_grads: expected {inputs.dtype} like inputs, got {output_grads.dtype}. "
            f"Pass output_grads.to(inputs.dtype), or widen inputs."
        )
    check_device(output_grads, "output_grads", inputs, "inputs")


def _check_scale(scale: Any, inputs: Tensor, shape: tuple[int, ...], do: str) -> None:
    """Raise unless `scale` is a tensor of `shape` on the device of `inputs`."""
    check_float_tensor(scale, "scale")
    check_shape(scale, "scale", shape, ", that of the weight", do)
    check_device(scale, "scale", inputs, "inputs")


def _check_method(method: Any, positions: int, scaled: bool) -> None:
    """Raise unless `method` is None or can serve `positions` positions a sample, with or without a scale."""
    if method is None:
        return
    check_choice(method, "method", METHODS)
    if method == "rank1" and positions != 1:
        raise ValueError(
            f"method: expected 'fused' or 'gram' for {positions} positions a sample, got 'rank1', which needs one. "
            f"Leave method out to let the table decide."
        )
    if method == "gram" and scaled:
        raise ValueError(
            "method: expected 'fused' with a scale, got 'gram': an elementwise scale is no product of a factor for "
            "inputs and one for output gradients. Leave method out to let the table decide."
        )
