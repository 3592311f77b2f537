"""Neurons that belong together: gates, residual streams, shuffles, heads; merged and cut as one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import consolidate, merge, remove_neurons
from tests.geometry.networks import Forward, Residual, reads_nothing_else, scrambled

linear, conv = nn.Linear, nn.Conv2d


def forgotten_result(m, x):
    hidden = m.first(x)
    hidden.add_(m.other(x))
    return m.head(hidden)


def written_into_zeros(m, x):
    hidden = m.first(x)
    made = hidden.new_zeros(len(x) + 2, hidden.shape[-1])
    made[2:] = hidden
    return made


def dead_sample(hidden):
    hidden[0] = 0
    return hidden


COUPLED = {
    "residual": (lambda m, x: m.head(m.first(x).relu() + m.other(x)), ["first", "other"], 6),
    "gate": (lambda m, x: m.head(m.first(x) * m.other(x)), ["first", "other"], 6),
    "gate of a gate": (lambda m, x: m.head(m.first(x).sigmoid() * m.other(x) + m.square(x)), None, 6),
    "in place": (lambda m, x: m.head(m.first(x).add_(m.other(x))), ["first", "other"], 6),
    "forgotten result": (forgotten_result, ["first", "other"], 6),
    "own parameter": (lambda m, x: m.head(m.first(x) * m.scale), ["first"], 6),
    "reader used elsewhere": (lambda m, x: m.head(m.first(x)) + m.head(m.other(x)), ["first", "other"], 6),
    "halves": (lambda m, x: m.pair(torch.mul(*m.first(x).chunk(2, -1))), ["first"], 3),
    "halves by the size": (
        lambda m, x: m.pair((h := m.first(x))[..., : h.shape[-1] // 2] * h[..., h.shape[-1] // 2 :]),
        ["first"],
        3,
    ),
    "two orders": (
        lambda m, x: m.head(m.first(x)) + m.head(torch.cat(m.first(x).chunk(2, -1)[::-1], -1)),
        ["first"],
        3,
    ),
    "different neurons": (
        lambda m, x: m.wide(torch.cat([m.first(x), m.other(x)], -1) + torch.cat([m.other(x), m.first(x)], -1)),
        ["first", "other"],
        6,
    ),
    "recurrent": (lambda m, x: m.head(m.square(m.square(m.first(x).tanh()).tanh())), ["first", "square"], 6),
    "weight of its own making": (lambda m, x: functional.linear(m.first(x), m.head.weight * 2), ["first"], 6),
    "shuffled": (lambda m, x: m.head(m.first(x).view(len(x), 2, -1).transpose(1, 2).flatten(1)), ["first"], 3),
    "shuffled by a number of the module": (
        lambda m, x: m.head(m.first(x).view(len(x), m.two, -1).transpose(1, 2).flatten(1)),
        ["first"],
        3,
    ),
    "halves used apart": (
        lambda m, x: m.head(torch.cat([(h := m.first(x).chunk(2, -1))[0], h[1].relu()], -1)),
        ["first"],
        3,
    ),
    "gated linear unit": (lambda m, x: m.pair(functional.glu(m.first(x))), ["first"], 3),
    "added by place": (
        lambda m, x: m.head(torch.zeros_like(m.first(x)).index_add(0, torch.arange(len(x)), m.first(x))),
        ["first"],
        6,
    ),
    "written into zeros": (lambda m, x: m.head(written_into_zeros(m, x)), ["first"], 6),
    "dead samples": (lambda m, x: m.head(dead_sample(m.first(x))), ["first"], 6),
    "weight with an update": (
        lambda m, x: functional.linear(m.first(x), m.head.weight + m.up.weight @ m.down.weight),
        ["first"],
        6,
    ),
    "written with an update": (
        lambda m, x: m.head(functional.linear(x, m.first.weight + m.square.weight @ m.other.weight, m.first.bias)),
        ["first", "square"],
        6,
    ),
}


def coupled(name: str) -> nn.Module:
    parts = {name: linear(6, 6) for name in ("first", "other", "square")}
    model = Forward(
        COUPLED[name][0],
        **parts,
        head=linear(6, 4),
        wide=linear(12, 4),
        pair=linear(3, 4),
        up=linear(2, 4),
        down=linear(6, 2),
    )
    model.scale, model.two = nn.Parameter(torch.ones(6)), 2
    return scrambled(model).double()


@pytest.mark.parametrize("name", COUPLED)
def test_neurons_that_operations_join_are_one_group(name):
    _, writers, neurons = COUPLED[name]
    model, x = coupled(name), torch.rand(6, 6, dtype=torch.float64)
    found = reads_nothing_else(model, "first", x, x)
    assert found.neurons == neurons
    assert found.removable, found
    assert writers is None or [writer.name for writer in found.writers] == writers
    with torch.no_grad():
        untouched = model(x)
        with merge(model, "first", [(0, 2)], example_input=x):
            merged = model(x)
        smaller, report = consolidate(model, "first", [(0, 2)], example_input=x)
        assert (smaller(x) - merged).abs().max() <= 1e-12
        assert (untouched - merged).abs().max() > 1e-4
        assert report.compared
        pruned, _ = remove_neurons(model, "first", [1], example_input=x)
        assert len(pruned.first.weight) == 6 - 6 // neurons
        for part in found.of("reader"):
            dict(model.named_parameters())[part.name].index_fill_(part.dim, (part.units == 1).nonzero().flatten(), 0)
        assert (pruned(x) - model(x)).abs().max() <= 1e-12


def test_a_residual_stream_of_convolutions_shrinks_as_one():
    model, x = Residual().double(), torch.rand(4, 1, 6, 6, dtype=torch.float64)
    found = reads_nothing_else(model, "second", x, x)
    assert [writer.name for writer in found.writers] == ["stem", "second"]
    assert [reader.name for reader in found.readers] == ["first", "head"]
    assert [norm.name for norm in found.norms] == ["norm"]
    with torch.no_grad():
        with merge(model, "stem", [(0, 3), (5, 1)], example_input=x):
            merged = model(x)
        smaller, _ = consolidate(model, "stem", [(0, 3), (5, 1)], example_input=x)
    assert (smaller(x) - merged).abs().max() <= 1e-12
    shapes = [tuple(smaller.get_submodule(name).weight.shape) for name in ("stem", "first", "second", "norm", "head")]
    assert shapes == [(4, 1, 3, 3), (6, 4, 3, 3), (4, 6, 3, 3), (4,), (3, 4)]
