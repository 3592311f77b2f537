"""Who reads a layer's neurons: against what the model computes when a neuron is disturbed, and what cannot be said."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import sdsd
from sdsd.geometry.merging.consumers import Consumers, consumers
from sdsd.graphs.neuron_flow import READING, REMOVAL, row_dim
from tests.geometry.networks import scrambled


class Forward(nn.Module):
    """Modules by name, and a forward that a test writes."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def reads_nothing_else(model: nn.Module, layer: str, x: torch.Tensor, example_input=None) -> Consumers:
    """Assert, neuron by neuron, that readers read it by the columns found and that nothing else reads it."""
    found = consumers(model, layer, example_input)
    module = model.get_submodule(layer)
    with torch.no_grad():
        untouched = model(x)
        for neuron in range(found.neurons):
            kept = module.weight.clone(), module.bias.clone()
            readers = [(model.get_submodule(reader.name).weight, reader) for reader in found.readers]
            columns = [weight.clone() for weight, _ in readers]
            module.weight.select(row_dim(module), neuron).add_(1.5)
            module.bias[neuron] += 5
            assert not torch.equal(model(x), untouched), f"neuron {neuron} is not read at all"
            for weight, reader in readers:
                weight.index_fill_(reader.dim, (reader.neurons == neuron).nonzero().flatten(), 0)
            blind = model(x)
            module.weight.copy_(kept[0])
            module.bias.copy_(kept[1])
            assert torch.equal(model(x), blind), f"neuron {neuron} is read by something else, too"
            for (weight, _), before in zip(readers, columns, strict=True):
                weight.copy_(before)
    return found


def names(found: Consumers) -> list[str]:
    return [reader.name for reader in found.readers]


conv, linear = nn.Conv2d, nn.Linear
MODELS = {
    "mlp": (lambda: nn.Sequential(linear(5, 6), nn.ReLU(), nn.Dropout(), linear(6, 3)), "0", (7, 5)),
    "tokens": (lambda: nn.Sequential(linear(5, 6), nn.GELU(), nn.Flatten(), linear(24, 3)), "0", (7, 4, 5)),
    "conv, norm, pool, flatten": (
        lambda: nn.Sequential(
            conv(2, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(36),
            linear(36, 3),
        ),
        "0", (7, 2, 8, 8),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 3), nn.Tanh(), nn.ConvTranspose1d(4, 2, 3)), "0", (7, 2, 5)
    ),
    "depthwise": (
        lambda: nn.Sequential(conv(1, 4, 1), nn.ReLU6(), conv(4, 4, 3, groups=4), nn.BatchNorm2d(4), conv(4, 2, 1)),
        "0", (3, 1, 5, 5),
    ),
    "3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.InstanceNorm3d(3, affine=True), nn.Conv3d(3, 2, 2)), "0",
           (2, 1, 5, 5, 5)),
    "view by batch size": (
        lambda: Forward(
            lambda m, x: m.head(functional.relu(m.first(x)).view(x.size(0), -1)),
            first=conv(1, 3, 3), head=linear(48, 2),
        ),
        "first", (5, 1, 6, 6),
    ),
    "written-out swish, mean over pixels": (
        lambda: Forward(
            lambda m, x: m.head((m.first(x) * torch.sigmoid(1.7 * m.first(x)) / x.shape[2]).mean((2, 3))),
            first=conv(1, 3, 3), head=linear(3, 2),
        ),
        "first", (5, 1, 6, 6),
    ),
    "channels last": (
        lambda: Forward(
            lambda m, x: m.head(m.first(x).permute(0, 2, 3, 1).square().transpose(1, 2)),
            first=conv(1, 3, 3), head=linear(3, 2),
        ),
        "first", (5, 1, 6, 6),
    ),
    "functions instead of modules": (
        lambda: Forward(
            lambda m, x: m.head(
                functional.max_pool2d(functional.batch_norm(
                    m.first(x), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias
                ), 2).permute(dims=(0, 2, 3, 1))
            ),
            first=conv(1, 3, 3), norm=nn.BatchNorm2d(3), head=linear(3, 2),
        ),
        "first", (5, 1, 6, 6),
    ),
    "concatenated behind others": (
        lambda: Forward(
            lambda m, x: m.head(torch.cat(tensors=[m.other(x), functional.relu(m.first(x)), m.first(x).neg()], axis=1)),
            first=conv(1, 3, 3), other=conv(1, 2, 3), head=conv(8, 2, 1),
        ),
        "first", (5, 1, 6, 6),
    ),
    "read twice, mixed along tokens": (
        lambda: Forward(
            lambda m, x: m.one(m.mix(m.first(x).transpose(-1, -2)).transpose(-1, -2)) + m.two(m.first(x).tanh()),
            first=linear(5, 6), mix=linear(4, 4), one=linear(6, 2), two=linear(6, 2),
        ),
        "first", (7, 4, 5),
    ),
}  # fmt: skip


