"""Activations are those of a loop by hand; which nonlinearity counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sdsd.geometry.collect.activations import collect_activations
from tests.helpers import relative_error

from .networks import tokens


def images() -> tuple[nn.Module, list[Tensor]]:
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(),
        nn.Conv2d(5, 7, 2),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(7, 3),
    )
    model[1].running_mean.uniform_(-1, 1)
    return model, [torch.randn(size, 2, 8, 8) for size in (3, 1, 4)]


def signals() -> tuple[nn.Module, list[Tensor]]:
    return nn.Sequential(nn.Conv1d(2, 5, 3), nn.SiLU(), nn.Conv1d(5, 3, 1)), [
        torch.randn(3, 2, 9),
        torch.randn(2, 2, 7),
    ]


def by_hand(model: nn.Module, batches: list[Tensor], layer: str, function) -> Tensor:
    """(samples, neurons) in float64: the model is run in float64, and `function` says what to take of its output."""
    model = model.double().eval()
    rows = []

    def take(_module, _inputs, output):
        value = function(output.detach().clone())
        neurons_last = value if layer in ("up", "down", "9") else value.movedim(1, -1)
        rows.append(neurons_last.reshape(-1, neurons_last.shape[-1]))

    handle = model.get_submodule(layer).register_forward_hook(take)
    with torch.no_grad():
        for batch in batches:
            model(batch.double())
    handle.remove()
    return torch.cat(rows)


def norm_then(module: nn.Module, function):
    return lambda value: function(module(value))


def cases():
    torch.manual_seed(5)
    model, batches = images()
    yield "conv, norm, in-place relu", model, batches, "0", "relu", norm_then(model[1], functional.relu)
    yield "conv, pooled before tanh", model, batches, "5", "tanh", lambda v: functional.max_pool2d(v, 2).tanh()
    yield "no nonlinearity", model, batches, "9", "output", lambda v: v
    model, batches = signals()
    yield "conv1d", model, batches, "0", "silu", functional.silu
    yield "conv1d, last", model, batches, "2", "output", lambda v: v
    model, batches = tokens()
    yield "tokens, norm, function", model, batches, "up", "gelu", norm_then(model.norm, functional.gelu)
    yield "tokens, residual", model, batches, "down", "output", lambda v: v


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
@pytest.mark.parametrize("keep", [False, True])
def test_against_a_loop_by_hand(case, keep):
    _, model, batches, layer, after, function = case
    wanted = by_hand(model, batches, layer, function)
    found = collect_activations(model, [batch.double() for batch in batches], layer, keep=keep)[layer]
    assert (found.taken_after, found.neurons, found.samples) == (after, wanted.shape[1], len(wanted))
    assert (found.values is None) != keep
    # In float64 rounding is far below whatever a wrong value, layer or place would make.
    if keep:
        assert relative_error(found.values, wanted) <= 1e-13
    for center in (False, True):
        unit = functional.normalize(wanted - wanted.mean(0) * center, dim=0)
        assert relative_error(found.cosine_matrix(center=center), unit.T @ unit) <= 1e-12
    assert relative_error(found.gram(), wanted.T @ wanted) <= 1e-12
    assert relative_error(found.norms(), wanted.norm(dim=0)) <= 1e-12


def test_own_output_on_request():
    model, batches = images()
    wanted = by_hand(model, batches, "0", lambda value: value)
    for keep in (False, True):  # the ReLU in place that follows must not show
        doubles = [batch.double() for batch in batches]
        found = collect_activations(model, doubles, "0", after_nonlinearity=False, keep=keep)["0"]
        assert found.taken_after == "output"
        assert relative_error(found.gram(), wanted.T @ wanted) <= 1e-12


def test_kept_values_are_not_written_by_what_comes_next():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    batch = torch.randn(6, 3)
    kept = collect_activations(model, [batch], "0", after_nonlinearity=False, keep=True)["0"].values
    assert torch.equal(kept, model[0](batch).detach())
    assert bool((kept < 0).any())


def test_a_nonlinearity_is_told_from_what_mixes_neurons_or_comes_later():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            b = self.b(a.softmax(-1))
            c = functional.leaky_relu(self.c(b), 0.1) + b.flip(-1).relu()
            return torch.clamp_min(functional.dropout(self.d(c)), 0.0)

    found = collect_activations(Model(), [torch.randn(5, 4)], "*")
    assert "'a' is of its own output, which 'softmax' reads" in found["a"].note
    assert {name: layer.note for name, layer in found.items() if name != "a"} == {"b": "", "c": "", "d": ""}
    assert {name: layer.taken_after for name, layer in found.items()} == {
        "a": "output",
        "b": "output",
        "c": "leaky_relu → add",
        "d": "clamp_min",
    }


def test_what_several_branches_make_together_counts_and_once():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layer(x)
            return self.norm(hidden).relu() + hidden.tanh()

    model, x = Model(), torch.randn(5, 3)
    found = collect_activations(model, [x] * 2, "layer", keep=True)["layer"]
    assert (found.taken_after, found.samples) == ("relu → tanh → add", 10)
    with torch.no_grad():
        assert torch.equal(found.values, model(x).repeat(2, 1))


def test_a_layer_that_is_called_twice_gives_both():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU())
    found = collect_activations(model, [torch.randn(5, 3)], "0", keep=True)["0"]
    assert found.samples == 10
    with torch.no_grad():
        first = layer(torch.zeros(1, 3)).relu()
    once = collect_activations(model, [torch.zeros(1, 3)], "0", keep=True)["0"].values
    assert torch.allclose(once[:1], first)


def test_nonlinearity_that_is_required():
    with pytest.raises(ValueError, match="saw none behind '2'"):
        collect_activations(
            nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)),
            [torch.ones(1, 2)],
            ["0", "2"],
            after_nonlinearity=True,
        )
