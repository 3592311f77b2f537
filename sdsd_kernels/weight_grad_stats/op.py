"""Public functions → checks → backend → the operators `sdsd::weight_grad_stats`, `sdsd::conv_weight_grad_stats`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import choose_backend
from .._register import register
from ..per_sample import convolution_cpu, cpu
from ..per_sample.checks import check_conv, check_once, check_pair, convolution_of, lacks_kernel
from ..per_sample.convolution import LINEAR, Convolution
from ..per_sample.layout import weight_strides
from ..per_sample.method import choose_method


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
    float32 keeps its precision unless torch may round it (`torch.backends.cuda.matmul.fp32_precision`), and a square is
    taken in float32: of entries of per-sample gradients from 1e-19 to 1e19; smaller ones are lost, larger ones make it
    infinite or NaN. "gram" squares `inputs` and `output_grads` by themselves: there they have these limits, and those
    below 1e-19 are lost beside large ones of the other on a CPU, too. The result does not depend on chance: same input,
    same bits, on one machine with one number of threads. Not differentiable: inputs are detached.

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
        check_once(check_pair, (inputs, output_grads, scale), method, max_bytes, dtype)
    if inputs.ndim == 2:
        inputs, output_grads = inputs.unsqueeze(1), output_grads.unsqueeze(1)
    if scale is not None:
        scale = scale.detach()
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks_kernel(inputs, scale))
    total, square_norm = _operator(
        inputs.detach(),
        output_grads.detach(),
        scale,
        bool(weight_grad),
        dtype or inputs.dtype,
        method,
        max_bytes,
        chosen,
    )
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
    `torch.backends.cudnn.conv.fp32_precision`, which allows tf32 unless told otherwise.

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
    known = convolution_of(space, kernel_size, stride, padding, dilation, groups)
    if not torch.compiler.is_compiling():
        check_once(check_conv, (inputs, output_grads, scale), known, max_bytes, dtype)
    if scale is not None:
        scale = scale.detach()
    lacks = lacks_kernel(inputs, scale) or ("the kernel has no third dimension of space" if space == 3 else None)
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks)
    total, square_norm = _conv_operator(
        inputs.detach(),
        output_grads.detach(),
        scale,
        known.kernel,
        known.stride,
        known.padding,
        known.dilation,
        known.groups,
        bool(weight_grad),
        dtype or inputs.dtype,
        bool(channels_last),
        max_bytes,
        chosen,
    )
    return WeightGradStats(total if weight_grad else None, square_norm)


def _compute(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    weight_grad: bool,
    dtype: torch.dtype,
    method: str | None,
    max_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = method or choose_method(inputs, output_grads, scale is not None, weight_grad)
    total: Tensor | None
    if backend == "triton" and chosen == "fused":
        from ..per_sample.launch import launch_fused

        total, square_norm = launch_fused(inputs, output_grads, scale, LINEAR, weight_grad, dtype, False, max_bytes)
    elif backend == "triton" and scale is None:
        from ..per_sample.squares import launch_squares

        total = cpu.plain_weight_grad(inputs, output_grads, inputs.dtype).to(dtype) if weight_grad else None
        square_norm = launch_squares(inputs, output_grads, chosen)
    else:
        total, square_norm = cpu.weight_grad_stats(inputs, output_grads, scale, weight_grad, dtype, chosen, max_bytes)
    return (inputs.new_empty(0, dtype=dtype) if total is None else total), square_norm


def _fake(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    weight_grad: bool,
    dtype: torch.dtype,
    method: str | None,
    max_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    # A traced call is checked here: in the backward of an autograd.Function dynamo refuses some of what checks read.
    check_pair(inputs, output_grads, scale, method, max_bytes, dtype)
    shape = (output_grads.shape[-1], inputs.shape[-1]) if weight_grad else (0,)
    return inputs.new_empty(shape, dtype=dtype), inputs.new_empty((), dtype=torch.float64)


def _compute_conv(inputs: Tensor, output_grads: Tensor, scale: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    *sizes, groups, weight_grad, dtype, channels_last, max_bytes, backend = settings
    known = Convolution(*(*map(tuple, sizes), groups))
    compute = convolution_cpu.conv_weight_grad_stats
    if backend == "triton":
        from ..per_sample.launch import launch_fused

        compute = launch_fused
    total, square_norm = compute(inputs, output_grads, scale, known, weight_grad, dtype, channels_last, max_bytes)
    return (inputs.new_empty(0, dtype=dtype) if total is None else total), square_norm


def _fake_conv(inputs: Tensor, output_grads: Tensor, scale: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor]:
    *sizes, groups, weight_grad, dtype, channels_last, max_bytes, _ = settings
    known = Convolution(*(*map(tuple, sizes), groups))
    check_conv(inputs, output_grads, scale, known, max_bytes, dtype)
    square_norm = inputs.new_empty((), dtype=torch.float64)
    if not weight_grad:
        return inputs.new_empty(0, dtype=dtype), square_norm
    shape = (output_grads.shape[1], inputs.shape[1] // groups, *known.kernel)
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
