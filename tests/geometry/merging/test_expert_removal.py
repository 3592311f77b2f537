"""Experts taken out of a mixture, with their rows of the router."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import plan_consolidation, remove_experts
from tests.geometry.merging.networks import Stacked, made, tokens


class Router(nn.Module):
    """With a bias of its own that only chooses, as in DeepSeek-V3."""

    def __init__(self, experts: int, top_k: int):
        super().__init__()
        self.top_k, self.num_experts = top_k, experts
        self.weight = nn.Parameter(torch.empty(experts, 5))
        self.register_buffer("correction", torch.zeros(experts))

    def forward(self, h):
        scores = functional.linear(h.float(), self.weight.float()).sigmoid()
        chosen = (scores + self.correction).topk(self.top_k, -1).indices
        weights = scores.gather(-1, chosen)
        return (weights / weights.sum(-1, keepdim=True)).to(h), chosen


class Block(nn.Module):
    def __init__(self, listed: bool, top_k: int = 2):
        super().__init__()
        self.listed, self.num_experts = listed, 3
        self.gate = nn.Linear(5, 3) if listed else Router(3, top_k)
        each = (nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 5)) for _ in range(3))
        self.experts = nn.ModuleList(each) if listed else Stacked()

    def forward(self, h):
        if not self.listed:
            return self.experts(h, *self.gate(h)[::-1])
        weights, chosen = self.gate(h).softmax(-1).topk(2, -1)
        out = torch.zeros_like(h)
        for k in range(self.num_experts):
            token, place = torch.where(chosen == k)
            out.index_add_(0, token, self.experts[k](h[token]) * weights[token, place, None])
        return out


class Layers(nn.Module):
    def __init__(self, listed: bool, top_k: int = 2):
        super().__init__()
        self.num_experts, self.num_experts_per_tok = 3, top_k
        self.layers = nn.ModuleList(Block(listed, top_k) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def by_hand(model: Layers, x: torch.Tensor, gone: int) -> torch.Tensor:
    """The first layer's logits of one expert at −∞, then every expert on every token."""
    for place, layer in enumerate(model.layers):
        logits = functional.linear(x, layer.gate.weight, getattr(layer.gate, "bias", None))
        if layer.listed:
            scores = choice = logits.masked_fill(torch.arange(3) == (gone if place == 0 else -1), -torch.inf).softmax(
                -1
            )
            answers = torch.stack([expert(x) for expert in layer.experts], 1)
        else:
            scores = logits.sigmoid()
            choice = scores + layer.gate.correction
            choice = choice.masked_fill(torch.arange(3) == (gone if place == 0 else -1), -torch.inf)
            gated = [functional.linear(x, matrix).chunk(2, -1) for matrix in layer.experts.gate_up]
            answers = [(functional.gelu(a) * b) @ d.T for (a, b), d in zip(gated, layer.experts.down, strict=True)]
            answers = torch.stack(answers, 1)
        chosen = choice.topk(2, -1).indices
        weights = scores.gather(-1, chosen)
        if not layer.listed:
            weights = weights / weights.sum(-1, keepdim=True)
        x = x + (answers.gather(1, chosen[..., None].expand(-1, -1, 5)) * weights[..., None]).sum(1)
    return x


@torch.no_grad()
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("listed", [False, True], ids=["stacked", "listed"])
@pytest.mark.parametrize("gone", [0, 1, 2])
def test_without_an_expert_tokens_go_to_those_that_come_next(gone, listed, inplace):
    model, x = made(Layers(listed)), tokens(40, 5)
    untouched, wanted = copy.deepcopy(model), by_hand(model, x, gone)
    assert (model(x) - wanted).abs().max() > 1e-4
    smaller = remove_experts(model, "layers.0.experts", [gone], inplace=inplace, example_input=x)
    assert (smaller is model) == inplace
    torch.testing.assert_close(smaller(x), wanted, rtol=1e-6, atol=1e-6)
    assert smaller.layers[0].gate.weight.shape == (2, 5)
    assert smaller.layers[0].num_experts == 2
    assert smaller.layers[1].num_experts == smaller.num_experts == 3
    if not inplace:
        assert torch.equal(model(x), untouched(x))
    both = remove_experts(smaller, "layers.1.experts", [0], example_input=x)
    assert both.num_experts == both.num_experts_per_tok == 2
    both.train()
    with torch.enable_grad():
        both(x).sum().backward()
    assert both.layers[0].gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("experts", "removed", "options", "error", "says"),
    [
        ("layers.0.experts", [3], {}, ValueError, "expected 0 to 2 for 3 experts"),
        ("layers.0.experts", [1, 1], {}, ValueError, "different experts"),
        ("layers.0.experts", [], {}, ValueError, "at least one"),
        ("layers.0.experts", [0, 1], {}, ValueError, "sends every token to 2 experts, and 1 would be left"),
        ("layers.0.experts", [0.5], {}, TypeError, "expected an int"),
        ("layers.0.experts", [0], {"router": "layers.0.experts"}, ValueError, "a weight of 3 rows"),
        ("layers.0.gate", [0], {}, TypeError, "expected the name of an nn.ModuleList"),
    ],
)
def test_bad_input_changes_nothing(experts, removed, options, error, says):
    model, x = made(Layers(False)), tokens(8, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=says):
        remove_experts(model, experts, removed, inplace=True, example_input=x, **options)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert model.layers[0].num_experts == 3


def test_experts_in_groups_and_routers_that_are_not_found_are_named():
    model, x = made(Layers(False)), tokens(8, 5)
    model.layers[0].other = nn.Linear(5, 3)
    with pytest.raises(ValueError, match=r"found \['layers.0.gate', 'layers.0.other'\]. Pass router="):
        remove_experts(model, "layers.0.experts", [0], example_input=x)
    with pytest.raises(
        ValueError, match="expected a module with a weight of 3 rows, one an expert, got 'layers.0.none'"
    ):
        remove_experts(model, "layers.0.experts", [0], router="layers.0.none", example_input=x)
    plan = plan_consolidation(model, [x], experts="layers.*.experts", above=-1, example_input=x)
    refused = {row.layer: row.refused for row in plan.layers if row.layer.endswith("experts")}
    assert "'layers.0.other'" in refused["layers.0.experts"]
    assert refused["layers.1.experts"] == ""
    model.layers[1].gate.top_k = 3
    plan = plan_consolidation(model, [x], experts="layers.1.experts", above=-1, example_input=x)
    assert [row.refused for row in plan.layers if row.layer.endswith("experts")] == ["each token goes to all 3 experts"]
    model.layers[1].gate.top_k = 2
    model.layers[0].gate.n_group = 3
    with pytest.raises(ValueError, match="3 groups of experts by their places"):
        remove_experts(model, "layers.0.experts", [0], router="layers.0.gate", example_input=x)


class Counting(Block):
    """Its answers depend on how many experts there are."""

    def forward(self, h):
        return super().forward(h) * len(self.experts)


def test_a_smaller_network_that_computes_something_else_is_refused():
    model, x = made(Counting(True)), tokens(8, 5)
    with pytest.raises(ValueError, match="computes something else"):
        remove_experts(model, "experts", [0], inplace=True, example_input=x)
    assert len(model.experts) == 3
    assert len(remove_experts(model, "experts", [0], example_input=x, check=False).experts) == 2
