"""The functional of a model's layers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from sdsd.theory import canonicalize, random_representative, symmetries
from sdsd.theory.functional import (
    geometric_functional,
    hidden_layers,
    log_volume,
    orbit_entropy,
    realized_volume,
)

from .rows import NORMED, Named, mass_of, network, normal


def test_layers_of_a_network():
    model = network()
    (layer,) = hidden_layers(model)
    assert layer.name == "0"
    for neuron in range(8):
        row = [*model[0].weight[neuron].tolist(), model[0].bias[neuron].item()]
        out = model[2].weight[:, neuron].tolist()
        assert layer.rows[neuron].tolist() == row
        assert layer.mass[neuron].item() == pytest.approx(math.hypot(*row) * math.hypot(*out))


def test_layers_of_a_convolutional_network():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(4, 6, 2, bias=False),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    first, second = hidden_layers(model)
    assert (first.name, second.name) == ("0.0", "1")
    assert first.rows.shape == (4, 10)
    assert second.rows.shape == (6, 16)
    out = model[4].weight.view(10, 6, 2, 2)[:, 2].flatten()  # Flatten keeps channels together
    assert second.mass[2].item() == pytest.approx((second.rows[2].norm() * out.norm()).item())
    out = model[1].weight[:, 3].flatten()
    assert first.mass[3].item() == pytest.approx((first.rows[3].norm() * out.norm()).item())


@pytest.mark.parametrize("volume", ["log", "union"])
def test_functional_is_entropy_plus_volume(volume):
    model = network()
    (layer,) = hidden_layers(model)
    found = geometric_functional(model, 0.3, volume=volume, angle=0.8, epsilon=0.4, samples=500, seed=2)
    union = realized_volume(layer.rows, 0.8, 500, 2)
    wanted = log_volume(layer.rows, 0.4).item() if volume == "log" else union.value
    assert found.volume.item() == wanted
    assert found.entropy.item() == pytest.approx(orbit_entropy(layer.rows, layer.mass).item(), rel=1e-12)
    assert found.value.item() == pytest.approx(found.entropy.item() + 0.3 * wanted)
    assert found.layers == {"0": (found.entropy.item(), wanted)}
    assert found.value.requires_grad == (volume == "log")
    assert found.volume_error == (union.standard_error if volume == "union" else 0)


def test_functional_sums_over_layers():
    deep = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    found = geometric_functional(deep, 0.5)
    parts = [geometric_functional(deep, 0.5, layers=[pair]).value.item() for pair in (("0", "2"), ("2", "4"))]
    assert list(found.layers) == ["0", "2"]
    assert found.value.item() == pytest.approx(sum(parts))


def test_functional_of_one_hidden_layer_ignores_rescaling_and_order():
    model = network()
    moved = copy.deepcopy(model)
    factor, order = mass_of(8) * 10, torch.randperm(8)
    with torch.no_grad():
        moved[0].weight.copy_((model[0].weight * factor[:, None])[order])
        moved[0].bias.copy_((model[0].bias * factor)[order])
        moved[2].weight.copy_((model[2].weight / factor)[:, order])
    x = normal(20, 5)
    assert torch.allclose(model(x), moved(x), atol=1e-13)
    before, after = geometric_functional(model, 0.2), geometric_functional(moved, 0.2)
    assert after.value.item() == pytest.approx(before.value.item(), abs=1e-12)
    unbalanced = orbit_entropy(hidden_layers(moved)[0].rows, hidden_layers(moved)[0].rows.norm(dim=1))
    assert abs(unbalanced.item() - before.entropy.item()) > 1e-2  # the mass is what makes it so


def test_functional_reaches_every_weight_it_depends_on():
    model = network()
    geometric_functional(model, 0.3).value.backward()
    assert model[2].bias.grad is None
    step = 1e-6
    for parameter in (model[0].weight, model[0].bias, model[2].weight):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += step * direction
            above = geometric_functional(model, 0.3).value
            parameter -= 2 * step * direction
            below = geometric_functional(model, 0.3).value
            parameter += step * direction
        slope = ((above - below) / (2 * step)).item()
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_minimising_it_alone_collapses_the_layer():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    start = geometric_functional(model, 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        geometric_functional(model, 0.1).value.backward()
        optimizer.step()
    end = geometric_functional(model, 0.1)
    assert start.entropy > 1.2
    assert end.entropy < 0.05
    assert end.volume < start.volume / 2


def test_a_dead_neuron_is_no_obstacle():
    model = network()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
        model[0].weight[4], model[0].bias[4] = 0, 0
    found = geometric_functional(model, 0.3)
    found.value.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_named_pairs_are_measured_whatever_stands_between():
    model = network()
    named = hidden_layers(model, [("0", "2")])
    found = hidden_layers(model)
    assert torch.equal(named[0].rows, found[0].rows)
    assert torch.allclose(named[0].mass, found[0].mass)
    assert geometric_functional(Named(), 0.1, layers=[("fc1", "fc2")]).value.requires_grad
    assert [layer.name for layer in hidden_layers(NORMED, [("0", "3")])] == ["0"]


def test_symmetries_found_once_serve_many_calls():
    model = network()
    found = symmetries(model)
    before = geometric_functional(found, 0.1).value.item()
    with torch.no_grad():
        model[0].weight[0] *= -1
    after = geometric_functional(found, 0.1).value.item()
    assert after == geometric_functional(model, 0.1).value.item() != before
    assert geometric_functional(found, 0.1, layers=[("0", "2")]).value.item() == pytest.approx(after)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.head(x + self.second(x).relu())


def test_neurons_that_a_residual_add_joins_are_one_layer():
    model = Residual()
    (layer,) = hidden_layers(model)
    assert layer.rows.shape == (5, 3 + 1 + 5)
    out = torch.cat((model.second.weight[:, 2], model.head.weight[:, 2]))
    assert layer.mass[2].item() == pytest.approx((layer.rows[2].norm() * out.norm()).item())


def test_deep_networks_need_the_canonical_form():
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2)).double()
    moved = random_representative(deep, seed=1)
    raw = [geometric_functional(model, 0.2).value.item() for model in (deep, moved)]
    canonical = [geometric_functional(canonicalize(model), 0.2).value.item() for model in (deep, moved)]
    assert abs(raw[0] - raw[1]) > 1e-3
    assert canonical[0] == pytest.approx(canonical[1], abs=1e-9)
