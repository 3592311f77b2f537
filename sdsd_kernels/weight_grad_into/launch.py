"""One look-up from tensors to launches: weight gradient and bias gradient by the fastest method, squares into rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._device import device_record
from .._launch import kept, on_device
from ..per_sample import cpu
from ..per_sample.convolution import LINEAR, Convolution
from ..per_sample.launch import plan_fused, tf32_allowed
from ..per_sample.method import choose_method
from ..per_sample.squares import Squares, plan_gram, plan_rank1
from ..per_sample.sums import Sums, plan_sums


class Beside(NamedTuple):
    """The plain weight gradient, and squares beside it."""

    squares: Squares

    def __call__(
        self, a: Tensor, b: Tensor, scale: None, square_norms: Tensor, row: int, bias_row: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        total = cpu.plain_weight_grad(a, b, self.squares.dtype)
        return total, *self.squares(a, b, square_norms, row, bias_row)


_plans: dict[tuple[Any, ...], Any] = {}


def launch_into(
    inputs: Tensor,
    output_grads: Tensor,
    square_norms: Tensor,
    row: int,
    bias_row: int,
    convolution: tuple[Any, ...] | None,
    dtype: torch.dtype,
    channels_last: bool,
    max_bytes: int,
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias (empty where `bias_row` is below 0); their square norms into `square_norms`.

    `convolution`: the fields of a `Convolution`, or None for a linear layer.
    """
    flat = bias_row < 0 or output_grads.ndim < 4
    if not flat and output_grads.stride(2) != output_grads.shape[3] * output_grads.stride(3):
        output_grads = output_grads.contiguous()  # so that positions lie along one stride
    tf32 = inputs.dtype == torch.float32 and tf32_allowed(LINEAR if convolution is None else convolution)
    key: tuple[Any, ...] = (inputs.shape, inputs.stride(), output_grads.shape, output_grads.stride())
    key += (inputs.dtype, inputs.device, inputs.data_ptr() % 16, output_grads.data_ptr() % 16)
    options = (convolution, dtype, channels_last, max_bytes, tf32, bias_row >= 0)
    key += options
    plan = _plans.get(key)
    if plan is None:
        plan = kept(_plans, key, _plan(inputs, output_grads, *options))
    given = inputs, output_grads, None, square_norms, row, bias_row
    here = not inputs.is_cuda or inputs.get_device() == torch._C._cuda_getDevice()
    total, bias, _ = plan(*given) if here else on_device(inputs, plan, *given)
    return total, torch.empty(0, dtype=dtype, device=total.device) if bias is None else bias


def _plan(
    inputs: Tensor,
    output_grads: Tensor,
    convolution: tuple[Any, ...] | None,
    dtype: torch.dtype,
    channels_last: bool,
    max_bytes: int,
    tf32: bool,
    biased: bool,
) -> Any:
    record = device_record(inputs.device)
    bias: Sums | None = None
    if biased:
        # A view where height and width lie as one; strides are all that is taken of it.
        rows = output_grads if convolution is None else output_grads.flatten(2).mT
        bias = plan_sums(rows, None, None, None, record)
    method = "fused" if convolution is not None else choose_method(inputs, output_grads, False, True)
    if method != "fused":
        make = plan_gram if method == "gram" else plan_rank1
        return Beside(make(inputs, output_grads, tf32, record, dtype, bias))
    known = LINEAR if convolution is None else Convolution(*convolution)
    return plan_fused(inputs, output_grads, None, known, True, dtype, channels_last, max_bytes, tf32, record, bias)
