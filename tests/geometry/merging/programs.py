"""Programs with a layer "a" to be cut, and what has to hold of the smaller network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sdsd.geometry import consolidate, consumers, merge
from sdsd.graphs import seeded

from ..networks import Forward

conv, linear = nn.Conv2d, nn.Linear
PAIRS = [(0, 1), (2, 3)]


def rows():
    return torch.randn(8, 16, dtype=torch.float64)


def words():
    return torch.randn(4, 7, 16, dtype=torch.float64)


def pictures():
    return torch.randn(4, 3, 8, 8, dtype=torch.float64)


def tokens():
    return torch.randint(20, (4, 7))


def dense(**more):
    return {"a": linear(16, 12), "b": linear(12, 4), **more}


def pointwise(**more):
    return {"a": conv(3, 12, 1), "b": conv(12, 2, 1), **more}


def built(case):
    """The model of (forward, what draws an input, what makes its modules), nothing in it at 0 or 1, and the drawing."""
    torch.manual_seed(0)
    model = Forward(case[0], **case[2]()).double()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) / 2
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval(), case[1]


def is_the_merged_one(model, drawn, layer="a"):
    """The smaller network computes what the merged one does, on other inputs and in training too."""
    before = copy.deepcopy(model.state_dict())
    example = drawn()
    pairs = [pair for pair in PAIRS if max(pair) < consumers(model, layer, example).neurons]
    smaller, report = consolidate(model, layer, pairs, example_input=example)
    assert report.compared
    assert report.parameters[1] < report.parameters[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for x in (example, drawn()):
        for training in (False, True):
            with merge(model.train(training), layer, pairs, example_input=example), seeded(4, []):
                wanted = model(x)
            with seeded(4, []):
                found = copy.deepcopy(smaller).train(training)(x)
            assert (found - wanted).abs().max() <= 1e-7 * wanted.abs().max()
    copy.deepcopy(smaller).load_state_dict(smaller.state_dict())
    return smaller


def is_refused(model, drawn, says, layer="a"):
    """It is refused before anything is cut, by an error that says this."""
    before, example = copy.deepcopy(model.state_dict()), drawn()
    model(example)
    assert not consumers(model, layer, example).removable
    with pytest.raises(ValueError, match=says):
        consolidate(model, layer, PAIRS, inplace=True, example_input=example)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model(example)
