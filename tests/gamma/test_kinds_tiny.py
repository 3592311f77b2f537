"""Gradients of any size in float32: their squares leave its range long before they do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import Net, classes, parameter, tokens

SIZES = (1e-28, 1e-22, 1e-20, 1e-15, 1e15)


def every_kind(m, ids):
    h = m.table(ids) + m.places[: ids.shape[1]]
    h = h + m.convolution(h.mT).mT
    h = m.group(m.layer(h).mT).mT
    h = h + m.recurrent(h)[0]
    h = m.prelu(m.linear(h)) * m.gain
    h = m.instance(m.root(h).mT).mT
    h = h + m.attention(h, h, h)[0]
    h = h + m.twice(torch.tanh(m.twice(h)))
    h = h + torch.einsum("kd,btd->btk", m.keys, h) @ m.keys
    f = h.mean(1)
    return m.last(m.bilinear(f, f))


def kinds():
    return Net(
        every_kind,
        table=nn.Embedding(11, 8),
        places=parameter(5, 8),
        convolution=nn.Conv1d(8, 8, 3, padding=1),
        layer=nn.LayerNorm(8),
        group=nn.GroupNorm(2, 8),
        recurrent=nn.GRU(8, 8, batch_first=True),
        linear=nn.Linear(8, 8),
        prelu=nn.PReLU(),
        gain=parameter(8),
        root=nn.RMSNorm(8),
        instance=nn.InstanceNorm1d(8, affine=True),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        twice=nn.Linear(8, 8),
        keys=parameter(2, 8),
        bilinear=nn.Bilinear(8, 8, 4),
        last=nn.Linear(4, 3),
    )


def tied_head(m, ids):
    h = m.table(ids) + m.places * m.gain
    return F.linear(m.layer(h), m.table.weight).mT


def large():
    """More values a use than are added up in float32, and an embedding's table as head."""
    return Net(
        tied_head,
        table=nn.Embedding(300, 64),
        places=nn.Parameter(torch.randn(64, 64) / 10),
        gain=parameter(64, 64),
        layer=nn.LayerNorm(64),
    )


X, Y, LONG = tokens(6, 5), classes(6), tokens(160, 64, below=300)
MODELS = {"every kind": (kinds, X, Y), "large and tied": (large, LONG, LONG.flip(1))}


def found(model, x, y, size, mode):
    """Noise and signal of every parameter, in units of the size of the loss."""
    with sdsd.GammaMonitor(model, mode=mode) as monitor:
        for _ in range(2):  # the second by plans
            model.zero_grad()
            for part in (slice(0, 3), slice(3, None)):
                (size * F.cross_entropy(model(x[part]), y[part], reduction="sum") / len(x)).backward()
            stats = monitor.step()
    return {name: (each.noise / size**2, each.signal / size**2) for name, each in stats.parameters.items()}


@pytest.mark.parametrize("mode", ["exact", "micro"])
@pytest.mark.parametrize("name", MODELS)
def test_squares_of_any_size(name, mode):
    make, x, y = MODELS[name]
    torch.manual_seed(0)
    model = make()
    wanted = found(model, x, y, 1.0, mode)
    rounding = 1e-9 * max(map(sum, wanted.values()))
    for size in SIZES:
        for parameter_name, values in found(model, x, y, size, mode).items():
            allowed = 1e-4 * sum(wanted[parameter_name]) + rounding
            assert values == pytest.approx(wanted[parameter_name], abs=allowed), (size, parameter_name)
