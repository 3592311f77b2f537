"""Experts that get one row of the batch, or none, and rows that are added back by scatter.

Sizes of 1 and 0 tell no rule where the rows of an operation lie; the verdict may not hang on how many an expert got.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import N, Net, classes, numbers, parameter
from tests.zoo.verdict import compare, float64_default, per_sample

X, Y = numbers(N, 8), classes()
SENT = {
    "one row": (0, 1, 2, 2, 1, 1),
    "no row for one expert": (0, 2, 2, 0, 0, 2),
    "all rows for one expert": (2, 2, 2, 2, 2, 2),
}


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        yield


def by_mask(m, x, sent):
    out = torch.zeros_like(x)
    for k in range(3):
        out[sent == k] = m.run(m, m.expert(x[sent == k]))
    return out


def by_column(m, x, sent):
    out = torch.zeros_like(x)
    for k in range(3):
        rows = (sent == k).nonzero()[:, 0]
        out.index_add_(0, rows, m.run(m, m.expert(x[rows])))
    return out


def by_scatter(m, x, sent):
    out = torch.zeros_like(x)
    for k in range(3):
        rows = (sent == k).nonzero().flatten()
        out.scatter_add_(0, rows[:, None].expand(-1, 8), m.run(m, m.expert(x[rows])))
    return out


RUN = {
    "a slice": lambda m, h: h[:, :4].repeat(1, 2),
    "new dimensions": lambda m, h: h[..., None, :][:, 0],
    "heads": lambda m, h: h.view(len(h), 2, 4).transpose(1, 2).reshape(len(h), 8),
    "layer norm": lambda m, h: m.norm(h.view(-1, 1, 8).transpose(0, 1)).transpose(0, 1).squeeze(1),
    "a convolution": lambda m, h: m.convolution(h.unsqueeze(1)).squeeze(1),
    "a recurrent cell": lambda m, h: m.cell(h),
    "a parameter beside": lambda m, h: torch.cat([h, m.table[:1].expand(len(h), -1)], 1)[:, 4:12],
    "attention": lambda m, h: m.attention(h.view(-1, 2, 4), h.view(-1, 2, 4), h.view(-1, 2, 4))[0].flatten(1),
}


def make(run, way):
    return Net(
        lambda m, x, sent: m.last(way(m, m.first(x), sent)),
        run=run,
        first=nn.Linear(8, 8),
        expert=nn.Linear(8, 8),
        norm=nn.LayerNorm(8),
        convolution=nn.Conv1d(1, 1, 3, padding=1),
        cell=nn.GRUCell(8, 8),
        table=parameter(2, 8),
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        last=nn.Linear(8, 3),
    )


def verdict(model, *inputs):
    with sdsd.GammaMonitor(model) as monitor:
        F.cross_entropy(model(*inputs), Y).backward()
        stats = monitor.step()
    model.zero_grad()

    def loss(m, i):
        return F.cross_entropy(m(*(x[i : i + 1] for x in inputs)), Y[i : i + 1]) / N

    return compare(stats, per_sample(model, loss, N))


@pytest.mark.parametrize("sent", SENT)
@pytest.mark.parametrize("way", [by_mask, by_column, by_scatter])
@pytest.mark.parametrize("run", RUN)
def test_right_however_many_rows_an_expert_gets(run, way, sent):
    torch.manual_seed(0)
    found = verdict(make(RUN[run], way), X, torch.tensor(SENT[sent]))
    assert found.kind == "right", found.why


@pytest.mark.parametrize(
    "scatter",
    [
        lambda h: torch.zeros_like(h).scatter_add(0, torch.arange(N).flip(0)[:, None].expand(N, 8), h),
        lambda h: h.scatter_add(0, torch.zeros(N, 8, dtype=torch.long), h),
        lambda h: h.scatter_add(0, (h > 0).long(), h),
    ],
    ids=["in another order", "to the first", "where the samples say"],
)
def test_what_is_scattered_to_other_samples_is_refused(scatter):
    model = Net(lambda m, x: m.last(scatter(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 3))
    with pytest.raises(ValueError, match="no exact per-sample gradient for"):
        verdict(model, X)


def test_rows_scattered_to_other_samples_are_refused():
    def compute(m, x, sent):
        h = m.first(x)
        rows = h[sent == 1]
        return m.last(h.scatter_add(0, (sent[sent == 1] * 0)[:, None].expand(-1, 8), rows))

    model = Net(compute, first=nn.Linear(8, 8), last=nn.Linear(8, 3))
    with pytest.raises(ValueError, match="places of other samples"):
        verdict(model, X, torch.tensor(SENT["one row"]))
