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

from .base import SAFE, Contribution, Rule, UnsupportedError, Watcher, report, sum_of_squares


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
        probe, known = watcher.route()
        scaled, scales = watcher.scales()
        spec = (settings, known, watcher.local, scaled, watcher.session.max_bytes)
        return _Convolution.apply(x, weight, bias, probe, spec, *scales)  # type: ignore[no-untyped-call]


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
        settings, watcher, local, scaled, max_bytes = ctx.spec
        scales = dict(zip(scaled, given, strict=True))
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        keep = watcher is not None and watcher.shared
        measured = need_weight and not keep and "weight" in local
        by_products = measured and not scaled and _products_win(x, grad, weight, settings)
        together = need_weight and (not measured or by_products)
        grad_x = grad_weight = grad_bias = probe = None
        if need_x or together:
            mask = [need_x, together, False]
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, [0], *settings, mask)
        squares: dict[str, Tensor] = {}
        if by_products:
            squares["weight"] = _squares_by_products(grad, x, weight, settings, max_bytes)
            if watcher is not None and not SAFE[0] < squares["weight"].item() < SAFE[1]:
                squares["weight"] = _squares_by_products(grad.double(), x.double(), weight, settings, max_bytes)
        elif measured:
            grad_weight, squares["weight"] = _by_samples(grad, x, weight, settings, scales.get("weight"), max_bytes)
        if need_bias:
            each_bias = grad.flatten(2).sum(2)
            grad_bias = each_bias.sum(0)
            squares["bias"] = sum_of_squares(each_bias, scales.get("bias"))
        if keep:

            def per_sample(start: int, stop: int) -> Iterator[tuple[str, Tensor]]:
                if need_weight:
                    yield "weight", per_sample_weight(grad[start:stop], x[start:stop], weight, settings)
                if need_bias:
                    yield "bias", each_bias[start:stop]

            watcher.session.keep(watcher, Contribution(x.shape[0], per_sample, {}))
        else:
            probe = report(squares, watcher, local, grad)
        return (grad_x, grad_weight, grad_bias, probe, None, *(None for _ in given))


GROUP_BYTES = 2**21
"""Samples are taken together while a group's inputs, or its gradients, are no larger: they stay in the cache."""


def _by_samples(
    grad: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], scale: Tensor | None, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """The weight gradient as the sum of those of the samples, and the sum of their squares."""
    total = torch.zeros(weight.numel(), dtype=_wide_dtype(weight), device=weight.device)
    squares: Tensor | None = None
    most = max(weight.numel(), x[0].numel(), grad[0].numel()) * weight.element_size()
    for start, stop in chunks(x.shape[0], most, min(max_bytes, GROUP_BYTES)):
        each = per_sample_weight(grad[start:stop], x[start:stop], weight, settings)
        flat = each.view(stop - start, -1).to(total.dtype)
        total.addmv_(flat.t(), flat.new_ones(stop - start))
        part = sum_of_squares(each, scale)
        squares = part if squares is None else squares + part
    assert squares is not None
    return total.view(weight.shape).to(weight.dtype), squares


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


PASSES = 95
"""Multiply-adds that forming, squaring and adding up one value of a sample's gradient costs beyond the plain layer."""
ADDING = 60
"""The same for adding up one product of two positions. Both fitted to a few layers, float32, one thread of an EPYC."""


def _products_win(x: Tensor, grad: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> bool:
    """Whether products of positions are cheaper than gradients of samples: few positions, many channels."""
    stride, padding, _, transposed, _, groups = settings
    known = x.ndim == 4 and not transposed and groups == 1 and x.dtype in (torch.float32, torch.float64)
    if not known or x.device.type != "cpu":
        return False
    p, c = weight.shape[:2]
    taps, positions = weight[0, 0].numel(), grad[0, 0].numel()
    inputs = (x.shape[2] + 2 * padding[0]) * (x.shape[3] + 2 * padding[1])
    phases = min(stride[0] * stride[1], taps)
    return (
        phases * (inputs / (stride[0] * stride[1])) ** 2 * c + positions**2 * (p + ADDING * taps)
        < PASSES * p * c * taps
    )


def _squares_by_products(grad: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], max_bytes: int) -> Tensor:
    """Σ_n ‖g_n‖² = Σ_n ⟨B, A⟩: products of output gradients and of patches, for all pairs of positions.

    The product of two patches is a sum over the kernel's taps of products of two inputs: of one product matrix, read
    at shifted places. With a stride only inputs of the same phase ever meet.
    """
    stride, (top, left), dilation = settings[:3]
    x = F.pad(x, (left, left, top, top))
    height, width = grad.shape[2:]
    taps = [[divmod(k * dilation[axis], stride[axis]) for k in range(weight.shape[2 + axis])] for axis in (0, 1)]
    total = grad.new_zeros((), dtype=torch.float64)
    most = max((x[0, 0].numel() // (stride[0] * stride[1])) ** 2, x[0].numel()) * x.element_size()
    for start, stop in chunks(x.shape[0], most, min(max_bytes, GROUP_BYTES)):
        patches = x.new_zeros(stop - start, height, width, height, width)
        for row_phase in {phase for _, phase in taps[0]}:
            for column_phase in {phase for _, phase in taps[1]}:
                part = x[start:stop, :, row_phase :: stride[0], column_phase :: stride[1]]
                flat = part.flatten(2)
                inputs = torch.bmm(flat.transpose(1, 2), flat).unflatten(2, part.shape[2:]).unflatten(1, part.shape[2:])
                for i, _ in (tap for tap in taps[0] if tap[1] == row_phase):
                    for j, _ in (tap for tap in taps[1] if tap[1] == column_phase):
                        rows, columns = slice(i, i + height), slice(j, j + width)
                        patches += inputs[:, rows, columns, rows, columns]
        b = grad[start:stop].flatten(2)
        total = total + torch.dot(torch.bmm(b.transpose(1, 2), b).view(-1), patches.view(-1))
    return total


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
