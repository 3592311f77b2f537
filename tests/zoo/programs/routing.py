"""Rows that go where what they hold says: experts, masks, chosen tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, Net, any_loss, parameter
from tests.zoo.programs.common import IDS, SEQUENCES, SQUARE, X, linear, of
from tests.zoo.verdict import Program


def top_two(m, x):
    """Every token by its two best experts: each expert runs on the rows that chose it (Mixtral before version 5)."""
    shape = x.shape
    x = x.reshape(-1, shape[-1])
    weights, chosen = m.gate(x).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for k, expert in enumerate(m.experts):
        rows, which = torch.where(chosen == k)
        out.index_add_(0, rows, expert(x[rows]) * weights[rows, which, None])
    return m.last(out.view(shape))


def dense_top_two(m, x):
    """The same with every expert on every row, weights zero where not chosen."""
    weights = m.gate(x).softmax(-1)
    kept = weights.topk(2, -1).indices
    gates = torch.zeros_like(weights).scatter(-1, kept, weights.gather(-1, kept))
    return m.last((torch.stack([expert(x) for expert in m.experts], -1) * gates.unsqueeze(-2)).sum(-1))


def switch(m, x):
    """One expert a token, rows put back by assignment."""
    weights, chosen = m.gate(x).softmax(-1).max(-1)
    out = torch.zeros_like(x)
    for k, expert in enumerate(m.experts):
        mask = chosen == k
        out[mask] = expert(x[mask])
    return m.last(out * weights.unsqueeze(-1))


def grouped(m, x):
    """Tokens sorted by expert, stacked weights, sorted back."""
    rows = x.reshape(-1, 8)
    weights, chosen = m.gate(rows).softmax(-1).max(-1)
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=3).tolist()
    parts = [part @ w for part, w in zip(rows[order].split(counts), m.stacked, strict=True)]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    return m.last((torch.cat(parts)[back] * weights.unsqueeze(-1)).view(x.shape))


def experts():
    return nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8)) for _ in range(3))


def moe(compute, batch=SEQUENCES):
    return of(compute, batch, gate=linear(8, 3), experts=experts, last=linear(8, 3))


def misplaced(m, x):
    """Rows put back in another order: to places of other samples."""
    rows = (x[:, 0] > 0).nonzero().squeeze(1)
    return m.last(torch.zeros_like(x).index_add(0, rows.flip(0), torch.tanh(m.first(x[rows]))))


def of_rows(change):
    """What is done to the rows of the batch together."""

    def compute(m, x):
        rows = (x[:, 0] > 0).nonzero().squeeze(1)
        return m.last(torch.zeros_like(x).index_add(0, rows, change(m.first(x[rows]))))

    return mixed_rows(compute)


def mixed_rows(compute):
    return Program(
        lambda: Net(compute, gate=nn.Linear(8, 3).requires_grad_(False), first=nn.Linear(8, 8), last=nn.Linear(8, 3)),
        (X,),
        any_loss,
        hopeless=True,
    )


def with_capacity(m, x):
    """An expert takes the first two tokens of the batch that chose it."""
    rows = (x[:, 0] > 0).nonzero().squeeze(1)[:2]
    return m.last(torch.zeros_like(x).index_add(0, rows, torch.tanh(m.first(x[rows]))))


def of_two_choices(m, x):
    """As many rows in both, not of the same samples."""
    h = m.first(x)
    one, other = (x[:, k] > 0 for k in PAIR)
    out = torch.zeros_like(h)
    out[one] = torch.tanh(h[one]) * h[other]
    return m.last(out)


def to_another_choice(m, x):
    h = m.first(x)
    one, other = (x[:, k] > 0 for k in PAIR)
    out = torch.zeros_like(h)
    out[other] = torch.tanh(h[one])
    return m.last(out)


def choice_made_again(m, x):
    """The mask is computed anew each time."""
    h = m.first(x)
    out = torch.zeros_like(h)
    out[x[:, 0] > 0] = torch.tanh(h[x[:, 0] > 0]) * x[x[:, 0] > 0]
    return m.last(out + h)


PAIR = next(
    (i, j)
    for i in range(8)
    for j in range(8)
    if (X[:, i] > 0).sum() == (X[:, j] > 0).sum() != N and not torch.equal(X[:, i] > 0, X[:, j] > 0)
)


def chosen_by_the_batch(m, x):
    h = m.first(x)
    mask = h[:, 0] > h[:, 0].mean()
    return m.last(torch.zeros_like(h).masked_scatter(mask[:, None].expand_as(h), torch.tanh(h[mask])))


def best_tokens(m, x):
    """Expert choice: an expert takes the tokens of the batch that want it most."""
    weights, rows = m.gate(x).softmax(-1)[:, 0].topk(3)
    return m.last(torch.zeros_like(x).index_add(0, rows, torch.tanh(m.first(x[rows])) * weights[:, None]))


def masked_words(m, ids):
    """Classes of the masked positions alone: as many rows as there are in the batch."""
    return m.last(torch.tanh(m.first(m.emb(ids)[ids > 4])))


def words_loss(m, ids):
    return F.cross_entropy(m(ids), ids[ids > 4])


def in_experts_of_sequences(m, x):
    """Whole sequences chosen, and a layer that sees their positions."""
    mask = m.gate(x.mean(1)).argmax(-1) == 0
    h = torch.tanh(m.first(x))
    out = h.clone()
    out[mask] = m.norm(m.experts[0](h[mask]).cumsum(1) + m.position)
    return m.last(out * m.scale)


def windows_chosen(m, x):
    """Windows of each sequence, some of them through a layer that sees their positions."""
    windows = x.unflatten(1, (2, 2))
    mask = windows[..., 0].sum(-1) > -0.5
    out = torch.zeros_like(windows)
    out[mask] = torch.tanh(m.first(windows[mask]))
    return m.last(out.flatten(1, 2))


def looked_up_rows(m, ids):
    h = m.emb(ids)
    out = torch.zeros_like(h)
    for k, table in enumerate(m.tables):
        sample, place = torch.where(ids % 2 == k)
        rows = table(ids[sample, place]) * m.scale + m.first(h[sample, place])
        out[sample, place] = rows.clamp_(min=-1)
    return m.last(out.sum(1))


ROUTING = {
    "rows in place of other samples'": mixed_rows(misplaced),
    "rows normalised together": of_rows(lambda h: h - h.mean(0)),
    "softmax over the rows": of_rows(lambda h: h.softmax(0)),
    "the next row's features": of_rows(lambda h: h + h.roll(1, 0)),
    "rows sorted": of_rows(lambda h: h.sort(0).values),
    "an expert with a capacity": mixed_rows(with_capacity),
    "rows of two choices multiplied": mixed_rows(of_two_choices),
    "rows in the place of another choice": mixed_rows(to_another_choice),
    "a choice made again": of(choice_made_again, first=linear(), last=linear(8, 3)),
    "rows chosen by the batch's mean": mixed_rows(chosen_by_the_batch),
    "tokens that an expert chooses": mixed_rows(best_tokens),
    "masked words alone": Program(
        lambda: Net(masked_words, emb=nn.Embedding(11, 8), first=nn.Linear(8, 8), last=nn.Linear(8, 11)),
        (IDS,),
        words_loss,
        contribution=lambda m, i: (
            F.cross_entropy(m(IDS[i : i + 1]), IDS[i][IDS[i] > 4], reduction="sum") / (IDS > 4).sum()
        ),
        measured=True,
    ),
    "whole sequences chosen": of(
        in_experts_of_sequences,
        SEQUENCES,
        gate=linear(8, 2),
        first=linear(),
        experts=experts,
        norm=lambda: nn.LayerNorm(8),
        position=lambda: parameter(4, 8),
        scale=lambda: parameter(8),
        last=linear(8, 3),
    ),
    "windows chosen": of(windows_chosen, SEQUENCES, first=linear(), last=linear(8, 3)),
    "rows looked up, two indices": of(
        looked_up_rows,
        IDS,
        emb=lambda: nn.Embedding(11, 8),
        first=linear(),
        last=linear(8, 3),
        tables=lambda: nn.ModuleList(nn.Embedding(11, 8) for _ in range(2)),
        scale=lambda: parameter(8),
    ),
    "two experts a token, rows added back": moe(top_two),
    "two experts a token, T = N": moe(top_two, SQUARE),
    "two experts a token, all evaluated": moe(dense_top_two),
    "one expert a token, rows assigned": moe(switch),
    "tokens sorted by expert": of(
        grouped, SEQUENCES, False, gate=linear(8, 3), stacked=lambda: parameter(3, 8, 8), last=linear(8, 3)
    ),
    "a branch taken by each sample": of(
        lambda m, x: m.last(torch.stack([(m.one if row[0] > 0 else m.two)(row) for row in x])),
        X,
        one=linear(),
        two=linear(),
        last=linear(8, 3),
    ),
    "valid tokens alone": Program(
        lambda: Net(
            lambda m, ids: valid_alone(m, ids), emb=nn.Embedding(11, 8), first=nn.Linear(8, 8), last=nn.Linear(8, 3)
        ),
        (IDS,),
        any_loss,
        measured=True,
    ),
}


def valid_alone(m, ids):
    h = m.emb(ids)
    mask = ids > 2
    out = torch.zeros_like(h)
    out[mask] = torch.tanh(m.first(h[mask]))
    return m.last(out.sum(1))


def among(choose, rows, measured):
    """Rows chosen among the `rows` that a mask of tokens chose; choose(rows) → what of them goes on.

    Numbers of rows below N and above: those of rows are then numbers of samples, or are not.
    """
    mask = torch.zeros(N, 4, dtype=torch.bool)
    mask.view(-1)[torch.arange(rows) * 23 // max(1, rows - 1)] = True
    samples = torch.arange(N)[:, None].expand(N, 4)[mask]

    def made():
        return Net(
            lambda m, x, mask: m.last(m.second(choose(torch.tanh(m.first(x[mask])))[1])),
            first=nn.Linear(8, 8),
            second=nn.Linear(8, 8),
            last=nn.Linear(8, 3),
        )

    def contribution(model, i):
        chosen, h = choose(torch.tanh(model.first(SEQUENCES.double()[mask])))
        return (model.last(model.second(h)).square().sum(1) * (samples[chosen] == i)).sum() / N

    return Program(
        made,
        (SEQUENCES, mask),
        lambda m, x, mask: m(x, mask).square().sum() / N,
        contribution=contribution,
        measured=measured,
    )


def masked(h):
    mask = h[:, 0] > -0.3
    return mask, h[mask]


def turned(h):
    order = torch.arange(len(h)).roll(1)
    return order, h[order]


def by_size(h):
    order = (10 * h[:, 0]).long().argsort()
    return order, h[order]


AMONG = {
    f"{name}, {rows} of {N}": among(choose, rows, measured)
    for name, choose, measured in (
        ("rows chosen among rows", masked, True),
        ("chosen rows turned", turned, False),
        ("chosen rows sorted", by_size, False),
        ("the first of chosen rows", lambda h: (slice(0, 1), h[0][None]), True),
    )
    for rows in (N // 2, N - 1, N, N + 3)
}

PROGRAMS = {"routing": ROUTING, "among chosen rows": AMONG}
