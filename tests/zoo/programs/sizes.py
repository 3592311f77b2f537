"""Tensors without samples whose size can be that of the batch, and samples folded into larger dimensions.

Every program here is a function of a length T: with T ≠ N and with T = N it has to get the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, Net, any_loss, class_loss, classes, numbers, parameter, tokens
from tests.zoo.verdict import Program

Sized = Callable[[int], Program]


def sequences(compute, measured=True, width=8, **parts) -> Sized:
    """Inputs of shape (N, T, width); `parts` are functions of T."""

    def of(t: int) -> Program:
        return Program(
            lambda: Net(compute, **{name: part(t) for name, part in parts.items()}),
            (numbers(N, t, width),),
            any_loss,
            measured=measured,
        )

    return of


def language(compute, measured=True, **parts) -> Sized:
    """Token ids of shape (N, T), 3 classes."""

    def of(t: int) -> Program:
        built = {"emb": lambda t: nn.Embedding(11, 8), "head": lambda t: nn.Linear(8, 3), **parts}
        return Program(
            lambda: Net(compute, **{name: part(t) for name, part in built.items()}),
            (tokens(N, t), classes()),
            class_loss,
            measured=measured,
        )

    return of


def linear(inputs=8, outputs=8, **options):
    return lambda t: nn.Linear(inputs, outputs, **options)


def attend(m, x, bias):
    q, k, v = m.qkv(x).chunk(3, -1)
    return ((q @ k.transpose(1, 2) + bias).softmax(-1) @ v).mean(1)


def distances(t):
    return torch.arange(t)[:, None] - torch.arange(t) + t


def alibi(m, x):
    return attend(m, x, m.slope * -distances(x.shape[1]).abs())


POSITIONS: dict[str, Sized] = {
    "relative bias looked up (T5)": sequences(
        lambda m, x: attend(m, x, m.relative(distances(x.shape[1])).squeeze(-1)),
        relative=lambda t: nn.Embedding(2 * t + 1, 1),
        qkv=linear(8, 24),
    ),
    "relative bias as a parameter read by index (Swin)": sequences(
        lambda m, x: attend(m, x, m.relative[distances(x.shape[1])]),
        relative=lambda t: parameter(2 * t + 1),
        qkv=linear(8, 24),
    ),
    "learned T x T bias": sequences(
        lambda m, x: attend(m, x, m.bias), bias=lambda t: parameter(t, t), qkv=linear(8, 24)
    ),
    "constant T x T mask": sequences(
        lambda m, x: attend(m, x, torch.full((x.shape[1],) * 2, -9.0).triu(1)), qkv=linear(8, 24)
    ),
    "learned slope of distances": sequences(alibi, slope=lambda t: parameter(1), qkv=linear(8, 24)),
    "queries times learned relative keys (Shaw)": sequences(
        lambda m, x: attend(m, x, torch.einsum("ntd,tsd->nts", x, m.relative(distances(x.shape[1])))),
        relative=lambda t: nn.Embedding(2 * t + 1, 8),
        qkv=linear(8, 24),
    ),
    "(T,) position ids": language(
        lambda m, ids: m.head(torch.tanh(m.emb(ids) + m.pos(torch.arange(ids.shape[1])))).mean(1),
        pos=lambda t: nn.Embedding(t + 2, 8),
    ),
    "(T,) position ids, unsqueezed": language(
        lambda m, ids: m.head(torch.tanh(m.emb(ids) + m.pos(torch.arange(ids.shape[1])).unsqueeze(0))).mean(1),
        pos=lambda t: nn.Embedding(t + 2, 8),
    ),
    "(T,) position ids, expanded": language(
        lambda m, ids: m.head(
            torch.tanh(m.emb(ids) * m.pos(torch.arange(ids.shape[1])).unsqueeze(0).expand(len(ids), -1, -1))
        ).mean(1),
        pos=lambda t: nn.Embedding(t + 2, 8),
    ),
    "(T,) position ids, repeated": language(
        lambda m, ids: m.head(
            torch.tanh(m.emb(ids) + m.pos(torch.arange(ids.shape[1])).unsqueeze(0).repeat(len(ids), 1, 1))
        ).mean(1),
        pos=lambda t: nn.Embedding(t + 2, 8),
    ),
    "(1, T) position ids (GPT-2)": language(
        lambda m, ids: m.head(torch.tanh(m.emb(ids) + m.pos(torch.arange(ids.shape[1])[None]))).mean(1),
        pos=lambda t: nn.Embedding(t + 2, 8),
    ),
    "(N, T) position ids made of zeros_like": language(
        lambda m, ids: m.head(torch.tanh(m.emb(ids) + m.pos(torch.zeros_like(ids) + torch.arange(ids.shape[1])))).mean(
            1
        ),
        pos=lambda t: nn.Embedding(t + 2, 8),
    ),
    "position ids counted from a mask": language(
        lambda m, ids: m.head(torch.tanh(m.emb(ids) + m.pos((ids != 1).long().cumsum(1)))).mean(1),
        pos=lambda t: nn.Embedding(t + 2, 8),
    ),
    "a table of positions cut to length": sequences(
        lambda m, x: m.last(torch.tanh(x + m.table[: x.shape[1]])).mean(1),
        table=lambda t: parameter(t + 2, 8),
        last=linear(8, 3),
    ),
    "positions through a layer of their own": sequences(
        lambda m, x: m.last(torch.tanh(x + m.layer(torch.eye(8)[torch.arange(x.shape[1]) % 8]))).mean(1),
        layer=linear(),
        last=linear(8, 3),
    ),
    "positions through a norm": sequences(
        lambda m, x: m.last(torch.tanh(x + m.norm(m.table))).mean(1),
        table=lambda t: parameter(t, 8),
        norm=lambda t: nn.LayerNorm(8),
        last=linear(8, 3),
    ),
    "rotary tables": sequences(
        lambda m, x: m.last(turned(m.first(x), torch.arange(x.shape[1])[:, None] * 0.1 ** torch.arange(4))).mean(1),
        first=linear(),
        last=linear(8, 3),
    ),
    "rotary tables of learned frequencies": sequences(
        lambda m, x: m.last(turned(m.first(x), torch.outer(torch.arange(x.shape[1]).to(x), m.frequencies))).mean(1),
        first=linear(),
        last=linear(8, 3),
        frequencies=lambda t: parameter(4),
    ),
    "a perceptron of distances": sequences(
        lambda m, x: attend(m, x, m.out(torch.tanh(m.into(distances(x.shape[1]).to(x)[..., None]))).squeeze(-1)),
        into=linear(1, 4),
        out=linear(4, 1),
        qkv=linear(8, 24),
    ),
}


def turned(x, angles):
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


def slots(m, x):
    return m.last(((m.query(x) @ m.keys.T).softmax(-1) @ m.values).mean(1))


def queried(m, x):
    return m.last(((m.query(m.queries) @ x.transpose(1, 2)).softmax(-1) @ x).mean(1))


TABLES: dict[str, Sized] = {
    "learned queries": sequences(queried, query=linear(), queries=lambda t: parameter(t, 8), last=linear(8, 3)),
    "learned queries of the batch's own length": sequences(
        queried, query=linear(), queries=lambda t: parameter(N, 8), last=linear(8, 3)
    ),
    "learned queries, expanded (DETR)": sequences(
        lambda m, x: m.last(F.scaled_dot_product_attention(m.query(m.queries.expand(len(x), -1, -1)), x, x).mean(1)),
        query=linear(),
        queries=lambda t: parameter(1, t, 8),
        last=linear(8, 3),
    ),
    "memory slots": sequences(
        slots, query=linear(), keys=lambda t: parameter(t, 8), values=lambda t: parameter(t, 8), last=linear(8, 3)
    ),
    "a table as wide as the input": sequences(
        lambda m, x: m.last(torch.tanh(x.mean(1) @ m.table)),
        table=lambda t: parameter(8, t),
        last=lambda t: nn.Linear(t, 3),
    ),
    "class embeddings as the head": language(
        lambda m, ids: F.pad(m.head(m.emb(ids)).mean(1) @ m.labels(torch.arange(m.labels.num_embeddings)).T, (2, 0)),
        labels=lambda t: nn.Embedding(t, 3),
    ),
    "a class token": sequences(
        lambda m, x: m.last(torch.tanh(m.first(torch.cat([m.token.expand(len(x), -1, -1), x], 1))).cumprod(1)).mean(1),
        token=lambda t: parameter(1, 1, 8),
        first=linear(),
        last=linear(8, 3),
    ),
    "prompts before the input": sequences(
        lambda m, x: m.last(torch.cat([m.prompt[None].repeat(len(x), 1, 1), x], 1).cumsum(1).tanh()).mean(1),
        prompt=lambda t: parameter(t, 8),
        last=linear(8, 3),
    ),
    "the mean square of an unbatched lookup": language(
        lambda m, ids: m.head(m.emb(ids)).mean(1) * m.table(torch.arange(m.table.num_embeddings)).square().mean(),
        table=lambda t: nn.Embedding(t, 8),
    ),
    "mixing along the sequence by a T x T layer": sequences(
        lambda m, x: m.last(m.mix(x.transpose(1, 2)).transpose(1, 2).tanh()).mean(1),
        mix=lambda t: nn.Linear(t, t),
        last=linear(8, 3),
    ),
    "one position id for the whole batch, from the first sample": language(
        lambda m, ids: m.head(torch.tanh(m.emb(ids) + m.pos((ids * 0 + torch.arange(ids.shape[1]))[0]))).mean(1),
        measured=False,
        pos=lambda t: nn.Embedding(t, 8),
    ),
}


def frames(t: int) -> Program:
    return Program(
        lambda: Net(
            lambda m, x: m.last(torch.tanh(m.conv(x.flatten(0, 1))).mean((2, 3)).view(*x.shape[:2], -1)).mean(1),
            conv=nn.Conv2d(2, 4, 3),
            last=nn.Linear(4, 3),
        ),
        (numbers(N, t, 2, 5, 5),),
        any_loss,
        measured=True,
    )


def windows(m, x):
    """Swin: an image (N, 2T, 2T, 4) in windows of 2 x 2, attention with a bias of relative positions in each."""
    n, h, w, c = x.shape
    each = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    q, k, v = m.qkv(each).chunk(3, -1)
    mixed = (q @ k.transpose(1, 2) + m.bias[distances(4)]).softmax(-1) @ v
    back = m.out(mixed).view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return (x + back).mean((1, 2))


def choices(t: int) -> Program:
    return Program(
        lambda: Net(
            lambda m, ids: m.head(torch.tanh(m.emb(ids.view(-1, ids.shape[-1])).mean(1))).view(len(ids), -1),
            emb=nn.Embedding(11, 8),
            head=nn.Linear(8, 1),
        ),
        (tokens(N, t, 4), classes(below=t)),
        class_loss,
        measured=True,
    )


FOLDED: dict[str, Sized] = {
    "frames folded into the batch": frames,
    "tokens flattened into rows": sequences(
        lambda m, x: m.last(torch.tanh(m.first(x.reshape(-1, 8)))).view(len(x), -1), first=linear(), last=linear(8, 3)
    ),
    "positions before samples, flattened": sequences(
        lambda m, x: m.first(x.transpose(0, 1).reshape(-1, 8)).view(x.shape[1], len(x), 8).tanh().sum(0), first=linear()
    ),
    "sequence first": sequences(
        lambda m, x: m.last(torch.tanh(m.first(x.transpose(0, 1)))).transpose(0, 1), first=linear(), last=linear(8, 3)
    ),
    "sequence-first attention": sequences(
        lambda m, x: m.attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1),
        attention=lambda t: nn.MultiheadAttention(8, 2),
    ),
    "windows of an image": lambda t: Program(
        lambda: Net(windows, qkv=nn.Linear(4, 12), out=nn.Linear(4, 4), bias=parameter(9)),
        (numbers(N, 2 * t, 2 * t, 4),),
        any_loss,
        measured=True,
    ),
    "several choices a sample": choices,
    "samples repeated in a row": sequences(
        lambda m, x: m.first(x.repeat_interleave(2, 0)).tanh().view(len(x), 2, -1).sum(1), first=linear()
    ),
    "two views of each sample, one after the other": sequences(
        lambda m, x: sum(m.first(torch.cat([x, 2 * x])).tanh().chunk(2)), first=linear()
    ),
    "two views of each sample, stacked": sequences(
        lambda m, x: m.first(torch.stack([x, 2 * x])).tanh().sum(0), first=linear()
    ),
    "heads folded into the batch": sequences(
        lambda m, x: (
            m.first(x.view(len(x), -1, 2, 4).transpose(1, 2).reshape(-1, x.shape[1], 4)).tanh().view(len(x), -1)
        ),
        first=linear(4, 4),
    ),
    "everything as large as the batch": lambda t: Program(
        lambda: nn.Sequential(nn.Conv2d(t, t, 3, padding=1), nn.Tanh(), nn.Linear(t, t), nn.LayerNorm([t, t])),
        (numbers(N, t, t, t),),
        any_loss,
        measured=True,
    ),
    "a mask before the samples": lambda t: Program(
        lambda: Net(lambda m, mask, x: attend(m, x, mask), qkv=nn.Linear(8, 24)),
        (numbers(N, t, 8),),
        lambda m, x: any_loss(m, torch.full((t, t), -9.0).triu(1), x),
        situation="batch_size",
    ),
    "recurrence, step by step": sequences(
        lambda m, x: unrolled(m, x), cell=lambda t: nn.Linear(16, 8), last=linear(8, 3)
    ),
    "neighbours in time by rolling and padding": sequences(
        lambda m, x: m.first(torch.cat([x.roll(1, 1), F.pad(x, (0, 0, 1, 0))[:, :-1]], -1)).tanh(), first=linear(16, 3)
    ),
}


def unrolled(m, x):
    h = x.new_zeros(len(x), 8)
    for step in x.unbind(1):
        h = torch.tanh(m.cell(torch.cat([step, h], -1)))
    return m.last(h)


def mask_of(rows: int, t: int):
    """A mask (N, T) with `rows` places, more of some samples than of others."""
    mask = torch.zeros(N, t, dtype=torch.bool)
    for k in range(rows):
        mask[(k * k) % N, (2 * k) % t] = True
    while mask.sum() < rows:
        mask.view(-1)[int((~mask.view(-1)).nonzero()[0])] = True
    return mask


def routed(compute, measured, **parts) -> Sized:
    """As many rows chosen as T says: the batch's own number where T = N."""

    def of(t: int) -> Program:
        return Program(
            lambda: Net(compute, **{name: part() for name, part in parts.items()}),
            (numbers(N, 5, 8), mask_of(t, 5)),
            any_loss,
            measured=measured,
        )

    return of


