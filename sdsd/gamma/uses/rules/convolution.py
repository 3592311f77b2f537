"""Convolutions of one to three dimensions, transposed ones too.

With several samples of one position each the gradients of the samples come out of one grouped call; their sum is the
weight gradient, so it is computed in the place of the layer's own backward, not beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...following import Track, track_of
from ..convolutions import by_samples, per_sample_weight
from ..landed import Places, bare_apply, conv_weight_grad_into, followed, land, land_apart, places_of
from ..operand import unexpanded_of
from ..pieces import Dense, Lazy, Piece, Squared, square_norm
from ..plans import Joined, keep
from ..use import Use, autocast_dtype, joined, watch
from .broadcasting import apart
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def convolution(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """torch.conv1d … conv3d and conv_transpose1d … conv_transpose3d."""
    transposed = func in _TRANSPOSED
    if kwargs or len(args) < 3:
        given = dict(zip(_NAMES[transposed], args, strict=False)) | kwargs
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        rest = tuple(given.get(name, default) for name, default in _REST[transposed])
    else:
        x, weight, bias = args[:3]
        rest = args[3:]
    track = track_of(x)
    settings = _settings(rest, transposed, weight.shape[2:])
    plain = isinstance(track, Track) and track.axis == 0 and x.ndim == weight.ndim and settings is not None
    if not plain or track_of(weight) is not None or (bias is not None and track_of(bias) is not None):
        if settings is not None and _grouped_by_sample(x, weight, bias, settings[5], mode.ledger.n):
            return _in_groups(mode, func, args, kwargs, (x, weight, bias), settings)
        return any_operation(mode, func, args, kwargs, parameters)
    assert settings is not None
    assert isinstance(track, Track)
    leafs = weight.grad_fn is None and (bias is None or bias.grad_fn is None)
    if weight.requires_grad and leafs and (track.outer, track.inner) == (1, 1) and not x.is_complex():
        out = _joined(mode, x, weight, bias, settings, placed=bool(args))
        if out is not None:
            return out
    out = mode.run(func, args, kwargs)
    n, trains = mode.ledger.n, weight.requires_grad
    read = [t for t in (weight, bias) if t is not None and t.requires_grad]

    def measure(b: Tensor, x: Tensor | None) -> Iterator[tuple[int, Piece]]:
        if x is not None:
            yield 0, _weight_piece(b, x.to(b.dtype), weight.to(b.dtype), settings, track, n)
        if bias is not None and bias.requires_grad:
            rows = b.flatten(2).sum(2).unflatten(0, (track.outer, n, track.inner))
            yield len(read) - 1, Dense(rows.sum((0, 2)))

    watch(mode, "convolution", out, read, (x if trains else None,), measure)
    return out


def _grouped_by_sample(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, n: int) -> bool:
    """Whether the samples lie side by side in the channels, in groups of their own, as those of StyleGAN do."""
    held = [track_of(t) for t in (x, weight, bias) if t is not None]
    side_by_side = all(
        track is None or (isinstance(track, Track) and track[:2] == (int(place == 0), 1))
        for place, track in enumerate(held)
    )
    return n > 1 and groups % n == 0 and x.ndim == weight.ndim and side_by_side and not x.is_complex()


def _in_groups(mode: Measuring, func: Any, args: Any, kwargs: Any, read: Any, settings: Any) -> Any:
    """Such a convolution: what trains has rows for every sample, whose gradients are those of the whole."""
    trains = [t is not None and t.requires_grad and track_of(t) is None for t in read]
    operands = [t for t, own in zip(read, trains, strict=True) if own]
    out = mode.run(func, args, kwargs)
    n = mode.ledger.n

    def measure(b: Tensor, x: Tensor, weight: Tensor) -> Iterator[tuple[int, Piece]]:
        given = (b, x.to(b.dtype), weight.to(b.dtype), [b.shape[1]])
        whole = _backward(*given, *settings, trains)
        gradients = [(place, each) for place, each in enumerate(whole) if trains[place]]
        for index, (place, gradient) in enumerate(gradients):
            axis = int(place == 0)
            track = Track(axis, 1, gradient.shape[axis] // n)
            yield index, apart(gradient, track, n, unexpanded_of(operands[index]).shape)

    watch(mode, "convolution", out, operands, read[:2], measure, unexpanded=True)
    return out


_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_REST = (
    (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)),
    (("stride", 1), ("padding", 0), ("output_padding", 0), ("groups", 1), ("dilation", 1)),
)
"""Arguments after the bias, of a convolution and of a transposed one."""
_NAMES = tuple(("input", "weight", "bias", *(name for name, _ in rest)) for rest in _REST)
_known: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}


def _settings(rest: tuple[Any, ...], transposed: bool, kernel: torch.Size) -> tuple[Any, ...] | None:
    """Stride, padding, dilation, transposed, output padding and groups, as torch's own operator takes them.

    None where it takes no such padding. `rest`: what was given after the bias, read once for the same arguments.
    """
    key = (rest, transposed, kernel)
    try:
        if key in _known:
            return _known[key]
    except TypeError:  # lists
        return _read(rest, transposed, kernel)
    if len(_known) >= 1024:
        _known.clear()
    settings = _known[key] = _read(rest, transposed, kernel)
    return settings


def _read(rest: tuple[Any, ...], transposed: bool, kernel: torch.Size) -> tuple[Any, ...] | None:
    given = dict(_REST[transposed]) | dict(zip((name for name, _ in _REST[transposed]), rest, strict=False))
    space = len(kernel)
    stride, dilation = (_each(given[name], space) for name in ("stride", "dilation"))
    padding = _padding(given["padding"], kernel, dilation, space)
    output_padding = _each(given.get("output_padding", 0), space)
    return None if padding is None else (stride, padding, dilation, transposed, output_padding, given["groups"])


def _each(value: Any, space: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * space if len(values) == 1 else values


def _padding(value: Any, kernel: torch.Size, dilation: tuple[int, ...], space: int) -> tuple[int, ...] | None:
    """Padding as numbers; None where "same" is uneven."""
    if value == "valid":
        return (0,) * space
    if value == "same":
        both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return None if any(total % 2 for total in both) else tuple(total // 2 for total in both)
    return _each(value, space)


def _weight_piece(b: Tensor, x: Tensor, weight: Tensor, settings: Any, track: Track, n: int) -> Piece:
    """Weight gradients by sample; where a sample is several rows of the batch, summed over them."""
    size = 8 * max(weight.numel(), x.shape[1:].numel(), b.shape[1:].numel()) * track.outer * track.inner

    def form(start: int, stop: int) -> Tensor:
        if not len(x):  # samples of no rows
            return weight.new_zeros(stop - start, *weight.shape)
        rows = [t.unflatten(0, (track.outer, n, track.inner))[:, start:stop] for t in (b, x)]
        joined = [t.transpose(0, 1).reshape(-1, *t.shape[3:]) for t in rows]
        each = per_sample_weight(joined[0], joined[1], weight, settings)
        return each.unflatten(0, (stop - start, -1)).sum(1)

    return Lazy(n, size, form)


def _joined(
    mode: Measuring, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any, *, placed: bool
) -> Tensor | None:
    """`placed`: x is the first argument of the call, and did not come by its name."""
    use = joined(mode, weight, bias, "convolution")
    if use is None:
        return None

    dtype = autocast_dtype(x)
    call = functools.partial(_apply, weight, bias, settings, dtype is not None)
    out = call(use, x if dtype is None else x.to(dtype))
    followed(out, x)
    if placed:
        keep(mode, Joined("convolution", use.operands, track_of(out), call, dtype=dtype))
    return out  # type: ignore[no-any-return]


_backward: Any = torch.ops.aten.convolution_backward.default._op
_stats: Any = torch.ops.sdsd.conv_weight_grad_stats.default._op
_WIDE = (torch.float32, torch.float64)
_OF_INPUT = [True, False, False]


class _Joined(torch.autograd.Function):
    """Under autocast parameters are cast inside: their gradients come in their own dtype, from the accumulator."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor | None, settings: Any, cast: bool, use: Use, x: Tensor
    ) -> Tensor:
        ctx.use, ctx.settings = use, settings
        ctx.weight = None
        if cast and weight.dtype != x.dtype:
            ctx.weight, weight = weight, weight.to(x.dtype)  # which leads back to the parameter; the copy does not
        if cast and bias is not None:
            bias = bias.to(x.dtype)
        ctx.to_save = x, weight
        return torch.convolution(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        settings, use = ctx.settings, ctx.use
        need_weight, need_bias, *_, need_x = ctx.needs_input_grad
        measured = use.wanted()
        differentiated = torch.is_grad_enabled()
        try:
            if measured and not differentiated:
                grad_x, grad_weight, grad_bias = _measure(use, x, grad, weight, settings, need_x=need_x, wanted=True)
                return grad_weight, grad_bias if need_bias else None, None, None, None, grad_x if need_x else None
            if measured:
                with torch.no_grad():
                    _measure(use, x.detach(), grad.detach(), weight.detach(), settings)
        except Exception as error:
            use.failed(error)
        if differentiated and ctx.weight is not None:
            weight = ctx.weight.to(x.dtype)
        sizes = [weight.shape[1] * settings[5] if settings[3] else weight.shape[0]]
        grad_x, grad_weight, grad_bias = _backward(grad, x, weight, sizes, *settings, [need_x, need_weight, need_bias])
        grad_weight, grad_bias = (
            each.to(use.operands[k].tensor.dtype) if need else None
            for k, (each, need) in enumerate(((grad_weight, need_weight), (grad_bias, need_bias)))
        )
        return grad_weight, grad_bias if need_bias else None, None, None, None, grad_x if need_x else None


_apply = bare_apply(_Joined)


def _measure(
    use: Use, x: Tensor, grad: Tensor, weight: Tensor, settings: Any, *, need_x: bool = False, wanted: bool = False
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Deliver the pieces; gradients of input, weight and bias."""
    ledger = use.mode.ledger
    leaf = use.operands[0].leaves[0]
    on_cpu = x.is_cpu and x.dtype in _WIDE and ledger.backends.get(x.device) == "torch"
    if wanted and use.alone and on_cpu and not settings[3]:
        return _squared(use, x, grad, weight, settings, need_x=need_x)
    if wanted and x.ndim < 5:
        places = places_of(use, grad)
        if places is not None:
            return _land(use, places, x, grad, weight, settings, need_x=need_x)
    ledger.begin(use, grad.dtype)
    scale, shared = ledger.scale(leaf.name) if ledger.scaled else None, ledger.shared(leaf)
    alone = grad_x = grad_weight = grad_bias = None
    if need_x or shared:
        grad_x, grad_weight, _ = _backward(grad, x, weight, [0], *settings, [need_x, shared, False])
    if not shared:
        stride, padding, dilation, transposed, _, groups = settings
        if transposed or x.dtype not in _WIDE:
            grad_weight, alone = by_samples(grad, x, weight, settings, scale, ledger.max_bytes)
        else:
            grad_weight, alone = _stats(
                x,
                grad,
                scale,
                weight.shape[2:],
                stride,
                padding,
                dilation,
                groups,
                True,
                leaf.tensor.dtype,
                False,
                ledger.max_bytes,
                "torch",
            )

    def form(start: int, stop: int) -> Tensor:
        return per_sample_weight(grad[start:stop], x[start:stop], weight, settings)

    size = 8 * max(weight.numel(), x[0].numel(), grad[0].numel())
    use.operands[0].deliver(ledger, _Weights(x.shape[0], size, form, alone, grad_weight))
    if len(use.operands) > 1:
        rows = grad.flatten(2).sum(2)
        grad_bias = rows.sum(0)
        use.operands[1].deliver(ledger, Dense(rows))
        grad_bias = grad_bias.to(use.operands[1].tensor.dtype)
    grad_weight = None if grad_weight is None else grad_weight.to(leaf.tensor.dtype)
    if wanted:
        ledger.give(use.operands, grad_weight, grad_bias)
    return grad_x, grad_weight, grad_bias


def _squared(
    use: Use, x: Tensor, grad: Tensor, weight: Tensor, settings: Any, *, need_x: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same on a CPU, where squares are all that is asked of the use: without pieces."""
    operands, ledger = use.operands, use.mode.ledger
    stride, padding, dilation, _, _, groups = settings
    grad_x = _backward(grad, x, weight, [0], *settings, _OF_INPUT)[0] if need_x else None
    grad_weight, square = _stats(
        x,
        grad,
        None,
        weight.shape[2:],
        stride,
        padding,
        dilation,
        groups,
        True,
        operands[0].dtype,
        False,
        ledger.max_bytes,
        "torch",
    )
    ledger.given[operands[0].leaves[0].name] = grad_weight.data_ptr(), grad_weight._version
    if len(operands) == 1:
        ledger.taken.append((use, grad.dtype, (square,)))
        return grad_x, grad_weight, None
    rows = grad.flatten(2).sum(2)
    grad_bias = rows.sum(0).to(operands[1].dtype)
    ledger.given[operands[1].leaves[0].name] = grad_bias.data_ptr(), grad_bias._version
    ledger.taken.append((use, grad.dtype, (square, square_norm(rows))))
    return grad_x, grad_weight, grad_bias


def _land(
    use: Use, places: Places, x: Tensor, grad: Tensor, weight: Tensor, settings: Any, *, need_x: bool
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Gradients of weight and bias by kernels that write the squares beside them; of the input by torch's own."""
    stride, padding, dilation, transposed, _, groups = settings
    held, most = use.operands[0].leaves[0].tensor, use.mode.ledger.max_bytes
    last = _channels_last(held)
    if last or _channels_last(x):
        # Where torch's own backward would convert them, once for the input's gradient and once for the weight's.
        x, grad = x.contiguous(memory_format=torch.channels_last), grad.contiguous(memory_format=torch.channels_last)
    grad_x = None
    if need_x:
        grad_x = _backward(grad, x, weight, [0], *settings, _OF_INPUT)[0]
    how = weight.shape[2:], stride, padding, dilation, groups, held.dtype, last, most
    if not transposed:
        return grad_x, *land(use, places, grad.dtype, conv_weight_grad_into, (x, grad), how)
    places, bias = land_apart(use, places, grad.flatten(2).mT)
    return grad_x, land(use, places, grad.dtype, conv_weight_grad_into, (grad, x), how)[0], bias


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class _Weights(Lazy):
    """Gradients of a convolution's weight, whose squares were found with the preconditioner already."""

    def squares(self, scale: Tensor | None, max_bytes: int) -> Squared:
        return self.alone if self.alone is not None else super().squares(scale, max_bytes)
