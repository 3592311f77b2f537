"""Operations that read parameters: layers, products, broadcasting, lookups, writes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .model import Scope, Value, operation

LETTERS = "abcdefgh"


def last_free(s: Scope, v: Value) -> Value | None:
    """The value with a dimension without samples last."""
    k = s.choose(v.free)
    return None if k is None else v.moved([*[j for j in range(len(v.dims)) if j != k], k])


def sample_first(s: Scope, v: Value, ndim: int) -> Value | None:
    """The value as (N, …) of so many dimensions."""
    if not v.alone or len(v.dims) != ndim:
        return None
    order = v.free
    s.random.shuffle(order)
    return v.moved([v.at, *order])


def a_linear(i: int, o: int, kind: str) -> nn.Module:
    plain = nn.Linear(i, o, bias=kind != "no bias")
    if kind == "weight norm":
        return parametrizations.weight_norm(plain)
    if kind == "spectral norm":
        return parametrizations.spectral_norm(plain).eval()
    if kind == "orthogonal" and i > 1:
        return parametrizations.orthogonal(plain, "weight")
    return nn.utils.weight_norm(plain) if kind == "old weight norm" else plain


LINEAR = ["plain", "plain", "no bias", "weight norm", "spectral norm", "orthogonal", "old weight norm"]


@operation
def linear(s: Scope, v: Value) -> Value | None:
    v = last_free(s, v)
    if v is None:
        return None
    i, o = v.x.shape[-1], s.choose([2, 3, 4])
    kind = s.choose(
        ["module", "module", "functional", "matmul", "left", "vector", "dot", "tensordot", "no bias", "twice"]
    )
    grown = Value(v.x, (*v.dims[:-1], (o,)))
    if kind == "module":
        made = s.choose(LINEAR)
        return grown._replace(x=s.part(lambda: a_linear(i, o, made))(v.x))
    if kind == "functional":
        return grown._replace(x=F.linear(v.x, s.own(o, i), s.own(o)))
    if kind == "no bias":
        return grown._replace(x=F.linear(input=v.x, weight=s.own(o, i)))
    if kind == "tensordot":
        return grown._replace(x=torch.tensordot(v.x, s.own(i, o), dims=([v.x.dim() - 1], [0])))
    if kind == "left" and v.x.dim() > 1:
        return grown._replace(x=(s.own(o, i) @ v.x.mT).mT)
    if kind == "vector":
        return v.without(v.x @ s.own(i), [len(v.dims) - 1])
    if kind == "dot" and v.x.dim() > 1:
        return v.without(s.own(i) @ v.x.mT, [len(v.dims) - 1])
    if kind == "twice":
        square = s.own(i, i)
        return v.like(torch.tanh(v.x @ square) @ square.mT)
    return grown._replace(x=s.choose([torch.matmul, lambda a, b: a @ b])(v.x, s.own(i, o)))


@operation
def einsum(s: Scope, v: Value) -> Value | None:
    """One dimension contracted with a parameter that may have others, that of the samples too."""
    k = s.choose(v.free)
    if k is None or len(v.dims) > 5:
        return None
    letters = LETTERS[: len(v.dims)]
    o = s.choose([2, 3])
    more = [c for j, c in enumerate(letters) if j != k and s.sometimes(0.25)]
    weight = [*more, letters[k], "z"]
    s.random.shuffle(weight)
    kept = [c for c in letters if c != letters[k]] + ["z"]
    s.random.shuffle(kept)
    sizes = {**dict(zip(letters, v.x.shape, strict=True)), "z": o}
    dims = {**dict(zip(letters, v.dims, strict=True)), "z": (o,)}
    p = s.own(*(sizes[c] for c in weight))
    of_x, of_p, out = letters, "".join(weight), "".join(kept)
    if s.sometimes():
        return Value(torch.einsum(f"{of_x},{of_p}->{out}", v.x, p), tuple(dims[c] for c in out))
    return Value(torch.einsum(f"{of_p},{of_x}->{out}", p, v.x), tuple(dims[c] for c in out))


@operation
def matrices(s: Scope, v: Value) -> Value | None:
    """mm, addmm, bmm, baddbmm, matmul with a matrix for each of a dimension."""
    v = last_free(s, v)
    if v is None or len(v.dims) not in (2, 3):
        return None
    i, o, b = v.x.shape[-1], s.choose([2, 3, 4]), v.x.shape[0]
    grown = Value(v.x, (*v.dims[:-1], (o,)))
    if len(v.dims) == 2:
        kind = s.choose(["mm", "addmm", "addmm rows", "transposed", "scaled", "method"])
        if kind == "transposed":
            return Value(torch.addmm(s.own(o, 1), s.own(o, i), v.x.T), ((o,), v.dims[0]))
        x = {
            "mm": lambda: torch.mm(v.x, s.own(i, o)),
            "addmm": lambda: torch.addmm(s.own(o), v.x, s.own(i, o)),
            "addmm rows": lambda: torch.addmm(s.own(b, o), v.x, s.own(i, o)),
            "scaled": lambda: torch.addmm(s.own(1, o), v.x, s.own(i, o), beta=0.5, alpha=2.0),
            "method": lambda: s.own(1, 1).addmm(v.x, s.own(i, o)),
        }[kind]()
        return grown._replace(x=x)
    kind = s.choose(["bmm", "bmm expanded", "baddbmm", "matmul", "left", "add of parameters"])
    m = v.x.shape[1]
    x = {
        "bmm": lambda: torch.bmm(v.x, s.own(b, i, o)),
        "bmm expanded": lambda: torch.bmm(v.x, s.own(i, o).expand(b, i, o)),
        "baddbmm": lambda: torch.baddbmm(s.own(b, 1, o), v.x, s.own(1, i, o).expand(b, i, o), alpha=0.5),
        "matmul": lambda: v.x @ s.own(s.choose([1, b]), i, o),
        "left": lambda: (s.own(b, o, i) @ v.x.mT).mT,
        "add of parameters": lambda: torch.baddbmm(s.own(1, m, 1), v.x, s.own(b, i, o)),
    }[kind]()
    return grown._replace(x=x)


@operation
def broadcast(s: Scope, v: Value) -> Value:
    """A parameter of some of the dimensions, joined entry by entry."""
    shape = [size if s.sometimes(0.25 if "N" in d else 0.6) else 1 for size, d in zip(v.x.shape, v.dims, strict=True)]
    if s.sometimes():
        while shape and shape[0] == 1:
            shape.pop(0)
    p = s.own(*shape)
    how = s.choose(sorted(BROADCAST))
    return v.like(BROADCAST[how](v.x, p))


def _changed(x: Tensor, change: str, p: Tensor) -> Tensor:
    x = x.clone()
    getattr(x, change)(p)
    return x


BROADCAST = {
    "add": lambda x, p: x + p,
    "add_": lambda x, p: _changed(x, "add_", p),
    "mul_": lambda x, p: _changed(x, "mul_", p),
    "from the left": lambda x, p: p + x,
    "mul": lambda x, p: x * p,
    "left mul": lambda x, p: p * x,
    "sub": lambda x, p: x - p,
    "rsub": lambda x, p: p - x,
    "alpha": lambda x, p: torch.add(x, p, alpha=0.5),
    "div": lambda x, p: x / (1 + p.abs()),
    "rdiv": lambda x, p: p / (1 + x.abs()),
    "maximum": lambda x, p: torch.maximum(x, p),
    "where": lambda x, p: torch.where(x > 0, x, p),
    "where of parameters": lambda x, p: torch.where(p > 0, x * p, x),
    "lerp": lambda x, p: torch.lerp(x, x.sin(), p),
    "lerp to": lambda x, p: torch.lerp(p, x, 0.3),
    "addcmul": lambda x, p: torch.addcmul(x, x.sin(), p, value=0.3),
    "addcdiv": lambda x, p: torch.addcdiv(p, x, 1 + x * x),
    "pow": lambda x, p: (1 + x.abs().clamp(max=2)) ** p.tanh(),
    "atan2": lambda x, p: torch.atan2(x, 1 + p.abs()),
    "hypot": lambda x, p: torch.hypot(x, p),
    "logaddexp": lambda x, p: torch.logaddexp(p, x),
    "gate": lambda x, p: x * torch.sigmoid(p * x),
    "expanded": lambda x, p: x * p.expand_as(x),
    "repeated": lambda x, p: x + p * torch.ones_like(x),
    "broadcast_tensors": lambda x, p: torch.mul(*torch.broadcast_tensors(x, p)),
    "heaviside": lambda x, p: x * (x.detach() > p.detach()) + p,
    "dot": lambda x, p: x + (x * p).sum(-1, keepdim=True) if x.dim() > 1 else x * p,
    "stacked": lambda x, p: torch.stack([x, p.expand_as(x)]).amax(0),
    "soft": lambda x, p: F.threshold(x, 0.1, 0.0) * F.softplus(p),
    "detached": lambda x, p: x * p.detach() + p,
    "twice": lambda x, p: (x + p) * p,
    "in float32": lambda x, p: (x.float() * p.float()).double(),
}


@operation
def a_scalar(s: Scope, v: Value) -> Value:
    p = s.own()
    return v.like(
        s.choose([lambda: v.x * p, lambda: p + v.x, lambda: v.x * p.exp(), lambda: torch.lerp(v.x, v.x.cos(), p)])()
    )


@operation
def token(s: Scope, v: Value) -> Value | None:
    """Parameters as one more place of a dimension, as class tokens and prefixes are."""
    k = s.choose(v.free)
    if k is None:
        return None
    shape = [1 if "N" in d or s.sometimes(0.3) else size for size, d in zip(v.x.shape, v.dims, strict=True)]
    shape[k] = 1
    whole = [1 if j == k else size for j, size in enumerate(v.x.shape)]
    p = s.own(*shape).expand(whole)
    parts = [p, v.x] if s.sometimes() else [v.x, p]
    return v.like(torch.cat(parts, k))


@operation
def positions(s: Scope, v: Value) -> Value | None:
    """Rows of a table at constant places, added to every sample."""
    v = last_free(s, v)
    if v is None or len(v.dims) < 2:
        return None
    t, d = v.x.shape[-2:]
    kind = s.choose(["module", "index", "slice", "functional", "shifted"])
    if kind == "module":
        return v.like(v.x + s.part(lambda: nn.Embedding(t, d))(torch.arange(t)))
    table = s.own(t + 1, d)
    rows = {
        "index": lambda: table[torch.arange(t)],
        "slice": lambda: table[:t],
        "functional": lambda: F.embedding(torch.arange(t).flip(0), table),
        "shifted": lambda: table.index_select(0, torch.arange(t) + 1),
    }[kind]()
    return v.like(s.choose([torch.add, torch.mul])(v.x, rows))


@operation
def looked_up(s: Scope, v: Value) -> Value | None:
    """A table read where the samples say."""
    v = last_free(s, v)
    if v is None:
        return None
    d = v.x.shape[-1]
    rows = s.choose([2, 3, v.n])
    ids = (3 * v.x[..., 0].detach().abs()).long() % rows
    kind = s.choose(["module", "brackets", "index_select", "one_hot", "gather", "take", "padding", "bag", "where"])
    if kind == "module":
        return v.like(v.x + s.part(lambda: nn.Embedding(rows, d))(ids))
    if kind == "padding":
        return v.like(v.x * s.part(lambda: nn.Embedding(rows, d, padding_idx=rows - 1))(ids))
    if kind == "bag":
        ids = (3 * v.x.detach().abs()).long() % rows
        flat = F.embedding_bag(ids.reshape(-1, d), s.own(rows, 3), mode=s.choose(["sum", "mean", "max"]))
        return Value(flat.view(*v.x.shape[:-1], 3), (*v.dims[:-1], (3,)))
    table = s.own(rows, d)
    x = {
        "brackets": lambda: table[ids],
        "index_select": lambda: table.index_select(0, ids.flatten()).view_as(v.x),
        "one_hot": lambda: F.one_hot(ids, rows).to(table.dtype) @ table,
        "gather": lambda: table.gather(0, ids.reshape(-1, 1).expand(-1, d)).view_as(v.x),
        "take": lambda: table.take(ids.unsqueeze(-1) * d + torch.arange(d)),
        "where": lambda: torch.where((ids == 0).unsqueeze(-1), table[0], table[-1]),
    }[kind]()
    return v.like(v.x + x)


@operation
def written(s: Scope, v: Value) -> Value | None:
    """Parameters written into the samples, or samples into what parameters are."""
    v = last_free(s, v)
    if v is None or len(v.dims) < 2:
        return None
    x, d = v.x.clone(), v.x.shape[-1]
    kind = s.choose(
        ["first", "row", "mask", "augmented", "index_add", "scatter_add", "masked_scatter", "index_copy", "buffer"]
    )
    if kind == "first":
        x[..., 0] = s.own()
    elif kind == "row":
        x[..., -1:] = s.own(x.shape[-2], 1)
    elif kind == "mask":
        x = torch.where(x[..., :1].detach() > 0, s.own(d), x)
    elif kind == "augmented":
        x[..., 0] += s.own(x.shape[-2])
    elif kind == "index_add":
        if x.dim() - 2 not in v.free:
            return None
        index = (3 * x[..., 0].detach().abs()).long().flatten() % d
        x = x + F.one_hot(index, d).to(x.dtype).view_as(x) * s.own(d)
    elif kind == "scatter_add":
        ids = (3 * x.detach().abs()).long() % d
        x = x.scatter_add(-1, ids, s.own(d).expand_as(x))
    elif kind == "masked_scatter":
        x = x.masked_fill(x > 0.3, 0.0) + s.own(d) * (x > 0.3)
    elif kind == "index_copy":
        x = x.index_copy(x.dim() - 1, torch.tensor([0]), s.own(1).expand(*x.shape[:-1], 1))
    elif kind == "buffer":
        out = torch.zeros_like(x)
        out[..., 1:] = x[..., :-1]
        out[..., :1] = s.own(1)
        x = out
    return v.like(x)


@operation
def normed(s: Scope, v: Value) -> Value | None:
    v = last_free(s, v)
    if v is None:
        return None
    d, kind = v.x.shape[-1], s.choose(["layer", "rms", "functional", "by hand", "rms by hand", "layer of two"])
    if kind == "layer" or d < 2:
        return v.like(s.part(lambda: nn.LayerNorm(d))(v.x))
    if kind == "rms":
        return v.like(s.part(lambda: nn.RMSNorm(d, eps=1e-3))(v.x))
    if kind == "by hand":
        centred = v.x - v.x.mean(-1, keepdim=True)
        return v.like(centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * s.own(d) + s.own(d))
    if kind == "rms by hand":
        return v.like(s.own(d) * (v.x * (v.x.pow(2).mean(-1, keepdim=True) + 0.1).rsqrt()).to(v.x.dtype))
    if kind == "layer of two" and len(v.dims) > 2 and len(v.dims) - 2 in v.free:
        return v.like(F.layer_norm(v.x, v.x.shape[-2:], s.own(*v.x.shape[-2:]), s.own(*v.x.shape[-2:])))
    return v.like(F.layer_norm(v.x, (d,), s.own(d), s.own(d), 1e-2))


@operation
def channel_norm(s: Scope, v: Value) -> Value | None:
    v = sample_first(s, v, s.choose([2, 3, 4]))
    if v is None:
        return None
    c, kind = v.x.shape[1], s.choose(["group", "instance", "batch in eval", "functional", "prelu", "one group"])
    if kind == "batch in eval":
        layer = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[v.x.dim()]
        return v.like(s.part(lambda: layer(c).eval())(v.x))
    if kind == "prelu":
        return v.like(s.part(lambda: nn.PReLU(c))(v.x))
    if kind == "instance" and v.x.dim() > 2 and v.x[0, 0].numel() > 1:
        layer = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d}[v.x.dim()]
        return v.like(s.part(lambda: layer(c, affine=True))(v.x))
    if kind == "functional":
        return v.like(F.group_norm(v.x, 1, s.own(c), s.own(c), 1e-2))
    if c * v.x.shape[2:].numel() < 2:
        return None
    return v.like(s.part(lambda: nn.GroupNorm(c if kind == "group" and v.x.dim() > 2 else 1, c, eps=1e-2))(v.x))
