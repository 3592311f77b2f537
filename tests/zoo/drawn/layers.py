"""Operations that read parameters: convolutions, attention, recurrences, layers that are used again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .model import Scope, Value, operation
from .uses import last_free, sample_first


@operation
def convolved(s: Scope, v: Value) -> Value | None:
    v = sample_first(s, v, s.choose([3, 4]))
    if v is None:
        return None
    spatial, c = v.x.dim() - 2, v.x.shape[1]
    groups = c if s.sometimes(0.3) else 1
    transposed, o = s.sometimes(0.3), c * s.choose([1, 2]) if groups > 1 else s.choose([2, 3])
    size = min(3, *v.x.shape[2:])
    settings = {
        "groups": groups,
        "padding": 1 if size > 1 else 0,
        "stride": s.choose([1, 2]),
        "dilation": s.choose([1, 1, 2]),
        "bias": s.sometimes(),
    }
    if not transposed and any(x + 2 * settings["padding"] <= settings["dilation"] * (size - 1) for x in v.x.shape[2:]):
        settings["dilation"] = 1
    kinds = [[nn.Conv1d, nn.Conv2d], [nn.ConvTranspose1d, nn.ConvTranspose2d]][transposed]
    if transposed and settings["stride"] == 1 and size == 1:
        settings["padding"] = 0
    mode = "circular" if not transposed and settings["padding"] and s.sometimes(0.2) else "zeros"
    try:
        x = s.part(lambda: kinds[spatial - 1](c, o, size, padding_mode=mode, **settings))(v.x)
    except RuntimeError:  # torch finds the output too small
        return None
    return v.like(x)


@operation
def attended(s: Scope, v: Value) -> Value | None:
    v = sample_first(s, v, 3)
    if v is None:
        return None
    t, d = v.x.shape[1:]
    kind = s.choose(["torch", "by hand", "biased", "module", "causal", "a query of its own", "mask of its own"])
    if kind == "module":
        heads = 2 if d % 2 == 0 else 1
        batch_first = s.sometimes()
        layer = s.part(lambda: nn.MultiheadAttention(d, heads, batch_first=batch_first))
        x = v.x if batch_first else v.x.transpose(0, 1)
        out = layer(x, x, x, need_weights=s.sometimes())[0]
        return v.like(out if batch_first else out.transpose(0, 1))
    q, k, w = F.linear(v.x, s.own(3 * d, d)).chunk(3, -1)
    if kind == "a query of its own":
        q = s.own(1, 2, d).expand(v.n, 2, d)
    if kind == "biased":
        return v.like(F.scaled_dot_product_attention(q, k, w, attn_mask=s.own(t, t)))
    if kind == "mask of its own":
        return v.like(F.scaled_dot_product_attention(q, k, w, attn_mask=q @ k.mT + s.own(t)))
    if kind == "by hand":
        return v.like((q @ k.transpose(-2, -1) / d**0.5 + s.own(t, t)).softmax(-1) @ w)
    return v.like(F.scaled_dot_product_attention(q, k, w, is_causal=kind == "causal"))


@operation
def recurrent(s: Scope, v: Value) -> Value | None:
    v = sample_first(s, v, 3)
    if v is None:
        return None
    d, kind, wide = v.x.shape[2], s.choose([nn.GRU, nn.LSTM, nn.RNN]), s.sometimes(0.3)
    first, layers = s.sometimes(), s.choose([1, 2])
    layer = s.part(lambda: kind(d, 2, num_layers=layers, batch_first=first, bidirectional=wide))
    out, state = layer(v.x if first else v.x.transpose(0, 1))
    if s.sometimes(0.3):
        last = state[0] if isinstance(state, tuple) else state
        return Value(last[-1], (("N",), (2,)))
    return v.like(out if first else out.transpose(0, 1))


@operation
def by_hand_recurrent(s: Scope, v: Value) -> Value | None:
    """A cell that is called place by place."""
    v = sample_first(s, v, 3)
    if v is None:
        return None
    d, kind = v.x.shape[2], s.choose(["linear", "gru", "rnn", "learned start"])
    state: Any = torch.zeros(v.n, 2)
    if kind == "learned start":
        state = s.own(2).expand(v.n, 2)
    cell = s.part(lambda: {"gru": nn.GRUCell, "rnn": nn.RNNCell}.get(kind, _Cell)(d, 2))
    states = []
    for place in v.x.unbind(1):
        state = cell(place, state)
        states.append(state)
    return Value(torch.stack(states, 1), (*v.dims[:2], (2,)))


class _Cell(nn.Module):
    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.weight, self.again = nn.Parameter(torch.randn(h, d)), nn.Linear(h, h)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.t() + self.again(h))


@operation
def bilinear(s: Scope, v: Value) -> Value | None:
    v = last_free(s, v)
    if v is None:
        return None
    d = v.x.shape[-1]
    x = s.choose(
        [
            lambda: F.bilinear(v.x, v.x.sin(), s.own(2, d, d), s.own(2)),
            lambda: s.part(lambda: nn.Bilinear(d, d, 2))(v.x, v.x.cos()),
            lambda: torch.einsum("...a,oab,...b->...o", v.x, s.own(2, d, d), v.x),
            lambda: torch.stack([((v.x @ s.own(d, d)) * v.x).sum(-1)] * 2, -1),
        ]
    )()
    return Value(x, (*v.dims[:-1], (2,)))


@operation
def compared(s: Scope, v: Value) -> Value | None:
    """With rows of parameters: distances, cosines, kernels."""
    v = last_free(s, v)
    if v is None or len(v.dims) < 2:
        return None
    d, rows = v.x.shape[-1], s.choose([2, 3, v.n])
    centres = s.own(rows, d)
    x = s.choose(
        [
            lambda: torch.cdist(v.x, centres),
            lambda: F.cosine_similarity(v.x.unsqueeze(-2), centres, dim=-1),
            lambda: (v.x.unsqueeze(-2) - centres).square().mean(-1).neg().exp(),
            lambda: F.normalize(v.x + 0.1, dim=-1) @ F.normalize(centres, dim=-1).T,
            lambda: torch.inner(v.x, centres),
            lambda: (v.x[..., None, :] * centres).sum(-1),
            lambda: F.pairwise_distance(v.x.unsqueeze(-2), centres),
        ]
    )()
    return Value(x, (*v.dims[:-1], (rows,)))


@operation
def outer(s: Scope, v: Value) -> Value:
    p = s.own(2)
    return Value(
        s.choose(
            [
                lambda: v.x.unsqueeze(-1) * p,
                lambda: torch.multiply(v.x[..., None], p[None]),
                lambda: torch.einsum("...,z->...z", v.x, p),
                lambda: torch.outer(v.x.reshape(-1), p).view(*v.x.shape, 2),
                lambda: torch.kron(v.x.reshape(-1), p).view(*v.x.shape, 2),
            ]
        )(),
        (*v.dims, (2,)),
    )


@operation
def again(s: Scope, v: Value) -> Value | None:
    """One layer in two places."""
    v = last_free(s, v)
    if v is None:
        return None
    d = v.x.shape[-1]
    layer = s.part(lambda: nn.Linear(d, d))
    how = s.choose(["chain", "sum", "transposed", "pieces", "function"])
    if how == "chain":
        return v.like(layer(torch.tanh(layer(v.x))))
    if how == "sum":
        return v.like(layer(v.x) + layer(v.x.sin()).tanh())
    if how == "transposed":
        return v.like(F.linear(torch.tanh(layer(v.x)), layer.weight.t()))
    if how == "pieces":
        pieces = v.x.unbind(v.free[0]) if v.free[0] != len(v.dims) - 1 else [v.x]
        return v.like(torch.stack([layer(x) for x in pieces], v.free[0]) if len(pieces) > 1 else layer(v.x))
    return v.like(torch.func.functional_call(layer, {"weight": layer.weight * 0.5}, (v.x,)))


@operation
def experts(s: Scope, v: Value) -> Value | None:
    """Layers chosen or weighed by what the samples hold."""
    v = last_free(s, v)
    if v is None:
        return None
    d = v.x.shape[-1]
    weights = (v.x @ s.own(d, 3)).softmax(-1)
    kind = s.choose(["soft", "einsum", "top", "rows"])
    banks = s.own(3, d, d)
    if kind == "soft":
        outs = torch.stack([v.x @ banks[e] for e in range(3)], -1)
        return v.like((outs * weights.unsqueeze(-2)).sum(-1))
    if kind == "einsum":
        return v.like(torch.einsum("...d,edo,...e->...o", v.x, banks, weights))
    if kind == "top":
        best = weights.argmax(-1)
        return v.like((v.x.unsqueeze(-2) @ banks[best]).squeeze(-2) * weights.amax(-1, keepdim=True))
    out = torch.zeros_like(v.x)
    for e in range(3):
        here = weights.argmax(-1) == e
        out[here] = v.x[here] @ banks[e]
    return v.like(out)


@operation
def of_a_buffer(s: Scope, v: Value) -> Value:
    """Constants of the model, a row for each sample perhaps."""
    shape = [size if s.sometimes() else 1 for size in v.x.shape]
    return v.like(v.x * s.buffer(*shape) + s.buffer(*shape).abs())


@operation
def hyper(s: Scope, v: Value) -> Value | None:
    """A weight for every sample, computed from it."""
    v = sample_first(s, v, s.choose([2, 3]))
    if v is None:
        return None
    d = v.x.shape[-1]
    whole = v.x.reshape(v.n, -1).tanh()
    weights = F.linear(whole, s.own(2 * d, whole.shape[1])).view(v.n, d, 2)
    x = v.x if v.x.dim() == 3 else v.x.unsqueeze(1)
    out = torch.bmm(x, weights)
    return Value(out if v.x.dim() == 3 else out.squeeze(1), (*v.dims[:-1], (2,)))
