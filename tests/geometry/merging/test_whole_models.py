"""A whole model: thresholds, budgets, configurations, what each layer loses."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import (
    consolidate_model,
    fit_config,
    group_activations,
    neuron_cosine_matrix,
    remove_neurons,
)

from .networks import Config, Configured, Experts, Gated, assert_same, made, tokens

torch.manual_seed(0)


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
    assert not fit_config(uneven, x)
    assert not fit_config(uneven, x).fits
    unbuilt = type("Unbuilt", (Stages,), {"__init__": lambda self, config, more: Stages.__init__(self, config)})
    fit = fit_config(made(unbuilt(Ratios(), 1)), x)
    assert not fit
    assert re.search("Unbuilt is not built from its configuration alone .*'more'.* Save the whole model", fit.why)
    bent, _ = consolidate_model(model, [x], "up.*", budget=0.01, uniform="share", example_input=x)
    bent.up[0].dense.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    fit = fit_config(bent, x)
    assert "a model built with other mlp_ratio has these shapes and computes something else" in fit.why
    assert bent.config.mlp_ratio == 2.0


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
    assert fit_config(smaller, x)
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


class Unseen(nn.Module):
    """Reads a number of neurons in a way that nothing sees."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.b(self.a(x).relu()).relu()
        return self.c(h / float(f"{h.shape[-1]}"))


def test_the_layer_whose_pairs_change_something_else_is_named():
    model, x = made(Unseen()), tokens(40, 6)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"The pairs of 'b' do that by themselves; leave it out with exclude='b'\.$"):
        consolidate_model(model, [x], above=0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    smaller, report = consolidate_model(model, [x], above=0.0, exclude="b")
    assert report.compared
    assert smaller.a.out_features < 10 == smaller.b.out_features + 2
