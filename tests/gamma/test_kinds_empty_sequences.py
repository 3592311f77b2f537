"""Batches in which no sample has a second sequence's token, a box, a neighbour: a tensor of N rows of length zero."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from sdsd.gamma.following import Track
from sdsd.gamma.following.reshaping import reshaped
from tests.zoo.parts import N, Net, classes, numbers, parameter, tokens
from tests.zoo.verdict import compare, float64_default, per_sample

LENGTHS = (2, 0, 0, 3)


def folded(m, h):
    """Windows as rows of a convolution's batch."""
    return m.convolution(h.reshape(-1, 2, 2, 2)).view(len(h), -1, 16)


def crossed(m, h):
    """Learned queries to keys of which one is always there."""
    keys = torch.cat([h, m.key.expand(len(h), 1, 8)], 1)
    return m.attention(m.query.expand(len(h), 3, 8), keys, keys)[0]


OF_NUMBERS = {
    "linear": (lambda m, h: m.layer(h), {"layer": lambda: nn.Linear(8, 4)}),
    "twice": (lambda m, h: m.layer(torch.tanh(m.layer(h))), {"layer": lambda: nn.Linear(8, 8)}),
    "tokens as rows": (lambda m, h: m.layer(h.reshape(-1, 8)).view(len(h), -1, 4), {"layer": lambda: nn.Linear(8, 4)}),
    "a product": (lambda m, h: h @ m.matrix, {"matrix": lambda: parameter(8, 4)}),
    "a computed matrix": (lambda m, h: h @ torch.tanh(m.matrix), {"matrix": lambda: parameter(8, 4)}),
    "layer norm": (lambda m, h: m.norm(h).square(), {"norm": lambda: nn.LayerNorm(8)}),
    "RMS norm": (lambda m, h: m.norm(h), {"norm": lambda: nn.RMSNorm(8)}),
    "a gain": (lambda m, h: h * m.gain, {"gain": lambda: parameter(8)}),
    "a power": (lambda m, h: torch.pow(h.abs() + 1, m.gain), {"gain": lambda: parameter(8)}),
    "attention": (
        lambda m, h: m.attention(h, h, h)[0],
        {"attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True)},
    ),
    "a transformer's layer": (
        lambda m, h: m.layer(h),
        {"layer": lambda: nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True)},
    ),
    "rows of a convolution": (folded, {"convolution": lambda: nn.Conv2d(2, 4, 3, padding=1)}),
    "attended by queries": (
        crossed,
        {
            "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
            "query": lambda: parameter(1, 3, 8),
            "key": lambda: parameter(1, 1, 8),
        },
    ),
}
OF_IDS = {
    "a lookup": (lambda m, ids: m.table(ids), {"table": lambda: nn.Embedding(11, 4, padding_idx=1)}),
    "a tied head": (lambda m, ids: m.table(ids) @ m.table.weight.T, {"table": lambda: nn.Embedding(11, 4)}),
    "brackets": (lambda m, ids: m.rows[ids], {"rows": lambda: parameter(11, 4)}),
}


def steps(compute, parts, sequences, tied_to=N):
    torch.manual_seed(0)

    def forward(m, x, h):
        return m.first(x) + compute(m, h).sum((1, 2))[:, None]

    model = Net(forward, first=nn.Linear(8, 3), **{name: make() for name, make in parts.items()})
    with sdsd.GammaMonitor(model) as monitor:
        for h in sequences:
            x, y = numbers(tied_to, 8), classes(tied_to)
            wanted = per_sample(
                copy.deepcopy(model),
                lambda m, i, x=x, h=h, y=y: F.cross_entropy(m(x[i : i + 1], h[i : i + 1]), y[i : i + 1]) / len(x),
                tied_to,
            )
            model.zero_grad()
            F.cross_entropy(model(x, h), y).backward()
            verdict = compare(monitor.step(), wanted)
            assert verdict.kind == "right", verdict.why


@pytest.mark.parametrize("n", [N, 4])
@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers(name, n):
    with float64_default():
        steps(*OF_NUMBERS[name], [numbers(n, length, 8) for length in LENGTHS], n)


@pytest.mark.parametrize("name", OF_IDS)
def test_ids(name):
    with float64_default():
        steps(*OF_IDS[name], [tokens(N, length) for length in LENGTHS])


def heads(n, t):
    """What attention does to its shapes, time first, and back."""
    return [(t, n, 8), (t, 2 * n, 4)], [(2 * n, t, 4), (n, 2, t, 4)], [(t, n, 2, 4), (t * n, 8), (t, n, 8)]


SHAPES = {
    "heads": (heads, [Track(1), Track(0, 1, 2), Track(1)]),
    "rows": (lambda n, t: ([(n, t, 8), (n * t, 8), (n, t, 2, 4)],), [Track(0)]),
    "heads before the time": (lambda n, t: ([(t, 2 * n, 4), (t * n, 8)],), [Track(1, 1, 2)]),
    "windows": (lambda n, t: ([(n, 4 * t, 8), (n * t, 4, 8), (n, t, 32)],), [Track(0)]),
}


@pytest.mark.parametrize("n", [2, 4, 6])
@pytest.mark.parametrize("name", SHAPES)
def test_samples_lie_where_they_would_at_any_other_length(name, n):
    shapes, begun = SHAPES[name]
    for chain, longer, first in zip(shapes(n, 0), shapes(n, 5), begun, strict=True):
        track, wanted = first, first
        for (old, new), (as_long, to) in zip(pairwise(chain), pairwise(longer), strict=True):
            track, wanted = reshaped(track, old, new, n), reshaped(wanted, as_long, to, n)
            assert track == Track(wanted.axis, *(0 if share % 5 == 0 else share for share in wanted[1:]))
