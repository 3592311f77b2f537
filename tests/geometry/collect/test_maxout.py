"""Readers that get several neurons as one, as behind maxout, which is said; where all or none are put together not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import NeuronMap
from sdsd.geometry.collect.activations import collect_activations


class Model(nn.Module):
    def __init__(self, layer, between):
        super().__init__()
        self.a, self.between, self.b = layer, between, nn.LazyLinear(3)

    def forward(self, x):
        return self.b(self.between(self.a(x)))


def linear():
    return nn.Linear(5, 12), torch.randn(7, 5)


def conv():
    return nn.Conv2d(3, 12, 3), torch.randn(7, 3, 8, 6)


MIXED = {
    "amax": (linear, lambda h: h.view(len(h), 6, 2).amax(-1), "amax"),
    "max with places": (linear, lambda h: h.reshape(len(h), 6, 2).max(dim=-1).values, "max"),
    "strides": (linear, lambda h: h[:, ::2].maximum(h[:, 1::2]), "getitem"),
    "unflatten": (linear, lambda h: h.unflatten(-1, (2, 6)).amax(axis=1), "amax"),
    "mean": (linear, lambda h: h.view(len(h), 6, 2).mean((-1,), keepdim=True).flatten(1), "mean"),
    "norm": (linear, lambda h: h.view(len(h), 6, 2).norm(2, -1), "norm"),
    "pooling over neurons": (linear, lambda h: functional.max_pool1d(h.unsqueeze(1), 2).squeeze(1), "max_pool1d"),
    "transposed": (linear, lambda h: h.view(len(h), 6, 2).transpose(1, 2).amax(1), "amax"),
    "behind relu": (linear, lambda h: h.relu().view(len(h), 6, 2).amax(-1), "amax"),
    "channels": (conv, lambda h: h.unflatten(1, (6, 2)).amax(2).flatten(1), "amax"),
    "channels and pixels": (conv, lambda h: h.view(len(h), 6, 2, -1).amax((2, 3)), "amax"),
}
APART = {
    "mean of all neurons": (linear, lambda h: h - h.mean(-1, keepdim=True)),
    "mean of all, in pieces": (linear, lambda h: h - h.view(len(h), 6, 2).mean((1, 2))[:, None]),
    "mean of pixels": (conv, lambda h: h.view(len(h), 12, -1).mean(-1)),
    "maximum of rows of pixels": (conv, lambda h: h.view(len(h), 12, 2, 3, 4).amax((2, 4)).flatten(1)),
    "pooling": (conv, lambda h: functional.max_pool2d(h, 2).flatten(1)),
    "pooling of what was pooled": (
        conv,
        lambda h: functional.avg_pool1d(functional.max_pool2d(h, 2).flatten(2), 6)[..., 0],
    ),
    "tokens": (linear, lambda h: functional.max_pool1d(h.unflatten(0, (1, 7)).transpose(1, 2), 7).transpose(1, 2)),
}


@pytest.mark.parametrize("name", MIXED)
def test_neurons_put_together_are_noted(name):
    (layer, x), between, reads = MIXED[name][0](), *MIXED[name][1:]
    model = Model(layer, between)
    model(x)
    with pytest.warns(RuntimeWarning, match=f"which '{reads}' reads; behind that it is not followed"):
        drawn = NeuronMap.from_model(model, "a", [x])
    assert drawn.cosine.shape == (12, 12)


@pytest.mark.parametrize("name", APART)
def test_all_neurons_or_none_put_together_are_not(name):
    (layer, x), between = APART[name][0](), APART[name][1]
    model = Model(layer, between)
    model(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*behind that it is not followed")
        assert collect_activations(model, [x], "a")["a"].neurons == 12
