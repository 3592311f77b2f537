"""Heads in the ways that language models write them, and channels that are shuffled again and again."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import consolidate, consumers, merge, remove_neurons
from tests.geometry.networks import scrambled

WIDTH, SIZE, TOKENS = 10, 4, 5


class Config(SimpleNamespace):
    def to_dict(self):
        return vars(self)


class Layer(nn.Module):
    """Attention with `heads` queries and `groups` keys and values."""

    def __init__(self, config: Config, rows: int):
        super().__init__()
        self.config, self.size, self.groups = config, SIZE, config.groups
        self.qkv, self.o = nn.Linear(WIDTH, rows), nn.Linear(config.heads * SIZE, WIDTH)

    def answer(self, q, k, v):
        """q of shape (batch, heads, tokens, size), k and v of as many groups."""
        q, k = (each * self.table for each in (q, k))
        mixed = functional.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] != q.shape[1])
        return self.o(mixed.transpose(1, 2).reshape(*mixed.shape[:1], TOKENS, -1))


class ByPlaces(Layer):
    """As in Phi-3: the number of heads is the configuration's, that of groups the layer's."""

    def forward(self, x):
        qkv, end = self.qkv(x), self.config.heads * self.size
        sides = qkv[..., :end], qkv[..., end : end + self.groups * self.size], qkv[..., end + self.groups * self.size :]
        return self.answer(*(each.view(len(x), TOKENS, -1, self.size).transpose(1, 2) for each in sides))


class InGroups(Layer):
    """As in Falcon: each group has its queries, then its key and its value."""

    def __init__(self, config: Config, rows: int):
        super().__init__(config, rows)
        self.heads = config.heads

    def forward(self, x):
        sides = self.qkv(x).view(len(x), TOKENS, -1, self.heads // self.groups + 2, self.size)
        q, k, v = sides[:, :, :, :-2], sides[:, :, :, [-2]], sides[:, :, :, [-1]]
        k, v = torch.broadcast_to(k, q.shape), torch.broadcast_to(v, q.shape)
        q, k, v = (each.flatten(2, 3).transpose(1, 2) for each in (q, k, v))
        return self.answer(q.reshape(len(x), self.heads, TOKENS, self.size), k, v)


class Shared(Layer):
    """As in Gemma: one head of keys and values for all queries."""

    def __init__(self, config: Config, rows: int):
        super().__init__(config, rows)
        self.k, self.v = nn.Linear(WIDTH, SIZE), nn.Linear(WIDTH, SIZE)

    def forward(self, x):
        sides = self.qkv(x), self.k(x), self.v(x)
        return self.answer(*(each.view(len(x), TOKENS, -1, self.size).transpose(1, 2) for each in sides))


class Latent(Layer):
    """As in DeepSeek-V3: a part of each key is the same for all heads."""

    def __init__(self, config: Config, rows: int):
        super().__init__(config, rows)
        self.k = nn.Linear(WIDTH, SIZE // 2)

    def forward(self, x):
        made = self.qkv(x).view(len(x), TOKENS, -1, 2 * SIZE + SIZE // 2).transpose(1, 2)
        q, own, v = made.split([SIZE, SIZE // 2, SIZE], -1)
        same = self.k(x).view(len(x), 1, TOKENS, SIZE // 2)
        k = own.new_zeros(*own.shape[:-1], SIZE)
        k[..., : SIZE // 2] = own
        k[..., SIZE // 2 :] = same.expand(*own.shape[:-1], -1)
        return self.answer(q, k, v)


class Two(nn.Module):
    """Two layers, coupled by a table of positions that both multiply queries and keys by."""

    def __init__(self, kind: type[Layer], rows: int, heads: int, groups: int):
        super().__init__()
        self.config = Config(heads=heads, groups=groups)
        self.layers = nn.ModuleList(kind(self.config, rows) for _ in range(2))
        self.frequencies = nn.Parameter(torch.ones(SIZE))
        scrambled(self).double()

    def forward(self, x):
        for layer in self.layers:
            layer.table = torch.arange(1, 1 + TOKENS)[:, None] * self.frequencies
            x = x + layer(x)
        return x


KINDS = {
    "by places": (lambda: Two(ByPlaces, 12 * SIZE, 4, 4), 4),
    "by places, in groups": (lambda: Two(ByPlaces, 8 * SIZE, 4, 2), 2),
    "in groups": (lambda: Two(InGroups, 8 * SIZE, 4, 2), 2),
    "one head of keys": (lambda: Two(Shared, 4 * SIZE, 4, 1), 4),
    "keys with a part in common": (lambda: Two(Latent, 3 * (2 * SIZE + SIZE // 2), 3, 3), 3),
}


@torch.no_grad()
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_either_layer_are_cut(kind, place, inplace):
    build, units = KINDS[kind]
    model, layer = build(), f"layers.{place}.qkv"
    x = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = consumers(model, layer, x)
    assert found.removable, str(found)
    assert found.neurons == units
    blind = copy.deepcopy(model)
    each = blind.layers[place].o.weight.shape[1] // units
    blind.layers[place].o.weight[:, each : 2 * each] = 0
    with merge(model, layer, [(0, 1)], example_input=x):
        merged = model(x)
    if not inplace:
        smaller, _ = consolidate(model, layer, [(0, 1)], example_input=x)
        torch.testing.assert_close(smaller(x), merged, rtol=1e-12, atol=1e-12)
    smaller, _ = remove_neurons(model, layer, [1], inplace=inplace, example_input=x)
    torch.testing.assert_close(smaller(x), blind(x), rtol=1e-12, atol=1e-12)
    assert smaller.layers[place].o.in_features == blind.layers[place].o.in_features - each
    assert smaller.config.heads == smaller.layers[1 - place].config.heads == blind.config.heads
    if kind.startswith("by places"):
        assert smaller.layers[place].config.heads == blind.config.heads * (units - 1) // units
        assert smaller.layers[place].groups == blind.config.groups * (units - 1) // units
    if kind == "in groups":
        assert (smaller.layers[place].heads, smaller.layers[place].groups) == (2, 1)


class Shuffling(nn.Module):
    """As in ShuffleNet: one half stays as it is, the other is computed anew, then both are shuffled."""

    def __init__(self, blocks: int):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 16, 1), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(blocks))
        scrambled(self).double()

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            kept, given = x.chunk(2, 1)
            x = torch.cat((kept, torch.relu(block(given))), 1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(x.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize(("blocks", "units"), [(1, 8), (2, 4), (3, 2)])
def test_shuffled_channels_go_in_sets_of_which_every_half_has_as_many(blocks, units):
    model, x = Shuffling(blocks), torch.rand(2, 1, 3, 3, dtype=torch.float64)
    found = consumers(model, "stem", x)
    assert found.removable, str(found)
    assert found.neurons == units
    smaller, _ = remove_neurons(model, "stem", [0], example_input=x)
    assert smaller.stem.out_channels == 16 - 16 // units
    for part in found.of("reader"):
        dict(model.named_parameters())[part.name].index_fill_(part.dim, (part.units == 0).nonzero().flatten(), 0)
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_shuffles_that_would_make_one_unit_of_all_channels_leave_them_apart():
    found = consumers(Shuffling(4), "stem", torch.rand(2, 1, 3, 3, dtype=torch.float64))
    assert found.neurons > 1
    assert "into pieces" in str(found)
    assert not found.removable


class Pooled(nn.Module):
    """torch pools what is transposed by means and strides."""

    def __init__(self):
        super().__init__()
        self.first, self.pool, self.head = nn.Linear(2, 6), nn.AdaptiveAvgPool1d(1), nn.Linear(6, 3)
        scrambled(self)

    def forward(self, x):
        return self.head(self.pool(self.first(x).transpose(1, 2)).flatten(1))


class Strided(Pooled):
    def forward(self, x):
        return self.head(torch.as_strided(self.first(x), (2, 6), (6, 1)))


def test_strides_of_pooling_are_followed_and_others_refused():
    x = torch.rand(2, 5, 2)
    smaller, _ = remove_neurons(Pooled(), "first", [2], example_input=x)
    assert smaller.head.in_features == 5
    with pytest.raises(ValueError, match="no rule for 'as_strided'"):
        remove_neurons(Strided(), "first", [2], example_input=x)


GATED = {
    "as another": (lambda h, g: h * g.expand_as(h), ""),
    "to a shape": (lambda h, g: h * g.expand(h.shape), ""),
    "mean of others": (lambda h, g: h + torch.cat((g, 2 * g), 1).mean(-1, keepdim=True), ""),
    "to a number": (lambda h, g: h * g.expand(4, 6), "size 6 written into it"),
    "summed up": (lambda h, g: h * g.expand(h.shape).sum(-1, keepdim=True), "the size of other neurons"),
    "beside others": (lambda h, g: torch.cat((h, g.expand(h.shape)), -1)[:, :6] * h, "taken by their places"),
    "normalised": (lambda h, g: h * g.expand(h.shape).softmax(-1), "mixes all neurons"),
}


class Gated(nn.Module):
    """One number for each sample, expanded over the neurons."""

    def __init__(self, joined):
        super().__init__()
        self.joined, self.first, self.gate, self.head = joined, nn.Linear(5, 6), nn.Linear(5, 1), nn.Linear(6, 3)
        scrambled(self).double()

    def forward(self, x):
        return self.head(self.joined(self.first(x), self.gate(x)))


@torch.no_grad()
@pytest.mark.parametrize("name", GATED)
def test_what_is_expanded_over_neurons_goes_with_them_unless_something_counts_it(name):
    joined, says = GATED[name]
    model, x = Gated(joined), torch.rand(4, 5, dtype=torch.float64)
    if says:
        with pytest.raises(ValueError, match=says):
            remove_neurons(model, "first", [1], example_input=x)
        return
    smaller, report = remove_neurons(model, "first", [1], example_input=x)
    model.head.weight[:, 1] = 0
    assert report.compared
    torch.testing.assert_close(smaller(x), model(x), rtol=1e-12, atol=1e-12)


class Sloped(nn.Module):
    """Alibi, whose slopes are in a buffer, or made for a number of heads."""

    def __init__(self, kind: str, kept: bool) -> None:
        super().__init__()
        self.heads, self.kind, self.kept = 4, kind, kept
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.register_buffer("slopes", self.made())

    def made(self):
        return 2.0 ** -torch.arange(1.0, 1 + self.heads)

    def forward(self, x):
        slopes = self.slopes if self.kept else self.made()
        q, k, v = (part.view(*x.shape[:2], self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = -slopes[:, None, None].to(x) * torch.arange(x.shape[1])
        if self.kind == "fused":
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, scale=0.5)
        elif self.kind == "batched":
            q, k, v = (each.flatten(0, 1) for each in (q, k, v))
            weights = mask.repeat(len(x), 1, 1).baddbmm(q, k.mT, alpha=0.5).softmax(-1)
            mixed = (weights @ v).view(len(x), self.heads, *v.shape[1:])
        else:
            mixed = (q @ k.mT / 2 + mask).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["written", "fused", "batched"])
def test_heads_with_slopes_are_cut_where_a_buffer_holds_these(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    model = Sloped(kind, kept=True).double()
    smaller, _ = consolidate(model, "qkv", [(0, 2)], example_input=x)
    with merge(model, "qkv", [(0, 2)], example_input=x), torch.no_grad():
        torch.testing.assert_close(smaller(x), model(x), rtol=1e-12, atol=1e-12)
    assert smaller.slopes.tolist() == [(0.5 + 0.125) / 2, 0.25, 0.0625]
    assert smaller.heads == 3
    fewer, _ = remove_neurons(model, "qkv", [1], example_input=x)
    assert fewer.slopes.tolist() == [0.5, 0.125, 0.0625]
    with pytest.raises(ValueError, match="numbers that the forward makes .* Keep them in a buffer"):
        consolidate(Sloped(kind, kept=False).double(), "qkv", [(0, 2)], example_input=x)


class Few(nn.Module):
    """Fewer heads of keys and values than of queries, or one, laid beside each other by hand."""

    def __init__(self, way, heads, few):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.heads, self.few, self.size, self.times = way, heads, few, 4, heads // few
        self.q, self.o = nn.Linear(8, heads * 4), nn.Linear(heads * 4, 8)
        self.k, self.v = nn.Linear(8, few * 4), nn.Linear(8, few * 4)

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k, v = (each(x).view(batch, length, self.few, self.size).transpose(1, 2) for each in (self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, self.way(self, k), self.way(self, v), is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, self.heads * self.size))


REPEATS = {
    "a quotient": lambda m, h: h.repeat_interleave(m.heads // m.few, 1),
    "by name": lambda m, h: torch.repeat_interleave(h, repeats=m.heads // h.shape[1], dim=1),
    "a number": lambda m, h: h.repeat_interleave(m.times, dim=1),
    "beside each other": lambda m, h: h[:, :, None].repeat(1, 1, m.heads // m.few, 1, 1).flatten(1, 2),
}


@pytest.mark.parametrize(("layer", "few"), [("k", 2), ("q", 2), ("q", 1)])
@pytest.mark.parametrize("way", REPEATS.values(), ids=REPEATS)
def test_heads_that_are_repeated_are_cut(way, layer, few):
    model, x = Few(way, 6, few), torch.randn(2, 5, 8)
    gone = range(12, 24) if few == 2 else range(4, 8)  # one head of keys with its three of queries, or one of these
    smaller, report = remove_neurons(model, layer, [1], example_input=x)
    assert report.compared
    assert smaller.o.in_features == model.o.in_features - len(gone)
    with torch.no_grad():
        model.o.weight[:, gone] = 0
    other = torch.randn(1, 9, 8)
    torch.testing.assert_close(smaller(other), model(other), rtol=1e-5, atol=1e-6)
