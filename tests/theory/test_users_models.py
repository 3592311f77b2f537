"""Symmetries of networks as users write them: the function itself is what decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdsd.theory import (
    canonicalize,
    geometric_functional,
    local_learning_coefficient,
    quotient_gamma,
    random_representative,
    sharpness,
    symmetries,
    vertical,
    vertical_fraction,
)

from .users_models import USERS, FusedAttention, make


def flat(tensors) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


@pytest.mark.parametrize("name", sorted(USERS))
def test_the_function_stays_at_every_point_of_the_orbit(name):
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = make(name)
        with torch.no_grad():
            before = model(x)
            moved = random_representative(model, example_input=x, seed=seed)
            for other in (moved, canonicalize(model, example_input=x), canonicalize(moved, example_input=x)):
                assert (other(x) - before).abs().max() <= 1e-10 * before.abs().max()
        assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), moved.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(USERS))
def test_a_gradient_has_no_part_along_the_orbit(name):
    torch.manual_seed(1)
    model, x = make(name)
    for module in model.modules():
        for attribute in ("eps", "variance_epsilon"):
            if hasattr(module, attribute):
                setattr(module, attribute, 1e-30)
    found = symmetries(model, x)
    approximate = [scaling for scaling in found.scalings if not scaling.exact(model)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    outputs = model(x)
    gradients = iter(torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), trained))
    listed = [next(gradients) if p.requires_grad else torch.zeros_like(p) for p in model.parameters()]
    assert vertical_fraction(found, listed) <= (1e-8 if approximate else 1e-20)
    assert vertical_fraction(found, [torch.randn_like(p) for p in model.parameters()]) > 1e-3


class Head(nn.Module):
    """Attention and no bias, whose function has the symmetries of its heads and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.head = FusedAttention(6, 2), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attn(x).relu())


def test_all_tangents_of_attention_are_the_null_space_of_the_jacobian():
    torch.manual_seed(0)
    model = Head().double()
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    rows = []
    for x in torch.randn(count, 1, 5, 6).double() * 2:
        out = model(x)[0, -1]
        rows += [flat(torch.autograd.grad(each, parameters, retain_graph=True)) for each in out]
    _, values, vectors = torch.linalg.svd(torch.stack(rows), full_matrices=False)
    null = vectors[values < 1e-9 * values[0]].T
    found = symmetries(model, torch.randn(2, 5, 6).double())
    assert [tuple(mixing.sets.shape) for mixing in found.mixings] == [(2, 3), (2, 3)]
    assert found.tangents == null.shape[1] == 4 * 9 + 6
    update = [torch.randn_like(parameter) for parameter in parameters]
    wanted = null @ (null.T @ flat(update))
    assert (flat(vertical(found, update)) - wanted).norm() <= 1e-7 * wanted.norm()


@pytest.mark.parametrize("name", ["gpt", "llama", "vit", "convnext"])
def test_all_points_of_an_orbit_have_one_canonical_representative(name):
    torch.manual_seed(2)
    model, x = make(name)
    wanted = canonicalize(model, example_input=x)
    for seed in range(2):
        got = canonicalize(random_representative(model, example_input=x, seed=seed, spread=0.5), example_input=x)
        for (path, one), other in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
            assert (one - other).abs().max() < 1e-6 * (1 + one.abs().max()), path


