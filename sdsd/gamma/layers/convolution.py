"""Convolutions of one to three dimensions, transposed ones too: one grouped call gives every sample's weight gradient.

A batch of N images with C channels is one image with N·C channels; convolved in N·groups groups, its weight gradient
holds the gradient of every sample side by side. Their sum is the weight gradient of the batch, so it is computed in
the place of the layer's own, not beside it. Samples are taken in chunks that fit the monitor's `max_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..uses import by_samples, products_win, squares_by_products
from .base import Measures, Rule, UnsupportedError, Watcher, on_waves, report, sum_of_squares


class ConvolutionRule(Rule):
    name = "convolution"

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        x = args[0] if args else kwargs["input"]
        if not any(watcher.trainable(module)):
            return plain(*args, **kwargs)
        space = module.weight.ndim - 2
        if x.ndim != space + 2:
            raise UnsupportedError(
                f"{watcher.name}: expected a batch of shape (N, channels, …), got shape {tuple(x.shape)}."
            )
        watcher.require_samples_first(watcher.samples_of(x, space + 1), x)
        transposed, output_padding = bool(module.transposed), (0,) * space
        padding: Any = module.padding
        if transposed:
            size = args[1] if len(args) > 1 else kwargs.get("output_size")
            output_padding = tuple(
                module._output_padding(
                    x, size, module.stride, module.padding, module.kernel_size, space, module.dilation
                )
            )
        elif module.padding_mode != "zeros":
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = (0,) * space
        elif isinstance(padding, str):
            x, padding = _pad_by_name(x, module, space)
        weight, bias = module.weight, module.bias
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # as torch does
            half = torch.get_autocast_dtype(kind)
            x, weight, bias = x.to(half), weight.to(half), bias if bias is None else bias.to(half)
        settings = (module.stride, tuple(padding), module.dilation, transposed, output_padding, module.groups)
        scaled, scales = watcher.scales()
        spec = (settings, watcher.local, scaled, watcher.session.max_bytes)
        return _Convolution.apply(x, weight, bias, watcher.probe, spec, *scales)  # type: ignore[no-untyped-call]


def _pad_by_name(x: Tensor, module: Any, space: int) -> tuple[Tensor, tuple[int, ...]]:
    """Padding "same" or "valid" as numbers; an uneven "same" pads the input itself."""
    if module.padding == "valid":
        return x, (0,) * space
    both = module._reversed_padding_repeated_twice
    if all(both[2 * k] == both[2 * k + 1] for k in range(space)):
        return x, tuple(both[2 * k] for k in reversed(range(space)))
    return F.pad(x, both), (0,) * space


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor | None, spec: Any, *scales: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *scales)
        ctx.spec = spec
        return torch.ops.aten.convolution(x, weight, bias, *spec[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *given = ctx.saved_tensors
        settings, local, scaled, max_bytes = ctx.spec
        scales = dict(zip(scaled, given, strict=True))
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        measured = need_weight and "weight" in local
        by_products = measured and not scaled and products_win(x, grad, weight, settings)
        together = need_weight and (not measured or by_products)
        grad_x = grad_weight = grad_bias = None
        if need_x or together:
            mask = [need_x, together, False]
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, [0], *settings, mask)
        measures: Measures = {}
        squares = None
        if by_products:
            squares = squares_by_products(grad, x, weight, settings, max_bytes)
        elif measured:
            grad_weight, squares = by_samples(grad, x, weight, settings, scales.get("weight"), max_bytes)
        if squares is not None and grad_weight is not None:
            measures["weight"] = squares, on_waves(grad_weight)
        if need_bias:
            each_bias = grad.flatten(2).sum(2)
            grad_bias = each_bias.sum(0)
            measures["bias"] = sum_of_squares(each_bias, scales.get("bias")), on_waves(grad_bias)
        probe = report(measures, local, grad)
        return (grad_x, grad_weight, grad_bias, probe, None, *(None for _ in given))
