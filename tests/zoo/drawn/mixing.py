"""Operations through which samples meet. Whether anything of that reaches the loss is found by changing samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from .model import Scope, Value, mixing


@mixing
def centred(s: Scope, v: Value) -> Value:
    mean = v.x.mean(v.at, keepdim=True)
    return v.like(v.x - s.choose([lambda: mean, lambda: mean.detach(), lambda: mean.squeeze(v.at).unsqueeze(v.at)])())


@mixing
def normed_over_samples(s: Scope, v: Value) -> Value:
    centred = v.x - v.x.mean(v.at, keepdim=True)
    return v.like(centred / (centred.square().mean(v.at, keepdim=True) + 0.1).sqrt())


@mixing
def over_samples(s: Scope, v: Value) -> Value:
    k = v.at
    functions = [
        lambda x: x.cumsum(k),
        lambda x: x.softmax(k),
        lambda x: x.sort(k).values,
        lambda x: x.flip(k) + x,
        lambda x: x.roll(1, k) * x,
        lambda x: x - x.amax(k, keepdim=True),
        lambda x: x / x.norm(),
        lambda x: x + x.sum(),
        lambda x: torch.cat([x.narrow(k, 1, x.shape[k] - 1), x.narrow(k, 0, 1)], k) + x,
        lambda x: x + x.index_select(k, torch.arange(x.shape[k]).roll(1)),
        lambda x: F.normalize(x, dim=k),
        lambda x: x + x.narrow(k, 0, 1),
        lambda x: x.cummax(k).values,
        lambda x: torch.fft.fft(x, dim=k).real,
        lambda x: x + x.select(k, -1).unsqueeze(k),
        lambda x: x * (x > x.mean()),
        lambda x: x + x.detach().std(),
        lambda x: x.take_along_dim(x.detach().argsort(k), k) + x,
        lambda x: x.scatter(k, x.detach().argsort(k), x) + x,
        lambda x: x.logcumsumexp(k),
        lambda x: torch.lerp(x, x.flip(k), 0.3),
        lambda x: x.clone().index_copy_(k, torch.tensor([0]), x.narrow(k, x.shape[k] - 1, 1)),
    ]
    return v.like(s.choose(functions)(v.x))


@mixing
def garbled(s: Scope, v: Value) -> Value | None:
    """Sizes exchanged without their entries."""
    if len(v.dims) < 2:
        return None
    k = int(s.random.random() * (len(v.dims) - 1))
    shape = list(v.x.shape)
    if v.at not in (k, k + 1):
        return None
    shape[k], shape[k + 1] = shape[k + 1], shape[k]
    x = v.x.reshape(shape).transpose(k, k + 1)
    return v.like(x + v.x)


@mixing
def with_each_other(s: Scope, v: Value) -> Value | None:
    """Attention over the batch."""
    if not v.alone:
        return None
    w = v.moved([v.at, *v.free])
    flat = w.x.reshape(w.n, -1)
    scores = s.choose(
        [lambda: flat @ flat.T, lambda: torch.cdist(flat, flat), lambda: torch.einsum("na,ma->nm", flat, flat)]
    )()
    if s.sometimes():
        return Value((scores.softmax(-1) @ flat).view(w.x.shape), w.dims)
    return Value(w.x + scores.logsumexp(1).view(w.n, *[1] * (len(w.dims) - 1)), w.dims)


@mixing
def batch_norm(s: Scope, v: Value) -> Value | None:
    if not v.alone or len(v.dims) not in (2, 3) or v.n * (v.x.numel() // v.n) < 3 or v.n < 2:
        return None
    w = v.moved([v.at, *v.free])
    c = w.x.shape[1]
    layer = s.part(lambda: nn.BatchNorm1d(c, track_running_stats=False))
    return w.like(layer(w.x) if s.sometimes() else F.batch_norm(w.x, None, None, s.own(c), s.own(c), training=True))


@mixing
def shared_scale(s: Scope, v: Value) -> Value:
    """One number of all samples, with a parameter."""
    return v.like(v.x * torch.tanh(s.own() * v.x.mean()))


@mixing
def batch_mixing_layer(s: Scope, v: Value) -> Value | None:
    """A linear layer whose inputs are the samples."""
    if not v.alone:
        return None
    w = v.moved([*v.free, v.at])
    return w.like(F.linear(w.x, s.own(w.n, w.n)))
