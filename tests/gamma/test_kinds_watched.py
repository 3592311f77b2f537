"""Autocast and programs of every kind train as without a monitor; these tests see a change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import perceptron
from tests.zoo.programs import ALL
from tests.zoo.twins import unchanged

from .unchanged import X, Y, chain, classify, linear


def autocast(model, k):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(X.float())
    loss = F.cross_entropy(out.float(), Y)
    loss.backward()
    return out.detach(), loss.item()


def test_autocast():
    make = chain(linear(8, 8), nn.Tanh, lambda: nn.LayerNorm(8), linear())
    assert unchanged(make, autocast, tolerance=1e-2, dtype=torch.float32) == ("same", "")


@pytest.mark.parametrize("name", ALL)
def test_programs_train_as_without_a_monitor(name):
    program = ALL[name].doubled()

    def run(model, k):
        with torch.enable_grad():
            (program.step or program.plain)(model)

    verdict, why = unchanged(program.model, run)
    assert verdict in ("same", "refused"), why


class Nudged(sdsd.GammaMonitor):
    """A monitor with a fault of its own: what the tests of this file have to see."""

    fault = "none"

    def step(self):
        stats = super().step()
        if self.fault == "random":
            torch.rand(())
        if self.fault == "gradient":
            self.model[0].weight.grad.mul_(1 + 1e-6)
        if self.fault == "identity":
            self.model[0].weight = nn.Parameter(self.model[0].weight.detach())
            self.model[0].weight.grad = torch.zeros_like(self.model[0].weight)
        if self.fault == "buffer":
            self.model.train(False)
        return stats


@pytest.mark.parametrize("fault", ["random", "gradient", "identity", "buffer"])
def test_these_tests_see_a_change(fault, monkeypatch):
    monkeypatch.setattr(Nudged, "fault", fault)
    monkeypatch.setattr(sdsd, "GammaMonitor", Nudged)
    assert unchanged(perceptron, classify(X))[0] == "changed"
