"""Networks that compute something else once they are cut."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sdsd.geometry.merging.consolidate import consolidate
from sdsd.geometry.merging.merge import merge

PAIRS = [(0, 1), (2, 5)]


class Net(nn.Module):
    """Two Linear layers, twelve neurons between them, and a forward that a test writes."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 4)
        self.width = 12
        for name, module in modules.items():
            setattr(self, name, copy.deepcopy(module))
        self.run = forward

    def forward(self, x):
        return self.run(self, x, self.a(x).relu())


norm, aux = nn.BatchNorm1d(12), nn.Linear(12, 3)

PARTS = {
    "norm": norm,
    "aux": aux,
    "down": nn.Linear(12, 3, bias=False),
    "up": nn.Linear(3, 4, bias=False),
    "wide": nn.Linear(16, 12, bias=False),
}


def built(kind: type[Net], forward) -> Net:
    torch.manual_seed(0)
    model = kind(forward, **PARTS)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def smaller_is_merged(model, layer, x, example):
    smaller, report = consolidate(model, layer, PAIRS, example_input=example)
    model.eval()
    smaller.eval()
    with torch.no_grad(), merge(model, layer, PAIRS, example_input=x):
        wanted = first(model(x))
    assert report.compared
    torch.testing.assert_close(first(smaller(x)), wanted, rtol=1e-5, atol=1e-6)
    smaller.train()
    first(smaller(x)).sum().backward()
    return smaller
