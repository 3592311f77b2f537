"""A model that calls another model, which is none of its modules and has a monitor of its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import Net, classes, numbers, parameter
from tests.zoo.verdict import compare, float64_default, per_sample

N, T = 6, 4
X, Y = numbers(N, T, 8), classes(N)


def joined(model, x):
    h = model.layer(x)
    return torch.cat([h[..., :4], 2 * h[..., 4:]], -1) * model.gain


def recurrent(model, x):
    return model.recurrent(x)[0] * model.gain + model.layer(x)


def contracted(model, x):
    return torch.einsum("...i,i,oi->...o", x, model.gain, model.layer.weight)


def chosen(model, x):
    places = x[..., 0] > 0
    h = x.clone()
    h[places] = model.layer(x[places])
    return h * model.gain


def looped(model, x):
    return torch.stack([model.layer(row) for row in x]) * model.gain


WITHIN = {"joined": joined, "recurrent": recurrent, "contracted": contracted, "chosen": chosen, "looped": looped}
ROUND = {
    "as it is": lambda model, h: model.held[0](h),
    "positions as samples": lambda model, h: model.held[0](h.reshape(-1, 1, 8)).reshape(h.shape),
    "time first": lambda model, h: model.held[0](h.transpose(0, 1)).transpose(0, 1),
}


def inner(forward):
    return Net(forward, layer=nn.Linear(8, 8), recurrent=nn.GRU(8, 8, batch_first=True), gain=parameter(8))


def outer(around, held):
    def forward(model, x):
        return model.last(torch.tanh(around(model, torch.tanh(model.first(x))))).mean(1)

    return Net(forward, first=nn.Linear(8, 8), last=nn.Linear(8, 3), held=[held])


def rows_within(model, held, around):
    """Gradients of the inner model's own samples: of the rows that it was called with."""
    samples = len(X) if around == "as it is" else X[..., 0].numel() if around == "positions as samples" else T

    def contribution(_, i):
        """Only the i-th row of what the inner model gives has a history."""
        plain = held.forward

        def one(x):
            out, keep = plain(x), torch.zeros(len(x)).bool()
            keep[i] = True
            return torch.where(keep.view(-1, *[1] * (out.ndim - 1)), out, out.detach())

        held.forward = one
        try:
            return F.cross_entropy(model(X), Y)
        finally:
            del held.forward

    return per_sample(held, contribution, samples)


PAIRS = [(within, around) for within in WITHIN for around in ROUND if (within, around) != ("recurrent", "time first")]
"""That one mixes the samples of the model around it."""


@pytest.mark.parametrize(("within", "around"), PAIRS)
def test_each_monitor_sees_its_own_samples(within, around):
    with float64_default():
        torch.manual_seed(0)
        held = inner(WITHIN[within])
        model = outer(ROUND[around], held)
        wanted = per_sample(model, lambda m, i: F.cross_entropy(m(X[i : i + 1]), Y[i : i + 1]) / N, N)
        wanted_within = rows_within(model, held, around)
        with sdsd.GammaMonitor(model) as monitor, sdsd.GammaMonitor(held) as monitor_within:
            for _ in range(2):
                model.zero_grad()
                held.zero_grad()
                F.cross_entropy(model(X), Y).backward()
                verdict = compare(monitor.step(), wanted)
                assert verdict.kind == "right", verdict.why
                verdict = compare(monitor_within.step(), wanted_within)
                assert verdict.kind == "right", verdict.why
