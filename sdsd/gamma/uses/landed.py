"""Uses whose gradients and squares come out of one kernel: no piece is formed, squares go into a tensor of the pass.

A kernel that finds the gradient of a weight finds the squares of the samples' gradients beside it. It writes them into
the parameter's row of `Pass.norms`, and `GammaMonitor.step` adds up all rows at once, so a use costs no launch but the
kernel's own. Operators are called without the checks of the public functions: autograd's tensors fit together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..following import take_over
from .ledger import SERVED
from .operand import SAMPLES
from .use import Use

_weight_grad = torch.ops.sdsd.weight_grad_into.default
_conv_weight_grad = torch.ops.sdsd.conv_weight_grad_into.default
_scale_shift_grads = torch.ops.sdsd.scale_shift_grads.default


def followed(out: Tensor, source: Tensor) -> None:
    """`out`, of a function in the place of a layer that keeps its samples where they are, carries those of `source`."""
    take_over(out, source)
    if out.grad_fn is not None:
        out.grad_fn.metadata[SAMPLES] = True  # type: ignore[index]


def bare_apply(function: type[torch.autograd.Function]) -> Any:
    """`function.apply` without what it does for transforms of torch.func, which uses are not measured under."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


Places = tuple[Tensor, list[int]]
"""A tensor that takes squares, and the row of it for each operand of a use."""


def places_of(use: Use, output_grads: Tensor) -> Places | None:
    """Where squares of each operand go; None where no kernel serves, or they wait for other uses or a preconditioner.

    Of a use that is `wanted` in this backward pass.
    """
    ledger, device = use.mode.ledger, output_grads.device
    backend = ledger.backends.get(device) or ledger.backend_on(device)
    if backend != "triton" or output_grads.dtype not in SERVED or ledger.scaled:
        return None
    if use.alone and use.plan is not None:
        rows = use.plan.rows
    else:
        rows = []
        for operand in use.operands:
            leaves = operand.reached
            if len(leaves) != 1 or ledger.shared(leaves[0]):
                return None
            rows.append(ledger.rows[leaves[0].name])
    norms = ledger.norms.get(device)
    return ledger.norms_on(device) if norms is None else norms, rows


def land_linear(use: Use, places: Places, inputs: Tensor, output_grads: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of a linear layer's weight (p, d), the first operand, and of its bias if that is the second."""
    norms, rows = places
    biased = len(rows) > 1
    weight, bias = _weight_grad(
        inputs,
        output_grads,
        norms,
        rows[0],
        rows[1] if biased else -1,
        use.operands[0].leaves[0].tensor.dtype,
        use.mode.ledger.max_bytes,
        "triton",
    )
    return _landed(use, output_grads.dtype, weight, bias if biased else None)


def land_convolution(
    use: Use, places: Places, inputs: Tensor, output_grads: Tensor, geometry: tuple[Any, ...], channels_last: bool
) -> tuple[Tensor, Tensor | None]:
    """The same of a convolution."""
    norms, rows = places
    biased = len(rows) > 1
    weight, bias = _conv_weight_grad(
        inputs,
        output_grads,
        norms,
        rows[0],
        rows[1] if biased else -1,
        *geometry,
        use.operands[0].leaves[0].tensor.dtype,
        channels_last,
        use.mode.ledger.max_bytes,
        "triton",
    )
    return _landed(use, output_grads.dtype, weight, bias if biased else None)


def land_norm(
    use: Use, places: Places, output_grads: Tensor, inputs: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradients of a norm's weight and bias, as far as these are operands; shape: (C,)."""
    norms, rows = places
    biased = len(rows) > 1
    dtype = use.operands[0].leaves[0].tensor.dtype
    of_scale, of_shift = _scale_shift_grads(
        output_grads, inputs, mean, rstd, norms, rows[0], rows[1] if biased else -1, dtype, "triton"
    )
    return _landed(use, output_grads.dtype, of_scale, of_shift if biased else None)


def land_apart(use: Use, places: Places, output_grads: Tensor) -> tuple[Places, Tensor | None]:
    """The gradient of a bias, the second operand, from output gradients (N, T, C), if there is one; and the places of
    what is left."""
    norms, rows = places
    if len(rows) < 2:
        return places, None
    ledger, operand = use.mode.ledger, use.operands[-1]
    gradient: Tensor = _scale_shift_grads(output_grads, None, None, None, norms, -1, rows[1], operand.dtype, "triton")[
        1
    ]
    ledger.begin(use, output_grads.dtype)
    ledger.land([operand], gradient)
    return (norms, rows[:1]), gradient


def _landed(use: Use, dtype: torch.dtype, *gradients: Tensor | None) -> tuple[Any, ...]:
    """Squares of the operands with these gradients are in their rows."""
    ledger = use.mode.ledger
    if use.alone:
        ledger.taken.append((use, dtype, ()))
        for operand, gradient in zip(use.operands, gradients, strict=False):
            if gradient is not None:
                ledger.given[operand.leaves[0].name] = gradient.data_ptr(), gradient._version
    else:
        ledger.begin(use, dtype)
        ledger.land(use.operands, *gradients)
    return gradients
