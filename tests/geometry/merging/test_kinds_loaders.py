"""Loaders that give their batches only once: what is collected is of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.geometry import consolidate_model, disjoint_pairs, expert_cosine, plan_consolidation
from sdsd.geometry.merging.group_activations import group_activations

BATCHES = [scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(scale)) for scale in (1, 4, 9)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def cosines():
    values = network()[:2](torch.cat(BATCHES)).detach().double()
    unit = values / values.norm(dim=0)
    return unit.T @ unit


CALLS = {
    "plan": lambda model, loader, **options: (
        plan_consolidation(model, loader, "0", budget=0.3, **options).layers[0].pairs
    ),
    "whole model": lambda model, loader, **options: (
        consolidate_model(model, loader, "0", budget=0.3, **options)[1].layers[0].pairs
    ),
}


@pytest.mark.parametrize("example", [None, torch.zeros(2, 5)])
@pytest.mark.parametrize("call", CALLS)
def test_pairs_of_a_generator_are_those_of_all_its_batches(call, example):
    found = CALLS[call](network(), iter(BATCHES), example_input=example)
    assert len(found) >= 3
    wanted = disjoint_pairs(pairs=len(found), cosine=cosines())
    assert [pair[:2] for pair in found] == [pair[:2] for pair in wanted]
    assert found == CALLS[call](network(), BATCHES, example_input=example)


@pytest.mark.parametrize("call", CALLS)
def test_no_more_batches_of_a_generator_are_read_than_wanted(call):
    left = iter(BATCHES)
    few = CALLS[call](network(), left, max_batches=2)
    assert few == CALLS[call](network(), BATCHES[:2])
    assert len(list(left)) == 1


def test_activations_of_groups():
    model = network()
    (found,) = group_activations(model, (batch for batch in BATCHES), "0").values()
    assert found.samples == 18
    torch.testing.assert_close(found.cosine_matrix().double(), cosines(), rtol=0, atol=1e-5)


EMPTY = {
    "plan": lambda loader: plan_consolidation(network(), loader, budget=0.3),
    "whole model": lambda loader: consolidate_model(network(), loader, budget=0.3, example_input=torch.zeros(2, 5)),
    "groups": lambda loader: group_activations(network(), loader, "0"),
    "groups on an example": lambda loader: group_activations(network(), loader, "0", example_input=torch.zeros(2, 5)),
    "experts": lambda loader: expert_cosine(nn.Sequential(nn.ModuleList([nn.Linear(5, 5)])), "0", loader),
}


@pytest.mark.parametrize("loader", [list, lambda: iter([])], ids=["list", "generator"])
@pytest.mark.parametrize("call", EMPTY.values(), ids=EMPTY)
def test_a_loader_without_batches_is_told_as_such(call, loader):
    with pytest.raises(ValueError, match="loader: expected at least one batch, got none"):
        call(loader())
