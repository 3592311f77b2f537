"""Models in another's order: recovered where they are permuted copies, and never another function."""

from __future__ import annotations

import copy
import doctest
import itertools

import pytest
import torch
from torch import nn

import sdsd
from sdsd.theory import match_neurons, random_representative, symmetries
from sdsd.theory.quotient import matching as module
from tests.theory.models import MODELS, make
from tests.theory.models import inputs as batch
from tests.theory.users_models import make as make_users


def inputs(name, seed=0):
    torch.manual_seed(seed)
    return batch(name, 16)


def permuted(name, model):
    return random_representative(model, spread=0.0, seed=3, example_input=inputs(name))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_is_put_back_by_its_weights(name):
    model = make(name).eval()
    other = permuted(name, model)
    assert not same(model, other)
    matching = match_neurons(model, other, example_input=inputs(name))
    assert matching.by == "weights"
    assert matching.distances[0] > 0.1
    assert matching.distances[1] < 1e-12
    assert same(matching.apply(other), model)


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_is_put_back_by_its_activations(name):
    model = make(name).eval()
    other = permuted(name, model)
    batches = [inputs(name, seed=seed) for seed in range(4)]
    matching = match_neurons(model, other, batches)
    assert matching.by == "activations"
    assert same(matching.apply(other), model)


@pytest.mark.parametrize("name", MODELS)
def test_matching_two_strangers_changes_the_second_to_the_same_function(name):
    one, other = make(name), random_representative(make(name), spread=0.4, seed=1, approximate=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    before = copy.deepcopy(other.state_dict())
    for loader in (None, [inputs(name, seed=7)]):
        matching = match_neurons(one, other, loader, example_input=inputs(name))
        moved = matching.apply(other)
        assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
        assert {key: value.shape for key, value in moved.state_dict().items()} == {
            key: value.shape for key, value in before.items()
        }
        x = inputs(name, seed=9)
        with torch.no_grad():
            assert torch.allclose(moved.eval()(x), other.eval()(x), atol=1e-10)
        distance = sum((a - b).square().sum() for a, b in zip(one.parameters(), moved.parameters(), strict=True)).sqrt()
        assert matching.distances[1] == pytest.approx(distance.item())
        if loader is None:
            assert matching.distances[1] <= matching.distances[0]


def test_one_group_is_matched_as_well_as_can_be():
    one, other = (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double() for _ in range(2))
    matching = match_neurons(one, other)

    def product(order):
        rows = [(one[0].weight, other[0].weight[order]), (one[0].bias, other[0].bias[order])]
        return sum((a * b).sum() for a, b in [*rows, (one[2].weight, other[2].weight[:, order])]).item()

    best = max(product(list(order)) for order in itertools.permutations(range(5)))
    assert product(matching.orders[0].tolist()) == pytest.approx(best)


def test_no_group_gains_from_another_sweep():
    """At the end every single group is at its best, given the others: all swaps of two neurons lose."""
    one, other = (nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(6, 6), nn.Tanh()))) for _ in range(2))
    matching = match_neurons(one, other, seed=2)
    moved = matching.apply(other)

    def distance(model):
        pairs = zip(one.parameters(), model.parameters(), strict=True)
        return sum((a.double() - b.double()).square().sum() for a, b in pairs).item()

    least = distance(moved)
    for layer in (0, 2, 4):
        for i, j in itertools.combinations(range(6), 2):
            swapped = copy.deepcopy(moved)
            with torch.no_grad():
                swapped[layer].weight[[i, j]] = swapped[layer].weight[[j, i]]
                swapped[layer].bias[[i, j]] = swapped[layer].bias[[j, i]]
                swapped[layer + 2].weight[:, [i, j]] = swapped[layer + 2].weight[:, [j, i]]
            assert distance(swapped) >= least


def test_frozen_layers_and_statistics_follow():
    model = make("convolutional").eval()
    other = permuted("convolutional", model)
    model.requires_grad_(False)
    other.requires_grad_(False)[0].weight.requires_grad_(True)
    matching = match_neurons(model, other, example_input=inputs("convolutional"))
    moved = matching.apply(other)
    assert same(moved, model)
    assert [name for name, parameter in moved.named_parameters() if parameter.requires_grad] == ["0.weight"]


