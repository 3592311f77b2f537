"""Operations without parameters: entry by entry, views, pieces, joins, reductions, writes in place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .model import OPERATIONS, Scope, Value, operation

UNARY = [
    torch.tanh,
    torch.sin,
    F.gelu,
    torch.sigmoid,
    F.silu,
    F.relu,
    F.softplus,
    lambda x: 0.5 * x + 0.1,
    lambda x: torch.tanh(x) ** 2,
    lambda x: 1 - x,
    lambda x: x.clamp(-1, 1),
    lambda x: x.abs().sqrt(),
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: x.masked_fill(x > 0.5, 0.2),
    lambda x: torch.tanh(x).exp(),
    lambda x: x.float().double(),
    lambda x: x + x.detach(),
    lambda x: x.double().clone(memory_format=torch.contiguous_format),
    lambda x: torch.view_as_real(torch.complex(x, x.sin())).sum(-1),
    lambda x: x * (x.detach() > 0),
    lambda x: torch.lerp(x, x.sin(), 0.3),
    lambda x: x.nan_to_num() / (1 + x.abs()),
]


@operation
def entrywise(s: Scope, v: Value) -> Value:
    return v.like(s.choose(UNARY)(v.x))


@operation
def permuted(s: Scope, v: Value) -> Value:
    order = list(range(len(v.dims)))
    s.random.shuffle(order)
    return v.moved(order)


@operation
def folded(s: Scope, v: Value) -> Value | None:
    """Two neighbouring dimensions made one, samples among them or not."""
    if len(v.dims) < 2:
        return None
    k = int(s.random.random() * (len(v.dims) - 1))
    x = s.choose([lambda: v.x.flatten(k, k + 1), lambda: v.x.reshape(*v.x.shape[:k], -1, *v.x.shape[k + 2 :])])()
    return Value(x, (*v.dims[:k], (*v.dims[k], *v.dims[k + 1]), *v.dims[k + 2 :]))


@operation
def unfolded(s: Scope, v: Value) -> Value | None:
    """A dimension of several made several again."""
    k = s.choose(k for k, d in enumerate(v.dims) if len(d) > 1)
    if k is None:
        return None
    cut = 1 + int(s.random.random() * (len(v.dims[k]) - 1))
    parts = (v.dims[k][:cut], v.dims[k][cut:])
    sizes = [math.prod(v.n if size == "N" else size for size in part) for part in parts]
    x = v.x.unflatten(k, sizes) if s.sometimes() else v.x.reshape(*v.x.shape[:k], *sizes, *v.x.shape[k + 1 :])
    return Value(x, (*v.dims[:k], *parts, *v.dims[k + 1 :]))


@operation
def widened(s: Scope, v: Value) -> Value:
    """A new dimension, of one or expanded to three."""
    k = int(s.random.random() * (len(v.dims) + 1))
    x, size = v.x.unsqueeze(k), 1
    if s.sometimes():
        size = 3
        x = x.expand(*x.shape[:k], 3, *x.shape[k + 1 :]) if s.sometimes() else x.repeat_interleave(3, k)
    return Value(x, (*v.dims[:k], (size,), *v.dims[k:]))


@operation
def squeezed(s: Scope, v: Value) -> Value | None:
    k = s.choose(k for k in v.free if v.x.shape[k] == 1)
    return None if k is None else v.without(v.x.squeeze(k), [k])


@operation
def one_place(s: Scope, v: Value) -> Value | None:
    k = s.choose(v.free)
    if k is None or len(v.dims) < 2:
        return None
    last = tuple([slice(None)] * k + [-1])
    x = s.choose([lambda: v.x.select(k, 0), lambda: v.x[last], lambda: v.x.unbind(k)[-1], lambda: v.x.movedim(k, 0)[0]])
    return v.without(x(), [k])


REDUCTIONS = [
    torch.mean,
    torch.sum,
    torch.amax,
    torch.logsumexp,
    lambda x, dim, keepdim: x.tanh().pow(2).sum(dim, keepdim),
    lambda x, dim, keepdim: torch.linalg.vector_norm(x + 0.1, dim=dim, keepdim=keepdim),
    lambda x, dim, keepdim: torch.var(x, dim=dim, keepdim=keepdim, correction=0),
    lambda x, dim, keepdim: (x.softmax(dim[0]) * x).sum(dim, keepdim=keepdim),
]


@operation
def reduced(s: Scope, v: Value) -> Value | None:
    over = [k for k in v.free if s.sometimes()]
    if not over:
        return None
    keep = s.sometimes()
    x = s.choose(REDUCTIONS)(v.x, dim=over, keepdim=keep)
    return v.like(x) if keep else v.without(x, over)


ALONG = [
    lambda x, k: x.cumsum(k),
    lambda x, k: x.flip(k),
    lambda x, k: x.roll(1, k),
    lambda x, k: x.softmax(k),
    lambda x, k: F.log_softmax(x, k),
    lambda x, k: x.sort(k).values,
    lambda x, k: x.sort(dim=k, descending=True)[0],
    lambda x, k: torch.cat([x, x.sin()], k),
    lambda x, k: torch.cat(x.split(2, k)[::-1], k),
    lambda x, k: torch.stack(x.unbind(k), k).cos(),
    lambda x, k: x.narrow(k, 0, max(1, x.shape[k] - 1)),
    lambda x, k: x.index_select(k, torch.arange(x.shape[k]).flip(0)),
    lambda x, k: x.repeat_interleave(2, k),
    lambda x, k: x - x.mean(k, keepdim=True),
    lambda x, k: x.cummax(k).values,
    lambda x, k: x.movedim(k, -1).tril().movedim(-1, k) if x.dim() > 1 else x,
    lambda x, k: F.pad(x.movedim(k, -1), (1, 1)).movedim(-1, k),
    lambda x, k: x.unfold(k, min(2, x.shape[k]), 1).mean(-1),
    lambda x, k: F.normalize(x + 0.1, dim=k),
    lambda x, k: x.take_along_dim(x.detach().argsort(k), k),
    lambda x, k: x.gather(k, x.detach().argsort(k)),
    lambda x, k: torch.zeros_like(x).scatter(k, x.detach().argsort(k), x),
    lambda x, k: torch.zeros_like(x).scatter_add(k, torch.zeros_like(x, dtype=torch.long), x),
    lambda x, k: x.topk(max(1, x.shape[k] - 1), k).values,
    lambda x, k: torch.zeros_like(x).index_add(k, torch.arange(x.shape[k]), x),
    lambda x, k: x * torch.arange(x.shape[k], dtype=x.dtype).view([-1 if j == k else 1 for j in range(x.dim())]),
    lambda x, k: torch.fft.fft(x, dim=k).real,
    lambda x, k: x.diff(dim=k, prepend=x.narrow(k, 0, 1)),
    lambda x, k: torch.where(x == x.amax(k, keepdim=True), x, 0.5 * x),
    lambda x, k: F.one_hot(x.detach().argmax(k), x.shape[k]).movedim(-1, k) * x,
    lambda x, k: torch.logcumsumexp(x, k),
    lambda x, k: x.chunk(2, k)[0] if x.shape[k] > 1 else x,
    lambda x, k: torch.einsum("...k,...k->...k", x.movedim(k, -1), x.movedim(k, -1).sin()).movedim(-1, k),
]


@operation
def along(s: Scope, v: Value) -> Value | None:
    """One of many functions along a dimension without samples; over the triangle of the last two that may be wrong."""
    k = s.choose(v.free)
    return None if k is None else v.like(s.choose(ALONG)(v.x, k))


@operation
def strided(s: Scope, v: Value) -> Value:
    """A view of the same memory by strides."""
    x = v.x.contiguous()
    return v.like(x.as_strided(x.shape, x.stride()))


@operation
def products_of_itself(s: Scope, v: Value) -> Value | None:
    """Of every two places of one sample, as attention has them."""
    if not v.alone or len(v.dims) != 3:
        return None
    w = v.moved([v.at, *v.free])
    scores = s.choose([lambda x: x @ x.mT, lambda x: torch.bmm(x, x.transpose(1, 2)), lambda x: torch.cdist(x, x + 1)])
    return Value((scores(w.x) / 3).softmax(-1) @ w.x, w.dims)


@operation
def joined(s: Scope, v: Value) -> Value | None:
    """With what an earlier operation gave, where that lies alike."""
    kept = [w for w in s.model.saved if w.dims == v.dims]
    w = s.choose(kept)
    if w is None:
        return None
    k = s.choose(v.free)
    how = s.choose(["sum", "product", "cat", "stack", "where", "max", "dot"])
    if how == "cat" and k is not None:
        return v.like(torch.cat([v.x, w.x], k))
    if how == "stack":
        at = int(s.random.random() * (len(v.dims) + 1))
        return Value(torch.stack([v.x, w.x], at), (*v.dims[:at], (2,), *v.dims[at:]))
    if how == "dot" and k is not None:
        return v.like((v.x * w.x).sum(k, keepdim=True) + v.x)
    if how == "where":
        return v.like(torch.where(v.x > w.x, v.x, w.x))
    return v.like({"product": v.x * w.x.tanh(), "max": torch.maximum(v.x, w.x)}.get(how, v.x + w.x))


@operation
def joined_by_name(s: Scope, v: Value) -> Value | None:
    """With a second input of the model, (N, size), scaled to every place."""
    if not s.model.side or not v.alone:
        return None
    z = s.model.side[0]
    w = v.moved([v.at, *v.free])
    shape = (w.n, *[1] * (len(w.dims) - 1))
    return w.like(w.x * z.x.mean(1).view(shape) + z.x.amax(1).reshape(shape))


def _changed(x: Tensor, how: str, value: Tensor) -> Tensor:
    if how == "first places":
        x[..., 0] = value[..., 0]
    elif how == "added":
        x[..., -1:] += value[..., -1:]
    elif how == "copied":
        x.narrow(-1, 0, 1).copy_(value.narrow(-1, 0, 1))
    elif how == "masked":
        x[value > 0] = 0.3
    elif how == "filled":
        x.masked_fill_(value > 0, 0.1)
    elif how == "scaled":
        x.mul_(value.detach()).add_(1)
    elif how == "out of zeros":
        out = torch.zeros_like(x)
        out[..., :1] = x[..., :1]
        out.add_(value)
        return out
    elif how == "put":
        x.index_put_((torch.tensor([0]),) if x.dim() == 1 else (..., torch.tensor([0])), torch.tensor(0.5))
    elif how == "tanh":
        x.tanh_()
    return x


@operation
def in_place(s: Scope, v: Value) -> Value | None:
    if len(v.dims) - 1 not in v.free:
        return None
    how = s.choose(["first places", "added", "copied", "masked", "filled", "scaled", "out of zeros", "tanh"])
    return v.like(_changed(v.x.clone() if s.sometimes(0.8) else 1.0 * v.x, how, v.x.sin()))


@operation
def residual(s: Scope, v: Value) -> Value | None:
    inner = s.apply(s.choose(sorted(OPERATIONS)), v)
    if inner is None or inner.dims != v.dims:
        return inner
    return v.like(v.x + inner.x)


@operation
def checkpointed(s: Scope, v: Value) -> Value | None:
    """Another operation, run again in the backward pass."""
    name = s.choose(sorted(set(OPERATIONS) - {"checkpointed", "residual", "joined", "joined_by_name", "without_grad"}))
    state, dims, model = s.random.getstate(), [], s.model

    def run(x: Tensor) -> Tensor | None:
        again = Scope(model, s.step)
        again.random.setstate(state)
        inner = again.apply(name, Value(x, v.dims))
        dims[:] = [None if inner is None else inner.dims]
        return x if inner is None else inner.x

    if s.model.building or not v.x.requires_grad:
        out = run(v.x)
    else:
        out = checkpoint(run, v.x, use_reentrant=False)
    return None if dims[0] is None else Value(out, dims[0])


@operation
def without_grad(s: Scope, v: Value) -> Value | None:
    """Something of the samples that nothing is learned through."""
    name = s.choose(sorted(set(OPERATIONS) - {"checkpointed"}))
    with torch.no_grad():
        inner = s.apply(name, v)
    return v.like(v.x * inner.x.tanh() + inner.x) if inner is not None and inner.dims == v.dims else None


@operation
def dropped(s: Scope, v: Value) -> Value:
    return v.like(F.dropout(v.x, 0.3, training=True))