WITH_OR_WITHOUT_A_BATCH = ("view by batch size", "concatenated behind others")
"""A convolution takes both, and these networks run on either."""


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_readers_and_only_they_read_the_neurons(name, with_example):
    build, layer, shape = MODELS[name]
    model = scrambled(build()).double()
    x = torch.rand(shape, dtype=torch.float64)
    if name in WITH_OR_WITHOUT_A_BATCH and not with_example:
        found = consumers(model, layer)
        assert not found.changeable
        assert "example_input" in str(found)
        return
    found = reads_nothing_else(model, layer, x, x if with_example else None)
    assert found.removable


SHAPED = {
    "squeeze and unsqueeze": (
        lambda m, x: m.head(functional.adaptive_avg_pool2d(m.first(x), 1).squeeze(-1).unsqueeze(1).squeeze(3)[:, 0]),
        linear(3, 2),
    ),
    "reshape with a split elsewhere": (
        lambda m, x: m.head(m.first(x).reshape(5, -1, 2, 2, 4).mean(2).flatten(1)), linear(24, 2)
    ),
    "sum over a dimension counted from the first, slices": (
        lambda m, x: m.head(m.first(x)[:, :, 1:, 0].sum(2)), linear(3, 2)
    ),
    "written-in sizes": (lambda m, x: m.head(m.first(x).view(-1, 48)), linear(48, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_from_an_example(name):
    forward, head = SHAPED[name]
    model = scrambled(Forward(forward, first=conv(1, 3, 3), head=head)).double()
    x = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    without = consumers(model, "first")
    if name != "sum over a dimension counted from the first, slices":
        assert not without.changeable
        assert "example_input" in without.obstacles[0].advice
    found = reads_nothing_else(model, "first", x, x)
    assert found.changeable
    assert found.removable == (name != "written-in sizes")


def test_a_model_torch_fx_cannot_trace_is_exported():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Flatten(), linear(24, 2))
    scrambled(model).double()
    x = torch.rand(5, 3, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="torch.fx cannot trace .* Pass example_input"):
        consumers(model, "0.linear1")
    model.train()
    modes = [module.training for module in model.modules()]
    found = consumers(model, "0.linear1", x)
    assert [module.training for module in model.modules()] == modes
    assert names(found) == ["0.linear2"]
    assert found.removable
    model.eval()
    reads_nothing_else(model, "0.linear1", x, x)
    stream = consumers(model, "0.linear2", x)
    assert not stream.changeable
    assert {norm.name for norm in stream.norms} == set()
    with pytest.raises(ValueError, match="torch.export"):
        consumers(model, "0.linear1", x[:, :, :5])


OBSTACLES = {
    "residual": (lambda m, x: m.head(m.first(x).relu() + m.other(x)), READING, "'other'", []),
    "gate": (lambda m, x: m.head(m.first(x) * m.other(x)), READING, "'other'", []),
    "in place": (lambda m, x: m.head(m.first(x).add_(m.other(x))), READING, "'other'", []),
    "forgotten result": (lambda m, x: forgotten_result(m, x), READING, "'other'", []),
    "softmax": (lambda m, x: m.head(m.first(x).softmax(-1)), READING, "mixes all neurons", []),
    "mean of neurons": (lambda m, x: m.head(m.other(x) + m.first(x).mean(-1, keepdim=True)), READING, "mixes", []),
    "pool over neurons": (
        lambda m, x: m.other(x) + functional.avg_pool1d(m.first(x), 3).mean(), READING, "pools over", []
    ),
    "padded neurons": (lambda m, x: m.head(functional.pad(m.first(x), (1, 1))[..., 1:7]), READING, "pads the axis", []),
    "resized neurons": (
        lambda m, x: m.head(functional.interpolate(m.first(x)[None], 6)[0]), READING, "", []
    ),
    "halves": (lambda m, x: m.head(torch.cat(m.first(x).chunk(2, -1), -1)), READING, "no rule for 'chunk'", []),
    "matrix": (lambda m, x: m.head(m.first(x) @ m.first(x).T @ x[:, :6]), READING, "no rule", []),
    "as a weight": (lambda m, x: m.head(functional.linear(m.other(x), m.first(x))), READING, "no rule", []),
    "numbers by place": (
        lambda m, x: m.head(m.first(x) * torch.arange(x.size(1))), READING, "'arange'", []
    ),
    "an axis added at the end": (lambda m, x: m.first(x)[:, :, None] @ x[:, None], READING, "", []),
    "the greatest of all": (lambda m, x: m.head(m.other(x) + m.first(x).amax(())), READING, "", []),
    "a reader whose weight is computed": (lambda m, x: m.masked(m.first(x)), READING, "no rule for 'masked'", []),
    "own parameter": (lambda m, x: m.head(m.first(x) * m.scale), REMOVAL, "'scale'", ["head"]),
    "also the output": (lambda m, x: (m.head(m.first(x)), m.first(x)), READING, "the model's output", ["head"]),
    "reader used elsewhere": (lambda m, x: m.head(m.first(x)) + m.head(m.other(x)), READING, "without these", ["head"]),
    "two orders": (
        lambda m, x: m.head(m.first(x)) + m.head(torch.cat([m.first(x)[..., 3:], m.first(x)[..., :3]], -1)),
        READING, "", ["head"],
    ),
    "reads itself": (lambda m, x: m.head(m.square(m.square(m.first(x)))), READING, "its own neurons", ["head"]),
    "weight of its own making": (
        lambda m, x: functional.linear(m.first(x), m.head.weight * 2), READING, "no rule for 'linear'", []
    ),
    "different neurons": (
        lambda m, x: m.wide(torch.cat([m.first(x), m.other(x)], -1) + torch.cat([m.other(x), m.first(x)], -1)),
        READING, "combines different neurons", [],
    ),
}  # fmt: skip


def forgotten_result(m, x):
    hidden = m.first(x)
    hidden.add_(m.other(x))
    return m.head(hidden)


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_followed_is_said(name, with_example):
    forward, blocks, says, readers = OBSTACLES[name]
    model = Forward(
        forward, first=linear(6, 6), other=linear(6, 6), square=linear(6, 6), head=linear(6, 4), wide=linear(12, 4)
    )
    model.scale = nn.Parameter(torch.ones(6))
    model.masked = prune.identity(linear(6, 4), "weight")
    example = torch.rand(6, 6) if with_example else None
    found = consumers(model, "square" if name == "reads itself" else "first", example)
    assert any(says in str(obstacle) and obstacle.blocks == blocks for obstacle in found.obstacles)
    assert all(obstacle.where and obstacle.advice for obstacle in found.obstacles)
    assert names(found) == readers
    assert found.changeable == (blocks == REMOVAL)
    assert not found.removable
    assert says in str(found)


@pytest.mark.parametrize(
    ("norm", "kind"),
    [(nn.LayerNorm(4), "LayerNorm"), (nn.GroupNorm(2, 4), "GroupNorm"), (nn.RMSNorm(4), "RMSNorm")],
)
def test_norms_over_neurons_block_removal_only(norm, kind):
    found = consumers(nn.Sequential(linear(3, 4), norm, linear(4, 2)), "0")
    assert [norm.kind for norm in found.norms] == [kind]
    assert found.changeable
    assert not found.removable
    assert "statistics" in str(found)


def test_grouped_convolutions():
    model = nn.Sequential(conv(1, 4, 1), conv(4, 4, 3, groups=2), conv(4, 2, 1))
    found = consumers(model, "0")
    assert not found.readers
    assert "groups=2" in str(found)
    found = consumers(model, "1")
    assert names(found) == ["2"]
    assert found.changeable
    assert not found.removable


def test_nothing_is_left_in_the_model():
    model = Forward(lambda m, x: m.head(m.first(x) * torch.tensor([2.0])), first=linear(3, 4), head=linear(4, 2))
    model.train()
    attributes, state = set(vars(model)), {k: v.clone() for k, v in model.state_dict().items()}
    for example in (None, torch.ones(1, 3)):
        random = torch.get_rng_state()
        assert names(consumers(model, "first", example)) == ["head"]
        assert torch.equal(torch.get_rng_state(), random)
    assert set(vars(model)) == attributes
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    batch_norm = nn.Sequential(linear(3, 4), nn.BatchNorm1d(4), linear(4, 2))
    consumers(batch_norm, "0", torch.rand(5, 3))
    assert batch_norm[1].num_batches_tracked == 0


def test_a_monitored_model_is_followed_as_any_other():
    model = nn.Sequential(linear(3, 4), nn.LayerNorm(4), nn.ReLU(), linear(4, 2))
    with sdsd.GammaMonitor(model):
        found = consumers(model, "0")
    assert names(found) == ["3"]
    assert [norm.kind for norm in found.norms] == ["LayerNorm"]


@pytest.mark.parametrize("training", [False, True])
def test_traced_as_in_eval_mode_and_as_in_training(training):
    model = Forward(
        lambda m, x: m.head(m.first(x)) if not m.training else m.other(m.first(x)),
        first=linear(3, 4), head=linear(4, 2), other=linear(4, 2),
    ).train(training)  # fmt: skip
    assert names(consumers(model, "first")) == ["head", "other"]
    assert all(module.training == training for module in model.modules())


def test_prints_what_it_found():
    assert str(consumers(MODELS["conv, norm, pool, flatten"][0](), "0")).splitlines() == [
        "'0' (Conv2d, 4 neurons)",
        "  through '1' (BatchNorm2d)",
        "  through '2' (PReLU)",
        "  through '5' (BatchNorm1d)",
        "  read by '6' (Linear), 9 columns a neuron",
    ]


def test_writing_into_the_neurons_is_an_obstacle():
    def forward(m, x):
        hidden = m.first(x).relu()
        hidden[0] = 0
        return m.head(hidden)

    found = consumers(Forward(forward, first=linear(3, 4), head=linear(4, 2)), "first", torch.rand(5, 3))
    assert not found.changeable


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = linear(3, 4), linear(4, 2)

    def forward(self, x):
        return self.head(self.first(x)) if x.sum() > 0 else self.head(-self.first(x))


@pytest.mark.parametrize(
    ("model", "layer", "example", "error", "says"),
    [
        (nn.Sequential(linear(2, 2)), "00", None, ValueError, "no layer '00'. Did you mean '0'"),
        (nn.Sequential(nn.ReLU()), "fc", None, ValueError, "convolutions: none"),
        (nn.Sequential(linear(2, 2), nn.ReLU()), "1", None, TypeError, "'1', which is ReLU"),
        (nn.Sequential(linear(2, 2)), 0, None, TypeError, "expected the name of a layer, a str, got int"),
        (lambda x: x, "0", None, TypeError, "expected an nn.Module, got function"),
        (nn.Sequential(nn.LazyLinear(2)), "0", None, ValueError, "Run the model once"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(linear(2, 2))), "0", None, ValueError, "parametris"),
        (Forward(lambda m, x: x, first=linear(2, 2)), "first", None, ValueError, "never called"),
        (Branching(), "first", None, ValueError, "torch.fx cannot trace Branching"),
        (Branching(), "first", torch.ones(1, 3), ValueError, "cannot be traced .torch.fx: .*torch.export"),
        (nn.Sequential(linear(2, 2)), "0", torch.ones(1, 3), ValueError, "does not run on it"),
    ],
)
def test_bad_input(model, layer, example, error, says):
    with pytest.raises(error, match=says):
        consumers(model, layer, example)


def test_example_in_the_docstring():
    assert doctest.testmod(importlib.import_module("sdsd.geometry.merging.consumers")).failed == 0


class Cache:
    """A class that torch.export does not know, as transformers' DynamicCache."""

    def __init__(self, value):
        self.value = value


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = linear(3, 4), linear(4, 2)

    def forward(self, x, use_cache=True):
        assert len(x)
        found = self.head(self.first(x).relu())
        return (found, Cache(x)) if use_cache else found


class Wrapped(Cached):
    def forward(self, x):
        assert len(x)
        return Result(self.head(self.first(x).relu()))


class Result(Cache):
    pass


def test_advice_that_helps_where_torch_export_does_not_take_a_model():
    x = torch.rand(2, 3)
    for example in (x, {"x": x}):
        with pytest.raises(ValueError, match="output holds a Cache.*use_cache=False") as error:
            consumers(Cached(), "first", example)
        assert "Pass an example_input" not in str(error.value)
    assert names(consumers(Cached(), "first", {"x": x, "use_cache": False})) == ["head"]
    with pytest.raises(ValueError, match="output holds a Result.*returns tensors only"):
        consumers(Wrapped(), "first", x)
    with pytest.raises(ValueError, match="does not run on this example_input"):
        consumers(Cached(), "first", torch.rand(2, 5))
    with pytest.raises(ValueError, match="does not branch on the values of tensors"):
        consumers(Branching(), "first", torch.ones(1, 3))
