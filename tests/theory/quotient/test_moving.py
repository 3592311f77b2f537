"""Moving along the orbit leaves the function alone; the canonical point; balance and order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sdsd.theory.quotient import balance as balancing
from sdsd.theory.quotient import (
    canonicalize,
    random_representative,
    rescale,
    symmetries,
)

from ..models import MODELS, inputs, make
from .gradients import squared_norm, tiny_eps


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_moving_along_the_orbit_leaves_the_function_alone(name, dtype, tolerance):
    model = make(name, dtype).eval()
    x = inputs(name, 16, dtype)
    before, state = model(x), copy.deepcopy(model.state_dict())
    moved = random_representative(model, seed=1)
    canonical, from_moved = canonicalize(model), canonicalize(moved)
    for other in (moved, canonical, from_moved):
        assert (other(x) - before).abs().max() <= tolerance
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert squared_norm(moved.parameters()) > 1.5 * squared_norm(model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), canonical.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"group_norm"}))
def test_all_points_of_an_orbit_have_one_canonical_representative(name):
    model = make(name)
    wanted = canonicalize(model, softmax_head=True)
    for seed in range(3):
        got = canonicalize(random_representative(model, seed=seed, softmax_head=True), softmax_head=True)
        for (path, p), q in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
            assert (p - q).abs().max() < 1e-9, path


def test_the_scale_before_norms_whose_eps_stays_is_fixed_on_request():
    model = make("group_norm").eval()
    x = inputs("group_norm", 16)
    canonical = canonicalize(model, approximate=True, order=False)
    assert squared_norm([canonical[0].weight[:3], canonical[0].bias[:3]]) == pytest.approx(1)
    assert squared_norm([canonical[3].weight[0], canonical[3].bias[0]]) == pytest.approx(1)
    assert 1e-12 < (canonical(x) - model(x)).abs().max() < 1e-3
    other = random_representative(tiny_eps(copy.deepcopy(model)), approximate=True)
    both = [canonicalize(each, approximate=True) for each in (model, other)]
    for p, q in zip(both[0].parameters(), both[1].parameters(), strict=True):
        assert (p - q).abs().max() < 1e-9


def test_before_batch_norm_each_neuron_has_norm_one_and_no_bias():
    canonical = canonicalize(make("batch_norm_residual"))
    for layer in (canonical.stem, canonical.first, canonical.second):
        assert torch.allclose(layer.weight.flatten(1).norm(dim=1), torch.ones(layer.out_channels).double())
        assert layer.bias is None or layer.bias.abs().max() < 1e-12
    assert canonical.stem.weight.dtype == torch.float64


def test_statistics_of_a_norm_between_curved_functions_change_places_with_its_neurons():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    model(torch.randn(64, 6, dtype=torch.float64) * 3 + 1)
    model.eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    first, second = canonicalize(model), canonicalize(random_representative(model))
    torch.testing.assert_close(first(x), model(x))
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_in_train_mode_batch_norm_moves_by_its_eps_only():
    model = make("convolutional")
    x = inputs("convolutional", 32)
    change = (canonicalize(model)(x) - model(x)).abs().max()
    exact = (canonicalize(tiny_eps(model))(x) - model(x)).abs().max()
    assert exact < 1e-12 < change < 1e-3


def test_the_canonical_point_has_the_least_norm_of_the_orbit():
    for name in ("mlp", "residual"):
        model = make(name)
        canonical = canonicalize(model)
        least = squared_norm(canonical.parameters())
        assert least < 0.99 * squared_norm(model.parameters())
        for seed in range(5):
            near = random_representative(canonical, spread=0.01, seed=seed)
            assert squared_norm(near.parameters()) > least


@pytest.mark.parametrize("name", ["mlp", "residual", "odd_convolutions"])
def test_without_norms_the_norm_never_rises(name):
    for seed in range(3):
        torch.manual_seed(seed)
        model = make(name)
        for start in (model, random_representative(model, seed=seed), canonicalize(model)):
            assert squared_norm(canonicalize(start).parameters()) <= squared_norm(start.parameters()) * (1 + 1e-12)


def test_before_norms_what_is_least_is_the_norm_less_the_logs_of_the_factors():
    """Weights before BatchNorm that are shorter than 1 are stretched to 1, so that ‖θ‖² itself can rise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, eps=1e-30), nn.ReLU(), nn.Linear(6, 3)).double().eval()

    def least(network):
        lengths = network[0].weight.square().sum(1) + network[0].bias.square()
        return squared_norm(network.parameters()) - lengths.log().sum()

    canonical = canonicalize(model, order=False)
    for seed in range(5):
        near = random_representative(canonical, spread=0.01, seed=seed, permute=False)
        with torch.no_grad():  # the bias before a norm is not a factor: put it back
            shift = near[0].bias.clone()
            near[0].bias.sub_(shift)
            near[1].running_mean.sub_(shift)
        assert least(near) > least(canonical)
    short = copy.deepcopy(canonical)
    with torch.no_grad():
        short[0].weight.mul_(0.1)
        short[0].bias.mul_(0.1)
        short[1].running_mean.mul_(0.1)
        short[1].running_var.mul_(0.01)
    x = torch.randn(9, 5).double()
    assert torch.allclose(short(x), model(x))
    assert squared_norm(canonicalize(short).parameters()) > squared_norm(short.parameters())