def test_a_norm_behind_a_tanh_keeps_its_statistics_with_its_neurons():
    """Neither rescaled nor shifted, so that no move of `symmetries` but the permutation knows the norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    for _ in range(3):
        model(torch.randn(32, 4, dtype=torch.float64))
    order = torch.randperm(6)
    other = copy.deepcopy(model.eval())
    with torch.no_grad():
        for tensor in (other[0].weight, other[0].bias, *other[2].parameters(), *list(other[2].buffers())[:2]):
            tensor.copy_(tensor[order])
        other[4].weight.copy_(other[4].weight[:, order])
    example = torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose(other(example), model(example))
    assert same(match_neurons(model, other, example_input=example).apply(other), model)


def test_a_wrong_order_is_noticed():
    model = make("mlp")
    matching = match_neurons(model, permuted("mlp", model), example_input=inputs("mlp"))
    broken = copy.copy(matching)
    first = matching._permutations[0]
    object.__setattr__(broken, "_permutations", (type(first)(**{**vars(first), "parts": first.parts[:1]}),))
    object.__setattr__(broken, "orders", (torch.arange(first.width).flip(0),))
    with pytest.raises(ValueError, match="in another order computes something else: outputs differ by up to"):
        broken.apply(model)
    broken.apply(model, check=False)


def test_refusals():
    one = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"model_b: expected the architecture of model_a, got another '0.weight'"):
        match_neurons(one, nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(ValueError, match="no neurons of it are known to be able to change places"):
        match_neurons(nn.Linear(3, 2), nn.Linear(3, 2))
    with pytest.raises(TypeError, match="neuron_dim: expected tensors of activations, got models"):
        match_neurons(one, one, neuron_dim=1)
    matching = match_neurons(one, copy.deepcopy(one))
    with pytest.raises(ValueError, match="expected the architecture"):
        matching.apply(nn.Linear(3, 4))
    assert "0 of 4 neurons change places" in str(matching)


def test_trained_digits_meet_in_one_valley():
    """Two perceptrons from different starts: the barrier goes where neurons are matched, and only there."""
    pytest.importorskip("sklearn")
    from sdsd.studies.digits import split_digits

    digits = split_digits(0)

    def trained(seed):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(15):
            for part in torch.randperm(len(digits.images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(digits.images[part]), digits.labels[part]).backward()
                optimizer.step()
        return network

    one, other = trained(0), trained(1)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    data = ([(digits.images, digits.labels)], loss)
    naive = sdsd.loss_barrier(one, other, data).barrier
    by_weights = sdsd.loss_barrier(one, match_neurons(one, other).apply(other), data).barrier
    by_activations = sdsd.loss_barrier(one, match_neurons(one, other, data[0]).apply(other), data).barrier
    assert symmetries(one).permutations[0].width == 64
    assert naive > 0.1
    assert by_weights < naive / 5
    assert by_activations < naive / 5


def test_both_models_see_the_same_samples_of_a_loader_that_shuffles():
    model = make("mlp")
    x = inputs("mlp")
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8, shuffle=True)
    other = permuted("mlp", model)
    matching = match_neurons(model, other, shuffled)
    assert same(matching.apply(other), model)
    assert same(match_neurons(model, other, (batch for batch in x.split(8)), max_batches=2).apply(other), model)
    with pytest.raises(ValueError, match="loader: expected at least one batch, got none"):
        match_neurons(model, other, [])


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("flattened", ["blocks", "interleaved"])
def test_readers_of_flattened_neurons_tell_them_apart(flattened):
    """All that tells the neurons apart is the weight that reads them, four of its columns a neuron."""
    torch.manual_seed(0)
    first = nn.Linear(3, 5) if flattened == "interleaved" else nn.Conv1d(3, 5, 1)
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)).double()
    with torch.no_grad():
        first.weight.fill_(0.5)
        first.bias.fill_(0.1)
    other, order = copy.deepcopy(model), torch.tensor([3, 1, 4, 0, 2])
    columns = other[3].weight.unflatten(1, (4, 5) if flattened == "interleaved" else (5, 4))
    with torch.no_grad():
        moved = columns[:, :, order] if flattened == "interleaved" else columns[:, order]
        other[3].weight.copy_(moved.flatten(1))
    example = torch.randn(2, 4, 3) if flattened == "interleaved" else torch.randn(2, 3, 4)
    example = example.double()
    assert same(match_neurons(model, other, example_input=example).apply(other), model)


def test_whole_heads_are_matched_with_the_neurons_inside_them():
    torch.manual_seed(9)
    model, x = make_users("vit")
    other = random_representative(model, spread=0.0, seed=3, example_input=x)
    layers = [f"encoder.layers.{k}.self_attn" for k in range(2)]
    matching = match_neurons(model, other, example_input=x)
    heads = [order for order, names in zip(matching.orders, matching.layers, strict=True) if names[0] in layers]
    assert [len(order) for order in heads[:2]] == [3, 3]
    assert any(not torch.equal(order, torch.arange(3)) for order in heads[:2])
    assert matching.distances[1] < 1e-12 < matching.distances[0]
    assert "3 heads change places" in str(matching) or "of 3 heads" in str(matching)
    assert (matching.apply(other)(x) - model(x)).abs().max() < 1e-12


def test_whole_heads_are_matched_by_their_activations():
    torch.manual_seed(10)
    model, x = make_users("gpt")
    other = random_representative(model, spread=0.0, seed=4, example_input=x)
    batches = [torch.randint(0, 11, (64, 6))]
    matching = match_neurons(model, other, batches, example_input=x)
    heads = matching.layers.index(("h.0.attn.c_attn",))
    assert len(matching.orders[heads]) == 3
    moved = matching.apply(other)
    assert (moved.h[0].attn.c_attn.weight - model.h[0].attn.c_attn.weight).abs().max() < 1e-12
