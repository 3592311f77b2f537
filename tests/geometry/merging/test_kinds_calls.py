"""Calls of consolidation: in place, failing, with batches, on networks that draw numbers."""

from __future__ import annotations

import copy
import importlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import (
    NeuronMap,
    biopsy,
    collect_activations,
    consolidate_model,
    disjoint_pairs,
    mean_loss,
    outgoing_weights,
    remove_neurons,
    sgd_training,
)
from sdsd.geometry.merging.consolidate import consolidate
from sdsd.geometry.merging.consumers import consumers

from ..networks import Forward
from .refused import PAIRS, Net, built, smaller_is_merged


@pytest.mark.parametrize("module", [nn.BatchNorm1d(24), nn.PReLU(24)])
def test_one_norm_on_two_orders_of_a_concatenation_couples_both(module):
    def forward(m, x, h):
        other = m.wide(x)
        return m.one(m.shared(torch.cat([h, other], -1))) + m.two(m.shared(torch.cat([other, h], -1)))

    model = built(Net, forward)
    model.shared, model.one, model.two = module, nn.Linear(24, 4), nn.Linear(24, 4)
    for example in (None, x := torch.randn(8, 16)):
        smaller = smaller_is_merged(copy.deepcopy(model), "a", x, example)
        assert smaller.wide.out_features == 10


class Unbatched(nn.Module):
    def __init__(self, conv, head, forward):
        super().__init__()
        self.conv, self.head, self.run = conv, head, forward

    def forward(self, x):
        return self.run(self, self.conv(x).relu())


UNBATCHED = {
    "linear over width": (nn.Conv1d(2, 6, 3), nn.Linear(12, 4), lambda m, h: m.head(h.flatten(1)), (2, 14)),
    "view": (nn.Conv1d(2, 6, 3), nn.Linear(12, 4), lambda m, h: m.head(h.view(h.size(0), -1)), (2, 14)),
    "rows and columns": (nn.Conv2d(1, 6, 3), nn.Linear(36, 4), lambda m, h: m.head(h.flatten(1)), (1, 8, 8)),
    "straight": (nn.Conv1d(2, 6, 3), nn.Linear(12, 4), lambda m, h: m.head(h), (2, 14)),
    "transposed": (nn.Conv1d(2, 6, 3), nn.Linear(6, 4), lambda m, h: m.head(h.transpose(0, 1)), (2, 14)),
}


@pytest.mark.parametrize("name", UNBATCHED)
def test_convolutions_without_a_batch_are_right_or_asked_about(name):
    conv, head, forward, shape = UNBATCHED[name]
    model, x = Unbatched(conv, head, forward), torch.randn(shape)
    if name == "transposed":
        smaller_is_merged(model, "conv", x, x)
    else:
        with pytest.raises(ValueError, match="Removing neurons is not possible"):
            consolidate(model, "conv", PAIRS, example_input=x)
    if name in ("linear over width", "view"):  # they run on other inputs with a batch
        assert "Pass example_input" in str(consumers(model, "conv"))
        assert not consumers(model, "conv").changeable
    assert (tuple(consumers(model, "conv", x).readers) == ()) == (name != "transposed")


def test_with_a_batch_the_same_networks_shrink():
    for name in ("linear over width", "view"):
        conv, _, forward, _ = UNBATCHED[name]
        smaller_is_merged(Unbatched(conv, nn.Linear(36, 4), forward), "conv", x := torch.randn(5, 2, 8), x)


def test_a_call_that_fails_after_the_cut_leaves_the_model_alone(monkeypatch):
    model, x = built(Net, lambda m, x, h: m.b(m.norm(h))), torch.randn(8, 16)
    before, wanted = copy.deepcopy(model.state_dict()), model.eval()(x)
    tensors = {name: id(tensor) for name, tensor in model.named_parameters()}
    done = []

    def broken(*arguments, **_named):
        done.append(arguments)
        raise KeyboardInterrupt

    for place in ("cutting.cut", "consolidate.prove", "consolidate._report"):
        with monkeypatch.context() as patched:
            file, name = place.split(".")
            patched.setattr(importlib.import_module(f"sdsd.geometry.merging.{file}"), name, broken)
            with pytest.raises(KeyboardInterrupt):
                consolidate(model, "a", PAIRS, inplace=True, example_input=x)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert {name: id(tensor) for name, tensor in model.named_parameters()} == tensors
        assert torch.equal(model(x), wanted)
    assert len(done) == 3