def test_far_points_and_wide_layers_take_few_steps(monkeypatch):
    """A layer's sums of squares are one matrix: counted are products with it, not sweeps over its entries."""
    count = 0
    original = balancing._Bent.sums

    def counted(self, *weights):
        nonlocal count
        count += 1
        return original(self, *weights)

    monkeypatch.setattr(balancing._Bent, "sums", counted)
    layers = [nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(100, 10)).double()
    wanted = canonicalize(model)
    count = 0
    got = canonicalize(random_representative(model, spread=3.0))
    assert count < 3000
    for one, other in zip(wanted.parameters(), got.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def test_balance_of_one_hidden_layer_is_the_closed_form():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    incoming = torch.cat([model[0].weight, model[0].bias[:, None]], 1).norm(dim=1)
    outgoing = model[2].weight.norm(dim=0)
    canonical = canonicalize(model, order=False)
    factors = (outgoing / incoming).sqrt()
    assert torch.allclose(canonical[0].weight, factors[:, None] * model[0].weight)
    assert torch.allclose(canonical[0].bias, factors * model[0].bias)
    assert torch.allclose(canonical[2].weight, model[2].weight / factors)
    assert torch.equal(canonical[2].bias, model[2].bias)


class Loop(nn.Module):
    """Two neurons that read and write each other, and next to nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loop, self.head = nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        with torch.no_grad():
            self.loop.weight.copy_(torch.tensor([[0.0, 50.0], [2.0, 0.0]]))
            self.stem.weight.mul_(1e-3)
            self.stem.bias.zero_()
            self.head.weight.mul_(1e-3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + self.loop(x).relu())


def test_a_loop_is_balanced_without_overshooting():
    model = Loop().double()
    canonical = canonicalize(model, order=False)
    assert canonical.loop.weight.abs()[[0, 1], [1, 0]].tolist() == pytest.approx([10, 10], rel=1e-3)
    x = torch.randn(9, 2).double()
    assert (canonical(x) - model(x)).abs().max() < 1e-12


def test_neurons_without_a_side_become_zero():
    model = make("mlp")
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 0
        model[4].weight[:, 3] = 0
        model[2].weight[3] += 1
        model[2].weight[:, 5] = 0
        model[2].weight[3, 5] = 2.0  # neuron 5 feeds only neuron 3, which nothing reads
    x = inputs("mlp", 16)
    canonical = canonicalize(model, order=False)
    assert (canonical(x) - model(x)).abs().max() < 1e-12
    assert canonical[2].weight[:, 2].abs().max() == 0
    assert canonical[2].weight[3].abs().max() == canonical[2].bias[3].abs() == 0
    assert canonical[0].weight[5].abs().max() == canonical[0].bias[5].abs() == 0
    assert all(parameter.isfinite().all() for parameter in canonical.parameters())


def test_order_is_by_weight_and_can_be_left_alone():
    model = make("mlp")
    canonical = canonicalize(model)
    keys = torch.cat([canonical[0].weight, canonical[0].bias[:, None], canonical[2].weight.T], 1).norm(dim=1)
    assert (keys.diff() <= 0).all()
    kept = canonicalize(model, order=False)
    assert torch.allclose(torch.cosine_similarity(kept[0].weight, model[0].weight), torch.ones(8).double())


def test_group_norm_keeps_neurons_within_their_group():
    model = make("group_norm").eval()
    x = inputs("group_norm", 16)
    assert (random_representative(model, spread=0, seed=2)(x) - model(x)).abs().max() < 1e-12
    runs = {permutation.layers[0]: permutation.run for permutation in symmetries(model).permutations}
    assert runs == {"0": 3, "3": 4, "7": 4}


def test_rescale_moves_one_layer():
    model = make("mlp")
    factors = torch.rand(8) + 0.5
    moved = rescale(model, "0", factors)
    x = inputs("mlp", 16)
    assert (moved(x) - model(x)).abs().max() < 1e-12
    assert torch.allclose(moved[0].weight, factors[:, None] * model[0].weight)
    assert rescale(model, "0", factors, in_place=True) is model
    assert torch.equal(model[2].weight, moved[2].weight)
