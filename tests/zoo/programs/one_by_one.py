"""Loops over the samples of a batch in the forward: each by itself, put together again, written, added up."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint

from tests.zoo.parts import numbers, parameter
from tests.zoo.programs.common import IDS, IMAGES, SEQUENCES, SQUARE, X, linear, of
from tests.zoo.programs.places import by_place, hopeless

LENGTHS = [1 + 3 * i % 4 for i in range(len(X))]


def filled(m, x):
    out = torch.zeros(len(x), 8)
    for i in range(len(x)):
        out[i] = torch.tanh(m.first(x[i]))
    return m.last(out)


def added_in_place(m, x):
    out = torch.zeros(len(x), 8)
    for i in range(len(x)):
        out[i] += torch.tanh(m.first(x[i]))
        out[i] *= m.gain
    return m.last(out)


def copied_into_a_batch(m, x):
    """As detection models make a batch of images of different size."""
    out = x.new_zeros(len(x), x.shape[1] + 2, 8)
    for i, length in enumerate(LENGTHS):
        out[i, :length].copy_(torch.tanh(m.first(x[i, :length])))
    return m.last(out).mean(1)


def scratch_of_each(m, x):
    """A buffer for the steps of every sample, as many as there are samples where T = N."""
    outputs = []
    for i in range(len(x)):
        states, state = torch.zeros(x.shape[1], 8), torch.zeros(8)
        for t in range(x.shape[1]):
            state = torch.tanh(m.first(torch.cat([x[i, t], state])))
            states[t] = state
        outputs.append(m.last(states).sum(0))
    return torch.stack(outputs)


def loss_in_a_loop(m, x):
    total = 0
    for i in range(len(x)):
        total = total + (m.last(torch.tanh(m.first(x[i : i + 1]))).sum() - 1) ** 2
    return total / len(x)


def loss_in_place(m, x):
    total = torch.zeros(())
    for row in x:
        total += (m.last(torch.tanh(m.first(row))).sum() - 1) ** 2
    return total / len(x)


def chosen_places(m, x):
    scores = m.scores(x).squeeze(-1)
    rows = [m.first(x[i, scores[i].topk(2).indices]).sum(0) * scores[i].sigmoid().mean() for i in range(len(x))]
    return m.last(torch.stack(rows))


def folded(m, x):
    """A tree of each sample's steps, folded up from the left."""
    roots = []
    for row in x:
        nodes = list(row)
        while len(nodes) > 1:
            nodes = [torch.tanh(m.first(torch.cat(nodes[:2]))), *nodes[2:]]
        roots.append(nodes[0])
    return m.last(torch.stack(roots))


def cells(m, x):
    states = []
    for row in x:
        h = c = torch.zeros(1, 8)
        for step in row:
            h, c = m.cell(step[None], (h, c))
        states.append(h)
    return m.last(torch.cat(states))


def copied_by_index(m, x):
    out = torch.zeros(len(x), 8)
    for i in range(len(x)):
        out = out.index_copy(0, torch.tensor([i]), torch.tanh(m.first(x[i : i + 1])))
    return m.last(out)


def carried(m, x):
    state, outputs = torch.zeros(8), []
    for row in x:
        state = torch.tanh(m.first(row + state))
        outputs.append(state)
    return m.last(torch.stack(outputs))


def unlike_lengths(m, x):
    h = torch.tanh(m.first(torch.cat([x[i, :length] for i, length in enumerate(LENGTHS)])))
    return m.last(torch.stack([part.mean(0) for part in h.split(LENGTHS)]))


def packed(m, x):
    sequences = rnn.pack_sequence([m.first(x[i, :length]) for i, length in enumerate(LENGTHS)], enforce_sorted=False)
    out, state = m.gru(sequences)
    return m.last(state[-1]) + m.last(rnn.pad_packed_sequence(out, batch_first=True)[0].sum(1))


def padded(m, x):
    h = rnn.pad_sequence([m.first(x[i, :length]) for i, length in enumerate(LENGTHS)], batch_first=True)
    return m.last(torch.tanh(h)).sum(1)


def attention(m, x):
    outputs = []
    for row in x:
        q, k, v = m.qkv(row)[None].chunk(3, -1)
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True)[0])
    return m.last(torch.stack(outputs)).mean(1)


def embedded(m, x):
    return torch.stack([m.last(m.norm(m.table(ids) + m.positions[: len(ids)]).mean(0)) for ids in x])


def experts(m, x):
    return m.last(torch.stack([m.experts[int(m.gate(row).argmax())](row) for row in x]))


def in_another_order(m, x):
    order = range(len(x) - 1, -1, -1)
    h = torch.stack([torch.tanh(m.first(x[i])) for i in order])
    return m.last(h)[torch.tensor(order)]


def checkpoints(reentrant):
    def run(m, x):
        body = m.zeroth(x)
        parts = [checkpoint(lambda row: torch.tanh(m.first(row)), row, use_reentrant=reentrant) for row in body]
        return m.last(torch.stack(parts))

    return run