def test_in_place_only_what_is_cut_is_new():
    model, x = built(Net, lambda m, x, h: m.b(m.norm(h))), torch.randn(8, 16)
    tensors = {name: id(tensor) for name, tensor in model.named_parameters()}
    same, _ = consolidate(model, "a", PAIRS, inplace=True, example_input=x)
    assert same is model
    new = {name for name, tensor in model.named_parameters() if id(tensor) != tensors[name]}
    assert new == {"a.weight", "a.bias", "norm.weight", "norm.bias", "b.weight"}
    assert (model.a.out_features, model.norm.num_features, model.b.in_features) == (10, 10, 10)
    assert len(model.norm.running_var) == 10


def test_what_a_forward_sets_is_as_before():
    def forward(m, x, h):
        m.norm.num_batches_tracked += 1
        m.b.seen = h
        m.fresh = x
        return m.b(h)

    model, x = built(Net, forward), torch.randn(8, 16)
    model.b.seen = "nothing yet"
    for example in (None, x):
        consolidate(model, "a", PAIRS, inplace=True, example_input=example)
        assert model.b.seen == "nothing yet"
        assert not hasattr(model, "fresh")
        assert model.norm.num_batches_tracked == 0


def test_random_networks_are_run_and_buffers_are_left_alone():
    def forward(m, x, h):
        m.norm.num_batches_tracked += 1
        return m.b(h) + torch.randn(len(x), 1)

    model, x = built(Net, forward), torch.randn(8, 16)
    smaller, report = consolidate(model, "a", PAIRS, example_input=x)
    assert report.compared
    assert model.norm.num_batches_tracked == smaller.norm.num_batches_tracked == 0

    always = built(Net, lambda m, x, h: m.b(functional.dropout(h, 0.5, training=True)))
    _, report = consolidate(always, "a", PAIRS, example_input=x)
    assert not report.compared  # other neurons are dropped in a layer of another size
    assert "outputs    not compared: the model is random" in str(report)
    _, report = consolidate_model(always, [x], budget=0.1, example_input=x)
    assert "outputs not compared: the model is random" in str(report)


def perceptron():
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


NO_NEURONS = {
    "a fraction": ([1.5], TypeError, "neurons: expected an int, got float"),
    "a word": ("3", TypeError, "neurons: expected a list of indices, got str '3'"),
    "one": (3, TypeError, "neurons: expected a list of indices, got int 3"),
    "none": (None, TypeError, "neurons: expected a list of indices, got NoneType"),
    "a mask": (torch.arange(12) > 9, TypeError, "expected indices, got 12 booleans. Of a mask, pass"),
    "a mask of NumPy": (np.arange(12) > 9, TypeError, "expected indices, got 12 booleans"),
    "no number": ([float("nan")], TypeError, "neurons: expected an int, got float"),
}


@pytest.mark.parametrize("name", NO_NEURONS)
def test_what_is_no_list_of_neurons_is_refused(name):
    given, error, says = NO_NEURONS[name]
    with pytest.raises(error, match=says):
        remove_neurons(perceptron(), "0", given)


@pytest.mark.parametrize("given", [[1, 5], (1, 5), torch.tensor([1, 5]), np.array([1, 5]), iter([1, 5]), {1, 5}])
def test_lists_of_neurons_of_any_kind_are_taken(given):
    assert sorted(remove_neurons(perceptron(), "0", given)[1].removed) == [1, 5]


@pytest.mark.parametrize("three", [(0, 1, 2), torch.tensor([[0, 1, 2]]), np.array([[0, 1, 2]])])
def test_three_neurons_are_no_pair(three):
    with pytest.raises(TypeError, match=r"pairs: expected \(first, second\) neuron indices"):
        consolidate(perceptron(), "0", [three] if isinstance(three, tuple) else three)


@pytest.mark.parametrize("given", [None, 3, NeuronMap.from_cosine(np.eye(4))])
def test_what_holds_no_pairs_is_refused_by_its_kind(given):
    with pytest.raises(TypeError, match=f"as disjoint_pairs gives them, got {type(given).__name__}"):
        consolidate(perceptron(), "0", given)


