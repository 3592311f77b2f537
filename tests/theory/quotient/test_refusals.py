"""What the quotient refuses, and in which words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.theory.quotient import (
    canonicalize,
    horizontal,
    random_representative,
    rescale,
    symmetries,
    vertical,
    vertical_fraction,
)
from sdsd.theory.quotient.walk import MoveWalk

from ..models import Residual, make


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_errors_say_what_is_wrong():
    model = make("mlp")
    linear = nn.Sequential(nn.Linear(3, 3))
    for call in (canonicalize, random_representative, lambda m: vertical(m, list(m.parameters()))):
        with pytest.raises(ValueError, match="no symmetry is known|no continuous symmetry is known"):
            call(linear)
    with pytest.raises(ValueError, match="no continuous symmetry"):
        horizontal(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), [torch.zeros(1)])
    with pytest.raises(ValueError, match="Branching runs on no input of a likely shape.*Pass example_input"):
        symmetries(Branching())
    with pytest.raises(TypeError, match="expected an nn.Module, got list"):
        symmetries([])
    with pytest.raises(ValueError, match="example_input: the model does not run on it"):
        symmetries(model, torch.zeros(2, 9).double())
    with pytest.raises(ValueError, match="spread: expected a finite number"):
        random_representative(model, spread=-1)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"expected finite parameters, but 0\.weight"):
        canonicalize(model)


def test_layers_that_cannot_be_rescaled_say_why():
    tanh = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"'0'.*pass through '1' \(Tanh\), which is not positively homogeneous"):
        rescale(tanh, "0", torch.ones(4))
    with pytest.raises(ValueError, match="'4'.*they are the model's outputs"):
        rescale(tanh, "4", torch.ones(2))
    with pytest.raises(ValueError, match="'1'.*no layer that a rule knows"):
        rescale(tanh, "1", torch.ones(2))
    with pytest.raises(ValueError, match=r"expected 4, one a group of 1 neurons of '2', got shape \(3,\)"):
        rescale(tanh, "2", torch.ones(3))
    with pytest.raises(ValueError, match="positive and finite"):
        rescale(tanh, "2", torch.tensor([1.0, 2.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="expected 1, one a group of 8 neurons"):
        rescale(make("layer_norm"), "0", torch.ones(8))


def test_a_softmax_head_goes_with_a_model_not_with_its_symmetries():
    model = make("mlp")
    found, update = symmetries(model), list(model.parameters())
    for call in (vertical, horizontal, vertical_fraction):
        call(model, update, softmax_head=True)
        with pytest.raises(ValueError, match=r"Pass symmetries\(model, softmax_head=True\)"):
            call(found, update, softmax_head=True)


def test_vectors_have_to_match_the_parameters():
    model = Residual()
    good = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(TypeError, match="got one tensor"):
        vertical(model, torch.zeros(3))
    with pytest.raises(ValueError, match="expected 10 tensors, one a parameter, got 1"):
        vertical(model, [torch.zeros(3)])
    with pytest.raises(ValueError, match=r"missing \['stem.weight'\], unknown \['stem.wait'\]"):
        vertical(model, {**{k: v for k, v in good.items() if k != "stem.weight"}, "stem.wait": good["stem.weight"]})
    with pytest.raises(ValueError, match=r"vectors\['stem.bias'\]: expected shape \(6,\).*got \(5,\)"):
        vertical(model, {**good, "stem.bias": torch.zeros(5)})
    with pytest.raises(TypeError, match=r"vectors\['stem.bias'\]: expected a tensor, got NoneType"):
        vertical(model, {**good, "stem.bias": None})
    assert vertical_fraction(model, good) != vertical_fraction(model, good)  # NaN: no share of nothing


def test_a_rule_that_fails_is_no_fault_of_the_example(monkeypatch):
    def fails(walk, step):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(MoveWalk.rules, "matrix product", fails)
    with pytest.raises(ValueError, match=r"runs, but what it does cannot be followed \(RuntimeError: no such"):
        symmetries(make("mlp"), torch.zeros(2, 5).double())
