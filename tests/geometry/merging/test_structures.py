"""Gates, heads, experts, depthwise convolutions: cut as by hand; experts compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import (
    consolidate,
    consolidate_experts,
    consumers,
    cosine_to_untouched,
    evaluating,
    expert_cosine,
    group_activations,
    kl_to_untouched,
    merge,
    merge_experts,
    neuron_cosine_matrix,
    register_layer,
    remove_neurons,
)
from tests.geometry.networks import reads_nothing_else

from .networks import Attention, Config, Configured, Experts, Gated, Mixture, assert_same, made, tokens


class Excited(nn.Module):
    """Depthwise and grouped convolutions, squeeze-and-excitation, a residual stream."""

    def __init__(self, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.wide, self.deep = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.grouped, self.back = nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, channels, 1)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        h = self.norm(self.deep(self.wide(x).relu())).relu()
        h = h * self.excite(self.squeeze(h.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((x + self.back(self.grouped(h).relu())).mean((2, 3)))


class Dense(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.kernel = nn.Parameter(torch.rand(inputs, outputs))

    def forward(self, x):
        return x @ self.kernel


@torch.no_grad()
def test_a_gate_and_what_it_gates_are_cut_as_by_hand():
    model, x = made(Gated()), tokens(4, 7, 5)
    assert reads_nothing_else(model, "up", x, x).neurons == 8
    smaller, _ = remove_neurons(model, "up", [1, 6], example_input=x)
    by_hand, kept = made(Gated(hidden=6)), [0, 2, 3, 4, 5, 7]
    by_hand.load_state_dict(
        {
            name: value[kept] if name.startswith(("gate", "up")) else value[:, kept] if "down" in name else value
            for name, value in model.state_dict().items()
        }
    )
    assert_same(smaller(x), by_hand(x))
    assert smaller.gate.out_features == smaller.up.out_features == smaller.down.in_features == 6
    with merge(model, "gate", [(0, 3)], example_input=x):
        merged = model(x)
    assert_same(consolidate(model, "gate", [(0, 3)], example_input=x)[0](x), merged)
    stream = consumers(model, "down", x)
    assert [writer.name for writer in stream.writers] == ["inlet", "down"]
    assert not stream.removable
    assert "takes its statistics over all neurons" in str(stream)
    with merge(model, "down", [(0, 3)], "act", example_input=x):
        assert torch.equal(model.head.weight[:, 0], model.head.weight[:, 3])
        assert torch.equal(model.up.weight[:, 0], model.up.weight[:, 3])


@torch.no_grad()
@pytest.mark.parametrize(
    ("written", "layer", "units"),
    [("fused", "qkv", 4), ("chunks", "qkv", 4), ("separate", "q", 2), ("separate", "v", 2), ("products", "k", 2)],
)
def test_heads_and_groups_of_keys_and_values(written, layer, units):
    model, x = made(Attention(written)), tokens(3, 6, 5)
    found = consumers(model, layer, x)
    assert found.neurons == units
    assert found.removable, found
    smaller, report = remove_neurons(model, layer, [1], example_input=x)
    assert report.neurons == (units, units - 1)
    size = 12 // units
    blind = copy.deepcopy(model)
    blind.o.weight[:, size : 2 * size] = 0
    assert_same(smaller(x), blind(x))
    assert smaller.o.in_features == 12 - size
    if written in ("fused", "chunks"):
        assert smaller.num_heads == 3
        assert smaller.qkv.out_features == 27
    with merge(model, layer, [(1, 0)], example_input=x):
        merged = model(x)
    smaller, _ = consolidate(model, layer, [(1, 0)], example_input=x)
    assert_same(smaller(x), merged)
    assert (merged - model(x)).abs().max() > 1e-3
    if written not in ("fused", "chunks"):
        rows = model.get_submodule(layer)(x)
        heads = rows.movedim(-1, 0).reshape(units, -1)
        of_rows, _ = consolidate(model, layer, [(1, 0)], how="absorb", activations=rows, example_input=x)
        of_heads, _ = consolidate(model, layer, [(1, 0)], how="absorb", gram=heads @ heads.T, example_input=x)
        assert_same(of_rows(x), of_heads(x))
    answers = group_activations(model, [x], layer)[layer]
    inputs = []
    with evaluating(model):
        hook = model.o.register_forward_pre_hook(lambda _m, given: inputs.append(given[0]))
        model(x)
        hook.remove()
    flat = inputs[0].reshape(-1, units, size).transpose(1, 2).reshape(-1, units)
    assert answers.neurons == units
    assert answers.samples == 3 * 6 * size
    torch.testing.assert_close(answers.cosine_matrix(), neuron_cosine_matrix(flat, neuron_dim=1))


@torch.no_grad()
def test_a_neuron_of_all_experts():
    model, x = made(Experts()), tokens(20, 5)
    found = consumers(model, "gate_up", x)
    assert found.neurons == 6
    assert [(part.name, part.dim, part.each) for part in found.parts] == [("gate_up", 1, 2), ("down", 2, 1)]
    smaller, _ = remove_neurons(model, "gate_up", [2, 5], example_input=x)
    by_hand = made(Experts(4))
    by_hand.router.load_state_dict(model.router.state_dict())
    by_hand.gate_up.copy_(model.gate_up[:, [0, 1, 3, 4, 6, 7, 9, 10]])
    by_hand.down.copy_(model.down[:, :, [0, 1, 3, 4]])
    assert_same(smaller(x), by_hand(x))
    assert not consumers(model, "router", x).removable
    with pytest.raises(ValueError, match="multiplies by several weights: 'gate_up', 'down'|never called|Name the one"):
        consumers(nn.Sequential(model), "0", x)
    few = group_activations(model, [x], "gate_up")["gate_up"]
    assert few.samples == 40


@torch.no_grad()
def test_depthwise_grouped_and_excited_convolutions():
    model, x = made(Excited()), tokens(3, 2, 6, 6)
    for layer, writers in (
        ("wide", ["wide", "deep", "excite"]),
        ("stem", ["stem", "back"]),
        ("squeeze", ["squeeze"]),
        ("grouped", ["grouped"]),
    ):
        found = reads_nothing_else(model, layer, x, x)
        assert [writer.name for writer in found.writers] == writers
        assert found.removable, found
    smaller, _ = remove_neurons(model, "deep", [1], example_input=x)  # and its partner in the other group
    assert (smaller.deep.groups, smaller.deep.in_channels, smaller.deep.out_channels) == (6, 6, 6)
    assert (smaller.grouped.groups, smaller.grouped.in_channels, smaller.norm.num_features) == (2, 6, 6)
    blind = copy.deepcopy(model)
    blind.grouped.weight[:, 1] = 0
    blind.squeeze.weight[:, [1, 5]] = 0
    assert_same(smaller(x), blind(x))
    with merge(model, "back", [(0, 5)], example_input=x):
        merged = model(x)
    smaller, _ = consolidate(model, "back", [(0, 5)], example_input=x)
    assert_same(smaller(x), merged)
    assert smaller.stem.out_channels == smaller.back.out_channels == smaller.head.in_features == 7


def test_attention_of_torch_merges_in_place():
    model = made(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    x = tokens(3, 5, 8)
    assert group_activations(model, [x], "linear1")["linear1"].samples == 15
    found = consumers(model, "self_attn.in_proj_weight", x)
    assert found.neurons == 2
    with torch.no_grad(), merge(model, "self_attn.in_proj_weight", [(0, 1)], example_input=x):
        query = model.self_attn.in_proj_weight[:8]
        assert torch.equal(query[:4], query[4:])


@torch.no_grad()
def test_a_layer_class_of_your_own_in_one_line():
    model, x = made(nn.Sequential(Dense(3, 4), nn.ReLU(), Dense(4, 2))), tokens(5, 3)
    smaller, _ = remove_neurons(model, "0", [1], example_input=x)
    assert (smaller[0].outputs, smaller[2].inputs) == (4, 4)
    register_layer(Dense, inputs=("kernel", 0), outputs=("kernel", 1))
    smaller, _ = remove_neurons(model, "0", [1], example_input=x)
    assert (smaller[0].inputs, smaller[0].outputs, smaller[2].inputs) == (3, 3, 3)
    kept = [0, 2, 3]
    assert_same(smaller(x), (x @ model[0].kernel[:, kept]).relu() @ model[2].kernel[kept])
    with pytest.raises(TypeError, match="expected a class of modules"):
        register_layer("Dense")
    with pytest.raises(TypeError, match="expected .name of a tensor, axis."):
        register_layer(Dense, inputs="kernel")


def test_sensitivities_of_objects_and_dictionaries():
    model, x = made(Configured(Config())), tokens(4, 7, 5)
    batches = [{"x": x, "labels": torch.zeros(4)}]
    for make in (kl_to_untouched, cosine_to_untouched):
        loss = make(model, batches)
        assert loss(model) == pytest.approx(0, abs=1e-12)
        with merge(model, "blocks.0.gate", [(0, 3)], example_input=x):
            changed = loss(model)
        wanted = make(model, [x], forward=lambda model, batch: model(batch)["logits"])
        with merge(model, "blocks.0.gate", [(0, 3)], example_input=x):
            assert changed == pytest.approx(wanted(model), rel=1e-9)
        assert changed > 0
    with pytest.raises(TypeError, match="expected the model to give a tensor"):
        kl_to_untouched(made(nn.Sequential(Silent())), [x])


class Silent(nn.Module):
    def forward(self, x):
        return {"text": "nothing"}


def test_hooks_that_a_forward_installs_are_taken_away():
    class Hooking(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head, self.seen, self.ready = nn.Linear(3, 4), nn.Linear(4, 2), {}, False

        def forward(self, x):
            if not self.ready:
                self.first.register_forward_hook(lambda _m, _i, out: self.seen.setdefault("calls", []).append(1))
                self.ready = True
            return self.head(self.first(x).relu())

    model, x = Hooking(), torch.rand(2, 3)
    consumers(model, "first", x)
    assert not model.ready
    assert not model.first._forward_hooks
    assert model.seen == {}
    model(x)
    assert model.seen == {"calls": [1]}


def test_experts_that_cannot_be_compared_or_merged_say_why():
    model, x = made(Mixture(True)), tokens(6, 5)
    model.experts[1] = nn.Sequential(nn.Linear(5, 3), nn.GELU(), nn.Linear(3, 5)).double()
    with pytest.raises(ValueError, match="experts 0 and 1 of 'experts' have parameters of different shapes"):
        merge_experts(model, "experts", [(0, 1)])
    model.forward = lambda x: x
    with pytest.raises(ValueError, match="experts: 'experts' did not run in these batches"):
        expert_cosine(model, "experts", [x])
    alone = nn.ModuleDict({"whole": Experts()})
    with pytest.raises(TypeError, match=r"\(Experts\) is not called with tokens, chosen experts and weights"):
        expert_cosine(alone, "whole", [x])


@torch.no_grad()
def test_what_all_experts_share_is_not_merged_and_a_scalar_is():
    model, x = made(Mixture(False)), tokens(6, 5)
    model.experts.gain = nn.Parameter(torch.rand(5))
    model.experts.scale = nn.Parameter(torch.rand(()))
    gain = model.experts.gain.clone()
    with merge_experts(model, "experts", [(0, 2)]):
        assert torch.equal(model.experts.gain, gain)
    model = made(Mixture(True))
    for k, expert in enumerate(model.experts):
        expert.scale = nn.Parameter(torch.tensor(float(k)))
    with merge_experts(model, "experts", [(0, 2)]):
        inside = model(x)
        assert [expert.scale.item() for expert in model.experts] == [1, 1, 1]
    assert [expert.scale.item() for expert in model.experts] == [0, 1, 2]
    assert consolidate_experts(model, "experts", [(0, 2)], inplace=True) is model
    assert torch.equal(model(x), inside)


@torch.no_grad()
@pytest.mark.parametrize("listed", [False, True])
def test_experts_are_compared_on_the_same_tokens_and_merged(listed):
    model, x = made(Mixture(listed)), tokens(30, 5)
    h = model.norm(x)
    if listed:
        chosen = model.router(h).topk(2, -1).indices
        h = torch.cat([h[(chosen == k).any(1)] for k in range(3)])
        answers = [expert(h) for expert in model.experts]
    else:
        gated = [functional.linear(h, model.experts.gate_up[k]).chunk(2, -1) for k in range(3)]
        answers = [(functional.gelu(a) * b) @ model.experts.down[k].T for k, (a, b) in enumerate(gated)]
    wanted = neuron_cosine_matrix(torch.stack([each.flatten() for each in answers]), neuron_dim=0)
    torch.testing.assert_close(expert_cosine(model, "experts", [x]), wanted)
    before = model(x)
    with merge_experts(model, "experts", [(0, 2)]):
        inside = model(x)
        cosine = expert_cosine(model, "experts", [x])
    assert cosine[0, 2] == pytest.approx(1)
    assert (inside - before).abs().max() > 1e-4
    assert torch.equal(model(x), before)
    forever = consolidate_experts(model, "experts", [(0, 2)])
    assert torch.equal(forever(x), inside)
    one = forever.experts[0][0].weight if listed else forever.experts.down[0]
    first, third = (model.experts[k][0].weight if listed else model.experts.down[k] for k in (0, 2))
    torch.testing.assert_close(one, (first + third) / 2)
    with pytest.raises(TypeError, match="expected the name of an nn.ModuleList"):
        expert_cosine(model, "router", [x])
    with pytest.raises(ValueError, match="expected neurons from 0 to 2"):
        merge_experts(model, "experts", [(0, 3)])
