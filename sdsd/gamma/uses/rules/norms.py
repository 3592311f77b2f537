"""Norms: a fixed function f of the samples, times a weight, plus a bias: g_n = Σ_t b ∘ f(x) and Σ_t b.

Where kernels serve, layer and group norm run as a function whose backward takes the input's gradient from torch's own
and those of weight and bias, squares beside them, from `scale_shift_grads`. Elsewhere the layer's own backward stays as
it is; f is computed once more from the saved input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...following import Track, arrange, track_of
from ..pieces import PART_BYTES, Dense, Piece, Sums, chunks, square_norm, wide
from ..plans import Squares, Watched, keep
from ..use import watch
from .broadcasting import gathered
from .generic import any_operation
from .joined_norms import GroupNorm, LayerNorm, joined_norm

if TYPE_CHECKING:
    from ..measuring import Measuring


def _watch_scale(
    mode: Measuring,
    kind: str,
    out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    shape: torch.Size,
    factor: Callable[[Tensor], Tensor],
    rstd: Callable[[Tensor], Tensor] | None = None,
    placed: bool = False,
) -> None:
    """Measure out = f(x) · weight + bias, with weight and bias broadcast as `shape`.

    `rstd`: where f(x) is x times a number a position, what computes that; shape: (…, 1). `placed`: `factor` and `rstd`
    hold no tensors, and x is the first argument of the call.
    """
    track, n = track_of(out), mode.ledger.n
    by_kernel = rstd is not None and mode.ledger.serves(out) and mode.ledger.serves(x)
    read = [t for t in (weight, bias) if t is not None and t.requires_grad]
    trains = weight is not None and weight.requires_grad

    def measure(b: Tensor, x: Tensor | None) -> Iterator[tuple[int, Piece]]:
        assert isinstance(track, Track)
        if by_kernel and x is not None:
            assert rstd is not None
            yield 0, Sums(*(arrange(t, track, n, 1) for t in (b, x, rstd(wide(x)))))
            return
        values = wide(b)
        if x is not None:
            rows = gathered(values * factor(wide(x)), track, n, shape)
            assert rows is not None
            yield 0, Dense(rows.reshape(n, *read[0].shape))
        if bias is not None and bias.requires_grad:
            rows = gathered(values, track, n, shape)
            assert rows is not None
            yield len(read) - 1, Dense(rows.reshape(n, *bias.shape))

    operands = watch(mode, kind, out, read, (x if trains else None,), measure)
    if operands and placed:
        keep(mode, Watched(kind, operands, track_of(out), measure))


_PLAIN = Track(0)


def _in_parts(squares: Callable[..., tuple[float, ...]], x: Tensor) -> Squares:
    """`squares`, which takes tensors with samples first, of which x (N, …) is one, for some samples at a time."""
    parts = [slice(*part) for part in chunks(x.shape[0], x.nbytes // max(1, x.shape[0]), PART_BYTES)]
    return squares if len(parts) < 2 else functools.partial(_added, squares, parts)


def _added(squares: Callable[..., tuple[float, ...]], parts: list[slice], *given: Tensor) -> tuple[float, ...]:
    return tuple(map(sum, zip(*(squares(*(each[part] for each in given)) for part in parts), strict=True)))


def _free(track: Any, dims: int, x: Tensor) -> bool:
    """Whether samples lie outside the last `dims` dimensions."""
    return isinstance(track, Track) and track.axis < x.ndim - dims


def layer_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.layer_norm(x, shape, weight, bias, eps)."""
    x, shape, weight, bias, eps = _bound(("input", "normalized_shape", "weight", "bias", "eps"), args, kwargs)
    eps = 1e-5 if eps is None else eps
    track = track_of(x)
    if not _free(track, len(shape), x) or any(t is not None and track_of(t) is not None for t in (weight, bias)):
        return any_operation(mode, func, args, kwargs, parameters)
    if mode.ledger.serves(x):
        joined = joined_norm(mode, "layer norm", x, weight, bias, LayerNorm(tuple(shape), eps), placed=bool(args))
        if joined is not None:
            return joined
    if torch.is_autocast_enabled(x.device.type) or weight is None or not weight.requires_grad:
        out = mode.run(func, args, kwargs)
        _watch_scale(
            mode,
            "layer norm",
            out,
            x,
            weight,
            bias,
            shape=torch.Size(shape),
            factor=lambda x: F.layer_norm(x, shape, eps=eps),
            placed=bool(args),
        )
        return out

    # What F.layer_norm computes, with the mean and the inverse deviation that its backward uses.
    def save(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        return out, (x, mean, rstd)

    out, saved = save(x)
    mode.follow(func, args, kwargs, out)
    n = mode.ledger.n
    read = [t for t in (weight, bias) if t is not None and t.requires_grad]

    def measure(b: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Iterator[tuple[int, Piece]]:
        assert isinstance(track, Track)
        values = wide(b)
        products = arrange((wide(x) - mean).mul_(values), track, n, len(shape)).flatten(2)
        rows = arrange(rstd.expand(*x.shape[: x.ndim - len(shape)], *[1] * len(shape)), track, n, len(shape)).flatten(1)
        yield 0, Dense(torch.bmm(rows.unsqueeze(1).to(products.dtype), products).view(-1, *shape))
        if bias is not None and bias.requires_grad:
            yield len(read) - 1, Dense(arrange(values, track, n, len(shape)).sum(1))

    def squares(b: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[float, ...]:
        """The same of (N, T, C) on a CPU, samples first, without pieces."""
        rows = torch.bmm(rstd.mT, (x - mean).mul_(b))
        return (square_norm(rows), square_norm(b.sum(1))) if len(read) > 1 else (square_norm(rows),)

    operands = watch(mode, "layer norm", out, read, saved, measure)
    if operands and args:
        simple = x.ndim == 3 and len(shape) == 1 and track == _PLAIN and x.is_cpu and wide(x) is x
        at_once = _in_parts(squares, x) if simple else None
        keep(mode, Watched("layer norm", operands, track_of(out), measure, save, at_once))
    return out


def rms_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.rms_norm(x, shape, weight, eps)."""
    x, shape, weight, eps = _bound(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    if not _free(track_of(x), len(shape), x) or weight is None or track_of(weight) is not None:
        return any_operation(mode, func, args, kwargs, parameters)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    out = mode.run(func, args, kwargs)
    rstd = None
    if len(shape) == 1:
        rstd = lambda x: x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # noqa: E731
    _watch_scale(
        mode,
        "RMS norm",
        out,
        x,
        weight,
        None,
        shape=torch.Size(shape),
        factor=lambda x: F.rms_norm(x, shape, eps=eps),
        rstd=rstd,
        placed=bool(args),
    )
    return out


def _channels(x: Tensor) -> torch.Size:
    return torch.Size([x.shape[1], *[1] * (x.ndim - 2)])


def group_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.group_norm(x, groups, weight, bias, eps)."""
    x, groups, weight, bias, eps = _bound(("input", "num_groups", "weight", "bias", "eps"), args, kwargs)
    eps = 1e-5 if eps is None else eps
    track = track_of(x)
    given = [t for t in (weight, bias) if t is not None]
    if not isinstance(track, Track) or track.axis != 0 or any(track_of(t) is not None for t in given):
        return any_operation(mode, func, args, kwargs, parameters)
    if mode.ledger.serves(x) and (track.outer, track.inner) == (1, 1):
        joined = joined_norm(mode, "group norm", x, weight, bias, GroupNorm(groups, eps), placed=bool(args))
        if joined is not None:
            return joined
    laid = x.is_contiguous() or (x.is_cpu and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    alone = (track.outer, track.inner) == (1, 1) and laid and weight is not None and weight.requires_grad
    if not alone or torch.is_autocast_enabled(x.device.type):
        out = mode.run(func, args, kwargs)
        _watch_scale(
            mode,
            "group norm",
            out,
            x,
            weight,
            bias,
            shape=_channels(x),
            factor=lambda x: F.group_norm(x, groups, eps=eps),
            placed=bool(args),
        )
        return out
    n, c, space, places = x.shape[0], x.shape[1], x.shape[2:].numel(), tuple(range(2, x.ndim))

    # What F.group_norm computes, with the mean and the inverse deviation that its backward uses.
    def save(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        out, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, space, groups, eps)
        return out, (x, mean, rstd)

    out, saved = save(x)
    mode.follow(func, args, kwargs, out)
    read = [t for t in (weight, bias) if t is not None and t.requires_grad]

    def gradients(b: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the samples, (N, C) each: rstd (Σ b ∘ x − mean Σ b), as torch's own backward has it, and Σ b."""
        values = wide(b)
        products = values * wide(x)
        sums = values.sum(places) if places else values
        products = (products.sum(places) if places else products).view(-1, groups, c // groups)
        products = torch.addcmul(products, sums.view(products.shape), mean.unsqueeze(2), value=-1)
        return products.mul_(rstd.unsqueeze(2)).view(-1, c), sums

    def measure(b: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Iterator[tuple[int, Piece]]:
        of_scale, of_shift = gradients(b, x, mean, rstd)
        yield 0, Dense(of_scale)
        if bias is not None and bias.requires_grad:
            yield len(read) - 1, Dense(of_shift)

    def squares(*given: Tensor) -> tuple[float, ...]:
        of_scale, of_shift = gradients(*given)
        return (square_norm(of_scale), square_norm(of_shift)) if len(read) > 1 else (square_norm(of_scale),)

    operands = watch(mode, "group norm", out, read, saved, measure)
    if operands and args:
        at_once = _in_parts(squares, x) if x.is_cpu else None
        keep(mode, Watched("group norm", operands, track_of(out), measure, save, at_once))
    return out


def instance_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    x, mean, variance, weight, bias, own, _, eps = _bound(names, args, kwargs)
    own, eps = True if own is None else own, 1e-5 if eps is None else eps
    norm = _Channels("instance norm", x, (mean, variance), (weight, bias), own, eps)
    return _by_channel(mode, func, args, kwargs, parameters, norm)


def batch_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps); exact in eval mode alone."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    x, mean, variance, weight, bias, training, _, eps = _bound(names, args, kwargs)
    if training or mean is None:
        return any_operation(mode, func, args, kwargs, parameters)
    eps = 1e-5 if eps is None else eps
    norm = _Channels("batch norm in eval mode", x, (mean, variance), (weight, bias), False, eps)
    return _by_channel(mode, func, args, kwargs, parameters, norm)


class _Channels(NamedTuple):
    """A norm of each channel of `x` by `statistics`, mean and variance, or, `own`, by those of each sample."""

    kind: str
    x: Tensor
    statistics: tuple[Tensor | None, Tensor | None]
    affine: tuple[Tensor | None, Tensor | None]
    """Weight and bias."""
    own: bool
    eps: float


def _by_channel(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor], norm: _Channels) -> Any:
    kind, x, (mean, variance), (weight, bias), own, eps = norm
    track = track_of(x)
    given = [t for t in (mean, variance, weight, bias) if t is not None]
    if not isinstance(track, Track) or track.axis != 0 or any(track_of(t) is not None for t in given):
        return any_operation(mode, func, args, kwargs, parameters)
    if own:
        factor = lambda x: F.instance_norm(x, eps=eps)  # noqa: E731
    else:
        assert mean is not None
        assert variance is not None
        shape = (1, -1, *[1] * (x.ndim - 2))
        # Running statistics as they were, for a later pass may move them.
        shift, inverse = mean.detach().clone().view(shape), (variance.detach() + eps).rsqrt().view(shape)
        factor = lambda x: (x - shift) * inverse  # noqa: E731
    out = mode.run(func, args, kwargs)
    _watch_scale(mode, kind, out, x, weight, bias, shape=_channels(x), factor=factor)
    return out


def _bound(names: tuple[str, ...], args: Any, kwargs: Any) -> list[Any]:
    return [args[k] if k < len(args) else kwargs.get(name) for k, name in enumerate(names)]
