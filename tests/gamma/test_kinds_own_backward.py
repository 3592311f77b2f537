"""Layers whose backward pass measures: it ends as it would without a monitor, whatever becomes of the measurement."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from sdsd.gamma.uses.rules import convolution, linear
from tests.zoo.parts import N, Net, any_loss, class_loss, classes, numbers
from tests.zoo.verdict import float64_default

from .steps import X, Y, assert_right

LAYERS = {
    "linear": (linear, lambda: Net(lambda m, x: m.last(torch.tanh(m.first(x))).mean(1)), (N, 4, 8)),
    "convolution": (convolution, lambda: Net(lambda m, x: m.last(m.first(x).mean(2))), (N, 8, 5)),
}


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        yield


def made(name):
    module, make, shape = LAYERS[name]
    model = make()
    model.first = nn.Linear(8, 8) if name == "linear" else nn.Conv1d(8, 8, 3)
    model.last = nn.Linear(8, 3)
    return module, model, numbers(*shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("differentiated", [False, True])
def test_a_measurement_that_fails_leaves_the_layers_own_gradients(name, differentiated, monkeypatch):
    module, model, x = made(name)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), classes()).backward()

    def fails(*_, **__):
        raise RuntimeError("no room")

    monitor = sdsd.GammaMonitor(model)
    monkeypatch.setattr(module, "_measure", fails)
    F.cross_entropy(model(x), classes()).backward(create_graph=differentiated)
    with pytest.raises(ValueError, match="could not be measured .RuntimeError: no room"):
        monitor.step()
    for mine, own in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, own.grad)
    monkeypatch.undo()
    model.zero_grad()
    F.cross_entropy(model(x), classes()).backward()
    assert_right(monitor.step(), model, x, classes())


@pytest.mark.parametrize("length", [1, 2])
def test_a_convolution_over_one_position_of_channels_last(length):
    """In float64 torch gives no weight gradient where strides of a single position look like channels last."""
    model = Net(lambda m, x: m.first(x.transpose(1, 2)).transpose(1, 2), first=nn.Conv1d(8, 4, 3, padding=1))
    x = numbers(N, length, 8)
    with sdsd.GammaMonitor(model) as monitor:
        any_loss(model, x).backward()
        stats = monitor.step()
    assert_right(stats, model, x, torch.zeros(N), lambda m, x, y: any_loss(m, x))


@pytest.mark.parametrize("how", ["one position", *LAYERS])
def test_a_gradient_that_was_cleared_and_is_taken_again(how):
    """A look at the gradient by a first backward pass with retain_graph, before the one that counts."""
    if how == "one position":
        model, x = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)), X
    else:
        _, model, x = made(how)
    monitor = sdsd.GammaMonitor(model)
    for _ in range(3):
        loss = class_loss(model, x, Y)
        loss.backward(retain_graph=True)
        model.zero_grad()
        loss.backward()
        assert_right(monitor.step(), model, x)
        model.zero_grad()


def test_gradients_that_are_put_into_place_by_hand():
    """As PCGrad does, which projects the losses' gradients: no backward pass, and the error says how to have one."""
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    monitor, parameters = sdsd.GammaMonitor(model), list(model.parameters())

    def put(out):
        losses = F.cross_entropy(out, Y), F.cross_entropy(out, 2 - Y)
        gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        for parameter, *each in zip(parameters, *gradients, strict=True):
            parameter.grad = sum(each)

    put(model(X))
    with pytest.raises(RuntimeError, match="put into .grad by hand"):
        monitor.step()
    for _ in range(3):
        model.zero_grad()
        out = model(X)
        F.cross_entropy(out, Y).backward(retain_graph=True)
        assert_right(monitor.step(), model)
        model.zero_grad()
        put(out)
