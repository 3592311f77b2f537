"""What stands in the way is said: what cannot be followed, norms, bad input, modules that raised."""

from __future__ import annotations

import contextlib
import doctest
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from sdsd.geometry.merging.consumers import consumers
from sdsd.graphs import READING, REMOVAL
from tests.geometry.networks import Forward

from .programs import linear

OBSTACLES = {
    "softmax": (lambda m, x: m.head(m.first(x).softmax(-1)), READING, "mixes all neurons"),
    "mean of neurons": (lambda m, x: m.head(m.other(x) + m.first(x).mean(-1, keepdim=True)), READING, "mixes"),
    "mean of neurons, given": (lambda m, x: (m.head(m.first(x)), m.first(x).mean(-1, keepdim=True)), READING, "mixes"),
    "pool over neurons": (
        lambda m, x: m.other(x) + functional.avg_pool1d(m.first(x), 3).mean(),
        READING,
        "runs along the axis",
    ),
    "padded neurons": (lambda m, x: m.head(functional.pad(m.first(x), (1, 1))[..., 1:7]), REMOVAL, "pads the axis"),
    "resized neurons": (lambda m, x: m.head(functional.interpolate(m.first(x)[None], 6)[0]), READING, "runs along"),
    "matrix": (lambda m, x: m.head(m.first(x) @ m.first(x).T @ x[:, :6]), READING, "that the model computes"),
    "as a weight": (lambda m, x: m.head(functional.linear(m.other(x), m.first(x))), READING, "the model computes"),
    "numbers by place": (
        lambda m, x: m.head(m.first(x) * torch.arange(x.size(1))),
        READING,
        "numbers that the forward makes",
    ),
    "the greatest of all": (lambda m, x: m.head(m.other(x) + m.first(x).amax(())), READING, "mixes all"),
    "a reader whose weight is computed": (lambda m, x: m.masked(m.first(x)), READING, "computed from"),
    "a weight squared": (
        lambda m, x: functional.linear(m.first(x), m.head.weight.square()),
        READING,
        "is computed from others",
    ),
    "also the output": (lambda m, x: (m.head(m.first(x)), m.first(x)), READING, "the model's output"),
    "halves by their places": (
        lambda m, x: m.head(torch.cat([m.first(x)[..., 3:], m.first(x)[..., :3]], -1)),
        REMOVAL,
        "by their places",
    ),
    "pieces used apart": (
        lambda m, x: m.head(torch.cat([(h := m.first(x).split([2, 4], -1))[0], h[1].relu()], -1)),
        REMOVAL,
        "pieces",
    ),
    "size of others": (
        lambda m, x: m.head(m.first(x).view(len(x), 2, 3).transpose(1, 2).reshape(len(x), x.shape[-1])),
        REMOVAL,
        "written into it",
    ),
    "the size of other neurons": (
        lambda m, x: m.head(m.first(x).view(len(x), -1, 1).reshape(len(x), m.other(x).shape[-1])),
        REMOVAL,
        "the size of other neurons",
    ),
    "the size of other neurons, in one head": (
        lambda m, x: m.head(m.first(x).view(len(x), -1, 1, m.other(x).shape[-1] // 1 * 1).flatten(1)),
        REMOVAL,
        "the size of other neurons",
    ),
    "joined with what is repeated as often as a number of the model's says": (
        lambda m, x: m.head(m.first(x) + x[:, :1].repeat(1, m.half + 3)),
        REMOVAL,
        "a tensor is made with the size 6 written into it",
    ),
    "a number for these and others": (
        lambda m, x: m.head(m.first(x).view(6, 1, m.width)[:, 0]) + m.last(m.other(x).view(6, 1, m.width)[:, 0]),
        REMOVAL,
        "and of others",
    ),
    "one neuron": (lambda m, x: m.head(m.first(x)) + m.first(x)[:, 2:3], REMOVAL, "by their places"),
    "looked up": (lambda m, x: m.head(m.first(x)[:, torch.tensor([0, 2, 1, 3, 5, 4])]), READING, "looked up"),
    "sorted": (lambda m, x: m.head(m.first(x).sort(-1).values), READING, "orders the neurons"),
    "running sum": (lambda m, x: m.head(m.first(x).cumsum(-1)), READING, "mixes"),
    "rolled": (lambda m, x: m.head(m.first(x).roll(1, -1)), READING, "'roll'"),
    "no rule": (lambda m, x: m.head(torch.renorm(m.first(x), 2, 0, 1.0)), READING, "no rule for 'renorm'"),
    "with the input": (lambda m, x: m.head(m.first(x) + x), READING, "joins the neurons with the model's input"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_followed_is_said(name):
    forward, blocks, says = OBSTACLES[name]
    model = Forward(forward, first=linear(6, 6), other=linear(6, 6), head=linear(6, 4), last=linear(6, 4))
    model.masked = prune.random_unstructured(linear(6, 4), "weight", 0.4)
    model.width, model.half = 6, 3
    found = consumers(model, "first", torch.rand(6, 6))
    assert any(says in str(obstacle) and obstacle.blocks == blocks for obstacle in found.obstacles), found
    assert all(obstacle.where and obstacle.advice for obstacle in found.obstacles)
    assert not found.removable
    assert says in str(found)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [(nn.LayerNorm(4), "LayerNorm"), (nn.GroupNorm(2, 4), "GroupNorm"), (nn.RMSNorm(4), "RMSNorm")],
)
def test_norms_over_neurons_block_removal_only(norm, kind):
    found = consumers(nn.Sequential(linear(3, 4), norm, linear(4, 2)), "0")
    assert [norm.kind for norm in found.norms] == [kind]
    assert found.changeable
    assert not found.removable
    assert "statistics" in str(found)


def test_example_in_the_docstring():
    assert doctest.testmod(importlib.import_module("sdsd.geometry.merging.consumers")).failed == 0


class Raising(nn.Module):
    def forward(self, x):
        raise KeyError(x.shape)


def around(m, x):
    h = m.first(x)
    with contextlib.suppress(KeyError):
        h = m.raising(x=h)
    return m.head(h) / h.shape[-1]


def test_a_module_that_raised_is_not_named_for_what_comes_after():
    model = Forward(around, first=nn.Linear(5, 6), raising=Raising(), head=nn.Linear(6, 3))
    (obstacle,) = consumers(model, "first", torch.rand(4, 5)).obstacles
    assert "in the model's own forward" in obstacle.where
