"""Hooks on activations that change the gradient after the operation before it was looked at; weights of one row."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, Net, any_loss, parameter
from tests.zoo.verdict import Program, one_sample

from .common import IDS, IMAGES, SEQUENCES, X, linear, of

SCALE = 3.0


def scaled(m, x):
    h = m.first(x)
    if m.hooked:
        h.register_hook(lambda gradient: SCALE * gradient)
    return m.last(torch.tanh(h if m.hooked else SCALE * h - (SCALE - 1) * h.detach()))


def scaling(first, last, batch):
    """The first part's gradients are multiplied by a hook; where the loop runs, by the graph."""

    def make():
        model = Net(scaled, first=first(), last=last())
        model.hooked = True
        return model

    def contribution(model, i):
        model.hooked = False
        loss = any_loss(model, *one_sample((batch.double() if batch.is_floating_point() else batch,), i))
        model.hooked = True
        return loss / N

    return Program(make, (batch,), any_loss, contribution=contribution, measured=True)


def twice_hooked(m, x):
    h = m.first(x)
    h.register_hook(lambda gradient: None)
    h.retain_grad()
    h.mul_(2.0)
    h.register_hook(lambda gradient: gradient.clone())
    return m.last(torch.tanh(h))


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = parameter(8)

    def forward(self, x):
        return x * self.gain


ACTIVATIONS = {
    "of a layer of one position": scaling(linear(), linear(8, 3), X),
    "of a layer of several": scaling(linear(), linear(8, 3), SEQUENCES),
    "of a convolution": scaling(lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(4, 2, 1), IMAGES),
    "of a norm": scaling(lambda: nn.LayerNorm(8), linear(8, 3), SEQUENCES),
    "of a table": scaling(lambda: nn.Embedding(11, 8), linear(8, 3), IDS),
    "of a gain": scaling(Gain, linear(8, 3), X),
    "before and after a write": of(twice_hooked, first=linear(), last=linear(8, 3)),
}
ROWS = {
    "F.linear with a weight of one row": of(lambda m, x: F.linear(x, m.weight)[:, None], weight=lambda: parameter(8)),
}
if not torch.__version__.startswith("2.9."):  # which refuses it itself
    ROWS["F.linear with a weight of one row and a bias"] = of(
        lambda m, x: F.linear(torch.tanh(m.first(x)), m.weight, m.bias),
        SEQUENCES,
        first=linear(),
        weight=lambda: parameter(8),
        bias=lambda: nn.Parameter(torch.randn(())),
    )

PROGRAMS = {"hooked": ACTIVATIONS, "one row": ROWS}
