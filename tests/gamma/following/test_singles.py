"""Samples one by one: whatever is done to one alone is of it, and they are put together again or mixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.utils import rnn

from sdsd.gamma.following import Mixed, Rows, Single, Summed, Track
from tests.gamma.following.operations import Case, Setting, named, settings, verdicts

LARGER = [Setting(*each) for each in ((3, 5), (4, 4), (2, 4, 2), (2, 8, 2, 2))]


def filled(x, f, *more):
    out = torch.zeros(x.shape[0], *more)
    for i in range(len(x)):
        out[i] = f(x[i])
    return out


def added(x, f):
    out = torch.zeros(x.shape)
    for i in range(len(x)):
        out[i] += f(x[i])
        out[i] *= 2
    return out


def copied(x, f):
    out = x.new_zeros(x.shape[0], x.shape[1] + 1)
    for i in range(x.shape[0]):
        out[i, : x.shape[1]].copy_(f(x[i]))
    return out


def indexed(x):
    out = torch.zeros_like(x)
    for i in range(len(x)):
        out = out.index_add(0, torch.tensor([i]), x[i : i + 1].exp())
    return out


def looked_at(x):
    """All of what one sample was written into is looked at, and then others are written there."""
    out = torch.zeros(x.shape)
    out[0] = x[0]
    seen = out[:]
    for i in range(1, len(x)):
        out[i] = x[i]
    return seen + out


def scratch(x):
    """A place of its own for every step of one sample, as many as there are samples where T = N."""
    out = torch.zeros(x.shape[1])
    for t in range(x.shape[1]):
        out[t] = x[0, t].exp()
    return out.sum() + out[-1]


ONE = [
    Case("an integer", lambda x: x[0] * 2, ("N T",)),
    Case("from the end", lambda x: x[-1], ("N T",)),
    Case("select", lambda x: x.select(0, -1), ("N T",)),
    Case("a number in a tensor", lambda x: x[torch.tensor(1)], ("N T",)),
    Case("the same place again and again", lambda x: x[torch.tensor([[1, 1]])].sum(0), ("N T",)),
    Case("a slice", lambda x: x[x.shape[0] - 1 :].squeeze(0).exp(), ("N T",)),
    Case("narrow", lambda x: x.narrow(0, 1, 1).mean(), ("N T",)),
    Case("split", lambda x: x.split(1)[1].sort().values, ("N T",)),
    Case("unbind", lambda x: x.unbind()[0] * 2, ("N T",)),
    Case("behind another dimension", lambda x: x[:, 1, ::2].softmax(0), ("3 N T",)),
    Case("what mixes samples of a batch", lambda x: x[1] - x[1].mean(0), ("N T d",)),
    Case("a loss", lambda x: F.mse_loss(x[1], x[1].roll(1)).exp(), ("N T",)),
    Case("a table at its indices", lambda i, w: F.embedding(i[1], w)[i[1].sort().indices], ("i:N T", "3 d")),
    Case("a constant filled by it", lambda x: put_all(torch.zeros(7, 2), x[1, 0].exp()), ("N T",)),
    Case("steps written one by one", scratch, ("N T",)),
    Case("read where it says", lambda x: x[1, x[1].argsort()], ("N T",), ("small", "large")),
    Case("a part of a part", lambda x: torch.cat([x[1], x[1, :2]]), ("N T",)),
    Case("a function without a rule", lambda x: torch.linalg.svdvals(x[1]), ("N T d",), ("small", "large")),
    Case("random numbers", lambda x: F.dropout(x[1]), ("N T",), ("small",)),
]
WHOLE = [
    Case("stack", lambda x: torch.stack([row.cumsum(0) for row in x]), ("N T",)),
    Case("stack, last", lambda x: torch.stack([row.exp() for row in x.unbind()], -1), ("N T",)),
    Case("cat", lambda x: torch.cat([x[i : i + 1].exp() for i in range(len(x))]), ("N T",)),
    Case("cat of several rows each", lambda x: torch.cat([row[:2] for row in x]), ("N T d",)),
    Case("hstack of numbers", lambda x: torch.hstack([row.sum() for row in x]), ("N T",)),
    Case("vstack", lambda x: torch.vstack([row * 2 for row in x]), ("N T",)),
    Case("padded", lambda x: rnn.pad_sequence([row[: 1 + i % 3] for i, row in enumerate(x)]), ("N T d",)),
    Case("padded, batch first", lambda x: rnn.pad_sequence([row[:2] for row in x], batch_first=True), ("N T d",)),
    Case("filled", lambda x: filled(x, torch.exp, x.shape[1]), ("N T",)),
    Case("filled with numbers", lambda x: filled(x, torch.sum), ("N T",)),
    Case("added and scaled in place", lambda x: added(x, torch.exp), ("N T",)),
    Case("copied into views", lambda x: copied(x, torch.exp), ("N T",)),
    Case("columns", lambda x: torch.column_stack([row.exp() for row in x]), ("N T",)),
    Case("copied by index", lambda x: indexed(x), ("N T",)),
    Case("put in order again", lambda x: torch.stack([x[i] for i in range(len(x) - 1, -1, -1)])[reverse(x)], ("N T",)),
    Case("written into what holds samples", lambda x: overwritten(x), ("N T",)),
]
ROWS = [
    Case("cat of unlike lengths", lambda x: torch.cat([row[: 1 + i % 3] for i, row in enumerate(x)]).exp(), ("N T d",)),
    Case("another order", lambda x: torch.stack([x[i] for i in range(len(x) - 1, -1, -1)]), ("N T",)),
    Case("some of them", lambda x: torch.cat([x[:1], x[2:]]), ("N T",)),
]
MIXED = [
    Case("read where another says", lambda x: x[0, x[-1].argsort()], ("N T",), ("small", "large")),
    Case("scaled as a whole by one of them", lambda x: scaled(x), ("N T",)),
    Case("added into what was looked at", lambda x: accumulated(x), ("N T",)),
    Case("two samples", lambda x: x[0].requires_grad_().exp() * x[-1], ("N T",)),
    Case("the distance of two", lambda x: torch.dist(x[0].requires_grad_(), x[-1]), ("N T",)),
    Case("one among all", lambda x: x - x[0], ("N T",)),
    Case("rows of one and whole ones", lambda x: x * x[x.shape[0] - 1 :], ("N T",)),
    Case("their mean taken away", lambda x: (x[0] - sum(x.requires_grad_()) / len(x)).exp(), ("N T",)),
    Case("one weighed by another", lambda x: x[0].requires_grad_() / x[-1], ("N T",)),
    Case("written at the next place", lambda x: shifted(x), ("N T",)),
    Case("written over another", lambda x: put_all(put_all(torch.zeros(2, 3), x[0, 0]), x[-1, 0]), ("N T",)),
    Case("looked at before others came", looked_at, ("N T",)),
    Case("a place of another sample", lambda x: put_all(x.clone()[1:], x[0]), ("N T",)),
]


def scaled(x):
    out = torch.ones(x.shape)
    out[0] = x[0].requires_grad_()
    out *= x[0].sum()
    for i in range(1, len(x)):
        out[i] += x[i]
    return out


def accumulated(x):
    """A view of a sum, taken when it held one sample alone."""
    total = torch.zeros(x.shape[1])
    total += x[0].requires_grad_()
    seen = total[:2]
    total += x[-1]
    return seen.exp()


def put_all(x, value):
    x[...] = value
    return x


def shifted(x):
    out = torch.zeros(x.shape)
    for i in range(len(x)):
        out[i - 1] = x[i]
    return out


def reverse(x):
    return torch.arange(len(x) - 1, -1, -1)


def overwritten(x):
    out = x.exp()
    for i in range(len(x)):
        out[i] = x[i].cumsum(0)
    return out


@named(ONE)
@settings(LARGER)
def test_of_one_sample(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert all(isinstance(v, Single) and v.axis in (None, -1) for v in found), found


@named(WHOLE)
@settings([*LARGER, Setting(1, 4)])
def test_put_together(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert all(isinstance(v, Track) for v in found), found


@named(ROWS)
@settings(LARGER[:2])
def test_rows(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert all(isinstance(v, Rows) for v in found), found


@named(MIXED)
@settings(LARGER[:2])
def test_mixed(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert all(isinstance(v, Mixed) and v.reason for v in found), found


@settings(LARGER)
def test_sums_of_single_samples_are_sums_over_samples(s: Setting) -> None:
    def losses(x):
        x.requires_grad_()
        total = x.new_zeros(())
        for row in x:
            total += row.sin().sum()
        return total + sum(row.square().mean() for row in x) / 2 - torch.stack([row.exp().sum() for row in x]).mean()

    assert all(isinstance(v, Summed) for v in verdicts(Case("losses", losses, ("N T",)), s))


def test_what_stays_one_is_no_sum():
    case = Case("maximum", lambda x: torch.maximum(x[0].requires_grad_().sum(), x[1].sum()), ("N T",))
    assert all(isinstance(v, Mixed) for v in verdicts(case, LARGER[0]))
