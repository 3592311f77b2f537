"""Around packed sequences, first states and bags: what people write, and what must not pass for right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import rnn

from tests.zoo.parts import N, numbers, parameter
from tests.zoo.verdict import judge

from .test_kinds_sequences import LONG, lengths, mean_of, program


def pack(x, given, in_order=False):
    return rnn.pack_padded_sequence(x, given, batch_first=True, enforce_sorted=in_order)


def run(m, x, given):
    return m.cells(pack(x, given))


def padded(packed):
    return rnn.pad_packed_sequence(packed, batch_first=True)[0]


def full(x):
    return torch.full((len(x),), x.shape[1])


def by_cells(m, x, given):
    """Written by hand, with a learned first state and cell."""
    h, c = m.h.expand(len(x), -1), m.c.expand(len(x), -1)
    for each in x.unbind(1):
        h, c = m.cell(each, (h, c))
    return h * c


def by_masked_cells(m, x, given):
    h = m.h.expand(len(x), -1)
    for t, each in enumerate(x.unbind(1)):
        h = torch.where((t < given)[:, None], m.gru_cell(each, h), h)
    return h


def added_by_place(m, x, given):
    """Outputs of packed sequences in order of their length, added up for each of them."""
    out = m.cells(pack(x, given.sort(descending=True).values.tolist(), True))[0]
    rows = torch.cat([torch.arange(size) for size in out.batch_sizes.tolist()])
    return m.last(torch.zeros(len(x), 5).index_add(0, rows, out.data))


def attended(m, x, given):
    y = padded(run(m, x, given)[0])
    far = (torch.arange(y.shape[1]) >= given[:, None])[..., None]
    return m.last((m.score(y).masked_fill(far, -1e9).softmax(1) * y).sum(1))


def other_lengths(x, given):
    return (x.shape[1] + 1 - given).tolist()


PARTS = {
    "cells": lambda: nn.LSTM(8, 5, batch_first=True),
    "both": lambda: nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True),
    "square": lambda: nn.LSTM(8, 8, batch_first=True),
    "gru": lambda: nn.GRU(8, 5, batch_first=True),
    "deep": lambda: nn.GRU(8, 5, 2, batch_first=True),
    "frozen": lambda: nn.LSTM(8, 5, batch_first=True).requires_grad_(False),
    "cell": lambda: nn.LSTMCell(8, 5),
    "gru_cell": lambda: nn.GRUCell(8, 5),
    "last": lambda: nn.Linear(5, 3),
    "wide": lambda: nn.Linear(10, 3),
    "mid": lambda: nn.Linear(5, 5),
    "norm": lambda: nn.BatchNorm1d(5).eval(),
    "score": lambda: nn.Linear(5, 1),
    "gate": lambda: nn.Linear(8, 5),
    "table": lambda: nn.Embedding(8, 5),
    "h": lambda: parameter(1, 5),
    "c": lambda: parameter(5),
    "state": lambda: parameter(1, 1, 5),
    "seed": lambda: parameter(1, 1, 8),
}
RIGHT = {
    "all of length one": lambda m, x, given: mean_of(m, run(m, x, torch.ones_like(given))[0]),
    "all of length one, in order": lambda m, x, given: mean_of(m, m.cells(pack(x, [1] * len(x), True))[0]),
    "all of full length": lambda m, x, given: mean_of(m, run(m, x, full(x))[0]),
    "shortest first": lambda m, x, given: mean_of(m, run(m, x, given.tolist())[0]),
    "turned round": lambda m, x, given: mean_of(m, run(m, x.flip(1), given)[0]),
    "the last step by an index": lambda m, x, given: m.last(
        padded(run(m, x, given)[0])[torch.arange(len(x)), given - 1]
    ),
    "the last step by gather": lambda m, x, given: m.last(
        padded(run(m, x, given)[0]).gather(1, (given - 1)[:, None, None].expand(-1, 1, 5)).squeeze(1)
    ),
    "attention over the steps": attended,
    "a layer on packed rows": lambda m, x, given: (
        lambda out: mean_of(m, rnn.PackedSequence(F.dropout(m.mid(out.data), 0.0), *out[1:]))
    )(run(m, x, given)[0]),
    "packed rows replaced": lambda m, x, given: (lambda out: mean_of(m, out._replace(data=m.mid(out.data))))(
        run(m, x, given)[0]
    ),
    "batch norm in eval mode on packed rows": lambda m, x, given: (
        lambda out: mean_of(m, out._replace(data=m.norm(out.data)))
    )(run(m, x, given)[0]),
    "states of both ways side by side": lambda m, x, given: m.wide(torch.cat([*m.both(pack(x, given))[1][0][-2:]], 1)),
    "states by layer and way": lambda m, x, given: m.wide(
        m.both(pack(x, given))[1][0].view(2, 2, len(x), 5)[-1].permute(1, 0, 2).reshape(len(x), -1)
    ),
    "two packings": lambda m, x, given: (
        mean_of(m, run(m, x, given.tolist())[0]) * mean_of(m, run(m, x, other_lengths(x, given))[0])
    ),
    "states into sequences in another order": lambda m, x, given: mean_of(
        m, m.cells(pack(x, other_lengths(x, given)), run(m, x, given.tolist())[1])[0]
    ),
    "a head tied to the layer's weight": lambda m, x, given: F.linear(
        padded(run(m, x, given)[0]).sum(1) / given[:, None], m.cells.weight_hh_l0
    ),
    "one layer twice": lambda m, x, given: padded(m.square(m.square(pack(x, given))[0])[0]).sum(1) / given[:, None],
    "cells by hand": by_cells,
    "cells under a mask": by_masked_cells,
    "a frozen layer with a learned state": lambda m, x, given: m.frozen(
        x, (m.state.expand(-1, len(x), -1).contiguous(),) * 2
    )[0],
    "a learned state times a gate": lambda m, x, given: m.gru(
        x, m.gate(x[:, 0]).sigmoid()[None, :, :1] * m.state.expand(-1, len(x), -1)
    )[0],
    "a learned state beside one of the samples": lambda m, x, given: m.deep(
        x, torch.cat([m.state.expand(1, len(x), 5), m.gate(x[:, 0])[None]])
    )[0],
    "a learned state and a cell of zeros": lambda m, x, given: m.cells(
        x, (m.state.expand(-1, len(x), -1).contiguous(), torch.zeros(1, len(x), 5))
    )[0],
    "a state through a layer": lambda m, x, given: m.gru(x, m.gate(m.seed).expand(1, len(x), 5).contiguous())[0],
    "a state for each class": lambda m, x, given: m.gru(x, m.table(given - 1)[None])[0],
    "two layers with one state": lambda m, x, given: (lambda s: m.gru(x, s)[0].sum(1) * m.cells(x, (s, s))[0].sum(1))(
        m.state.expand(-1, len(x), -1).contiguous()
    ),
}
REFUSED = {
    "the sum of packed rows": lambda m, x, given: m.last(
        run(m, x, given)[0].data.sum(0, keepdim=True).expand(len(x), -1)
    ),
    "packed rows over the largest of all": lambda m, x, given: (
        lambda out: mean_of(m, out._replace(data=out.data / out.data.abs().max()))
    )(run(m, x, given)[0]),
    "the next row of the packing": lambda m, x, given: (
        lambda out: mean_of(m, out._replace(data=out.data + out.data.roll(1, 0)))
    )(run(m, x, given)[0]),
    "samples beside those in another order": lambda m, x, given: m.gate(
        0.7 * x.mean(1) + 0.3 * x.mean(1)[torch.arange(len(x)).flip(0)]
    ),
    "states of other samples": lambda m, x, given: mean_of(
        m, m.cells(pack(x, given.tolist()), [s.flip(1) for s in run(m, x, given.tolist())[1]])[0]
    ),
}
EITHER = {
    "added by place": added_by_place,
    "one sequence at a time": lambda m, x, given: torch.stack([m.gru(each)[0][-1] for each in x]),
    "ragged pieces": lambda m, x, given: mean_of(
        m,
        m.gru(rnn.pack_sequence([x[k, : int(given[k])] for k in range(len(x))], enforce_sorted=False))[0],
    ),
}
KINDS = {
    **dict.fromkeys(RIGHT, ("right",)),
    **dict.fromkeys(REFUSED, ("refused",)),
    **dict.fromkeys(EITHER, ("right", "refused")),
}


def names_of(code):
    inner = [each for each in code.co_consts if hasattr(each, "co_names")]
    return {*code.co_names, *(name for each in inner for name in names_of(each))}


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", KINDS)
def test_around_packed_sequences_and_first_states(name, long):
    compute = {**RIGHT, **REFUSED, **EITHER}[name]
    used = names_of(compute.__code__)
    if "run" in used:
        used.add("cells")
    if "mean_of" in used:
        used.add("last")
    parts = {part: make for part, make in PARTS.items() if part in used}
    verdict = judge(program(compute, numbers(N, long, 8), lengths(long), **parts))
    assert verdict.kind in KINDS[name], verdict.why