def layer():
    return nn.Linear(8, 8)


def scattered(m, x, mask):
    h = torch.tanh(m.first(x))
    return m.last(h.masked_scatter(mask[..., None].expand_as(h), m.expert(h[mask]))).mean(1)


def put_back(m, x, mask):
    h = torch.tanh(m.first(x))
    out = h.clone()
    out[mask] = m.expert(h[mask])
    return m.last(out).mean(1)


def added_back(m, x, mask):
    h = torch.tanh(m.first(x)).flatten(0, 1)
    places = mask.flatten().nonzero().squeeze(1)
    return m.last(h.index_add(0, places, m.expert(h[places]))).view(len(x), 5, -1).mean(1)


def weighted(m, x, mask):
    h = torch.tanh(m.first(x))
    return m.last(h + m.expert(h) * mask[..., None]).mean(1)


ROUTED: dict[str, Sized] = {
    "chosen rows put back by masked_scatter": routed(scattered, True, first=layer, expert=layer, last=layer),
    "chosen rows put back by assignment": routed(put_back, True, first=layer, expert=layer, last=layer),
    "chosen rows put back by index_add": routed(added_back, True, first=layer, expert=layer, last=layer),
    "every expert on every row, weighted": routed(weighted, True, first=layer, expert=layer, last=layer),
    "a gather of one place a sample": routed(
        lambda m, x, mask: m.last(
            m.first(x).gather(1, mask.int().argmax(1)[:, None, None].expand(-1, 1, 8)).squeeze(1)
        ),
        True,
        first=layer,
        last=layer,
    ),
    "one place a sample by arange": routed(
        lambda m, x, mask: m.last(m.first(x)[torch.arange(len(x)), mask.int().argmax(1)]), True, first=layer, last=layer
    ),
}

SIZED = {
    f"{kind}: {name}": of
    for kind, programs in {"positions": POSITIONS, "tables": TABLES, "folded": FOLDED, "routed": ROUTED}.items()
    for name, of in programs.items()
}
LENGTHS = {"T = N": N, "T ≠ N": N + 1, "T = 2": 2}
PROGRAMS = {f"T against N ({length})": {name: of(t) for name, of in SIZED.items()} for length, t in LENGTHS.items()}
