"""Parameters whose .data takes another shape while the monitor is attached: a table grows, a layer is widened.

Torch's node that adds to .grad knows the shape it was made for, and lives on where somebody holds it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.parts import N, class_loss, classes, numbers, perceptron, tokens
from tests.zoo.verdict import float64_default

from .steps import assert_right

Y = classes()


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        yield


def widen(model):
    model[0].weight.data = torch.cat([model[0].weight.data, torch.ones(2, 8)])
    model[0].bias.data = torch.cat([model[0].bias.data, torch.zeros(2)])
    model[2].weight.data = torch.cat([model[2].weight.data, torch.full((3, 2), 0.3)], 1)


def grow(model):
    model[0].weight.data = torch.cat([model[0].weight.data, torch.ones(4, 8)])


MODELS = {
    "a layer": (perceptron, widen, numbers(N, 8)),
    "a table": (
        lambda: nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(24, 3)),
        grow,
        tokens(N, 3),
    ),
}


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_measured_in_the_new_shape(name, zeroed):
    make, change, x = MODELS[name]
    model = make()
    monitor = sdsd.GammaMonitor(model)
    for k in range(5):
        if k == 2:
            change(model)
            model.zero_grad()
        class_loss(model, x, Y).backward()
        assert_right(monitor.step(), model, x)
        model.zero_grad(set_to_none=not zeroed)


@pytest.mark.parametrize("options", [{"every": 4}, {"mode": "micro"}])
@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_where_nothing_is_measured_at_operations(name, options):
    make, change, x = MODELS[name]
    model, gradients = make(), []
    twin = copy.deepcopy(model)
    for each, monitor in ((model, sdsd.GammaMonitor(model, **options)), (twin, None)):
        for k in range(3):
            if k == 1:
                change(each)
            each.zero_grad()
            for _ in range(2):
                class_loss(each, x, Y).backward()
            if monitor is not None:
                monitor.step()
        gradients.append([p.grad for p in each.parameters()])
    for mine, own in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, own)