DATA = [(torch.randn(8, 16), torch.randint(4, (8,)))]
LOSSES = {
    "biopsy": lambda model, x, loss: biopsy(model, "0", (DATA, loss), 2, cosine=torch.eye(12)),
    "mean_loss": lambda model, x, loss: mean_loss(DATA, loss),
    "outgoing_weights": lambda model, x, loss: outgoing_weights(model, "0", x, loss=(DATA, loss)),
    "sgd_training": lambda model, x, loss: sgd_training(DATA, loss),
    "evaluate": lambda model, x, loss: consolidate_model(
        model, DATA, budget=0.1, example_input=x, evaluate=(DATA, loss)
    ),
    "by cost": lambda model, x, loss: consolidate_model(model, DATA, budget=0.1, by="cost", loss=(DATA, loss)),
}


@pytest.mark.parametrize("loss", [functional.cross_entropy, nn.MSELoss()], ids=["function", "module"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_outputs_and_targets_is_refused_with_what_to_pass(name, loss):
    with pytest.raises(TypeError, match=r"got torch's (cross_entropy|MSELoss), .* lambda model, batch"):
        LOSSES[name](perceptron(), DATA[0][0], loss)


def test_what_was_collected_is_no_tensor_and_the_error_says_what_is():
    found = collect_activations(perceptron(), [torch.randn(8, 16)], "0")
    with pytest.raises(TypeError, match=r"got LayerActivations. Pass its cosine_matrix\(\)"):
        disjoint_pairs(found["0"], 2)
    with pytest.raises(TypeError, match="got dict. Pass one of its entries: '0'"):
        NeuronMap.from_activations(found)


def by_a_function(model):
    model.forward = lambda x: model.b(model.a(x).tanh())


def by_a_hook(model):
    model.a.register_forward_hook(lambda _module, given, _output: functional.linear(*given, model.a.weight))


def by_a_dictionary(model):
    vars(model)["kept"] = {"weight": model.a}
    model.run = lambda m, x: m.b(vars(m)["kept"]["weight"](x).relu())


@pytest.mark.parametrize("change", [by_a_function, by_a_hook])
def test_a_copy_that_runs_the_model_itself_is_refused(change):
    """The smaller network would be as large as before, and change when the model does."""
    torch.manual_seed(0)
    model = Forward(lambda m, x: m.b(m.a(x).tanh()), a=nn.Linear(5, 6), b=nn.Linear(6, 3))
    change(model)
    x = torch.randn(4, 5)
    before, wanted = copy.deepcopy(model.state_dict()), model(x)
    for inplace in (False, True):
        for call, which in ((consolidate, [(0, 1)]), (remove_neurons, [1])):
            with pytest.raises(ValueError, match=r"computes with 'a\.weight' of the model itself"):
                call(model, "a", which, example_input=x, inplace=inplace)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(x), wanted)


def test_a_copy_follows_dictionaries_and_bound_methods():
    torch.manual_seed(0)
    model = Forward(lambda m, x: m.b(m.a(x).tanh()), a=nn.Linear(5, 6), b=nn.Linear(6, 3))
    by_a_dictionary(model)
    model.forward = model.forward
    smaller, report = consolidate(model, "a", [(0, 1)], example_input=torch.randn(4, 5))
    assert report.compared
    assert vars(smaller)["kept"]["weight"] is smaller.a


def test_nothing_is_said_to_be_equal_where_there_was_nothing_to_compare():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    _, report = consolidate(model, "0", [(0, 1)], example_input=torch.zeros(0, 5))
    assert not report.compared
    assert "no finite number" in str(report)


class Frozen(dict):
    """A configuration that refuses to be changed, as that of a model of diffusers."""

    def _refuse(self, *args, **kwargs):
        raise TypeError("a frozen dictionary")

    update = clear = pop = setdefault = __setitem__ = __delitem__ = _refuse

    def __deepcopy__(self, memo):
        return self


def test_what_cannot_be_changed_is_not_put_back():
    def forward(m, x):
        m.seen["batches"] = m.seen.get("batches", 0) + 1
        return m.b(m.a(x).tanh() * m.config["scale"])

    model = Forward(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 3))
    model.config, model.seen = Frozen(scale=2.0), {"batches": 7}
    x = torch.randn(4, 5)
    smaller, report = consolidate(model, "a", [(0, 1)], example_input=x)
    assert report.compared
    assert smaller.config == model.config == {"scale": 2.0}
    assert model.seen == {"batches": 7}
    assert list(collect_activations(model, [x], "a")) == ["a"]
