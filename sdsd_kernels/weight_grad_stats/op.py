"""Public function → checks → backend → the operator `sdsd::weight_grad_stats` and its fake."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_choice, check_device, check_float_tensor, check_max_bytes, check_shape
from .._register import register
from . import cpu
from .method import METHODS, choose_method


class WeightGradStats(NamedTuple):
    """With g_n = b_nᵀ a_n the gradient of sample n; shape: (p, d)."""

    weight_grad: Tensor | None
    """Σ_n g_n in the dtype of the inputs; shape: (p, d). None with weight_grad=False."""
    square_norm: Tensor
    """Σ_n ‖D ∘ g_n‖²_F, D the scale or 1; float64, shape: ()."""


def weight_grad_stats(
    inputs: Tensor,
    output_grads: Tensor,
    *,
    weight_grad: bool = True,
    scale: Tensor | None = None,
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

    Halves are widened to float32 before anything is squared or added up; squares are summed in float64. The result
    does not depend on chance: same input, same bits. Not differentiable: inputs are detached.

    Args:
        inputs: a, shape (N, T, d) or (N, d); float64, float32, float16 or bfloat16; any strides.
        output_grads: b, shape (N, T, p) or (N, p); dtype and device of `inputs`.
        weight_grad: also return the weight gradient.
        scale: D, shape (p, d), floating-point, on the device of `inputs`: multiplies every g_n, elementwise, before it
            is squared. The weight gradient is not scaled.
        method: "fused", "gram" (not with a scale), "rank1" (T = 1 only); None takes the fastest by a table measured on
            this kind of device.
        max_bytes: bound on scratch memory. It is exceeded only where the least a method works with needs more: one
            row of one g_n ("fused"), the products of one sample, 2T² numbers ("gram"), D² ("rank1" with a scale), and
            one sample's inputs where they have to be widened. Where "gram" or "rank1" meet inputs or output gradients
            that cannot be viewed as one matrix, the plain weight gradient copies them whole.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. Only "fused" has a kernel, without
            float64; the other methods are matrix products of torch on every backend.

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
        _check(inputs, output_grads, scale, method, max_bytes)
    if inputs.ndim == 2:
        inputs, output_grads = inputs.unsqueeze(1), output_grads.unsqueeze(1)
    if scale is not None:
        scale = scale.detach()
    lacks = "the kernel has no float64" if inputs.dtype == torch.float64 else None
    chosen = choose_backend(backend, inputs.device, kernel_lacks=lacks)
    total, square_norm = _operator(
        inputs.detach(), output_grads.detach(), scale, bool(weight_grad), method, max_bytes, chosen
    )
    return WeightGradStats(total if weight_grad else None, square_norm)


def _check(inputs: Any, output_grads: Any, scale: Any, method: Any, max_bytes: Any) -> None:
    """Raise unless the arguments fit together."""
    check_float_tensor(inputs, "inputs")
    check_float_tensor(output_grads, "output_grads")
    _check_pair(inputs, output_grads)
    if scale is not None:
        _check_scale(scale, inputs, output_grads)
    _check_method(method, inputs.shape[1] if inputs.ndim == 3 else 1, scale is not None)
    check_max_bytes(max_bytes, optional=False)


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
    for name, value in (("inputs", inputs), ("output_grads", output_grads)):
        if 0 in value.shape:
            raise ValueError(f"{name}: expected at least one element, got shape {tuple(value.shape)}.")
    if inputs.dtype != output_grads.dtype:
        raise TypeError(
            f"output_grads: expected {inputs.dtype} like inputs, got {output_grads.dtype}. "
            f"Pass output_grads.to(inputs.dtype), or widen inputs."
        )
    check_device(output_grads, "output_grads", inputs, "inputs")


def _check_scale(scale: Any, inputs: Tensor, output_grads: Tensor) -> None:
    """Raise unless `scale` is a (p, d) tensor on the device of `inputs`."""
    check_float_tensor(scale, "scale")
    wanted = (output_grads.shape[-1], inputs.shape[-1])
    do = f"Use scale.expand({wanted[0]}, {wanted[1]}) for one factor a row or column."
    check_shape(scale, "scale", wanted, ", that of the weight", do)
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
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    weight_grad: bool,
    method: str | None,
    max_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    chosen = method or choose_method(inputs, output_grads, scale is not None, weight_grad)
    if chosen == "fused" and backend == "triton":
        from .kernel import launch_weight_grad_stats

        total, square_norm = launch_weight_grad_stats(inputs, output_grads, scale, weight_grad, max_bytes)
    else:
        total, square_norm = cpu.weight_grad_stats(inputs, output_grads, scale, weight_grad, chosen, max_bytes)
    return (inputs.new_empty(0) if total is None else total), square_norm


def _fake(
    inputs: Tensor,
    output_grads: Tensor,
    scale: Tensor | None,
    weight_grad: bool,
    method: str | None,
    max_bytes: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    # A traced call is checked here: in the backward of an autograd.Function dynamo refuses some of what checks read.
    _check(inputs, output_grads, scale, method, max_bytes)
    shape = (output_grads.shape[-1], inputs.shape[-1]) if weight_grad else (0,)
    return inputs.new_empty(shape), inputs.new_empty((), dtype=torch.float64)


_operator = register(
    "weight_grad_stats(Tensor inputs, Tensor output_grads, Tensor? scale, bool weight_grad, str? method, "
    "SymInt max_bytes, str backend) -> (Tensor, Tensor)",
    _compute,
    fake=_fake,
)
