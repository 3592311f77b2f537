"""Which symmetries are found, and what holds neurons in place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import sdsd
from sdsd.theory.quotient import (
    canonicalize,
    random_representative,
    symmetries,
    vertical,
    vertical_fraction,
)

from ..models import BatchNormResidual, inputs, make
from .gradients import labels, random_vectors, tiny_eps


def test_the_report_names_what_is_found():
    report = str(symmetries(make("batch_norm_residual")))
    for line in (
        "scale before BatchNorm2d: 4 of 4 neurons, stem",
        "rescaling: 4 of 4 neurons, norm, norm2 → first, head",
        "translation before BatchNorm2d: second.bias",
        "permutation: 5 neurons, first, norm1",
    ):
        assert line in report
    assert "norm in eval mode" not in report
    assert "norm in eval mode" in str(symmetries(make("batch_norm_residual").eval()))
    assert "softmax-head translation: 4.weight" in str(symmetries(make("mlp"), softmax_head=True))


def test_in_eval_mode_parameters_alone_do_not_move_before_batch_norm():
    model = tiny_eps(make("convolutional")).eval()
    x = inputs("convolutional", 20)
    y = labels(model, x)
    grads = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    assert vertical_fraction(model, grads) <= 1e-20
    assert symmetries(model).tangents == 4 + 5 + 6
    assert symmetries(model.train()).tangents == 4 + 4 + 4 + 5 + 5 + 6


class Between(nn.Module):
    def __init__(self, mix) -> None:
        super().__init__()
        self.inside, self.outside, self.mix = nn.Linear(4, 6), nn.Linear(6, 4), mix

    def forward(self, x):
        return self.mix(self.outside(self.inside(x).relu()))


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return torch.fft.rfft(x).abs() * self.weight.cumsum(0)


class Recurrent(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0]


def test_what_has_no_rule_is_listed_and_left_alone():
    model = Between(Spectrum()).double()
    x = torch.randn(2, 3, 4).double()
    found = symmetries(model, x)
    assert [scaling.layers for scaling in found.scalings] == [("inside",)]
    assert [permutation.layers for permutation in found.permutations] == [("inside",)]
    assert not found.mixings
    report = str(found)
    assert "no rule for 'fft_r2c' in 'mix'" in report
    assert "neurons of outside: neither rescaled nor permuted" in report
    assert "no rule reaches these parameters: mix.weight" in report
    assert (random_representative(model, example_input=x)(x) - model(x)).abs().max() < 1e-12


def test_what_a_recurrent_layer_reads_moves_and_what_it_keeps_does_not():
    model = Between(Recurrent(4, 4, batch_first=True)).double()
    x = torch.randn(2, 3, 4).double()
    found = symmetries(model, x)
    assert [mixing.layers for mixing in found.mixings] == [("outside",)]
    assert not any("mix" in move.layers for move in (*found.scalings, *found.permutations))
    assert (random_representative(model, example_input=x)(x) - model(x)).abs().max() < 1e-12


class Wired(nn.Module):
    """Two layers and something between them that the test chooses."""

    def __init__(self, between, width=6):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(5, 6), nn.Linear(width, 3), between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


HELD = {
    "sorted": lambda h: h.relu().sort(dim=1)[0],
    "position": lambda h: h.relu() + torch.arange(6).double(),
    "maximum": lambda h: torch.maximum(h, h.flip(1)),
    "transposed": lambda h: (h.relu().T @ h.relu()).sum(0, keepdim=True) + h.relu(),
    "cumulative": lambda h: h.relu().cumsum(1),
    "written": lambda h: torch.zeros_like(h).index_copy(1, torch.arange(6), h.relu()),
}


@pytest.mark.parametrize("name", sorted(HELD))
def test_operations_without_a_rule_hold_neurons_in_place(name):
    model = Wired(HELD[name]).double()
    assert symmetries(model).not_analysed
    for call in (random_representative, canonicalize):
        with pytest.raises(ValueError, match="no symmetry is known"):
            call(model)


PLACED = {
    "sliced": (lambda h: h.relu() + h.relu()[:, [1, 0, 2, 3, 4, 5]], 5),
    "rolled": (lambda h: torch.roll(h.relu(), 1, 1), 6),
    "flipped": (lambda h: h.relu() + h.relu().flip(1), 3),
    "halves": (lambda h: h.relu()[:, :3] + h.relu()[:, 3:], 3),
    "scaled by place": (lambda h: h.relu() * torch.arange(1, 7).double(), 6),
    "all alike": (lambda h: h.relu() - h.relu().mean(1, keepdim=True), 1),
}


@pytest.mark.parametrize("name", sorted(PLACED))
def test_neurons_that_meet_scale_as_one_and_keep_their_places(name):
    between, groups = PLACED[name]
    model = Wired(between, width=3 if name == "halves" else 6).double()
    found = symmetries(model)
    assert sum(scaling.groups for scaling in found.scalings) == groups
    assert not found.mixings
    assert len(found.permutations) == (name == "all alike")
    x = torch.randn(9, 5).double()
    for moved in (random_representative(model), canonicalize(model)):
        assert (moved(x) - model(x)).abs().max() < 1e-12
        assert not torch.equal(moved.first.weight, model.first.weight)


def test_a_constant_between_layers_stops_scale_but_not_order():
    model = Wired(lambda h: (h + 1.0).relu()).double()
    x = torch.randn(9, 5).double()
    assert not symmetries(model).scalings
    for moved in (random_representative(model), canonicalize(model)):
        assert (moved(x) - model(x)).abs().max() < 1e-12
        assert not torch.equal(moved.first.weight, model.first.weight)


HARMLESS = {
    "scaled": lambda h: 0.5 * (h / 3).relu(),
    "viewed": lambda h: functional.dropout(h, 0.0).relu().view(h.size(0), -1),
    "twice": lambda h: h.relu() + h,
    "difference": lambda h: functional.leaky_relu(h) - h,
    "curved": lambda h: functional.gelu(h),
    "gate": lambda h: h.relu() * torch.sigmoid(h),
    "new": lambda h: h.relu() * h.new_full((), 0.5),
    "like": lambda h: h.relu() / torch.full_like(h, 2.0).amax(),
}


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_functions_are_followed(name):
    model = Wired(HARMLESS[name]).double()
    x = torch.randn(9, 5).double()
    found = symmetries(model)
    assert len(found.scalings) == (name not in ("curved", "gate"))
    assert len(found.permutations) == 1
    assert (random_representative(model)(x) - model(x)).abs().max() < 1e-12


class Sequence(nn.Module):
    """Neurons of a Linear layer on (N, T, C), flattened token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(5, 4), nn.Linear(12, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.second(self.norm(self.first(x).relu()).flatten(1))


def test_shapes_come_from_an_example():
    """Here BatchNorm counts tokens, not neurons, and only shapes can tell."""
    model = Sequence().double().eval()
    x = torch.randn(7, 3, 5).double()
    found = symmetries(model, x)
    assert not found.scalings
    assert "normalises another axis" in str(found)
    model.norm = nn.Identity()
    for example in (None, x):
        moved = random_representative(model, example_input=example)
        assert (moved(x) - model(x)).abs().max() < 1e-12
        assert symmetries(model, example).scalings[0].outgoing[0].units.tolist() == [0, 1, 2, 3] * 3


def test_frozen_and_shared_parameters_stay():
    model = make("mlp")
    model[2].weight.requires_grad_(False)
    found = symmetries(model)
    assert not found.scalings
    assert "2.weight does not train" in str(found)
    assert not found.permutations
    shared = nn.Linear(6, 6)
    tied = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    found = symmetries(tied)
    assert [scaling.layers for scaling in found.scalings] == [("4",)]
    assert "0.weight is used 2 times" in str(found)
    x = torch.randn(5, 6).double()
    assert (random_representative(tied)(x) - tied(x)).abs().max() < 1e-12


def test_a_frozen_parameter_may_be_missing_from_an_update():
    model = make("mlp")
    model[4].bias.requires_grad_(False)
    update = {name: value for name, value in random_vectors(model).items() if name != "4.bias"}
    assert list(vertical(model, update)) == list(update)


def test_a_monitored_model_is_left_as_it_is():
    model = make("mlp")
    wanted = str(symmetries(model))
    x, y = inputs("mlp", 8), torch.randint(0, 3, (8,))
    with sdsd.GammaMonitor(model) as monitor:
        assert str(symmetries(model)) == wanted
        assert type(canonicalize(model)[0]) is nn.Linear
        functional.cross_entropy(model(x), y).backward()
        stats = monitor.step()
    assert stats.n == 8


def test_the_model_is_not_run_and_its_state_stays():
    model = BatchNormResidual().double()
    x = inputs("batch_norm_residual", 2)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    symmetries(model, x)
    random_representative(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
