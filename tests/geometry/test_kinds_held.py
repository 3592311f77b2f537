"""Models that hold lists, arrays, generators or activations, and models that write into what they are given."""

from __future__ import annotations

import random
import threading
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from sdsd.geometry import (
    biopsy,
    collect_activations,
    consolidate,
    group_activations,
    kl_to_untouched,
    loss_barrier,
    mean_loss,
    outgoing_weights,
    plan_consolidation,
    remove_neurons,
    trained,
    untrained,
)
from sdsd.theory import symmetries


def batches(count=3):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(6, 5, generator=generator) for _ in range(count)]


def square(model, batch):
    return model(batch).square().mean()


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).relu())


class Holding(Small):
    """Everything that changes while it stays the same object."""

    def __init__(self):
        super().__init__()
        self.calls, self.inside, self.seen, self.last = [], {"sizes": {"all": []}}, set(), deque(maxlen=2)
        self.mean, self.counts = torch.zeros(3), np.zeros(3)
        self.drawn, self.python, self.numpy = torch.Generator(), random.Random(1), np.random.default_rng(1)
        self.old_numpy = np.random.RandomState(1)

    def forward(self, x):
        h = self.a(x).relu()
        self.calls.append(len(x))
        self.inside["sizes"]["all"].append(len(x))
        self.seen.add(len(self.calls))
        self.last.append(len(self.calls))
        self.mean.mul_(0.9).add_(x.detach().mean(), alpha=0.1)
        self.counts += 1
        chance = self.python.random() + self.numpy.normal() + self.old_numpy.normal()
        return self.b(h) * (1 + 0.1 * torch.rand(1, generator=self.drawn)) * (1 + 0.1 * chance)

    def held(self):
        states = self.drawn.get_state().tolist(), self.python.getstate(), str(self.numpy.bit_generator.state)
        own = list(self.calls), str(self.inside), set(self.seen), list(self.last)
        return *states, *own, self.mean.tolist(), self.counts.tolist(), str(self.old_numpy.get_state())


CALLS = {
    "activations": lambda m: collect_activations(m, batches(), "a"),
    "groups": lambda m: group_activations(m, batches(), "a"),
    "outgoing weights": lambda m: outgoing_weights(m, "a", batches()[0], loss=(batches(), square)),
    "divergence": lambda m: kl_to_untouched(m, batches())(m),
    "biopsy": lambda m: biopsy(m, "a", (batches(), square), pairs=2, activations=torch.randn(9, 8)),
    "plan": lambda m: plan_consolidation(m, batches(), budget=0.2),
    "consolidate": lambda m: consolidate(m, "a", [(0, 1)], example_input=batches()[0]),
    "in place": lambda m: consolidate(m, "a", [(0, 1)], example_input=batches()[0], inplace=True),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_attributes_hold_is_as_it_was(call):
    model = Holding()
    model(batches()[0])
    before = model.held()
    call(model)
    assert model.held() == before


def test_a_network_with_generators_of_its_own_is_proved_on_the_same_numbers():
    model = Holding()
    _, report = remove_neurons(model, "a", [2], example_input=batches()[0])
    assert report.compared


class Scaling(Small):
    """Writes into its input: what it is given twice is another input."""

    def forward(self, x):
        return super().forward(x.mul_(3).sub_(1))


def test_a_batch_that_the_model_writes_into_is_read_as_it_came():
    model, given = Scaling(), batches(1)
    expected = model.a(given[0].double().mul(3).sub(1).float()).relu().detach().double()
    found = collect_activations(model, given, "a")["a"]
    torch.testing.assert_close(found.gram(), expected.T @ expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(given[0], batches(1)[0])


WRITTEN = {
    "groups": lambda m, x: group_activations(m, [x], "a", example_input=x),
    "outgoing weights": lambda m, x: outgoing_weights(m, "a", x, loss=([x], square)),
    "divergence": lambda m, x: kl_to_untouched(m, [x])(m),
    "loss": lambda m, x: mean_loss([x], square)(m),
    "biopsy": lambda m, x: biopsy(m, "a", ([x], square), pairs=2, activations=torch.randn(9, 8), example_input=x),
    "consolidate": lambda m, x: consolidate(m, "a", [(0, 1)], example_input=x),
}


@pytest.mark.parametrize("call", WRITTEN.values(), ids=WRITTEN)
def test_inputs_that_the_model_writes_into_are_as_they_were(call):
    (given,) = batches(1)
    call(Scaling(), given)
    assert torch.equal(given, batches(1)[0])


def test_losses_of_batches_that_the_model_writes_into_are_those_of_the_batches():
    model, given = Scaling(), batches()
    loss = mean_loss(given, square)
    first = loss(model)
    assert loss(model) == first == pytest.approx(sum(square(model, each).item() for each in batches()) / 3)


class Remembering(Small):
    """Keeps activations with their graphs, by itself and by a hook."""

    def __init__(self):
        super().__init__()
        self.kept, self.hooked = [], {}
        self.a.register_forward_hook(lambda module, inputs, output: self.hooked.update(a=[output]))

    def forward(self, x):
        h = self.a(x).relu()
        self.kept.append(h)
        return self.b(h)


COPIES = {
    "consolidate": lambda m, x: consolidate(m, "a", [(0, 1)], example_input=x)[0],
    "in place": lambda m, x: consolidate(m, "a", [(0, 1)], example_input=x, inplace=True)[0],
    "untrained": lambda m, x: untrained(m),
    "trained": lambda m, x: trained(m, lambda network: iter(range(3)), 2),
    "barrier": lambda m, x: loss_barrier(m, m, ([x], square), points=3),
    "symmetries": lambda m, x: symmetries(m, x),
}


@pytest.mark.parametrize("call", COPIES.values(), ids=COPIES)
def test_a_model_that_holds_activations_is_copied(call):
    model, (x,) = Remembering(), batches(1)
    model(x)
    kept = list(model.kept)
    call(model, x)
    assert [*map(id, model.kept)] == [*map(id, kept)]
    assert kept[0].requires_grad


def test_the_copy_holds_their_values():
    model, (x,) = Remembering(), batches(1)
    model(x)
    smaller, _ = remove_neurons(model, "a", [3], example_input=x)
    assert torch.equal(smaller.kept[0], model.kept[0])
    assert not smaller.kept[0].requires_grad


@pytest.mark.parametrize("inplace", [False, True])
def test_what_cannot_be_copied_is_named(inplace):
    model, (x,) = nn.Sequential(Small()), batches(1)
    model[0].lock = threading.Lock()
    with pytest.raises(TypeError, match=r"the attribute 'lock' \(lock\) of module '0' cannot be copied .* Take it off"):
        remove_neurons(model, "0.a", [3], example_input=x, inplace=inplace)
    assert model(x).shape == (6, 3)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
def test_weights_stay_channels_last(kind):
    last = torch.channels_last if kind is nn.Conv2d else torch.channels_last_3d
    model = nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 2, 3)).to(memory_format=last)
    x = torch.randn(2, 3, *[7] * (model[0].weight.ndim - 2))
    smaller, _ = remove_neurons(model, "0", [1, 5], example_input=x)
    assert all(smaller[k].weight.is_contiguous(memory_format=last) for k in (0, 2))
    assert smaller[0].bias.is_contiguous()


def test_a_parameter_cut_in_place_has_the_attributes_it_had():
    model, (x,) = Small(), batches(1)
    model.a.weight.no_weight_decay = True
    remove_neurons(model, "a", [3], example_input=x, inplace=True)
    assert model.a.weight.shape == (7, 5)
    assert model.a.weight.no_weight_decay
