"""Norms: a fixed function f of the samples, times a weight, plus a bias: g_n = Σ_t b ∘ f(x) and Σ_t b.

The layer's own backward stays as it is; f is computed once more from the saved input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...following import Track, arrange, track_of
from ..pieces import Dense, Piece, wide
from ..use import watch
from .elementwise import gathered
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def _watch_scale(
    mode: Measuring, kind: str, out: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: torch.Size,
    factor: Callable[[Tensor], Tensor],
) -> None:  # fmt: skip
    """Measure out = f(x) · weight + bias, with weight and bias broadcast as `shape`."""
    track, n = track_of(out), mode.ledger.n
    read = [t for t in (weight, bias) if t is not None and t.requires_grad]
    trains = weight is not None and weight.requires_grad

    def measure(b: Tensor, x: Tensor | None) -> Iterator[tuple[int, Piece]]:
        assert isinstance(track, Track)
        values = wide(b)
        if x is not None:
            found = gathered(values * factor(wide(x)), track, n, shape)
            assert found is not None
            yield 0, Dense(found.reshape(n, *read[0].shape))
        if bias is not None and bias.requires_grad:
            found = gathered(values, track, n, shape)
            assert found is not None
            yield len(read) - 1, Dense(found.reshape(n, *bias.shape))

    watch(mode, kind, out, read, (x if trains else None,), measure)


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
    if torch.is_autocast_enabled(x.device.type) or weight is None or not weight.requires_grad:
        out = mode.run(func, args, kwargs)
        _watch_scale(
            mode, "layer norm", out, x, weight, bias, torch.Size(shape), lambda x: F.layer_norm(x, shape, eps=eps)
        )
        return out
    # What F.layer_norm computes, with the mean and the inverse deviation that its backward uses.
    out, mean, rstd = torch.native_layer_norm(x, list(shape), weight, bias, eps)
    mode._follow(func, args, kwargs, out)
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

    watch(mode, "layer norm", out, read, (x, mean, rstd), measure)
    return out


def rms_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.rms_norm(x, shape, weight, eps)."""
    x, shape, weight, eps = _bound(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    if not _free(track_of(x), len(shape), x) or weight is None or track_of(weight) is not None:
        return any_operation(mode, func, args, kwargs, parameters)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    out = mode.run(func, args, kwargs)
    _watch_scale(mode, "RMS norm", out, x, weight, None, torch.Size(shape), lambda x: F.rms_norm(x, shape, eps=eps))
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
    alone = (track.outer, track.inner) == (1, 1) and x.is_contiguous() and weight is not None and weight.requires_grad
    if not alone or torch.is_autocast_enabled(x.device.type):
        out = mode.run(func, args, kwargs)
        _watch_scale(mode, "group norm", out, x, weight, bias, _channels(x), lambda x: F.group_norm(x, groups, eps=eps))
        return out
    n, c, space = x.shape[0], x.shape[1], x.shape[2:].numel()
    # What F.group_norm computes, with the mean and the inverse deviation that its backward uses.
    out, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, space, groups, eps)
    mode._follow(func, args, kwargs, out)
    read = [t for t in (weight, bias) if t is not None and t.requires_grad]

    def measure(b: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Iterator[tuple[int, Piece]]:
        values = wide(b).reshape(n, c, space)
        centred = wide(x).view(n, groups, -1) - mean.unsqueeze(2)
        found = centred.view(n, c, space).mul_(values).sum(2).view(n, groups, -1) * rstd.unsqueeze(2)
        yield 0, Dense(found.view(n, c))
        if bias is not None and bias.requires_grad:
            yield len(read) - 1, Dense(values.sum(2))

    watch(mode, "group norm", out, read, (x, mean, rstd), measure)
    return out


def instance_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    x, mean, variance, weight, bias, own, _, eps = _bound(names, args, kwargs)
    own = True if own is None else own
    return _by_channel(mode, func, args, kwargs, parameters, "instance norm", x, mean, variance, weight, bias, own, eps)


def batch_norm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps); exact in eval mode alone."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    x, mean, variance, weight, bias, training, _, eps = _bound(names, args, kwargs)
    if training or mean is None:
        return any_operation(mode, func, args, kwargs, parameters)
    kind = "batch norm in eval mode"
    return _by_channel(mode, func, args, kwargs, parameters, kind, x, mean, variance, weight, bias, False, eps)


def _by_channel(
    mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor], kind: str, x: Tensor,
    mean: Tensor | None, variance: Tensor | None, weight: Tensor | None, bias: Tensor | None, own: bool,
    eps: float | None,
) -> Any:  # fmt: skip
    track = track_of(x)
    eps = 1e-5 if eps is None else eps
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
    _watch_scale(mode, kind, out, x, weight, bias, _channels(x), factor)
    return out


def _bound(names: tuple[str, ...], args: Any, kwargs: Any) -> list[Any]:
    return [args[k] if k < len(args) else kwargs.get(name) for k, name in enumerate(names)]
