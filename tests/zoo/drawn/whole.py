"""Operations on the dimension of the samples that leave each to itself: copies, halves, rows chosen, loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .model import Scope, Value, operation
from .uses import last_free


def _refolded(v: Value, x: torch.Tensor, group: tuple[Any, ...]) -> Value:
    return Value(x, (*v.dims[: v.at], group, *v.dims[v.at + 1 :]))


@operation
def doubled(s: Scope, v: Value) -> Value | None:
    """Every sample twice, as augmentations are: one half after the other, or side by side."""
    k, group = v.at, v.dims[v.at]
    if s.sometimes():
        x = s.choose(
            [lambda: torch.cat([v.x, v.x.sin()], k), lambda: torch.stack([v.x, v.x.cos()], k).flatten(k, k + 1)]
        )()
        return _refolded(v, x, (2, *group))
    return _refolded(v, v.x.repeat_interleave(2, k), (*group, 2))


@operation
def halved(s: Scope, v: Value) -> Value | None:
    """Two halves of a doubled batch, joined."""
    k, group = v.at, v.dims[v.at]
    if group[0] != 2 or len(group) < 2:
        return None
    a, b = s.choose(
        [lambda: v.x.chunk(2, k), lambda: v.x.split(v.x.shape[k] // 2, k), lambda: v.x.tensor_split(2, k)]
    )()
    return _refolded(v, s.choose([a + b, a * b.sin(), torch.maximum(a, b), a]), group[1:])


@operation
def one_by_one(s: Scope, v: Value) -> Value | None:
    """A loop over samples."""
    if not v.alone or len(v.dims) < 2:
        return None
    w = v.moved([v.at, *v.free])
    d = w.x.shape[-1]
    kind = s.choose(["layer", "parameter", "norm", "written", "sorted"])
    layer, p = s.part(lambda: nn.Linear(d, d)), s.own(d)
    if kind == "written":
        out = torch.zeros_like(w.x)
        for i in range(w.n):
            out[i] = layer(w.x[i])
        return w.like(out)
    f = {
        "layer": layer,
        "parameter": lambda x: x * p + x.mean(),
        "norm": lambda x: p * x / (1 + x.norm()),
        "sorted": lambda x: layer(x.sort(-1).values),
    }[kind]
    rows = s.choose([lambda: list(w.x), lambda: w.x.unbind(0), lambda: [w.x[i] for i in range(w.n)]])()
    return w.like(torch.stack([f(row) for row in rows]))


@operation
def chosen(s: Scope, v: Value) -> Value | None:
    """Rows that the samples choose, computed apart, and put back."""
    v = last_free(s, v)
    if v is None or len(v.dims) < 2:
        return None
    d = v.x.shape[-1]
    layer, mask = s.part(lambda: nn.Linear(d, d)), v.x.detach()[..., 0] > 0
    kind = s.choose(["mask", "nonzero", "where", "out"])
    if kind == "where":
        return v.like(torch.where(mask.unsqueeze(-1), layer(v.x), v.x))
    if kind == "out":
        out = torch.zeros_like(v.x)
        out[mask] = layer(v.x[mask])
        return v.like(out + v.x)
    if kind == "mask":
        x = v.x.clone()
        x[mask] = torch.tanh(layer(x[mask]))
        return v.like(x)
    places = mask.nonzero(as_tuple=True)
    return v.like(v.x.index_put(places, layer(v.x[places]), accumulate=s.sometimes()))


@operation
def ordered(s: Scope, v: Value) -> Value | None:
    """In another order, and back."""
    k = v.at
    order = torch.randperm(v.x.shape[k], generator=torch.Generator().manual_seed(s.step.seed))
    d = v.x.shape[-1]
    x = v.x.index_select(k, order)
    x = torch.tanh(x * s.own(d)) if len(v.dims) - 1 != k else torch.tanh(x)
    return v.like(x.index_select(k, order.argsort()))


@operation
def in_views(s: Scope, v: Value) -> Value | None:
    """Writes through views of what is there."""
    v = last_free(s, v)
    if v is None:
        return None
    x, d = v.x.clone(), v.x.shape[-1]
    kind = s.choose(["half", "select", "transposed", "flat", "diagonal"])
    p = s.own()
    if kind == "half":
        x[..., : d // 2 + 1].mul_(p)
    elif kind == "select":
        x.select(-1, 0).add_(p)
    elif kind == "transposed":
        x.transpose(0, -1)[0].mul_(p)
    elif kind == "flat":
        x.view(-1)[::d].add_(p)
    else:
        x.unsqueeze(-1).mul_(s.own(1, 1))
    return v.like(x * x.sin())


@operation
def weighed_by_place(s: Scope, v: Value) -> Value | None:
    """With an input of the model that is no sample's: a number a place, as long as it may be."""
    z = s.model.places
    ks = [k for k in v.free if z is not None and v.dims[k] == (len(z),) and len(z) == v.x.shape[k]]
    k = s.choose(ks)
    if k is None:
        return None
    shape = [-1 if j == k else 1 for j in range(len(v.dims))]
    return v.like(v.x * z.view(shape) + s.own() * z.view(shape))