def test_mixed_neurons_are_balanced():
    """The least norm of V W = (V M⁻¹)(M W) has W Wᵀ = VᵀV, and 2 Σ of the singular values of V W."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 5, bias=False)).double()
    first, second = canonicalize(model)
    taken = torch.cat([first.weight, first.bias[:, None]], 1)
    assert (taken @ taken.T - second.weight.T @ second.weight).abs().max() < 1e-12
    whole = model[1].weight @ torch.cat([model[0].weight, model[0].bias[:, None]], 1)
    least = taken.square().sum() + second.weight.square().sum()
    assert least.item() == pytest.approx(2 * torch.linalg.svdvals(whole).sum().item(), rel=1e-12)


def test_a_bottleneck_that_is_wider_than_its_rank_keeps_its_function():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 2)).double()
    x = torch.randn(9, 3).double()
    canonical = canonicalize(model)
    assert (canonical(x) - model(x)).abs().max() < 1e-13
    assert canonical[0].weight[2:].abs().max() < 1e-13


def test_gamma_of_the_quotient_is_one_number_for_the_orbit_of_a_transformer():
    torch.manual_seed(5)
    model, x = make("llama")
    targets = torch.randint(0, 11, x.shape)
    samples = [(x[i : i + 1], targets[i : i + 1]) for i in range(2)] * 3

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(network(batch[0]).flatten(0, 1), batch[1].flatten())

    wanted = quotient_gamma(model, samples, loss, 6).gamma
    for seed in range(2):
        moved = random_representative(model, seed=seed, spread=0.5)
        assert quotient_gamma(moved, samples, loss, 6).gamma == pytest.approx(wanted, rel=1e-6)


class Two(nn.Module):
    """Takes two arguments, for which no shape is likely."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, one: Tensor, *, other: Tensor) -> Tensor:
        return self.last((self.first(one) + self.second(other)).relu())


def test_what_the_loss_gives_the_model_is_an_example():
    torch.manual_seed(6)
    model = Two()
    data = [{"one": torch.randn(6, 3), "other": torch.randn(6, 4), "y": torch.randint(0, 2, (6,))}]

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(network(batch["one"], other=batch["other"]), batch["y"])

    with pytest.raises(ValueError, match="Two runs on no input of a likely shape. Pass example_input"):
        symmetries(model)
    example = {"one": data[0]["one"], "other": data[0]["other"]}
    moved = random_representative(model, example_input=example, seed=1)
    values = [sharpness(each, data, loss).value for each in (model, moved)]
    assert values[0] == pytest.approx(values[1], rel=1e-3)
    found = local_learning_coefficient(model, data, loss, chains=2, draws=40, burn_in=100)
    assert max(found.acceptance) > 0.1
    gammas = [quotient_gamma(each, iter(data * 2), loss, 2).gamma for each in (model, moved)]
    assert gammas[0] == pytest.approx(gammas[1], rel=1e-3)


def test_hints_name_the_layers_of_the_model():
    torch.manual_seed(7)
    model, _ = make("gpt")
    pairs = [("h.0.up", "h.0.down"), ("h.1.up", "h.1.down")]
    with pytest.raises(ValueError, match=r"layers=\[\('h.0.up', 'h.0.down'\), \('h.1.up', 'h.1.down'\)\]"):
        geometric_functional(model, 0.1)
    assert geometric_functional(model, 0.1, layers=pairs).value.requires_grad
    with pytest.raises(ValueError, match=r"stands between.*layers=\[\('0', '3'\)\]"):
        geometric_functional(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Tanh()), 0.1
        )


class Conv1D(nn.Module):
    """A Linear with its weight the other way round, as in GPT-2."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def test_a_weight_the_other_way_round_has_the_same_rows():
    torch.manual_seed(8)
    turned = nn.Sequential(Conv1D(5, 3), nn.ReLU(), Conv1D(2, 5))
    plain = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        for one, other in ((turned[0], plain[0]), (turned[2], plain[2])):
            other.weight.copy_(one.weight.T)
            other.bias.copy_(one.bias)
    wanted = geometric_functional(plain, 0.1).value.item()
    x = torch.randn(4, 3)
    assert geometric_functional(turned, 0.1, example_input=x).value.item() == pytest.approx(wanted, rel=1e-12)
    assert geometric_functional(turned, 0.1, layers=[("0", "2")]).value.item() == pytest.approx(wanted, rel=1e-12)


def test_a_part_that_the_example_does_not_use_stays():
    """Half of a table's neurons are read for short inputs only."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(6, 3)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.linear(x, self.weight[:4]).relu())

    model = Partly().double()
    found = symmetries(model, torch.randn(5, 3).double())
    assert not found.scalings
    assert "only a part of weight is used on the example" in str(found)


def test_a_model_that_reads_two_words_needs_no_example():
    """The number of places that a table and a linear layer behind it agree on is found by trying."""
    model = nn.Sequential(nn.Embedding(23, 4), nn.Flatten(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 23))
    found = symmetries(model)
    assert [each.width for each in found.permutations] == [4, 12], "of the table's columns, and of the hidden neurons"
