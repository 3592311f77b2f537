"""Numbers that modules hold in configurations, lists and tables follow, and lengths that come from other neurons; and
layers whose inputs are parameters, or whose weights are computed, are no layers that are left out in silence."""

from __future__ import annotations

import collections
import copy
import dataclasses
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sdsd.geometry import consolidate, consolidate_model, consumers

from .programs import built, conv, dense, is_refused, is_the_merged_one, linear, rows, words


@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    heads: int = 4
    act: str = "relu"
    norm: type = nn.LayerNorm


Sizes = collections.namedtuple("Sizes", "width heads")


class Table(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Kept(types.SimpleNamespace):
    def to_dict(self):  # as a library's configuration has
        return dict(vars(self))

    def __copy__(self):
        raise TypeError("one is enough")


class Reader(nn.Module):
    """Reads 12 neurons, whose number its configuration has."""

    def __init__(self, config, width):
        super().__init__()
        self.inner, self.config, self.width = linear(12, 4), config, width

    def forward(self, h):
        return self.inner(h.reshape(-1, self.width(self.config)))


WIDTHS = {
    "dataclass": (Config(12), lambda c: c.width),
    "namespace": (types.SimpleNamespace(width=12, lr=0.1), lambda c: c.width),
    "one in another": (types.SimpleNamespace(model=types.SimpleNamespace(width=12)), lambda c: c.model.width),
    "dictionary": ({"width": 12, "name": "b"}, lambda c: c["width"]),
    "dictionary with attributes": (Table(width=12), lambda c: c.width),
    "named tuple": (Sizes(12, 4), lambda c: c.width),
    "list": ([16, 12, 4], lambda c: c[1]),
    "tuple in a dictionary": ({"widths": (16, 12)}, lambda c: c["widths"][1]),
}


def test_a_configuration_that_cannot_be_copied_stays():
    reader = Reader(Kept(width=12), lambda c: c.width)
    model, drawn = built((lambda m, x: m.b(m.a(x).relu()), rows, lambda: dense(b=reader)))
    is_refused(model, drawn, "'reshape' has the size 12 written into it")


@torch.no_grad()
@pytest.mark.parametrize("name", WIDTHS)
def test_a_number_in_a_configuration_follows(name):
    config, width = WIDTHS[name]
    model, drawn = built((lambda m, x: m.b(m.a(x).relu()), rows, lambda: dense(b=Reader(config, width))))
    smaller = is_the_merged_one(model, drawn)
    assert (width(smaller.b.config), width(model.b.config), type(width(smaller.b.config))) == (10, 12, int)
    assert model.b.config is config
    assert type(smaller.b.config) is type(config)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dataclass", "list", "named tuple"])
def test_in_place_a_configuration_that_others_share_stays_as_it_was(name):
    config, width = WIDTHS[name]
    case = (lambda m, x: m.b(m.a(x)) + m.d(m.c(x)), rows, lambda: dense(c=linear(16, 12), **readers(config, width)))
    model, drawn = built(case)
    consolidate(model, "a", [(0, 1)], inplace=True, example_input=drawn())
    assert (width(model.b.config), width(model.d.config)) == (11, 12)
    assert model.d.config is config


def readers(config, width):
    return {"b": Reader(config, width), "d": Reader(config, width)}


class Sharing(nn.Module):
    """Leaves what the next module reads in what both hold."""

    def __init__(self, shared):
        super().__init__()
        self.inner, self.shared = linear(12, 12), shared

    def forward(self, h):
        self.shared.before = h if self.shared.before is None else self.shared.before + h
        return self.inner(self.shared.before)


@torch.no_grad()
def test_what_modules_tell_each_other_is_no_configuration():
    def forward(m, x):
        m.c.shared.before = None
        return m.b(m.d(m.c(m.a(x))))

    shared = types.SimpleNamespace(before=None, width=12)
    is_the_merged_one(*built((forward, rows, lambda: dense(c=Sharing(shared), d=Sharing(shared)))))


class Library:
    """A configuration as libraries have it."""

    def __init__(self, **held):
        vars(self).update(held)

    def to_dict(self):
        return dict(vars(self))


@torch.no_grad()
def test_a_librarys_configuration_may_be_written_into():
    """As classifiers of transformers do, which note there what problem their labels are of."""

    def forward(m, x):
        m.b.config.problem = "regression"
        return m.b(m.a(x))

    config = Library(width=12, problem=None)
    smaller = is_the_merged_one(*built((forward, rows, lambda: dense(b=Reader(config, lambda c: c.width)))))
    assert (smaller.b.config.width, config.width) == (10, 12)


def test_a_configuration_that_is_written_into_is_looked_at_again():
    config = types.SimpleNamespace(scaled=False)

    def forward(m, x):
        h = m.a(x)
        return m.b(h / h.shape[1] if config.scaled else h)

    model, drawn = built((forward, rows, dense))
    model.settings, x = config, drawn()
    assert consumers(model, "a", x).removable
    config.scaled = True
    assert not consumers(model, "a", x).removable


def images(shape):
    """A decoder as people write it: numbers, then channels of small pictures."""

    def forward(m, x):
        return m.b(m.a(x).relu().view(-1, *m.sizes.shape))

    sizes = nn.Module()
    sizes.shape = shape
    return forward, rows, lambda: {"a": linear(16, 32), "sizes": sizes, "b": nn.ConvTranspose2d(8, 3, 4, 2, 1)}


DECODERS = {
    "Unflatten": (
        lambda m, x: m.b(m.apart(m.a(x).relu())),
        rows,
        lambda: {"a": linear(16, 32), "apart": nn.Unflatten(1, (8, 2, 2)), "b": nn.ConvTranspose2d(8, 3, 4, 2, 1)},
    ),
    "shape in a tuple": images((8, 2, 2)),
    "shape in a list": images([8, 2, 2]),
    "shape in torch's": images(torch.Size([8, 2, 2])),
}


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_channels_that_numbers_become_are_cut(name):
    smaller = is_the_merged_one(*built(DECODERS[name]))
    held = smaller.apart.unflattened_size if name == "Unflatten" else smaller.sizes.shape
    assert tuple(held) == (6, 2, 2)


def test_channels_of_a_shape_that_is_written_can_be_merged():
    case = (lambda m, x: m.b(m.a(x).relu().view(-1, 8, 2, 2)), rows, lambda: {"a": linear(16, 32), "b": conv(8, 3, 2)})
    model, drawn = built(case)
    group = consumers(model, "a", drawn())
    assert (group.neurons, group.changeable, group.removable) == (8, True, False)
    is_refused(model, drawn, "'view' has the size 8 written into it")


@torch.no_grad()
def test_masks_of_several_go_with_the_neurons_that_they_mask():
    """As where speech is taken apart: both numbers of the view are attributes, and a layer gives the neurons alone."""
    sizes = nn.Module()
    sizes.several, sizes.width = 2, 12

    def forward(m, x):
        masks = m.c(x).view(len(x), m.sizes.several, m.sizes.width).sigmoid()
        return m.b(m.a(x).relu()[:, None] * masks)

    smaller = is_the_merged_one(*built((forward, rows, lambda: dense(c=linear(16, 24), sizes=sizes))))
    assert (smaller.sizes.several, smaller.sizes.width, smaller.c.out_features) == (2, 10, 20)


# ---- lengths from the number of other neurons ------------------------------------------------------------------------


class Heads(nn.Module):
    """Attention of four heads, which takes the size of a head as `size` says."""

    def __init__(self, size):
        super().__init__()
        self.qkv, self.out, self.heads, self.width, self.size = linear(16, 48), linear(16, 16), 4, 16, size

    def forward(self, x):
        cut = (*x.shape[:2], 3, self.heads, self.size(self, x))
        q, k, v = self.qkv(x).reshape(cut).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def attending(size):
    return lambda m, x: m.c(m.m(m.b(x))), words, lambda: {"b": linear(16, 16), "m": Heads(size), "c": linear(16, 3)}


@torch.no_grad()
def test_a_width_that_is_only_divided_by_heads_shrinks_with_them():
    smaller = is_the_merged_one(*built(attending(lambda m, x: m.width // m.heads)), layer="m.qkv")
    assert (smaller.m.heads, smaller.m.width, smaller.m.qkv.out_features) == (2, 8, 24)


@pytest.mark.parametrize("layer", ["m.qkv", "b"])
def test_the_size_of_a_head_from_the_width_of_a_stream_is_refused(layer):
    model, drawn = built(attending(lambda m, x: x.shape[-1] // m.heads))
    is_refused(model, drawn, "'reshape' takes a length from the number of other neurons, over 'heads'", layer)


@pytest.mark.parametrize("layer", ["a", "c"])
def test_pieces_as_long_as_other_neurons_are_refused(layer):
    def forward(m, x):
        one, two = m.a(x).split(m.c(x).shape[-1], -1)
        return m.b(one.relu()) + m.b(two.tanh()) + m.b(m.c(x))

    model, drawn = built((forward, rows, lambda: {"a": linear(16, 24), "c": linear(16, 12), "b": linear(12, 4)}))
    if layer == "c":  # all three are read by one layer, so that they are one
        is_the_merged_one(model, drawn, layer)
        return
    model, drawn = built((forward_apart, rows, lambda: dense(c=linear(16, 6), d=linear(6, 4), b=linear(6, 4))))
    is_refused(model, drawn, "'split' takes a length from the number of other neurons")


def forward_apart(m, x):
    other = m.c(x)
    one, two = m.a(x).split(other.shape[-1], -1)
    return m.b(one.relu() * two.sigmoid()) + m.d(other)


def test_a_whole_model_is_cut_around_what_is_refused():
    torch.manual_seed(0)
    model, drawn = built(attending(lambda m, x: x.shape[-1] // m.heads))
    model = nn.Sequential(model, linear(3, 8), nn.ReLU(), linear(8, 3)).double()
    smaller, report = consolidate_model(model, [drawn()], above=-1.0)
    assert "'reshape' takes a length" in {row.layer: row.refused for row in report.layers}["0.m.qkv"]
    assert smaller[1].out_features < 8


# ---- layers on parameters --------------------------------------------------------------------------------------------


class Learned(nn.Module):
    """What layers are called on: a parameter, or a buffer."""

    def __init__(self, values, buffer=False):
        super().__init__()
        if buffer:
            self.register_buffer("held", values)
        else:
            self.held = nn.Parameter(values)


def recurrent(m, x):
    h = m.first.held.expand(len(x), -1)
    for step in x.unbind(1):
        h = torch.tanh(m.a(step) + m.again(h))
    return m.b(h)


ON_PARAMETERS = {
    "code that scales and shifts": (
        lambda m, x: m.c((lambda s, t: m.d(x) * (1 + s) + t)(*m.b(m.a(m.code.held).relu()).chunk(2, -1))),
        rows,
        lambda: {
            "code": Learned(torch.randn(16)),
            **{"a": linear(16, 12), "b": linear(12, 10), "d": linear(16, 5), "c": linear(5, 3)},
        },
    ),
    "prompts": (
        lambda m, x: m.c(torch.cat([m.b(m.a(m.e.weight[m.places.held]).tanh()).expand(len(x), -1, -1), x], 1)),
        words,
        lambda: dense(
            e=nn.Embedding(4, 16), b=linear(12, 16), c=linear(16, 3), places=Learned(torch.arange(4), buffer=True)
        ),
    ),
    "bias of distances": (
        lambda m, x: m.c((x @ x.transpose(1, 2) / 16 + m.b(m.a(m.far.held).relu()).squeeze(-1)).softmax(-1) @ x),
        words,
        lambda: {
            "far": Learned(torch.rand(7, 7, 2), buffer=True),
            **{"a": linear(2, 12), "b": linear(12, 1), "c": linear(16, 3)},
        },
    ),
    "first state": (
        recurrent,
        words,
        lambda: dense(again=linear(12, 12), first=Learned(torch.randn(1, 12))),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ON_PARAMETERS)
def test_layers_that_are_called_on_parameters_are_cut(name):
    case = ON_PARAMETERS[name]
    is_the_merged_one(*built(case))
    model, drawn = built(case)
    _, report = consolidate_model(model, [drawn()], above=-1.0, example_input=drawn())
    assert len({row.layer: row.pairs for row in report.layers}["a"]) > 0


def test_a_weight_times_itself_is_read_by_no_layer():
    case = (lambda m, x: (m.b(m.a(x)), m.b.weight @ m.b.weight.T), rows, dense)
    is_refused(*built(case), "they are summed over inside a weight that is computed from others")


# ---- weights that are computed ---------------------------------------------------------------------------------------


COMPUTED = {
    "weight norm by a hook": nn.utils.weight_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    "weight norm": nn.utils.parametrizations.weight_norm,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_layers_with_computed_weights_are_listed_as_refused(name):
    torch.manual_seed(0)
    computed = COMPUTED[name](linear(6, 6))
    model = nn.Sequential(linear(5, 6), nn.ReLU(), linear(6, 6), nn.ReLU(), computed, nn.ReLU(), linear(6, 2))
    _, report = consolidate_model(model, [torch.rand(20, 5)], above=-1.0)
    refused = [row for row in report.layers if row.layer.startswith("4.")]
    assert len(refused) == 1
    assert "is computed from other tensors" in refused[0].refused


@pytest.mark.parametrize("layer", ["0", "2.parametrizations.weight", "2.parametrizations.weight.original"])
def test_looking_at_a_layer_does_not_go_on_with_its_power_iteration(layer):
    """Asked for in training, a weight under spectral norm moves the vectors that its norm is estimated by."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.spectral_norm(linear(6, 6))
    model = nn.Sequential(linear(5, 6), nn.ReLU(), normed, nn.ReLU(), linear(6, 2)).train()
    before = copy.deepcopy(model.state_dict())
    assert not consumers(model, layer, torch.rand(4, 5)).removable
    with pytest.raises(ValueError, match="'2.weight'"):
        consumers(model, "2.weight", torch.rand(4, 5))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
