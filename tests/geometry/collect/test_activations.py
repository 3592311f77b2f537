"""collect_activations: every value against a loop by hand, and a model that is left as it was whatever happens."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from sdsd.geometry.collect import activations as module
from sdsd.geometry.collect.activations import collect_activations
from tests.helpers import assert_within, relative_error, summation_error, unit_roundoff


class Tokens(nn.Module):
    """A feed-forward block over (batch, tokens, features), with a function as its nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 9), nn.LayerNorm(9), nn.Linear(9, 4)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return hidden + self.down(functional.gelu(self.norm(self.up(hidden))))


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


def tokens() -> tuple[nn.Module, list[Tensor]]:
    return Tokens(), [torch.randn(3, 6, 4), torch.randn(2, 5, 4)]


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


# Loaders


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


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


# Which layers


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


# What is wrong with the data


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


# What is left behind


def left_alone(model: nn.Module) -> bool:
    hooks = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return not hooks and not _get_current_function_mode_stack()


class Stops(nn.Module):
    """Raises when it meets a batch that says so."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 99).any()):
            raise self.error("stop")
        return x


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, None])
@pytest.mark.parametrize("where", ["model", "loader"])
def test_modes_and_hooks_are_as_before_whatever_happens(error, where):
    model = nn.Sequential(Stops(error or OSError), nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.ReLU())
    model.train()
    model[3].eval()
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    mine = model[1].register_forward_hook(lambda *_: None)
    seen: list[list[bool]] = []
    model[2].register_forward_pre_hook(lambda *_: seen.append([part.training for part in model.modules()]))

    def loader():
        for number in range(4):
            if number == 2 and error is not None and where == "loader":
                raise error("stop")
            yield torch.full((2, 3), 99.0 if number == 2 and error is not None and where == "model" else 1.0)

    if error is None:
        collect_activations(model, loader(), ["1", "3"])
    else:
        with pytest.raises(error, match="stop"):
            collect_activations(model, loader(), ["1", "3"])
    assert not any(any(training) for training in seen)
    assert [part.training for part in model.modules()] == modes
    assert list(model[1]._forward_hooks) == [mine.id]
    assert not model[3]._forward_hooks
    assert not _get_current_function_mode_stack()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_no_graph_is_kept():
    found = collect_activations(mlp(), [torch.randn(4, 3)], "0", keep=True)["0"]
    assert not found.values.requires_grad


def test_example_in_the_docstring():
    assert doctest.testmod(module).failed == 0