def minus_mean(m, x):
    h = [m.first(row) for row in x]
    return m.last(torch.stack([each - sum(h) / len(h) for each in h]))


def neighbours(m, x):
    h = [m.first(row) for row in x]
    return m.last(torch.stack([h[i] * h[i - 1] for i in range(len(h))]))


def views_of_steps(m, x):
    """Products that einsum gives as views, whose gradients come as rows of one tensor."""
    return m.last(torch.stack([torch.einsum("nd,de->ne", step, m.weight) for step in x.unbind(1)]).sum(0))


def matrix():
    return parameter(8, 8)


def gru():
    return nn.GRU(8, 8, batch_first=True)


BOTH = {"first": linear(), "last": linear(8, 3)}
OF_SEQUENCES = {
    "stacked": (lambda m, x: m.last(torch.stack([torch.tanh(m.first(row)).mean(0) for row in x])), BOTH),
    "written into views": (copied_into_a_batch, BOTH),
    "joined with unlike lengths, and split again": (unlike_lengths, BOTH),
    "padded": (padded, BOTH),
    "packed": (packed, {"gru": gru, **BOTH}),
    "attention to itself": (attention, {"qkv": linear(8, 24), "last": linear(8, 3)}),
    "a buffer of each": (scratch_of_each, {"first": linear(16, 8), "last": linear(8, 3)}),
    "a recurrent layer on each": (
        lambda m, x: m.last(torch.stack([m.first(row)[0][-1] for row in x])),
        BOTH | {"first": gru},
    ),
    "places that each chooses": (chosen_places, {"scores": linear(8, 1), **BOTH}),
    "a tree of each": (folded, {"first": linear(16, 8), "last": linear(8, 3)}),
    "an LSTM cell along each": (cells, {"cell": lambda: nn.LSTMCell(8, 8), "last": linear(8, 3)}),
    "a transformer's layer on each": (
        lambda m, x: m.last(torch.cat([m.first(row[None]).mean(1) for row in x])),
        BOTH | {"first": lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)},
    ),
    "views of steps, stacked": (views_of_steps, {"weight": matrix, "last": linear(8, 3)}),
}
ONE_BY_ONE = {
    **{
        name + length: by_place(compute, batch, **parts)
        for name, (compute, parts) in OF_SEQUENCES.items()
        for length, batch in (("", SEQUENCES), (", T = N", SQUARE))
    },
    "by their numbers": of(
        lambda m, x: m.last(torch.stack([torch.tanh(m.first(x[i])) for i in range(len(x))])), **BOTH
    ),
    "written at their places": of(filled, **BOTH),
    "added and scaled at their places": of(added_in_place, gain=lambda: parameter(8), **BOTH),
    "a convolution on each": of(
        lambda m, x: torch.cat([m.last(m.first(x[i : i + 1]).relu().mean((2, 3))) for i in range(len(x))]),
        IMAGES,
        first=lambda: nn.Conv2d(3, 8, 3),
        last=linear(8, 3),
    ),
    "a lookup, positions and a norm on each": of(
        embedded,
        IDS,
        table=lambda: nn.Embedding(16, 8),
        positions=lambda: parameter(9, 8),
        norm=lambda: nn.LayerNorm(8),
        last=linear(8, 3),
    ),
    "a loss added up": of(loss_in_a_loop, loss=lambda m, x: m(x), **BOTH),
    "a loss added up in place": of(loss_in_place, loss=lambda m, x: m(x), **BOTH),
    "copied to places that an index says": of(copied_by_index, **BOTH),
    "a state carried from sample to sample": hopeless(carried),
    "a layer for all and for each": of(
        lambda m, x: m.last(torch.stack([m.first(row) for row in torch.tanh(m.first(x))])), **BOTH
    ),
    "a weight computed once": of(
        lambda m, x: m.last((lambda w: torch.stack([torch.tanh(w @ row) for row in x]))(F.normalize(m.weight))),
        weight=matrix,
        last=linear(8, 3),
    ),
    "a branch that each takes": of(
        lambda m, x: m.last(torch.stack([m.first(row) if row.sum() > 0 else m.second(row).tanh() for row in x])),
        second=linear(),
        **BOTH,
    ),
    "an expert that each chooses": of(
        experts,
        gate=linear(8, 3),
        experts=lambda: nn.ModuleList(nn.Linear(8, 8) for _ in range(3)),
        last=linear(8, 3),
    ),
    "in another order": of(in_another_order, **BOTH),
    "checkpoints": of(checkpoints(False), zeroth=linear(), **BOTH),
    "reentrant checkpoints": of(checkpoints(True), zeroth=linear(), **BOTH),
    "complex numbers": by_place(
        lambda m, x: m.last(torch.stack([(row * torch.exp(1j * m.first(row))).abs() for row in x])).mean(1),
        numbers(6, 3, 8),
        **BOTH,
    ),
    "their mean taken away": hopeless(minus_mean),
    "neighbours multiplied": hopeless(neighbours),
}

PROGRAMS = {"one by one": ONE_BY_ONE}
