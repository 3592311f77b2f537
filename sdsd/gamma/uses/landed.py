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

# Without the Python function that OpOverload puts in front.
weight_grad_into: Any = torch.ops.sdsd.weight_grad_into.default._op
conv_weight_grad_into: Any = torch.ops.sdsd.conv_weight_grad_into.default._op
scale_shift_grads: Any = torch.ops.sdsd.scale_shift_grads.default._op


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


def land(
    use: Use, places: Places, dtype: torch.dtype, kernel: Any, tensors: tuple[Tensor, ...], settings: tuple[Any, ...]
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the first operand, and of the second if there is one, by a `kernel` of those above.

    dtype: of the gradient of the use's output. settings: what the kernel takes after the rows.
    """
    norms, rows = places
    ledger, operands = use.mode.ledger, use.operands
    biased = len(rows) > 1
    gradient, of_bias = kernel(*tensors, norms, rows[0], rows[1] if biased else -1, *settings, "triton")
    if not biased:
        of_bias = None
    if not use.alone:
        ledger.begin(use, dtype)
        ledger.land(operands, gradient, of_bias)
        return gradient, of_bias
    ledger.taken.append((use, dtype, ()))
    ledger.given[operands[0].leaves[0].name] = gradient.data_ptr(), gradient._version
    if of_bias is not None:
        ledger.given[operands[1].leaves[0].name] = of_bias.data_ptr(), of_bias._version
    return gradient, of_bias


def land_apart(use: Use, places: Places, output_grads: Tensor) -> tuple[Places, Tensor | None]:
    """The gradient of a bias, the second operand, from output gradients (N, T, C), if there is one; and the places of
    what is left."""
    norms, rows = places
    if len(rows) < 2:
        return places, None
    ledger, operand = use.mode.ledger, use.operands[-1]
    given = output_grads, None, None, None, norms, -1, rows[1], operand.dtype
    gradient: Tensor = scale_shift_grads(*given, "triton")[1]
    ledger.begin(use, output_grads.dtype)
    ledger.land([operand], gradient)
    return (norms, rows[:1]), gradient
