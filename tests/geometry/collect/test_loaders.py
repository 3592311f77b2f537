"""Loaders of every kind, which layers are meant, and what is wrong with the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from sdsd.geometry.collect.activations import collect_activations
from tests.helpers import assert_within, summation_error, unit_roundoff

from .networks import mlp


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, pixels: Tensor, scale: float = 1.0) -> Tensor:
        return self.layer(pixels * scale).relu()


def test_batches_of_every_kind_mean_the_same():
    torch.manual_seed(1)
    model, x = Named(), torch.randn(4, 3)
    wanted = collect_activations(model, [x], "layer", keep=True)["layer"].values
    batches = ((x, torch.zeros(4)), [x], {"pixels": x, "label": torch.zeros(4)}, {"pixels": x * 2, "scale": 0.5})
    for batch in batches:
        assert torch.equal(collect_activations(model, [batch], "layer", keep=True)["layer"].values, wanted)
    given = collect_activations(model, [{"image": x}], "layer", keep=True, forward=lambda model, b: model(b["image"]))
    assert torch.equal(given["layer"].values, wanted)


def test_a_data_loader_a_generator_and_a_limit():
    model = mlp()
    data = torch.utils.data.TensorDataset(torch.randn(10, 3), torch.zeros(10))
    assert collect_activations(model, torch.utils.data.DataLoader(data, 4), "0")["0"].samples == 10
    endless = iter(lambda: torch.randn(2, 3), None)
    assert collect_activations(model, endless, "0", max_batches=3)["0"].samples == 6
    assert next(endless).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    model, x = mlp().to(dtype), torch.randn(30, 3, dtype=dtype)
    found = collect_activations(model, [x], "0")["0"]
    kept = collect_activations(model, [x], "0", keep=True)["0"]
    assert kept.values.dtype == dtype
    assert found.cosine_matrix().dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rows = kept.values.double()
    # Products of centred values and those of means, each at most ‖a‖‖b‖.
    size, work = rows.norm(dim=0), torch.promote_types(dtype, torch.float32)
    rounding = 2 * summation_error(30, work) + 8 * unit_roundoff(work)
    assert_within(found.gram(), rows.T @ rows, rounding * size[:, None] * size)


def test_an_unbatched_input_is_one_sample():
    assert collect_activations(mlp(), [torch.randn(3)] * 4, "0", keep=True)["0"].values.shape == (4, 6)
    assert collect_activations(nn.Sequential(nn.Conv2d(2, 5, 3)), [torch.randn(2, 8, 8)], "0")["0"].neurons == 5


def test_neuron_dim_is_the_users_to_say():
    model = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU())
    x = torch.randn(4, 2, 9)
    assert collect_activations(model, [x], "1")["1"].neurons == 7  # three dimensions say nothing
    assert collect_activations(model, [x], "1", neuron_dim=1)["1"].neurons == 5
    with pytest.raises(ValueError, match="neuron_dim: expected -3 to 2"):
        collect_activations(model, [x], "1", neuron_dim=3)


def test_progress():
    calls: list[tuple[int, int]] = []
    collect_activations(mlp(), [torch.ones(1, 3)] * 3, "0", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_patterns_match_layers_that_contain_no_others_in_order():
    model = nn.ModuleDict({"body": nn.Sequential(mlp(), nn.ReLU()), "head": nn.Linear(2, 2)})
    model.forward = lambda x: model["head"](model["body"](x))
    found = collect_activations(model, [torch.ones(2, 3)], ["head", "body*"])
    assert list(found) == ["body.0.0", "body.0.1", "body.0.2", "body.1", "head"]
    assert list(collect_activations(model, [torch.ones(2, 3)], "body")) == ["body"]
    assert list(collect_activations(model, [torch.ones(2, 3)], "*.[02]")) == ["body.0.0", "body.0.2"]


def test_layers_of_a_pattern_without_values_are_left_out_aloud():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.lstm = nn.Linear(3, 4), nn.Linear(3, 4), nn.LSTM(4, 5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(self.used(x))[0]

    model, x = Model(), [torch.randn(2, 6, 3)]
    with pytest.warns(RuntimeWarning, match="layer 'idle' did not run in batch 0; it is left out"):
        found = collect_activations(model, x, "*")
    assert list(found) == ["used", "lstm"]
    assert found["lstm"].neurons == 5
    with pytest.raises(ValueError, match="layer 'idle' did not run in batch 0"):
        collect_activations(model, x, "idle")
    with pytest.warns(RuntimeWarning, match="idle"), pytest.raises(ValueError, match="none of the layers"):
        collect_activations(model, x, "idl*")


def test_a_layer_of_several_widths_is_left_out_of_a_pattern():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(3, 4), nn.Linear(4, 5), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.b(self.relu(self.a(x))))

    model, x = Model(), torch.randn(6, 3)
    with pytest.warns(RuntimeWarning, match="layer 'relu' is called with 4 and with 5 neurons; it is left out"):
        found = collect_activations(model, [x], "*")
    assert {name: layer.neurons for name, layer in found.items()} == {"a": 4, "b": 5}
    with pytest.raises(ValueError, match="layer 'relu': expected 4 neurons as before, got 5"):
        collect_activations(model, [x], ["a", "relu"])


def test_a_layer_that_gives_no_numbers():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pick, self.embed = nn.Identity(), nn.Embedding(9, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.embed(self.pick(tokens))

    x = [torch.randint(9, (2, 5))]
    assert collect_activations(Model(), x, "embed")["embed"].neurons == 4
    with pytest.raises(TypeError, match="expected a tensor of floating-point numbers as its output, got torch.int64"):
        collect_activations(Model(), x, "pick")


@pytest.mark.parametrize(
    ("layers", "error", "match"),
    [
        ("", ValueError, "no layer ''"),
        ("hiden", ValueError, "Its layers: 0, 1, 2."),
        ("conv*", ValueError, "no layer matches the pattern 'conv\\*'. Its layers: 0, 1, 2"),
        ([], TypeError, "expected the name of a layer"),
        ([0], TypeError, "expected the name of a layer"),
    ],
)
def test_layers_that_are_none(layers, error, match):
    with pytest.raises(error, match=match):
        collect_activations(mlp(), [torch.ones(1, 3)], layers)


def test_the_nearest_name_is_suggested():
    model = nn.ModuleDict({"hidden1": nn.Linear(1, 1), "hidden2": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="no layer 'hiden2'. Did you mean 'hidden2'"):
        collect_activations(model, [torch.ones(1, 1)], "hiden2")


@pytest.mark.parametrize("keep", [False, True])
def test_nan_is_told_with_its_batch_and_layer(keep):
    model, batches = mlp(), [torch.randn(4, 3) for _ in range(5)]
    batches[3][1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"batch 3, layer '0': expected finite .* in 6 of 6 neurons"):
        collect_activations(model, batches, ["0", "2"], keep=keep)
    assert left_alone(model)


@pytest.mark.parametrize("keep", [False, True])
def test_infinity_is_told_with_its_neuron(keep):
    model, x = mlp(), torch.full((4, 3), torch.finfo(torch.float32).max)
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].weight[2] = 2.0
    with pytest.raises(ValueError, match=r"batch 0, layer '0': .* in 1 of 6 neurons \(first: \[2\]\)"):
        collect_activations(model, [x], "0", keep=keep)


@pytest.mark.parametrize(
    ("loader", "error", "match"),
    [
        ([], ValueError, "expected at least one batch, got none"),
        (iter(()), ValueError, "A generator is empty after its first reading"),
        (
            [torch.ones(2, 3), torch.ones(2, 5)],
            ValueError,
            r"batch 1: expected inputs .* got shape \(2, 5\).* RuntimeErr",
        ),
        ([(torch.ones(2, 5), 1)], ValueError, r"batch 0: expected inputs .* got shape \(2, 5\)"),
        ([torch.ones(0, 3)], ValueError, r"batch 0, layer '0': expected samples, got shape \(0, 6\)"),
        ([{"x": torch.ones(2, 3)}], TypeError, r"entries that the model's forward names \(input\), got x"),
        (["text"], TypeError, "expected batches that are a tensor, .* got str"),
        ([("text", 1)], TypeError, "got tuple of str"),
        ([()], TypeError, "got tuple"),
    ],
)
def test_loaders_that_are_none(loader, error, match):
    model = mlp()
    with pytest.raises(error, match=match):
        collect_activations(model, loader, "0")
    assert left_alone(model)


def test_another_number_of_neurons_than_before():
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="batch 1, layer '0': expected 3 neurons as before, got 4"):
        collect_activations(model, [torch.ones(2, 3), torch.ones(2, 4)], "0")


@pytest.mark.parametrize(
    ("keep", "bound", "match"), [(True, 400, "batch 4, layer '0'.* 480 bytes"), (False, 767, "768")]
)
def test_memory_is_bounded(keep, bound, match):
    model, batches = mlp(), [torch.ones(4, 3)] * 9
    with pytest.raises(ValueError, match=f"max_bytes: .*{match}"):
        collect_activations(model, batches, "0", keep=keep, max_bytes=bound)
    assert left_alone(model)
    collect_activations(model, batches, "0", keep=keep, max_bytes=4 * 4 * 6 * 9)


def test_max_batches_and_model_are_checked():
    with pytest.raises(ValueError, match="max_batches: expected a whole number"):
        collect_activations(mlp(), [torch.ones(1, 3)], "0", max_batches=0)
    with pytest.raises(TypeError, match="model: expected an nn.Module, got function"):
        collect_activations(lambda x: x, [torch.ones(1, 3)], "0")


def test_dead_neurons_are_listed():
    model = mlp()
    with torch.no_grad():
        model[0].bias.fill_(5.0)
        model[0].weight[1], model[0].bias[1] = 0.0, -1.0
        model[0].weight[4], model[0].bias[4] = 0.0, 1e-3
    for keep in (False, True):
        found = collect_activations(model, [torch.randn(50, 3)], "0", keep=keep)["0"]
        assert found.dead == [1, 4]
        assert found.alive.tolist() == [True, False, True, True, False, True]
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    assert collect_activations(model, [torch.ones(5, 3)], "0")["0"].dead == [0, 1, 2, 3, 4, 5]


def left_alone(model: nn.Module) -> bool:
    hooks = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return not hooks and not _get_current_function_mode_stack()
