"""nn.Linear and its subclasses, and Hugging Face's Conv1D, whose weight is transposed.

Weight gradient and squares come from one call of `weight_grad_stats`; the bias needs ‖Σ_t b_nt‖².
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sdsd_kernels import weight_grad_stats

from .base import Measures, Rule, Samples, Watcher, arrange, on_waves, report, sum_of_squares
from .tied import meet


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
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # as torch does
            half = torch.get_autocast_dtype(kind)
            x, weight, bias = x.to(half), weight.to(half), bias if bias is None else bias.to(half)
        matrix = weight.t() if self.transposed else weight
        samples = watcher.samples_of(x, 1)
        y = linear(watcher, x, matrix, bias, samples, ("weight", "bias"), transposed=self.transposed)
        return y if watcher.partner is None or not weight.requires_grad else meet(watcher, y, x, samples)


def linear(
    watcher: Watcher,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    samples: Samples,
    names: tuple[str, str],
    *,
    transposed: bool = False,
    probe: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """x Wᵀ + b, measured.

    Args:
        names: the watcher's names of weight and bias.
        transposed: whether the parameter lies transposed, and `weight` is a view of it.
        probe: stands in for the watcher's own in compiled code; two entries for each of `names` and one for the count.
        rows: which rows of a longer parameter `weight` and `bias` are; None for all.
    """
    scaled, scales = watcher.scales()
    if scaled:
        wanted = [k for k, name in enumerate(scaled) if name in names]
        scaled, scales = tuple(scaled[k] for k in wanted), tuple(scales[k] for k in wanted)
        if rows is not None:
            scales = tuple(scale if scale.shape[0] == weight.shape[0] else scale[rows] for scale in scales)
    measured = tuple(name in watcher.names for name in names)
    entries = watcher.local if probe is None else names
    start = 0 if rows is None or rows.start is None else rows.start
    # Attention's own matrices for keys and values are whole, and their biases parts of one vector.
    starts = (start if names[0].startswith("in_proj") else 0, start)
    spec = (samples, names, entries, measured, transposed, scaled, starts)
    y: Tensor = _Linear.apply(x, weight, bias, watcher.probe if probe is None else probe, spec, *scales)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor | None, spec: Any, *scales: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *scales)
        ctx.spec = spec
        y = F.linear(x, weight, bias)
        # A linear layer of more than two dimensions returns a view, which later in-place operations may not touch.
        return y if y.ndim == 2 else torch.ops.aten._unsafe_view(y, y.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *given = ctx.saved_tensors
        samples, names, entries, measured, transposed, scaled, starts = ctx.spec
        scales = dict(zip(scaled, given, strict=True))
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        b2, x2 = (t if t.ndim == 2 else t.reshape(-1, t.shape[-1]) for t in (grad, x))
        grad_x = b2.mm(weight).view(x.shape) if need_x else None
        grad_weight = grad_bias = None
        measures: Measures = {}
        want_weight, want_bias = need_weight and measured[0], need_bias and measured[1]
        a, b, each = x2.unsqueeze(1), b2.unsqueeze(1), b2
        if b2.shape[0] != samples[0]:
            a, b = arrange(x, samples, 1), arrange(grad, samples, 1)
            # Summed over positions once: the samples' bias gradients, whose sum is the bias's.
            each = b.sum(1, dtype=_sum_dtype(b)) if need_bias else b
        if need_bias:
            grad_bias = each.sum(0) if each.dtype == grad.dtype else each.sum(0).to(grad.dtype)
        if want_weight:
            scale = scales.get(names[0])
            scale = scale.t() if scale is not None and transposed else scale
            total, squares = weight_grad_stats(a, b, scale=scale)
            assert total is not None
            measures[names[0]] = squares, on_waves(total.t() if transposed else total, starts[0])
            grad_weight = total
        elif need_weight:
            grad_weight = b2.t().mm(x2)
        if want_bias and grad_bias is not None:
            measures[names[1]] = sum_of_squares(each, scales.get(names[1])), on_waves(grad_bias, starts[1])
        probe = report(measures, entries, grad)
        return grad_x, grad_weight, grad_bias, probe, None, *(None for _ in given)


def _sum_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32
