"""Who reads a layer's neurons: found by running the model, whatever it is given."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

import sdsd
from sdsd.geometry.merging.consolidate import consolidate
from sdsd.geometry.merging.consumers import consumers
from sdsd.geometry.merging.group import Consumers
from sdsd.geometry.merging.merge import merge
from tests.geometry.networks import Forward, reads_nothing_else, scrambled

from .programs import conv, linear


def names(found: Consumers) -> list[str]:
    return [reader.name for reader in found.readers]


MODELS = {
    "mlp": (lambda: nn.Sequential(linear(5, 6), nn.ReLU(), nn.Dropout(), linear(6, 3)), "0", (7, 5)),
    "tokens": (lambda: nn.Sequential(linear(5, 6), nn.GELU(), nn.Flatten(), linear(24, 3)), "0", (7, 4, 5)),
    "conv, norm, pool, flatten": (
        lambda: nn.Sequential(
            conv(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.PReLU(4),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.BatchNorm1d(36),
            linear(36, 3),
        ),
        "0",
        (7, 2, 8, 8),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 3), nn.Tanh(), nn.ConvTranspose1d(4, 2, 3)),
        "0",
        (7, 2, 5),
    ),
    "depthwise": (
        lambda: nn.Sequential(conv(1, 4, 1), nn.ReLU6(), conv(4, 4, 3, groups=4), nn.BatchNorm2d(4), conv(4, 2, 1)),
        "0",
        (3, 1, 5, 5),
    ),
    "3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.InstanceNorm3d(3, affine=True), nn.Conv3d(3, 2, 2)),
        "0",
        (2, 1, 5, 5, 5),
    ),
    "view by batch size": (
        lambda: Forward(
            lambda m, x: m.head(functional.relu(m.first(x)).view(x.size(0), -1)),
            first=conv(1, 3, 3),
            head=linear(48, 2),
        ),
        "first",
        (5, 1, 6, 6),
    ),
    "written-out swish, mean over pixels": (
        lambda: Forward(
            lambda m, x: m.head((m.first(x) * torch.sigmoid(1.7 * m.first(x)) / x.shape[2]).mean((2, 3))),
            first=conv(1, 3, 3),
            head=linear(3, 2),
        ),
        "first",
        (5, 1, 6, 6),
    ),
    "channels last": (
        lambda: Forward(
            lambda m, x: m.head(m.first(x).permute(0, 2, 3, 1).square().transpose(1, 2)),
            first=conv(1, 3, 3),
            head=linear(3, 2),
        ),
        "first",
        (5, 1, 6, 6),
    ),
    "functions instead of modules": (
        lambda: Forward(
            lambda m, x: m.head(
                functional.max_pool2d(
                    functional.batch_norm(
                        m.first(x), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias
                    ),
                    2,
                ).permute(dims=(0, 2, 3, 1))
            ),
            first=conv(1, 3, 3),
            norm=nn.BatchNorm2d(3),
            head=linear(3, 2),
        ),
        "first",
        (5, 1, 6, 6),
    ),
    "concatenated behind others": (
        lambda: Forward(
            lambda m, x: m.head(torch.cat(tensors=[m.other(x), functional.relu(m.first(x)), m.first(x).neg()], axis=1)),
            first=conv(1, 3, 3),
            other=conv(1, 2, 3),
            head=conv(8, 2, 1),
        ),
        "first",
        (5, 1, 6, 6),
    ),
    "read twice, mixed along tokens": (
        lambda: Forward(
            lambda m, x: m.one(m.mix(m.first(x).transpose(-1, -2)).transpose(-1, -2)) + m.two(m.first(x).tanh()),
            first=linear(5, 6),
            mix=linear(4, 4),
            one=linear(6, 2),
            two=linear(6, 2),
        ),
        "first",
        (7, 4, 5),
    ),
}


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_readers_and_only_they_read_the_neurons(name, with_example):
    build, layer, shape = MODELS[name]
    model = scrambled(build()).double()
    x = torch.rand(shape, dtype=torch.float64)
    found = reads_nothing_else(model, layer, x, x if with_example else None)
    assert found.removable


SHAPED = {
    "squeeze and unsqueeze": (
        lambda m, x: m.head(functional.adaptive_avg_pool2d(m.first(x), 1).squeeze(-1).unsqueeze(1).squeeze(3)[:, 0]),
        linear(3, 2),
    ),
    "reshape with a split elsewhere": (
        lambda m, x: m.head(m.first(x).reshape(5, -1, 2, 2, 4).mean(2).flatten(1)),
        linear(24, 2),
    ),
    "sum over a dimension counted from the first, slices": (
        lambda m, x: m.head(m.first(x)[:, :, 1:, 0].sum(2)),
        linear(3, 2),
    ),
    "written-in sizes": (lambda m, x: m.head(m.first(x).view(-1, 48)), linear(48, 2)),
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_from_an_example(name):
    forward, head = SHAPED[name]
    model = scrambled(Forward(forward, first=conv(1, 3, 3), head=head)).double()
    x = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    found = reads_nothing_else(model, "first", x, x)
    assert found.changeable
    assert found.removable == (name != "written-in sizes")


def test_inside_a_module_of_torch():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Flatten(), linear(24, 2))
    scrambled(model).double()
    x = torch.rand(5, 3, 8, dtype=torch.float64)
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
    assert {norm.name for norm in stream.norms} == {"0.norm1", "0.norm2"}
    assert "joins the neurons with the model's input" in str(stream)
    with pytest.raises(ValueError, match="the model does not run on it"):
        consumers(model, "0.linear1", x[:, :, :5])


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
        first=linear(3, 4),
        head=linear(4, 2),
        other=linear(4, 2),
    ).train(training)
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


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head, self.other = linear(3, 4), linear(4, 2), linear(3, 4)

    def forward(self, x, y):
        return self.head(self.first(x) if y.abs().sum() < 1e9 else self.other(y))


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
        (Two(), "first", None, ValueError, "runs on no input of a likely shape. Pass example_input"),
        (Two(), "other", (torch.ones(1, 3), torch.ones(1, 3)), ValueError, "never called"),
        (nn.Sequential(linear(2, 2)), "0", torch.ones(1, 3), ValueError, "does not run on it"),
    ],
)
def test_bad_input(model, layer, example, error, says):
    with pytest.raises(error, match=says):
        consumers(model, layer, example)


class Cache:
    """What transformers keep keys and values in."""

    def __init__(self, value):
        self.value = value


@dataclass
class Result:
    logits: torch.Tensor
    cache: Cache
    loss: torch.Tensor | None = None


class Decoder(nn.Module):
    """Branches on a value, takes keyword arguments, gives an object with a cache."""

    def __init__(self):
        super().__init__()
        self.first, self.head = linear(3, 4), linear(4, 2)

    def forward(self, x=None, labels=None, use_cache=True):
        hidden = self.first(x) if x.sum() > -100 else -self.first(x)
        loss = None if labels is None else functional.cross_entropy(self.head(hidden.relu()), labels)
        return Result(self.head(hidden.relu()), Cache(hidden) if use_cache else Cache(None), loss)


@pytest.mark.parametrize(
    "example",
    [{"x": torch.rand(2, 3)}, {"x": torch.rand(2, 3), "labels": torch.tensor([0, 1])}, torch.rand(2, 3)],
)
def test_dictionaries_objects_caches_and_branches(example):
    model = Decoder()
    assert names(consumers(model, "first", example)) == ["head"]
    smaller, report = consolidate(model, "first", [(0, 1)], example_input=example)
    assert report.compared
    assert smaller.first.out_features == 3


def test_what_depends_on_the_shape_is_asked_for():
    model = Forward(lambda m, x: m.head(m.first(x).mean(1)), first=linear(3, 6), head=linear(6, 2))
    found = consumers(model, "first", torch.rand(5, 4, 3))
    assert found.removable
    either = Forward(
        lambda m, x: m.head(m.first(x)) if x.ndim == 2 else m.other(m.first(x)).sum(1),
        first=linear(3, 6),
        head=linear(6, 2),
        other=linear(6, 2),
    )
    found = consumers(either, "first")
    assert "Pass example_input" in str(found)
    assert not found.changeable
    with pytest.raises(ValueError, match="Pass example_input"), merge(either, "first", [(0, 1)]):
        pass
    assert names(consumers(either, "first", torch.rand(5, 3))) == ["head"]


def test_a_model_is_recorded_once_while_it_is_unchanged(monkeypatch):
    module = importlib.import_module("sdsd.graphs.look")
    runs = []
    record = module.record
    monkeypatch.setattr(module, "record", lambda *arguments: runs.append(arguments) or record(*arguments))
    model = nn.Sequential(linear(3, 4), nn.ReLU(), nn.Sequential(linear(4, 5), nn.ReLU()), linear(5, 2))
    x = torch.rand(6, 3)
    for layer in ("0", "2.0", "0"):
        consumers(model, layer, x)
    assert len(runs) == 1
    with torch.no_grad():
        model[0].weight.add_(1)
    with merge(model, "0", [(0, 1)], example_input=x):
        pass
    assert len(runs) == 1
    changes = [
        lambda: setattr(model, "scale", 2),
        lambda: x.add_(1),
        lambda: model.__setitem__(1, nn.Tanh()),
        lambda: setattr(model[2][0], "weight", nn.Parameter(torch.rand(5, 4))),
    ]
    for number, change in enumerate(changes):
        change()
        consumers(model, "0", x)
        assert len(runs) == 2 + number
    consolidate(model, "0", [(0, 1)], example_input=x, inplace=True)
    consumers(model, "0", x)
    assert len(runs) == 6


def test_a_group_as_a_picture_and_as_a_table():
    model = nn.Sequential(conv(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2, 1)).double()
    group = consumers(model, "0", torch.zeros(2, 2, 8, 8).double())
    assert group.picture() == "0 [4] ──→ 1 [4] ──→ 3 [4]"
    rows = {row["tensor"]: (row["role"], row["axis"], row["entries"], row["each"]) for row in group.table()}
    assert rows["0.weight"] == ("writer", 0, 4, 1)
    assert rows["1.bias"] == ("between", 0, 4, 1)
    assert rows["3.weight"] == ("reader", 1, 4, 1)
    stream = Forward(
        lambda m, x: m.head(m.norm((h := m.inlet(x)) + m.one(m.norm(h)))),
        inlet=linear(5, 8),
        one=linear(8, 8),
        norm=nn.LayerNorm(8),
        head=linear(8, 3),
    ).double()
    pictured = consumers(stream, "inlet", torch.zeros(4, 5).double()).picture()
    assert pictured.splitlines() == ["inlet [8] ─┬→ norm [8] ─┬→ one [8]", "one [8]    │            │  head [8]"]
