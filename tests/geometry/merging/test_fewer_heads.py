"""Attention of torch.nn with fewer heads: the module that takes its place, and networks that have it inside."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import nn

from sdsd.geometry import FewerHeads, consolidate, consumers, merge, remove_neurons
from tests.geometry.networks import Forward, scrambled

MASKS = ("none", "places", "truth", "each head", "padding", "both", "causal")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mask_of(kind: str, batch: int, heads: int, queries: int, keys: int) -> dict:
    given = {}
    if kind in ("places", "both"):
        given["attn_mask"] = drawn(queries, keys)
    if kind == "truth":
        given["attn_mask"] = drawn(queries, keys) > 1
    if kind == "each head":
        given["attn_mask"] = drawn(batch * heads, queries, keys)
    if kind == "causal":
        given["attn_mask"] = torch.full((queries, queries), -torch.inf, dtype=torch.float64).triu(1)
        given["is_causal"] = True
    if kind in ("padding", "both"):
        padding = torch.zeros(batch, keys, dtype=torch.float64)
        padding[0, -2:] = -torch.inf
        given["key_padding_mask"] = padding
    return given


@torch.no_grad()
@pytest.mark.parametrize("weights", ["none", "mean", "each"])
@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("batch", [None, 3], ids=["one", "batch"])
def test_it_computes_what_torch_does(batch, masked, weights):
    heads, size, queries = 4, 2, 4
    keys = queries if masked == "causal" else 5
    options = itertools.product([True, False], [True, False], [True, False], [True, False], [None, (6, 5)])
    for first, bias, more, zero, widths in options:
        kdim, vdim = widths or (8, 8)
        named = {"bias": bias, "add_bias_kv": more, "add_zero_attn": zero, "batch_first": first}
        named |= {"kdim": kdim, "vdim": vdim}
        theirs = scrambled(nn.MultiheadAttention(heads * size, heads, **named)).double()
        ours = FewerHeads(heads * size, heads, size, **named).double().eval()
        ours.load_state_dict(theirs.state_dict())
        shapes = [(batch or 1, count, width) for count, width in ((queries, 8), (keys, kdim), (keys, vdim))]
        given = [drawn(*shape) for shape in shapes]
        if masked == "causal" and widths is None:
            given = [given[0]] * 3
        mask = mask_of(masked, batch or 1, heads, queries, keys)
        if batch is None:
            given = [each[0] for each in given]
            mask = {name: each[0] if name == "key_padding_mask" else each for name, each in mask.items()}
        elif not first:
            given = [each.transpose(0, 1) for each in given]
        asked = {"need_weights": weights != "none", "average_attn_weights": weights == "mean"}
        (out, seen), (wanted, wanted_seen) = (module(*given, **mask, **asked) for module in (ours, theirs))
        torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
        assert (seen is None) == (wanted_seen is None)
        if seen is not None:
            torch.testing.assert_close(seen, wanted_seen, rtol=1e-12, atol=1e-12)


def test_gradients_and_dropout_are_those_of_torch():
    theirs = scrambled(nn.MultiheadAttention(8, 4, dropout=0.3, batch_first=True)).double().train()
    ours = FewerHeads(8, 4, 2, dropout=0.3, batch_first=True).double()
    ours.load_state_dict(theirs.state_dict())
    x = drawn(3, 5, 8)
    for module in (ours, theirs):
        torch.manual_seed(1)
        module(x, x, x)[0].square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_what_it_cannot_do_is_said():
    attention, x = FewerHeads(8, 3, 4), drawn(5, 2, 8).float()
    assert "3 heads of 4" in str(attention)
    with pytest.raises(ValueError, match="is_causal=True only says that attn_mask is causal"):
        attention(x, x, x, is_causal=True)
    nested = torch.nested.nested_tensor([x[:, 0], x[:3, 1]])
    with pytest.raises(ValueError, match="nested tensors are taken for self-attention with batch_first=True"):
        attention(nested, nested, nested, need_weights=False)


class Sequence(nn.Module):
    """A projection to a stream, something over it, and a head."""

    def __init__(self, inside: nn.Module, run=None, width: int = 8) -> None:
        super().__init__()
        self.first, self.inside, self.head = nn.Linear(6, width), inside, nn.Linear(width, 3)
        self.run = run or (lambda inside, h: inside(h))
        scrambled(self).double()

    def forward(self, x):
        return self.head(self.run(self.inside, self.first(x)))


def padding_of(h):
    return torch.arange(h.shape[1]) >= torch.tensor([5, 3, 4])[:, None]


def layer(kind=nn.TransformerEncoderLayer, **named):
    return kind(8, 4, 12, **{"batch_first": True, "dropout": 0.0, **named})


def encoder(**named):
    return nn.TransformerEncoder(layer(**named), 2)


NETWORKS = {
    "encoder layer": (lambda: Sequence(layer()), "inside.self_attn"),
    "norm first, no bias": (lambda: Sequence(layer(norm_first=True, bias=False)), "inside.self_attn"),
    "gelu, batch second": (lambda: Sequence(layer(batch_first=False, activation="gelu")), "inside.self_attn"),
    "first layer of an encoder": (lambda: Sequence(encoder()), "inside.layers.0.self_attn"),
    "second layer of an encoder": (lambda: Sequence(encoder()), "inside.layers.1.self_attn"),
    "first layer, padded": (
        lambda: Sequence(encoder(), lambda m, h: m(h, src_key_padding_mask=padding_of(h))),
        "inside.layers.0.self_attn",
    ),
    "second layer, padded": (
        lambda: Sequence(encoder(), lambda m, h: m(h, src_key_padding_mask=padding_of(h))),
        "inside.layers.1.self_attn",
    ),
    "causal": (
        lambda: Sequence(
            encoder(),
            lambda m, h: m(h, mask=nn.Transformer.generate_square_subsequent_mask(5, dtype=h.dtype), is_causal=True),
        ),
        "inside.layers.1.self_attn",
    ),
    "decoder layer, itself": (
        lambda: Sequence(layer(nn.TransformerDecoderLayer), lambda m, h: m(h, h.flip(1))),
        "inside.self_attn",
    ),
    "decoder layer, the other": (
        lambda: Sequence(layer(nn.TransformerDecoderLayer), lambda m, h: m(h, h.flip(1))),
        "inside.multihead_attn",
    ),
    "whole transformer": (
        lambda: Sequence(nn.Transformer(8, 4, 1, 1, 12, 0.0, batch_first=True), lambda m, h: m(h, h)),
        "inside.decoder.layers.0.multihead_attn",
    ),
    "alone, with weights that nothing reads": (
        lambda: Sequence(nn.MultiheadAttention(8, 4), lambda m, h: m(h, h, h)[0]),
        "inside",
    ),
    "other widths of keys and values": (
        lambda: Sequence(
            nn.MultiheadAttention(8, 4, kdim=6, vdim=5, batch_first=True),
            lambda m, h: m(h, h[..., :6].detach() * 2, torch.ones_like(h[..., :5]))[0],
        ),
        "inside",
    ),
    "more keys, and one of zeros": (
        lambda: Sequence(nn.MultiheadAttention(8, 4, add_bias_kv=True, add_zero_attn=True), lambda m, h: m(h, h, h)[0]),
        "inside",
    ),
    "unbatched": (lambda: Sequence(nn.MultiheadAttention(8, 4), lambda m, h: m(h[0], h[1], h[2])[0]), "inside"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensor")
@torch.no_grad()
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("name", NETWORKS)
def test_heads_are_cut(name, inplace):
    build, place = NETWORKS[name]
    model, x = build(), drawn(3, 5, 6)
    layer = f"{place}.in_proj_weight"
    if model.get_submodule(place).in_proj_weight is None:
        layer = f"{place}.q_proj_weight"
    found = consumers(model, layer, x)
    assert (found.neurons, found.removable) == (4, True), str(found)
    blind = copy.deepcopy(model)
    blind.get_submodule(place).out_proj.weight[:, 2:4] = 0
    with merge(model, layer, [(0, 3)], example_input=x):
        merged = model(x)
    merged_model, report = consolidate(model, layer, [(0, 3)], example_input=x)
    assert report.compared
    torch.testing.assert_close(merged_model(x), merged, rtol=1e-10, atol=1e-12)
    whole = copy.deepcopy(model)
    smaller, _ = remove_neurons(model, layer, [1], inplace=inplace, example_input=x)
    assert (smaller is model) == inplace
    attention = smaller.get_submodule(place)
    assert (type(attention), attention.num_heads, attention.head_dim, attention.embed_dim) == (FewerHeads, 3, 2, 8)
    for training in (False, True):
        torch.testing.assert_close(smaller.train(training)(x), blind.train(training)(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(smaller.eval()(x[:, :5]), blind.eval()(x[:, :5]), rtol=1e-10, atol=1e-12)
    if not inplace:
        assert not any(isinstance(module, FewerHeads) for module in model.modules())
        torch.testing.assert_close(model(x), whole(x), rtol=0, atol=0)


@torch.no_grad()
def test_a_smaller_module_is_loaded_pickled_exported_and_cut_again():
    model, x = Sequence(layer()), drawn(3, 5, 6)
    smaller, _ = remove_neurons(model, "inside.self_attn.in_proj_weight", [1], example_input=x)
    wanted = smaller(x)
    rebuilt = Sequence(layer())
    rebuilt.inside.self_attn = FewerHeads(8, 3, 2, batch_first=True).double()
    rebuilt.load_state_dict(smaller.state_dict())
    torch.testing.assert_close(rebuilt.eval()(x), wanted, rtol=0, atol=0)
    file = io.BytesIO()
    smaller.run = None
    torch.save(smaller.inside, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    hidden = smaller.first(x)
    torch.testing.assert_close(loaded(hidden), smaller.inside(hidden), rtol=0, atol=0)
    exported = torch.export.export(smaller.inside, (hidden,), strict=False).module()
    torch.testing.assert_close(exported(hidden), smaller.inside(hidden), rtol=1e-10, atol=1e-12)
    again, report = remove_neurons(rebuilt, "inside.self_attn.in_proj_weight", [0, 2], example_input=x)
    assert report.neurons == (3, 1)
    blind = copy.deepcopy(rebuilt)
    blind.inside.self_attn.out_proj.weight[:, [0, 1, 4, 5]] = 0
    torch.testing.assert_close(again(x), blind(x), rtol=1e-10, atol=1e-12)


def test_a_smaller_module_learns():
    model, x = Sequence(encoder()), drawn(3, 5, 6)
    smaller, _ = remove_neurons(model, "inside.layers.0.self_attn.in_proj_weight", [1], example_input=x)
    smaller.train()(x).square().sum().backward()
    assert all(bool(each.grad.isfinite().all()) for each in smaller.parameters())


@torch.no_grad()
def test_what_it_reads_and_gives_is_cut_and_its_width_follows():
    model, x = Sequence(nn.MultiheadAttention(8, 4), lambda m, h: m(h, h, h)[0]), drawn(3, 5, 6)
    for name, sizes in (("first", (7, 8)), ("inside.out_proj", (8, 7))):
        blind = copy.deepcopy(model)
        (blind.inside.in_proj_weight if name == "first" else blind.head.weight)[:, 2] = 0
        smaller, _ = remove_neurons(model, name, [2], example_input=x)
        assert (smaller.inside.embed_dim, smaller.inside.out_proj.out_features) == sizes
        torch.testing.assert_close(smaller(x), blind(x), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_stream_behind_norms_is_cut_with_them():
    model, x = Sequence(layer(norm_first=True)), drawn(3, 5, 6)
    with merge(model, "inside.linear2", [(1, 4)], example_input=x):
        merged = model(x)
    smaller, _ = consolidate(model, "inside.linear2", [(1, 4)], norms="repeat", example_input=x)
    torch.testing.assert_close(smaller(x), merged, rtol=1e-10, atol=1e-12)
    assert smaller.inside.self_attn.embed_dim == smaller.first.out_features == 7


class Own(nn.MultiheadAttention):
    pass


REFUSED = {
    "the mean of weights": (
        nn.MultiheadAttention,
        lambda m, h: (lambda out, seen: out * seen.sum(-1).mean())(*m(h, h, h)),
        "'mean' mixes all neurons",
    ),
    "the mean of weights, kept": (
        nn.MultiheadAttention,
        lambda m, h: (lambda out, seen: setattr(m, "seen", seen) or out)(*m(h, h, h)),
        "'mean' mixes all neurons",
    ),
    "the mean of weights, read by NumPy": (
        nn.MultiheadAttention,
        lambda m, h: (lambda out, seen: out * float(seen.detach().squeeze().numpy()[0, 0, 1]))(*m(h, h, h)),
        "'mean' mixes all neurons",
    ),
    "a mask for each head": (
        nn.MultiheadAttention,
        lambda m, h: m(h, h, h, attn_mask=torch.linspace(0, 1, 180).double().view(20, 3, 3))[0],
        "joins the neurons with",
    ),
    "a class of one's own": (
        Own,
        lambda m, h: m(h, h, h)[0],
        "'inside' is a Own, which takes the size of a head from embed_dim",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_something_else_counts_are_refused(name):
    kind, run, says = REFUSED[name]
    model, x = Sequence(kind(8, 4), run), drawn(3, 5, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=says):
        remove_neurons(model, "inside.in_proj_weight", [1], example_input=x)
    assert type(model.inside) is kind
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model(x)


@pytest.mark.parametrize("name", ["dropped", "kept", "read out"])
def test_a_mean_that_nothing_uses_does_not_stand_in_the_way(name):
    def forward(m, x):
        h = m.a(x).relu()
        mean = h.mean(-1)
        if name == "kept":
            m.seen = mean
        scale = float(mean.detach().numpy()[0]) if name == "read out" else 1.0
        del mean
        return m.b(h) * scale

    model, x = Forward(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 3)), torch.rand(4, 5)
    found = consumers(model, "a", x)
    assert found.removable == (name == "dropped"), str(found)
    assert ("mixes all neurons" in str(found)) == (name != "dropped")
