"""Public functions → checks → backend → the operators `sdsd::weight_grad_stats`, `sdsd::conv_weight_grad_stats`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_choice, check_device, check_dtype, check_float_tensor, check_max_bytes, check_shape
from .._register import register
from . import conv, cpu
from .geometry import LINEAR, Geometry, make_geometry
from .layout import weight_strides
from .method import METHODS, choose_method

MAX_SCALED_COLUMNS = 2**23
"""Beyond this, offsets in one tile of the scale would not fit 32 bits."""


class WeightGradStats(NamedTuple):
    """With g_n the gradient of sample n, of the shape of the weight."""

    weight_grad: Tensor | None
    """Σ_n g_n. None with weight_grad=False."""
    square_norm: Tensor
    """Σ_n ‖D ∘ g_n‖²_F, D the scale or 1; float64, shape: ()."""


def weight_grad_stats(
    inputs: Tensor,
    output_grads: Tensor,
    *,
    weight_grad: bool = True,
    scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    method: str | None = None,
    max_bytes: int = 64 * 2**20,
    backend: str | None = None,
) -> WeightGradStats:
    """Weight gradient of a linear layer and the sum of squared norms of its per-sample gradients.

    In plain PyTorch, for layer inputs a (N, T, d) and output gradients b (N, T, p)::

        g = torch.einsum("ntp,ntd->npd", b, a)                     # never stored
        weight_grad = g.sum(0)
        square_norm = (scale * g).double().square().sum()          # scale: 1 without one

    Three methods reach the same numbers. "fused" forms one g_n at a time, squares it and adds it to the weight
    gradient: N·T·p·d multiply-adds, those of the weight gradient alone. "gram" takes Σ⟨a_n a_nᵀ, b_n b_nᵀ⟩,
    N·T²·(d + p) multiply-adds beside a plain weight gradient. "rank1", for T = 1, takes Σ‖a_n‖²‖b_n‖².
    With "gram" and "rank1" the weight gradient is, bit for bit, what autograd gives `torch.nn.functional.linear`.

    Halves are widened to float32 before anything is squared or added up; squares are summed in float64. On a GPU
    float32 keeps its precision unless torch may round it (`torch.backends.cuda.matmul.allow_tf32`). The result does not
    depend on chance: same input, same bits. Not differentiable: inputs are detached.

    Args:
        inputs: a, shape (N, T, d) or (N, d); float64, float32, float16 or bfloat16; any strides.
        output_grads: b, shape (N, T, p) or (N, p); dtype and device of `inputs`.
        weight_grad: also return the weight gradient.
        scale: D, shape (p, d), floating-point, on the device of `inputs`: multiplies every g_n, elementwise, before it
            is squared. The weight gradient is not scaled.
        dtype: of the weight gradient, that of the parameter; None: that of `inputs`.
        method: "fused", "gram" (not with a scale), "rank1" (T = 1 only); None takes the fastest by a table measured on
            this kind of device.
        max_bytes: bound on scratch memory. It is exceeded only where the least a method works with needs more: one
            row of one g_n ("fused"), the products of one sample, 2T² numbers ("gram"), D² ("rank1" with a scale), and
            one sample's inputs where they have to be widened. Where "gram" or "rank1" meet inputs or output gradients
            that cannot be viewed as one matrix, the plain weight gradient copies them whole; so does the kernel those
            that the copy engine cannot read where they lie, and float32, of which it makes float16 parts.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. The kernels have no float64, and
            leave "rank1" with a scale to torch.

    Returns:
        `WeightGradStats`: weight_grad (p, d) or None, square_norm (), float64.

    Raises:
        TypeError: an argument that is not a dense tensor of a supported floating-point dtype, dtypes that differ,
            max_bytes that is not an int.
        ValueError: shapes that do not fit, an empty tensor, devices that differ, an unknown method or one that cannot
            serve, max_bytes below 1, or Triton asked for where it cannot serve.

    Source:
        README.md in this folder.
    """
    if not torch.compiler.is_compiling():
        _check_once(_check, (inputs, output_grads, scale), method, max_bytes, dtype)
    if inputs.ndim == 2:
        inputs, output_grads = inputs.unsqueeze(1), output_grads.unsqueeze(1)
    if scale is not None:
        scale = scale.detach()
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks_kernel(inputs, scale))
    total, square_norm = _operator(
        inputs.detach(), output_grads.detach(), scale, bool(weight_grad), dtype or inputs.dtype, method, max_bytes,
        chosen,
    )  # fmt: skip
    return WeightGradStats(total if weight_grad else None, square_norm)


def conv_weight_grad_stats(
    inputs: Tensor,
    output_grads: Tensor,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    weight_grad: bool = True,
    scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    max_bytes: int = 64 * 2**20,
    backend: str | None = None,
) -> WeightGradStats:
    """Weight gradient of a convolution and the sum of squared norms of its per-sample gradients.

    In plain PyTorch, for inputs a (N, C, H, W) and output gradients b (N, P, H', W')::

        g = torch.stack([torch.nn.grad.conv2d_weight(one[None], shape, two[None], stride, padding, dilation, groups)
                         for one, two in zip(a, b)])               # shape: (P, C // groups, *kernel_size)
        weight_grad = g.sum(0)
        square_norm = (scale * g).double().square().sum()          # scale: 1 without one

    A transposed convolution is the same product with the parts changed: pass its output gradients as `inputs` and its
    inputs as `output_grads`.

    Precision, determinism and derivatives as in `weight_grad_stats`; for float32 on a GPU the setting that counts is
    `torch.backends.cudnn.allow_tf32`, which torch allows unless told otherwise.

    Args:
        inputs: a, shape (N, C, *size) with one to three dimensions of space; float64, float32, float16 or bfloat16; any
            strides. Channels last is read where it lies, other memory is converted once.
        output_grads: b, shape (N, P, *output size); dtype and device of `inputs`.
        kernel_size: one int, or one a dimension of space; likewise `stride`, `padding` (zeros, on both sides) and
            `dilation`.
        groups: how many groups channels and outputs fall into.
        weight_grad: also return the weight gradient.
        scale: D, shape (P, C // groups, *kernel_size), floating-point, on the device of `inputs`: multiplies every g_n,
            elementwise, before it is squared. The weight gradient is not scaled.
        dtype: of the weight gradient, that of the parameter; None: that of `inputs`.
        channels_last: lay the weight gradient out with channels adjacent, as a parameter in that memory format.
        max_bytes: bound on scratch memory, beyond what one sample needs and copies of the whole input that the kernel
            makes where the copy engine cannot read it.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. The kernels have no float64 and no
            third dimension of space.

    Returns:
        `WeightGradStats`: weight_grad (P, C // groups, *kernel_size) or None, square_norm (), float64.

    Raises:
        TypeError: as `weight_grad_stats`; a size that is not an int.
        ValueError: as `weight_grad_stats`; a size out of range, channels or outputs that groups do not divide, output
            gradients of another size than the convolution's output.

    Source:
        README.md in this folder.
    """
    space = inputs.ndim - 2 if isinstance(inputs, Tensor) else 0
    known = geometry_of(space, kernel_size, stride, padding, dilation, groups)
    if not torch.compiler.is_compiling():
        _check_once(_check_conv, (inputs, output_grads, scale), known, max_bytes, dtype)
    if scale is not None:
        scale = scale.detach()
    lacks = lacks_kernel(inputs, scale) or ("the kernel has no third dimension of space" if space == 3 else None)
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks)
    total, square_norm = _conv_operator(
        inputs.detach(), output_grads.detach(), scale, known.kernel, known.stride, known.padding, known.dilation,
        known.groups, bool(weight_grad), dtype or inputs.dtype, bool(channels_last), max_bytes, chosen,
    )  # fmt: skip
    return WeightGradStats(total if weight_grad else None, square_norm)


_MAX_KEPT = 4096
_checked: set[tuple[Any, ...]] = set()
"""Calls that passed, by all that their checks look at."""
_geometries: dict[tuple[Any, ...], Geometry] = {}


def _check_once(check: Any, tensors: tuple[Any, Any, Any], *rest: Any) -> None:
    """`check(*tensors, *rest)`, left out where all that it looks at has passed before."""
    inputs, output_grads, scale = tensors
    key: tuple[Any, ...] | None = None
    if isinstance(inputs, Tensor) and isinstance(output_grads, Tensor) and isinstance(scale, (Tensor, type(None))):
        kinds = tuple(map(type, rest))  # True is no number of bytes, though it equals 1
        key = (
            check, inputs.shape, inputs.dtype, inputs.layout, inputs.device, output_grads.shape, output_grads.dtype,
            output_grads.layout, output_grads.device, rest, kinds,
            None if scale is None else (scale.shape, scale.dtype, scale.layout, scale.device),
        )  # fmt: skip
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
    _check_once(_check, (inputs, output_grads, None), None, max_bytes, dtype)


def check_conv_once(
    inputs: Tensor, output_grads: Tensor, known: Geometry, max_bytes: int, dtype: torch.dtype | None
) -> None:
    _check_once(_check_conv, (inputs, output_grads, None), known, max_bytes, dtype)


def geometry_of(space: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> Geometry:
    """The same `Geometry` for the same arguments, looked at once; a trace looks each time."""
    arguments = (kernel_size, stride, padding, dilation, groups)
    if torch.compiler.is_compiling() or not all([type(value) in (int, tuple) for value in arguments]):  # noqa: C419
        return make_geometry(space, *arguments)
    key = (space, *arguments, *map(type, arguments))
    found = _geometries.get(key)
    if found is None:
        found = make_geometry(space, *arguments)
        if len(_geometries) >= _MAX_KEPT:
            _geometries.clear()
        _geometries[key] = found
    return found


def lacks_kernel(inputs: Tensor, scale: Tensor | None) -> str | None:
    """What this call needs that the kernels do not offer."""
    if inputs.dtype == torch.float64:
        return "the kernel has no float64"
    if scale is not None and scale[0].numel() >= MAX_SCALED_COLUMNS:
        return f"the kernel takes a scale of fewer than {MAX_SCALED_COLUMNS} numbers a row"
    return None


def _check(inputs: Any, output_grads: Any, scale: Any, method: Any, max_bytes: Any, dtype: Any) -> None:
    """Raise unless the arguments of `weight_grad_stats` fit together."""
    check_float_tensor(inputs, "inputs")
    check_float_tensor(output_grads, "output_grads")
    _check_pair(inputs, output_grads)
    if scale is not None:
        do = f"Use scale.expand({output_grads.shape[-1]}, {inputs.shape[-1]}) for one factor a row or column."
        _check_scale(scale, inputs, (output_grads.shape[-1], inputs.shape[-1]), do)
    _check_method(method, inputs.shape[1] if inputs.ndim == 3 else 1, scale is not None)
    check_max_bytes(max_bytes, optional=False)
    check_dtype(dtype, "dtype")


def _check_conv(inputs: Any, output_grads: Any, scale: Any, known: Geometry, max_bytes: Any, dtype: Any) -> None:
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


def _check_pair(inputs: Tensor, output_grads: Tensor) -> None:
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


def _compute(
    inputs: Tensor, output_grads: Tensor, scale: Tensor | None, weight_grad: bool, dtype: torch.dtype,
    method: str | None, max_bytes: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    chosen = method or choose_method(inputs, output_grads, scale is not None, weight_grad)
    total: Tensor | None
    if backend == "triton" and chosen == "fused":
        from .launch import launch_fused

        total, square_norm = launch_fused(
            inputs, output_grads, scale, LINEAR, weight_grad, dtype, False, max_bytes
        )  # fmt: skip
    elif backend == "triton" and scale is None:
        from .launch import launch_squares

        total = cpu.plain_weight_grad(inputs, output_grads, inputs.dtype).to(dtype) if weight_grad else None
        square_norm = launch_squares(inputs, output_grads, chosen)
    else:
        total, square_norm = cpu.weight_grad_stats(inputs, output_grads, scale, weight_grad, dtype, chosen, max_bytes)
    return (inputs.new_empty(0, dtype=dtype) if total is None else total), square_norm


def _fake(
    inputs: Tensor, output_grads: Tensor, scale: Tensor | None, weight_grad: bool, dtype: torch.dtype,
    method: str | None, max_bytes: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    # A traced call is checked here: in the backward of an autograd.Function dynamo refuses some of what checks read.
    _check(inputs, output_grads, scale, method, max_bytes, dtype)
    shape = (output_grads.shape[-1], inputs.shape[-1]) if weight_grad else (0,)
    return inputs.new_empty(shape, dtype=dtype), inputs.new_empty((), dtype=torch.float64)


def _compute_conv(
    inputs: Tensor, output_grads: Tensor, scale: Tensor | None, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, weight_grad: bool, dtype: torch.dtype, channels_last: bool,
    max_bytes: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    known = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)
    compute = conv.conv_weight_grad_stats
    if backend == "triton":
        from .launch import launch_fused

        compute = launch_fused
    total, square_norm = compute(inputs, output_grads, scale, known, weight_grad, dtype, channels_last, max_bytes)
    return (inputs.new_empty(0, dtype=dtype) if total is None else total), square_norm


def _fake_conv(
    inputs: Tensor, output_grads: Tensor, scale: Tensor | None, kernel_size: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int, weight_grad: bool, dtype: torch.dtype, channels_last: bool,
    max_bytes: int, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    known = Geometry(tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups)
    _check_conv(inputs, output_grads, scale, known, max_bytes, dtype)
    square_norm = inputs.new_empty((), dtype=torch.float64)
    if not weight_grad:
        return inputs.new_empty(0, dtype=dtype), square_norm
    shape = (output_grads.shape[1], inputs.shape[1] // groups, *kernel_size)
    return inputs.new_empty_strided(shape, weight_strides(shape, channels_last), dtype=dtype), square_norm


_operator = register(
    "weight_grad_stats(Tensor inputs, Tensor output_grads, Tensor? scale, bool weight_grad, ScalarType dtype, "
    "str? method, SymInt max_bytes, str backend) -> (Tensor, Tensor)",
    _compute,
    fake=_fake,
)
_conv_operator = register(
    "conv_weight_grad_stats(Tensor inputs, Tensor output_grads, Tensor? scale, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, int groups, bool weight_grad, ScalarType dtype, bool channels_last, "
    "SymInt max_bytes, str backend) -> (Tensor, Tensor)",
    _compute_conv,
    fake=_fake_conv,
)
