"""Gated layers, heads, experts, squeeze-and-excitation, whole models: held against networks cut by hand in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import (
    consolidate,
    consolidate_experts,
    consolidate_model,
    consumers,
    cosine_to_untouched,
    evaluating,
    expert_cosine,
    fit_config,
    group_activations,
    kl_to_untouched,
    merge,
    merge_experts,
    neuron_cosine_matrix,
    register_layer,
    remove_neurons,
)
from tests.geometry.networks import reads_nothing_else, scrambled

torch.manual_seed(0)


class Gated(nn.Module):
    """A language model's block without attention: SwiGLU on a residual stream behind RMSNorm."""

    def __init__(self, width=6, hidden=8, out=3):
        super().__init__()
        self.inlet, self.norm = nn.Linear(5, width), nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down, self.head = nn.Linear(hidden, width, bias=False), nn.Linear(width, out)

    def forward(self, x):
        h = self.inlet(x)
        n = self.norm(h)
        return self.head(h + self.down(functional.silu(self.gate(n)) * self.up(n)))


class Attention(nn.Module):
    """Four query heads, two of keys and values, in the ways that libraries write them."""

    def __init__(self, written: str, heads=4, groups=2, size=3):
        super().__init__()
        self.written, self.num_heads, self.groups, self.size = written, heads, groups, size
        self.q, self.k, self.v = nn.Linear(5, heads * size), nn.Linear(5, groups * size), nn.Linear(5, groups * size)
        self.qkv, self.o = nn.Linear(5, 3 * heads * size), nn.Linear(heads * size, 5)
        self.q_norm = nn.LayerNorm(size)

    def forward(self, x):
        b, t, _ = x.shape
        if self.written == "fused":
            q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.written == "chunks":
            q, k, v = (each.view(b, t, self.num_heads, self.size).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        else:
            q, k, v = (layer(x).view(b, t, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
            k, v = (
                each[:, :, None].expand(b, each.shape[1], 2, t, self.size).reshape(b, -1, t, self.size)
                for each in (k, v)
            )
            q = torch.cat((-q[..., self.size // 2 :], q[..., : self.size // 2]), -1)
        if self.written == "products":
            scores = self.q_norm(q) @ k.transpose(2, 3) / self.size**0.5
            mixed = scores.softmax(-1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(b, t, -1)).mean(1)


class Experts(nn.Module):
    """Three experts in one tensor; each token goes to two of them."""

    def __init__(self, hidden=6):
        super().__init__()
        self.router = nn.Linear(5, 3)
        self.gate_up, self.down = nn.Parameter(torch.empty(3, 2 * hidden, 5)), nn.Parameter(torch.empty(3, 5, hidden))

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for expert in range(3):
            token, place = torch.where(chosen == expert)
            gate, up = functional.linear(x[token], self.gate_up[expert]).chunk(2, -1)
            made = functional.linear(functional.gelu(gate) * up, self.down[expert])
            out.index_add_(0, token, made * weights[token, place, None])
        return out.sum(-1)


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


def made(model: nn.Module) -> nn.Module:
    return scrambled(model).double()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).abs().max() <= 1e-12 * other.abs().max()


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


def twins() -> tuple[nn.Sequential, torch.Tensor]:
    """Neurons 1 and 4 of the first layer, and 0 and 2 of the second, are the same."""
    model = made(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)))
    with torch.no_grad():
        for layer, (i, j) in ((model[0], (1, 4)), (model[2], (0, 2))):
            layer.weight[j], layer.bias[j] = layer.weight[i], layer.bias[i]
    return model, tokens(40, 5)


@torch.no_grad()
@pytest.mark.parametrize("how", ["mean", "absorb"])
def test_a_threshold_finds_what_is_the_same_in_all_layers(how):
    model, x = twins()
    smaller, report = consolidate_model(model, [x], above=0.9999, how=how)
    assert [(row.layer, row.neurons, row.pairs) for row in report.layers] == [
        ("0", (6, 5), ((1, 4),)),
        ("2", (6, 5), ((0, 2),)),
        ("4", (3, 3), ()),
    ]
    assert "the model's output" in report.layers[2].refused
    assert_same(smaller(x), model(x))
    assert report.parameters == (5 * 6 + 6 + 42 + 21, 5 * 5 + 5 + 30 + 18)
    assert report.compared
    assert "refused" in str(report)
    assert all(each in str(report) for each in ("6 → 5", "1.000"))


@torch.no_grad()
def test_a_budget_is_kept_and_layers_can_lose_equally_many():
    model, x = (
        made(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))),
        tokens(40, 5),
    )
    smaller, report = consolidate_model(model, [x], "[02]", budget=0.2)
    before, after = report.parameters
    assert after <= 0.8 * before
    assert after >= 0.6 * before
    assert after == sum(parameter.numel() for parameter in smaller.parameters())
    cosines = [row.cosine for row in report.layers if row.pairs]
    assert all(-1 <= cosine <= 1 for cosine in cosines)
    first, second = consolidate_model(model, [x], "[02]", budget=0.2, uniform=True)[1].layers
    assert len(first.pairs) + len(second.pairs) >= 2
    inplace = copy.deepcopy(model)
    same, _ = consolidate_model(inplace, [x], "0", above=-1, inplace=True)
    assert same is inplace
    assert inplace[0].out_features == inplace[2].in_features == 4


class Stages(nn.Module):
    """Widths of a configuration, and hidden layers of the same multiple of each."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.inlet = nn.ModuleList(nn.Linear(6, width) for width in config.widths)
        sizes = [(width, int(config.mlp_ratio * width)) for width in config.widths]
        self.up = nn.ModuleList(nn.ModuleDict({"dense": nn.Linear(*size)}) for size in sizes)
        self.down = nn.ModuleList(nn.Linear(hidden, 3) for _, hidden in sizes)

    def forward(self, x):
        each = zip(self.inlet, self.up, self.down, strict=True)
        return sum(down(up["dense"](inlet(x)).tanh()) for inlet, up, down in each)


class Ratios:
    """As in Swin; `whole`: as in DINOv2, a ratio has to be a whole number."""

    def __init__(self, whole=False):
        vars(self).update(whole=whole, widths=[4, 6], mlp_ratio=2 if whole else 2.0)

    def __setattr__(self, name, value):
        if self.whole and name == "mlp_ratio" and type(value) is not int:
            raise TypeError("expected int")
        super().__setattr__(name, value)


@torch.no_grad()
def test_layers_of_all_sizes_lose_the_same_share_and_a_ratio_says_it():
    model, x = made(Stages(Ratios())), tokens(20, 6)
    smaller, report = consolidate_model(model, [x], "up.*", budget=0.01, uniform="share", example_input=x)
    assert [row.neurons for row in report.layers] == [(8, 6), (12, 9)]
    fit = fit_config(smaller, x)
    assert fit.changed == {"mlp_ratio": (2.0, 1.5)}
    rebuilt = Stages(smaller.config).double().eval()
    rebuilt.load_state_dict(smaller.state_dict())
    assert_same(rebuilt(x), smaller.eval()(x))
    uneven, report = consolidate_model(model, [x], "up.*", budget=0.01, uniform=True, example_input=x)
    assert [a - b for a, b in (row.neurons for row in report.layers)].count(1) == 1
    assert not fit_config(uneven, x).fits


@torch.no_grad()
def test_numbers_in_lists_follow_and_what_a_configuration_does_not_take_is_said():
    model, x = made(Stages(Ratios(whole=True))), tokens(20, 6)
    narrow, _ = remove_neurons(model, "inlet.1", [0, 1], example_input=x)
    fit = fit_config(narrow, x)
    assert "no number in Ratios gives it this size alone" in fit.why
    for layer in ("up.0.dense", "up.1.dense"):
        narrow, _ = remove_neurons(narrow, layer, range(4), example_input=x)
    assert "widths" not in str(fit_config(narrow, x).changed)
    narrow, _ = remove_neurons(model, "inlet.1", [0, 1], example_input=x)
    narrow, _ = remove_neurons(narrow, "up.1.dense", range(4), example_input=x)
    assert fit_config(narrow, x).changed == {"widths.1": (6, 4)}
    assert narrow.config.widths == [4, 4]
    shares, _ = consolidate_model(model, [x], "up.*", budget=0.01, uniform="share", example_input=x)
    fit = fit_config(shares, x)
    assert "mlp_ratio = 1.5 would, and Ratios does not take it. Save the whole model: torch.save" in fit.why
    assert shares.config.mlp_ratio == 2


def test_a_layer_that_loses_one_makes_all_of_its_kind_lose_one():
    model, x = made(Configured(Config())), tokens(4, 7, 5)
    alone, report = consolidate_model(model, [x], "blocks.*.gate", budget=0.001, example_input=x)
    assert sorted(len(row.pairs) for row in report.layers)[-1] == 1
    smaller, report = consolidate_model(model, [x], "blocks.*.gate", budget=0.001, uniform=True, example_input=x)
    assert {len(row.pairs) for row in report.layers} == {1}
    assert fit_config(smaller, x).fits
    assert not fit_config(alone, x).fits


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "got neither"),
        ({"above": 2}, "a cosine from -1 to 1"),
        ({"budget": 1.5}, "a share of the parameters"),
        ({"above": 0.5, "uniform": "sharing"}, "uniform"),
        ({"above": 0.5, "how": "act"}, "'mean', 'absorb'"),
        ({"above": 0.5, "layers": "nothing*"}, "matches 'nothing"),
        ({"above": 0.5, "layers": "4"}, "none of the layers can be cut"),
    ],
)
def test_bad_input(options, says):
    model, x = twins()
    with pytest.raises(ValueError, match=says):
        consolidate_model(model, [x], **options)


@torch.no_grad()
def test_what_readers_get_and_what_members_answer():
    model, x = made(Gated()), tokens(4, 7, 5)
    mask = torch.ones(4, 7)
    mask[1, 3:] = 0
    normed = model.norm(model.inlet(x))
    gate, up = model.gate(normed), model.up(normed)
    kept = (functional.silu(gate) * up)[mask > 0]
    readers = group_activations(model, [x], "gate", mask=lambda batch: mask)["gate"]
    assert readers.taken_after == "read by down"
    torch.testing.assert_close(readers.cosine_matrix(), neuron_cosine_matrix(kept, neuron_dim=1))
    torch.testing.assert_close(readers.gram(), kept.T @ kept)
    members = group_activations(model, [x, 2 * x], ["gate"], of="members", max_batches=1)["gate"]
    both = torch.cat([gate.flatten(0, 1), up.flatten(0, 1)])
    torch.testing.assert_close(members.cosine_matrix(), neuron_cosine_matrix(both, neuron_dim=1))
    with pytest.raises(ValueError, match="of: expected one of"):
        group_activations(model, [x], "gate", of="all")
    with pytest.raises(ValueError, match="'members' needs layers with an output of their own"):
        group_activations(made(Experts()), [tokens(20, 5)], "gate_up", of="members")


@dataclass
class Config:
    width: int = 6
    intermediate_size: int = 8
    head_dim: int = 2
    layers: int = 2


class Configured(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Gated(config.width, config.intermediate_size, 5) for _ in range(config.layers))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return {"logits": x}


def test_a_configuration_follows_layers_of_one_size_and_says_why_it_cannot():
    model, x = made(Configured(Config())), tokens(4, 7, 5)
    smaller, _ = consolidate_model(model, [x], "blocks.*.gate", budget=0.1, uniform=True)
    fit = fit_config(smaller, x)
    assert fit.fits, fit
    hidden = smaller.blocks[0].gate.out_features
    assert hidden < 8
    assert smaller.config.intermediate_size == hidden
    assert fit.changed == {"intermediate_size": (8, hidden)}
    assert model.config.intermediate_size == 8
    rebuilt = Configured(smaller.config).double().eval()
    rebuilt.load_state_dict(smaller.state_dict())
    assert_same(rebuilt(x)["logits"], smaller.eval()(x)["logits"])
    uneven, _ = remove_neurons(model, "blocks.1.gate", [0], example_input=x)
    fit = fit_config(uneven)
    assert not fit.fits
    assert "'blocks.1.gate.weight' has shape (7, 6)" in str(fit)
    assert uneven.config.intermediate_size == 8
    with pytest.raises(TypeError, match="expected one with a config"):
        fit_config(nn.Linear(2, 2))


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


class Stacked(Experts):
    """Experts apart from their router, as in transformers."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, place = torch.where(top_k_index == expert)
            gate, up = functional.linear(hidden_states[token], self.gate_up[expert]).chunk(2, -1)
            made = functional.linear(functional.gelu(gate) * up, self.down[expert])
            out.index_add_(0, token, made * top_k_weights[token, place, None])
        return out


class Mixture(nn.Module):
    def __init__(self, listed: bool):
        super().__init__()
        self.listed, self.router, self.norm = listed, nn.Linear(5, 3), nn.LayerNorm(5)
        each = (nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 5)) for _ in range(3))
        self.experts = nn.ModuleList(each) if listed else Stacked()

    def forward(self, x):
        h = self.norm(x)
        weights, chosen = self.router(h).softmax(-1).topk(2, -1)
        if not self.listed:
            return self.experts(h, chosen, weights)
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            token, place = torch.where(chosen == k)
            out.index_add_(0, token, expert(h[token]) * weights[token, place, None])
        return out


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
