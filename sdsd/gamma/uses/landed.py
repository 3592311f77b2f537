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


def rows_of(use: Use) -> list[int] | None:
    """The row of each operand's squares; None where they have to wait for other uses, or for a preconditioner.

    Of a use that is `wanted` in this backward pass.
    """
    ledger = use.mode.ledger
    if ledger.scaled:
        return None
    rows = []
    alone = len(ledger.peers) == 1
    for operand in use.operands:
        leaves = operand.reached
        if len(leaves) != 1:
            return None
        leaf = leaves[0]
        if ledger.counts.get(leaf.name, 0) > 1 if alone else ledger.shared(leaf):
            return None
        rows.append(ledger.rows[leaf.name])
    return rows


def land_linear(use: Use, rows: list[int], inputs: Tensor, output_grads: Tensor) -> tuple[Tensor, Tensor | None]:
    """The gradients of a linear layer's weight (p, d), the first operand, and of its bias if that is the second."""
    ledger, operands = use.mode.ledger, use.operands
    leaf, bias_row = operands[0].leaves[0], rows[1] if len(rows) > 1 else -1
    weight, bias = _weight_grad(
        inputs,
        output_grads,
        ledger.norms_on(inputs.device),
        rows[0],
        bias_row,
        leaf.tensor.dtype,
        ledger.max_bytes,
        "triton",
    )
    return _landed(use, weight, bias if bias_row >= 0 else None)


def land_convolution(
    use: Use, rows: list[int], inputs: Tensor, output_grads: Tensor, geometry: tuple[Any, ...], channels_last: bool
) -> tuple[Tensor, Tensor | None]:
    """The same of a convolution."""
    ledger, operands = use.mode.ledger, use.operands
    leaf, bias_row = operands[0].leaves[0], rows[1] if len(rows) > 1 else -1
    weight, bias = _conv_weight_grad(
        inputs,
        output_grads,
        ledger.norms_on(inputs.device),
        rows[0],
        bias_row,
        *geometry,
        leaf.tensor.dtype,
        channels_last,
        ledger.max_bytes,
        "triton",
    )
    return _landed(use, weight, bias if bias_row >= 0 else None)


def _landed(use: Use, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    use.mode.ledger.land(use.operands, weight, bias)
    return weight, bias


def land_bias(use: Use, row: int, output_grads: Tensor) -> Tensor:
    """The gradient of a bias, the last operand, from output gradients (N, T, C)."""
    ledger, operand = use.mode.ledger, use.operands[-1]
    gradient: Tensor = _scale_shift_grads(
        output_grads, None, None, None, ledger.norms_on(output_grads.device), -1, row, operand.dtype, "triton"
    )[1]
    ledger.land([operand], gradient)
    return gradient


def land_norm(
    use: Use, rows: list[int], output_grads: Tensor, inputs: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The gradients of a norm's weight and bias, as far as these are operands; shape: (C,)."""
    ledger, leaves = use.mode.ledger, [operand.leaves[0] for operand in use.operands]
    shift = rows[1] if len(rows) > 1 else -1
    norms = ledger.norms_on(output_grads.device)
    of_scale, of_shift = _scale_shift_grads(
        output_grads, inputs, mean, rstd, norms, rows[0], shift, leaves[0].tensor.dtype, "triton"
    )
    return _landed(use, of_scale, of_shift if shift >= 0 else None)
