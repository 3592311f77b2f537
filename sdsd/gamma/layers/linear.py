"""nn.Linear and its subclasses, and Hugging Face's Conv1D, whose weight is transposed.

Weight gradient and squares come from one call of `weight_grad_stats`; the bias needs ‖Σ_t b_nt‖².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sdsd_kernels import weight_grad_stats

from ..attachment import compiling
from .base import Contribution, Plan, Rule, Watcher, arrange, report, sum_of_squares


class LinearRule(Rule):
    """y = x Wᵀ + b on (…, d); `transposed` for a weight that lies (d, p)."""

    def __init__(self, transposed: bool = False) -> None:
        self.name = "linear (weight stored transposed)" if transposed else "linear"
        self.transposed = transposed

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        x = args[0] if args else kwargs["input"]
        weight, bias = module.weight, getattr(module, "bias", None)
        if not (weight.requires_grad or (bias is not None and bias.requires_grad)):
            return plain(*args, **kwargs)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            half = torch.get_autocast_dtype(kind)
            x, weight, bias = x.to(half), weight.to(half), bias if bias is None else bias.to(half)
        plan = watcher.plan(x, 1)
        matrix = weight.t() if self.transposed else weight
        known = None if compiling() else watcher
        scales = tuple(watcher.scale(local) for local in watcher.local)
        return _Linear.apply(x, matrix, bias, watcher.probe, plan, known, watcher.local, scales, self.transposed)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor,
        plan: Plan, watcher: Watcher | None, local: tuple[str, ...], scales: tuple[Tensor | None, ...],
        transposed: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, *(scale for scale in scales if scale is not None))
        ctx.scaled = tuple(scale is not None for scale in scales)
        ctx.plan, ctx.watcher, ctx.local, ctx.transposed = plan, watcher, local, transposed
        y = F.linear(x, weight, bias)
        # A linear layer of more than two dimensions returns a view, which later in-place operations may not touch.
        return torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *given = ctx.saved_tensors
        remaining = iter(given)
        scales = dict(zip(ctx.local, (next(remaining) if is_scaled else None for is_scaled in ctx.scaled), strict=True))
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        b2, x2 = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = b2.mm(weight).view(x.shape) if need_x else None
        b, a = arrange(grad, ctx.plan, 1), arrange(x, ctx.plan, 1)
        grad_weight = None
        squares: dict[str, Tensor] = {}
        keep = ctx.watcher is not None and ctx.watcher.shared
        if need_weight and keep:
            grad_weight = b2.t().mm(x2)
        elif need_weight:
            scale = scales["weight"]
            if scale is not None and ctx.transposed:
                scale = scale.t()
            grad_weight, squares["weight"] = weight_grad_stats(a, b, scale=scale)
        grad_bias = b2.sum(0) if need_bias else None
        if need_bias and not keep:
            squares["bias"] = sum_of_squares(b.sum(1), scales["bias"])
        if keep:
            ctx.watcher.session.keep(
                ctx.watcher, contribution(a, b, ctx.transposed, need_weight, need_bias)
            )  # fmt: skip
            found = None
        else:
            zero = grad.new_zeros((), dtype=torch.float64)
            found = torch.stack([squares.get(local, zero) for local in ctx.local])
        probe = report(found, ctx.watcher, grad)
        return grad_x, grad_weight, grad_bias, probe, None, None, None, None, None


def contribution(a: Tensor, b: Tensor, transposed: bool, weight: bool, bias: bool) -> Contribution:
    """One use of a linear layer: inputs a (N, T, d), output gradients b (N, T, p)."""

    def per_sample(start: int, stop: int) -> Iterator[tuple[str, Tensor]]:
        part_a, part_b = _wide(a[start:stop]), _wide(b[start:stop])
        if weight:
            left, right = (part_a, part_b) if transposed else (part_b, part_a)
            yield "weight", torch.bmm(left.transpose(1, 2), right)
        if bias:
            yield "bias", part_b.sum(1)

    factors = {}
    if weight and not transposed:
        factors["weight"] = ("linear", a, b)
    return Contribution(a.shape[0], per_sample, factors)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
