"""Models whose forward writes into themselves, settings that are lists, layers that have no size yet."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import sdsd
from sdsd.geometry import (
    biopsy,
    collect_activations,
    consolidate,
    consolidate_model,
    consumers,
    expert_cosine,
    group_activations,
    kl_to_untouched,
    outgoing_weights,
    plan_consolidation,
)


def batches(count=3):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(6, 5, generator=generator) for _ in range(count)]


class Averaging(nn.Module):
    """In eval mode, too, it keeps a running average, a number of calls and a maximum that it makes anew."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.calls = nn.Linear(5, 8), nn.Linear(8, 3), 0
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("largest", torch.full((8,), 0.1))

    def forward(self, x):
        h = self.a(x)
        self.calls += 1
        self.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        self.largest = torch.maximum(self.largest, h.detach().abs().amax(0))
        return self.b(((h - self.mean) / self.largest).relu())


def square(model, batch):
    return model(batch).square().mean()


CALLS = {
    "activations": lambda m: collect_activations(m, batches(), "a"),
    "activations as they are": lambda m: collect_activations(m, batches(), "a", after_nonlinearity=False),
    "groups": lambda m: group_activations(m, batches(), "a"),
    "outgoing weights": lambda m: outgoing_weights(m, "a", batches()[0], loss=(batches(), square)),
    "divergence": lambda m: kl_to_untouched(m, batches())(m),
    "biopsy": lambda m: biopsy(m, "a", (batches(), square), pairs=2, activations=torch.randn(9, 8)),
    "plan": lambda m: plan_consolidation(m, batches(), budget=0.2),
    "whole model": lambda m: consolidate_model(m, batches(), budget=0.2, evaluate=(batches(), square)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_forward_that_writes_is_where_it_was(name):
    model = Averaging()
    before, largest = copy.deepcopy(model.state_dict()), model.largest
    CALLS[name](model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.calls == 0
    assert model.largest is largest


def test_every_measurement_starts_from_the_same_state():
    """Pairs of neurons that are the same cost nothing, whenever they are measured."""
    model = Averaging()
    with torch.no_grad():
        for one, other in ((0, 1), (2, 3), (4, 5), (6, 7)):
            for each in (model.a.weight, model.a.bias):
                each[other] = each[one]
    cosine = torch.full((8, 8), 0.1).fill_diagonal_(1)
    for one in (0, 2, 4, 6):
        cosine[one, one + 1] = cosine[one + 1, one] = 1
    measured = biopsy(model, "a", (batches(), square), pairs=4, cosine=cosine)
    assert max(map(abs, measured.near.loss_changes)) < 1e-6
    assert measured.far.mean > 1e-4
    assert kl_to_untouched(model, batches())(model) < 1e-12


def test_experts_are_compared_from_the_same_state():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += len(x)
            return sum(expert(x) for expert in self.experts)

    model = Mixture()
    expert_cosine(model, "experts", batches())
    assert float(model.seen) == 0


def test_graphs_that_were_made_before_can_still_be_walked():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.register_buffer("scale", torch.rand(8))

        def forward(self, x):
            return self.b(self.a(x).relu() * self.scale)

    model, x = Masked(), batches()[0]
    loss = model(x).sum()
    collect_activations(model, [x], "a")
    group_activations(model, [x], "a")
    consumers(model, "a", x)
    loss.backward()
    assert model.a.weight.grad is not None


class Ordered(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(5, 5) for _ in range(2)), nn.Linear(5, 3)
        self.order = order

    def forward(self, x):
        for place in self.order["first"]:
            x = self.layers[place](x).relu()
        return self.head(x)


def test_a_setting_that_is_written_into_is_seen():
    model, x = Ordered({"first": [0, 1]}), batches()[0]
    assert [reader.name for reader in consumers(model, "layers.0", x).readers] == ["layers.1"]
    model.order["first"].reverse()
    assert [reader.name for reader in consumers(model, "layers.0", x).readers] == ["head"]
    model.order["first"].extend([1] * 500)  # so many are no setting that is read
    consumers(model, "layers.0", x)


def test_an_example_that_was_made_under_inference_mode_is_taken():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.inference_mode():
        x = torch.randn(4, 5)
    assert consolidate(model, "0", [(0, 1)], example_input=x)[1].compared


LAZY = {
    "activations": lambda m: collect_activations(m, batches(), "0"),
    "groups": lambda m: group_activations(m, batches(), "0"),
    "readers": lambda m: consumers(m, "0", batches()[0]),
    "whole model": lambda m: consolidate_model(m, batches(), budget=0.1),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_layer_without_a_size_is_asked_to_run_first(name):
    model = nn.Sequential(nn.Linear(5, 8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'1\.weight' has no size yet\. Run the model once\."):
        LAZY[name](model)
    model(batches()[0])
    LAZY[name](model)
    functional.mse_loss(model(batches()[0]), torch.zeros(6, 3)).backward()


def test_the_same_seed_trains_the_same_network_whoever_draws():
    """Augmentations draw from Python's and NumPy's generators, which go on afterwards as if nobody had trained."""
    x, y = torch.randn(32, 3), torch.arange(32) % 2
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))

    def train(network):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        while True:
            chosen = [*random.sample(range(32), 4), *np.random.randint(0, 32, 4).tolist(), int(torch.randint(32, ()))]
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
            yield

    def states():
        return random.getstate(), list(map(str, np.random.get_state())), torch.get_rng_state().tolist()

    def weights(seed):
        return torch.nn.utils.parameters_to_vector(sdsd.geometry.trained(model, train, 3, seed).parameters())

    before = states()
    first = weights(-5)
    assert states() == before
    random.random(), np.random.rand(), torch.rand(2)
    assert torch.equal(weights(-5), first)
    assert not torch.equal(weights(6), first)
    curves = [
        sdsd.plasticity(
            model, "0", train, lambda network: network[0].weight.sum(), 2, epochs=3, activations=model[:2](x)
        )
        for _ in range(2)
    ]
    assert curves[0].untouched == curves[1].untouched
