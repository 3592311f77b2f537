"""A step keeps nothing alive: neither its graph, nor what was saved in it, nor the model after the monitor is gone."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.parts import class_loss, classes, numbers, perceptron
from tests.zoo.programs import ALL
from tests.zoo.verdict import float64_default

KINDS = ("outside", "shared", "abandoned", "cleared", "parametrized", "recurrent", "layers", "routing", "own functions")
NAMES = [name for name, program in ALL.items() if program.measured and name.startswith(KINDS)]


def tensors_held(step, steps):
    """Tensors that are alive after each of the steps, of those that were made since the first."""
    gc.collect()
    gc.freeze()
    try:
        found = []
        for _ in range(steps):
            step()
            gc.collect()
            found.append(sum(type(each) is torch.Tensor for each in gc.get_objects()))
        return found
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("name", NAMES)
def test_later_steps_hold_no_more_than_earlier_ones(name):
    with float64_default():
        program = ALL[name].doubled()
        model = program.made()
        monitor = sdsd.GammaMonitor(model, **program.options)

        def step():
            model.zero_grad()
            (program.step or program.plain)(model)
            monitor.step()
            monitor.state_dict()  # works what waits into the averages

        step()
        held = tensors_held(step, 3)
        assert held[2] <= held[1], held


def test_the_model_is_freed_with_its_monitor():
    model = perceptron()
    monitor = sdsd.GammaMonitor(model)
    class_loss(model, numbers(6, 8).float(), classes()).backward()
    monitor.step()
    monitor.detach()
    gone = weakref.ref(model)
    del model, monitor
    gc.collect()
    assert gone() is None


def test_an_output_is_freed_without_the_garbage_collector():
    model = nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3))
    monitor = sdsd.GammaMonitor(model)
    out = model(numbers(6, 8).float())
    gone = weakref.ref(out)
    out.square().mean().backward()
    monitor.step()
    gc.disable()
    try:
        del out
        assert gone() is None
    finally:
        gc.enable()
