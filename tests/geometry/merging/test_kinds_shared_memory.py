"""Parameters that lie in the memory of others, as a weight tied by a view: both change together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.geometry import consolidate, merge
from sdsd.models import memory_of_others

from .programs import PAIRS, built, dense, is_the_merged_one, linear, rows


def tied(tie, **more):
    """a → b → c, where b is tied to a, and d reads what a does; `tie` is called when parameters have their values."""
    modules = {"a": linear(16, 12), "b": linear(12, 16), "c": linear(16, 4), **more}
    model, drawn = built((lambda m, x: m.c(m.b(m.a(x).relu()).tanh()), rows, lambda: modules))
    tie(model)
    return model, drawn


def hold(model, name, tensor):
    model.register_buffer(name, tensor)


def split(model, dim):
    """Of one tensor a.weight is the first part, and another parameter the rest."""
    whole = torch.cat([model.a.weight.detach(), torch.randn_like(model.a.weight)], dim)
    one, other = whole.chunk(2, dim)
    model.a.weight, model.rest = nn.Parameter(one), nn.Parameter(other)


TIED = {
    "a parameter of the other's transpose": lambda m: setattr(m.b, "weight", nn.Parameter(m.a.weight.T)),
    "values of the other's transpose": lambda m: setattr(m.b.weight, "data", m.a.weight.data.T),
    "a buffer that looks at it": lambda m: hold(m, "seen", m.a.weight.detach()[2:5, 1:]),
    "numbers of another kind": lambda m: hold(m, "bits", m.a.weight.detach().view(torch.int64)),
}
APART = {"rows of one tensor": lambda m: split(m, 0), "columns of one tensor": lambda m: split(m, 1)}


@pytest.mark.parametrize("name", TIED)
def test_layers_whose_weights_share_memory_are_named(name):
    model, drawn = tied(TIED[name])
    before, example = {key: value.clone() for key, value in model.state_dict().items()}, drawn()
    for use in (consolidate, merge):
        with pytest.raises(ValueError, match=r"'a\.weight' lies in the memory of '(b\.weight|seen|bits)'"):
            use(model, "a", PAIRS, example_input=example)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_neurons_that_a_layer_behind_shares_memory_by_are_named():
    """Rows of b are columns of a, which reads other neurons."""
    model, drawn = tied(TIED["a parameter of the other's transpose"])
    with pytest.raises(ValueError, match=r"'b\.weight' lies in the memory of 'a\.weight'"):
        consolidate(model, "b", PAIRS, example_input=drawn())


def test_entries_that_are_one_number_are_named():
    model, drawn = tied(lambda m: setattr(m.a, "bias", nn.Parameter(torch.ones(1).double().expand(12))))
    with pytest.raises(ValueError, match=r"several entries of 'a\.bias' are one number in memory"):
        consolidate(model, "a", PAIRS, example_input=drawn())


@torch.no_grad()
@pytest.mark.parametrize("name", APART)
def test_parts_of_one_tensor_that_do_not_meet_are_cut(name):
    model, drawn = tied(APART[name])
    assert model.a.weight.untyped_storage().data_ptr() == model.rest.untyped_storage().data_ptr()
    assert memory_of_others(model) == {}
    is_the_merged_one(model, drawn)


@torch.no_grad()
def test_one_parameter_in_two_places_is_no_other():
    model, drawn = tied(lambda m: setattr(m.d, "weight", m.a.weight), d=linear(16, 12))
    assert memory_of_others(model) == {}
    is_the_merged_one(model, drawn)


def test_layers_beside_those_that_share_memory_are_cut():
    model, drawn = built(
        (lambda m, x: m.b(m.a(x).relu()) + m.e(m.d(x)), rows, lambda: dense(d=linear(16, 12), e=linear(12, 4)))
    )
    model.e.weight = nn.Parameter(model.d.weight[:4, :12])
    is_the_merged_one(model, drawn)
