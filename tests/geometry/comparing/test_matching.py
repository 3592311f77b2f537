"""Assignments beside all that there are, and what a matching says of itself."""

from __future__ import annotations

import copy
import itertools
import math
import sys

import pytest
import torch

import sdsd
from sdsd._extras import MissingExtraError
from sdsd.geometry import cosine_between
from sdsd.geometry.comparing import best_order, match_by_cosine


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (6, 4), (1, 3)])
def test_no_assignment_is_better(n, m):
    scores = torch.randn(n, m, dtype=torch.float64)
    rows, columns = best_order(scores)
    assert sorted(rows.tolist()) == rows.tolist()
    assert len(set(columns.tolist())) == len(columns) == min(n, m)
    wide = scores if n <= m else scores.T
    orders = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    best = max(wide[range(len(order)), list(order)].sum().item() for order in orders)
    assert scores[rows, columns].sum().item() == pytest.approx(best)


def test_neurons_in_another_order_are_found():
    x = torch.randn(80, 7)
    order = torch.randperm(7)
    found = sdsd.match_neurons(x, x[:, order] * torch.rand(7).add(0.5) + 3)
    assert torch.equal(order[found.order], torch.arange(7))
    assert found.mean_cosine == pytest.approx(1, abs=1e-6)
    assert "7 pairs of 7 and 7 neurons, mean cosine 1.000" in repr(found)


def test_what_is_matched_without_centring_and_in_layers_of_other_size():
    x, y = torch.randn(60, 5), torch.randn(60, 8) + 1
    found = sdsd.match_neurons(x, y, center=False)
    cosine = cosine_between(x, y)
    assert found.one.tolist() == list(range(5))
    assert [pair.cosine for pair in found] == pytest.approx(
        [cosine[pair.one, pair.other].item() for pair in found], abs=1e-6
    )
    assert found.cosine.sum() > cosine.diagonal().sum()
    with pytest.raises(ValueError, match="order: expected layers of equal size, got 5 and 8 neurons"):
        _ = found.order
    turned = sdsd.match_neurons(y, x, center=False)
    assert sorted(zip(turned.other.tolist(), turned.one.tolist(), strict=True)) == sorted(
        zip(found.one.tolist(), found.other.tolist(), strict=True)
    )


def test_layouts_may_differ():
    x = torch.randn(6, 4, 5, 5)
    tokens = x.flatten(2).transpose(1, 2)[:, :, [2, 0, 3, 1]]
    assert sdsd.match_neurons(x, tokens).order.tolist() == [1, 3, 0, 2]


def test_refusals(monkeypatch):
    x = torch.randn(20, 3)
    with pytest.raises(ValueError, match="expected the same samples|samples"):
        sdsd.match_neurons(x, x[1:])
    with pytest.raises(TypeError, match="loader: expected two models, got Tensor"):
        sdsd.match_neurons(x, x, [x])
    with pytest.raises(TypeError, match="expected two models or two tensors of activations, got Tensor and Linear"):
        sdsd.match_neurons(x, torch.nn.Linear(3, 3))
    broken = x.clone()
    broken[0, 2] = math.inf
    with pytest.raises(ValueError, match=r"0 neurons of the first layer .* and 1 of the second \(first: \[2\]\)"):
        sdsd.match_neurons(x, broken)
    for one, other in ((x[:1], x[:1]), (x * 0, x)):
        with pytest.raises(ValueError, match="every cosine is 0. Pass more samples"):
            sdsd.match_neurons(one, other)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    spoiled = copy.deepcopy(model)
    spoiled[0].weight.data[1, 1] = math.nan
    with pytest.raises(ValueError, match="expected finite scores, got a NaN or an infinity. Check the weights"):
        sdsd.match_neurons(spoiled, model, example_input=x)
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "scipy.optimize", None)
        context.setitem(sys.modules, "scipy", None)
        with pytest.raises(MissingExtraError, match=r"matching neurons needs scipy.*pip install '(\.|sdsd)\[report\]"):
            match_by_cosine(torch.eye(3))
