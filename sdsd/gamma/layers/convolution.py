"""Convolutions of one to three dimensions, transposed ones too: one grouped call gives every sample's weight gradient.

A batch of N images with C channels is one image with N·C channels; convolved in N·groups groups, its weight gradient
holds the gradient of every sample side by side. Their sum is the weight gradient of the batch, so it is computed in
the place of the layer's own, not beside it. Samples are taken in chunks that fit the monitor's `max_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..attachment import compiling
from .base import Contribution, Rule, UnsupportedError, Watcher, report, sum_of_squares


class ConvolutionRule(Rule):
    name = "convolution"

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        x = args[0] if args else kwargs["input"]
        if not any(watcher.trainable(module)):
            return plain(*args, **kwargs)
        space = module.weight.ndim - 2
        if x.ndim != space + 2 or watcher.session.batch_dim != 0:
            raise UnsupportedError(
                f"{watcher.name}: expected a batch of shape (N, channels, …) with samples first, got shape "
                f"{tuple(x.shape)} and batch_dim={watcher.session.batch_dim}."
            )
        watcher.plan(x, space + 1)
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
        if torch.is_autocast_enabled(kind):
            half = torch.get_autocast_dtype(kind)
            x, weight, bias = x.to(half), weight.to(half), bias if bias is None else bias.to(half)
        settings = (module.stride, tuple(padding), module.dilation, transposed, output_padding, module.groups)
        known = None if compiling() else watcher
        scales = tuple(watcher.scale(local) for local in watcher.local)
        return _Convolution.apply(
            x, weight, bias, watcher.probe, settings, known, watcher.local, scales, watcher.session.max_bytes
        )


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
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, probe: Tensor, settings: tuple[Any, ...],
        watcher: Watcher | None, local: tuple[str, ...], scales: tuple[Tensor | None, ...], max_bytes: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, *(scale for scale in scales if scale is not None))
        ctx.scaled = tuple(scale is not None for scale in scales)
        ctx.settings, ctx.watcher, ctx.local, ctx.max_bytes = settings, watcher, local, max_bytes
        return torch.ops.aten.convolution(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *given = ctx.saved_tensors
        remaining = iter(given)
        scales = dict(zip(ctx.local, (next(remaining) if is_scaled else None for is_scaled in ctx.scaled), strict=True))
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        keep = ctx.watcher is not None and ctx.watcher.shared
        grad_x = grad_weight = None
        if need_x:
            mask = [True, False, False]
            grad_x = torch.ops.aten.convolution_backward(grad, x, weight, [0], *ctx.settings, mask)[0]
        zero = grad.new_zeros((), dtype=torch.float64)
        squares: dict[str, Tensor] = {}
        if need_weight and keep:
            mask = [False, True, False]
            grad_weight = torch.ops.aten.convolution_backward(grad, x, weight, [0], *ctx.settings, mask)[1]
        elif need_weight:
            grad_weight, squares["weight"] = torch.zeros_like(weight), zero
            for start, stop in chunks(x.shape[0], weight.numel() * weight.element_size(), ctx.max_bytes):
                each = per_sample_weight(grad[start:stop], x[start:stop], weight, ctx.settings)
                grad_weight = grad_weight + each.sum(0)
                squares["weight"] = squares["weight"] + sum_of_squares(each, scales["weight"])
        grad_bias = None
        if need_bias:
            each_bias = grad.flatten(2).sum(2)
            grad_bias = each_bias.sum(0)
            squares["bias"] = sum_of_squares(each_bias, scales["bias"])
        found = None
        if keep:
            settings = ctx.settings

            def per_sample(start: int, stop: int) -> Iterator[tuple[str, Tensor]]:
                if need_weight:
                    yield "weight", per_sample_weight(grad[start:stop], x[start:stop], weight, settings)
                if need_bias:
                    yield "bias", each_bias[start:stop]

            ctx.watcher.session.keep(ctx.watcher, Contribution(x.shape[0], per_sample, {}))
        else:
            found = torch.stack([squares.get(local, zero) for local in ctx.local])
        return (grad_x, grad_weight, grad_bias, report(found, ctx.watcher, grad), *[None] * 5)


def chunks(samples: int, bytes_each: int, max_bytes: int) -> list[tuple[int, int]]:
    """Ranges of samples whose per-sample gradients fit `max_bytes`; one sample at least."""
    step = max(1, min(samples, max_bytes // max(bytes_each, 1)))
    return [(start, min(start + step, samples)) for start in range(0, samples, step)]


def per_sample_weight(grad: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> Tensor:
    """Weight gradient of every sample; shape: (N, *weight.shape)."""
    n = x.shape[0]
    stride, padding, dilation, transposed, output_padding, groups = settings
    shape = (n * weight.shape[0], *weight.shape[1:])
    # Only the shape of the weight is looked at when its gradient alone is asked for.
    stand_in = weight.new_zeros(1).expand(shape)
    together = torch.ops.aten.convolution_backward(
        grad.reshape(1, -1, *grad.shape[2:]), x.reshape(1, -1, *x.shape[2:]), stand_in, [0],
        stride, padding, dilation, transposed, output_padding, n * groups, [False, True, False],
    )[1]  # fmt: skip
    return together.view(n, *weight.shape)
