"""One call over a whole model: what it chooses, the plan, and what is left out."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import (
    ConsolidationPlan,
    RepeatedNorm,
    consolidate_model,
    merge,
    merge_cost,
    outgoing_weights,
    plan_consolidation,
    remove_experts,
)
from tests.geometry.merging.networks import Attention, Experts, Gated, Mixture, assert_same, made, tokens

from .deep import deep


def mixture() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    return made(Mixture(listed=False)), tokens(30, 5)


def hidden(model: nn.Sequential, x: torch.Tensor, layer: int) -> torch.Tensor:
    return model[: layer + 2](x)


@torch.no_grad()
@pytest.mark.parametrize("how", ["mean", "absorb"])
@pytest.mark.parametrize("by", ["cosine", "cost"])
def test_a_plan_is_carried_out_as_one_call_does_it(tmp_path, how, by):
    model, x = deep()
    options = {"how": how, "by": by, "budget": 0.25}
    plan = plan_consolidation(model, [x], **options)
    before = copy.deepcopy(model.state_dict())
    smaller, report = consolidate_model(model, [x], **options)
    assert ConsolidationPlan.load(plan.save(tmp_path / "plan.json")) == plan
    again, same = ConsolidationPlan.load(tmp_path / "plan.json").carry_out(copy.deepcopy(model), example_input=x)
    assert same == report
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in smaller.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert report.parameters[1] <= 0.75 * report.parameters[0]
    assert sum(len(row.pairs) for row in report.layers) >= 3
    saved = sum(row.parameters for row in report.layers)
    assert f"about {saved:,} of {report.parameters[0]:,}" in str(plan)
    with pytest.raises(ValueError, match="was made for a model whose '.' has [0-9]+ neurons, and here it has"):
        plan.carry_out(smaller, example_input=x)


@torch.no_grad()
@pytest.mark.parametrize("how", ["mean", "absorb"])
def test_costs_are_what_readers_get_other_over_what_they_get(how):
    """Against merging activations by hand, sample for sample."""
    model, x = deep()
    plan = plan_consolidation(model, [x], by="cost", how=how, below=1e9)
    assert [len(row.pairs) for row in plan.layers] == [4, 6, 3, 0]
    for row in plan.layers[:-1]:
        answers, reader = hidden(model, x, int(row.layer)), model[int(row.layer) + 2].weight
        whole = (answers @ reader.T).square().sum().sqrt()
        for pair in row.pairs:
            merged = answers.clone()
            i, j = pair.first, pair.second
            if how == "absorb":
                merged[:, j] = merged[:, i] * 0
                share = answers[:, i] @ answers[:, j] / answers[:, i].square().sum()
                change = merged @ reader.T + share * answers[:, i, None] * reader[:, j] - answers @ reader.T
                assert pair.share == pytest.approx(share.item(), rel=1e-9)
            else:
                merged[:, i] = merged[:, j] = (answers[:, i] + answers[:, j]) / 2
                change = (merged - answers) @ reader.T
            assert pair.cost == pytest.approx((change.square().sum().sqrt() / whole).item(), rel=1e-6)
            cosine = functional.cosine_similarity(answers[:, i], answers[:, j], dim=0)
            assert pair.cosine == pytest.approx(cosine.item(), abs=1e-6)
    first = plan.layers[0].pairs[0]
    alone = plan.without("2", "4")
    assert [row.refused for row in alone.layers[1:3]] == ["left out"] * 2
    one = dataclasses.replace(alone, layers=(dataclasses.replace(alone.layers[0], pairs=(first,)), *alone.layers[1:]))
    smaller, _ = one.carry_out(model, example_input=x)
    assert smaller[0].out_features == 7


def prices(plan: ConsolidationPlan) -> list[tuple[float, str, int]]:
    """What a parameter saved costs, of all pairs."""
    return [(pair.cost**2 / row.parameters, row.layer, pair.first) for row in plan.layers for pair in row.pairs]


@torch.no_grad()
def test_a_threshold_of_the_cost_takes_all_below_it_and_a_number_is_a_budget_of_parameters():
    model, x = deep()
    all_of_them = [
        pair.cost for row in plan_consolidation(model, [x], by="cost", below=1e9).layers for pair in row.pairs
    ]
    middle = sorted(all_of_them)[len(all_of_them) // 2]
    fewer = [pair.cost for row in plan_consolidation(model, [x], by="cost", below=middle).layers for pair in row.pairs]
    assert sorted(fewer) == [cost for cost in sorted(all_of_them) if cost <= middle]
    _, report = consolidate_model(model, [x], budget=40)
    gone = report.parameters[0] - report.parameters[1]
    assert 40 <= gone < 40 + 19
    everything = plan_consolidation(model, [x], by="cost", budget=0.99)
    assert len(prices(everything)) == 13
    for budget in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4):
        some = prices(plan_consolidation(model, [x], by="cost", budget=budget))
        assert 1 <= len(some) < 13
        assert sorted(some) == sorted(prices(everything))[: len(some)]
    by_cost, report = consolidate_model(model, [x], by="cost", budget=0.25)
    by_cosine, _ = consolidate_model(model, [x], by="cosine", budget=0.25)
    assert (by_cost(x) - model(x)).norm() < (by_cosine(x) - model(x)).norm()


def test_with_a_loss_costs_are_rises_of_it():
    model, x = deep()
    batch = (x, torch.arange(60) % 3)

    def loss(net, batch):
        return functional.cross_entropy(net(batch[0]), batch[1])

    plan = plan_consolidation(model, [x], by="cost", below=1e9, loss=([batch], loss))
    for row in plan.layers[:-1]:
        outgoing = outgoing_weights(model, row.layer, x, loss=([batch], loss))
        pairs = torch.tensor([pair[:2] for pair in row.pairs])
        with torch.no_grad():
            cost = merge_cost(hidden(model, x, int(row.layer)), outgoing, pairs)
        assert [pair.cost for pair in row.pairs] == pytest.approx((cost.square() / 2).tolist(), rel=1e-6)


@torch.no_grad()
def test_what_is_left_out_stays_with_all_that_is_coupled_to_it():
    model, x = made(Gated()), tokens(4, 7, 5)
    with pytest.raises(ValueError, match="none of the layers can be cut"):
        consolidate_model(model, [x], "up", exclude="gate", above=-1)
    _, report = consolidate_model(model, [x], exclude=["inlet"], above=-1)
    rows = {row.layer: row for row in report.layers}
    assert rows["inlet"].refused == "left out"
    assert rows["gate"].neurons == (8, 4)
    with pytest.raises(ValueError, match="exclude: no layer that runs and has a weight matches 'none'"):
        consolidate_model(model, [x], exclude="none", above=-1)


@torch.no_grad()
def test_streams_behind_norms_are_cut_when_asked_for():
    model, x = made(Gated()), tokens(4, 7, 5)
    plain = plan_consolidation(model, [x], above=-1)
    assert "statistics over all neurons" in plain.layers[0].refused
    smaller, report = consolidate_model(model, [x], above=-1, norms="repeat")
    rows = {row.layer: row for row in report.layers}
    assert rows["inlet"].neurons == (6, 3)
    assert rows["gate"].neurons == (8, 4)
    assert isinstance(smaller.norm, RepeatedNorm)
    assert report.compared
    with (
        merge(model, "inlet", rows["inlet"].pairs, example_input=x),
        merge(model, "gate", rows["gate"].pairs, example_input=x),
    ):
        merged = model(x)
    assert_same(smaller(x), merged)
    with pytest.raises(ValueError, match="'repeat' needs how='mean'"):
        plan_consolidation(model, [x], above=-1, norms="repeat", how="absorb")


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inlet, self.norm, self.head = nn.Linear(5, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.inlet(x)))


@torch.no_grad()
def test_pairs_across_the_groups_of_a_norm_are_not_planned():
    model, x = made(Grouped()), tokens(40, 5)
    smaller, report = consolidate_model(model, [x], above=-1, norms="repeat")
    pairs = report.layers[0].pairs
    assert all((i < 4) == (j < 4) for i, j in pairs)
    assert smaller.inlet.out_features == 8 - len(pairs) < 8


@torch.no_grad()
@pytest.mark.parametrize("inplace", [False, True])
def test_experts_go_too_when_asked_for(inplace):
    model, x = mixture()
    before, by_hand = copy.deepcopy(model), copy.deepcopy(model)
    evaluate = lambda model: model(x).square().mean().item()  # noqa: E731
    smaller, report = consolidate_model(
        model, [x], experts="*experts", above=-1, inplace=inplace, evaluate=evaluate, example_input=x
    )
    assert (smaller is model) == inplace
    row = next(row for row in report.layers if row.layer == "experts")
    assert row.neurons == (3, 2)
    assert report.compared
    ((_, gone),) = row.pairs
    neurons = {each.layer: each.pairs for each in report.layers if each.pairs and each.layer != "experts"}
    assert neurons
    with ExitStack() as stack:
        for layer, pairs in neurons.items():
            stack.enter_context(merge(by_hand, layer, pairs, example_input=x))
        wanted = remove_experts(by_hand, "experts", [gone], example_input=x)
    assert_same(smaller(x), wanted(x))
    assert report.evaluated == pytest.approx((evaluate(before), evaluate(wanted)))
    alone = remove_experts(before, "experts", [gone], example_input=x)
    assert row.alone == pytest.approx(evaluate(alone))
    assert report.parameters[1] == sum(each.numel() for each in smaller.parameters())
    with pytest.raises(ValueError, match="experts: it goes with by='cosine'"):
        consolidate_model(model, [x], experts="*experts", by="cost", below=1)
    with pytest.raises(ValueError, match="experts: no module matches 'none'"):
        consolidate_model(model, [x], experts="none", above=0)


@torch.no_grad()
def test_what_is_evaluated_is_each_layer_alone_and_the_whole():
    model, x = deep()
    asked = []

    def evaluate(net):
        asked.append(net.training)
        return (net(x) - 1).square().mean()

    model.train()
    smaller, report = consolidate_model(model, [x], budget=0.25, evaluate=evaluate)
    assert model.training
    assert not any(asked)
    assert report.evaluated == (evaluate(model).item(), pytest.approx(evaluate(smaller).item(), rel=1e-12))
    rows = [row for row in report.layers if row.pairs]
    for row in rows:
        with merge(model, row.layer, row.pairs, example_input=x):
            assert row.alone == pytest.approx(evaluate(model).item(), rel=1e-12)
    assert len(rows) + 2 == len(asked) - 2 - len(rows)
    assert f"{rows[0].alone - report.evaluated[0]:+.3g}" in str(report)


@torch.no_grad()
def test_as_many_features_stay_as_a_multiple():
    model, x = deep()
    free = plan_consolidation(model, [x], budget=0.2)
    plan = plan_consolidation(model, [x], budget=0.2, multiple=4)
    for one, other in zip(plan.layers, free.layers, strict=True):
        assert (one.neurons - len(one.pairs)) % 4 == 0 or not one.pairs
        assert len(other.pairs) - len(one.pairs) in (0, 1, 2, 3)
        assert one.pairs == other.pairs[: len(one.pairs)]
    assert any(row.pairs for row in plan.layers)
    assert any(row.neurons % 4 for row in plan.layers[:-1])
    attention, x = made(Attention("separate")), tokens(3, 6, 5)  # three features a head, two heads a group
    assert [len(row.pairs) for row in plan_consolidation(attention, [x], "q", above=-1, multiple=6).layers] == [1]
    assert [len(row.pairs) for row in plan_consolidation(attention, [x], "q", above=-1, multiple=4).layers] == [0]


def test_a_loss_does_not_weigh_readers_without_an_output_of_their_own():
    model, x = made(Experts()), tokens(20, 5)
    loss = ([x], lambda net, batch: net(batch).square().mean())
    front = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    plan = plan_consolidation(nn.Sequential(front, model), [x], by="cost", below=9, loss=loss)
    assert len(plan.layers[0].pairs) == 3
    row = next(row for row in plan.layers if row.layer == "1.gate_up")
    assert "not the weight of a layer with an output of its own" in row.refused
    with pytest.raises(ValueError, match="'down' reads 'gate_up' and is not the weight"):
        outgoing_weights(model, "gate_up", x, loss=loss)


class GroupedExperts(nn.Module):
    """Gates and values of all experts in one parameter; tokens go to the experts in equal parts."""

    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(3, *shape, dtype=torch.float32)) for shape in ((48, 8), (8, 24)))
        self.head = nn.Linear(8, 4, dtype=torch.float32)

    def forward(self, x):
        ends = torch.arange(4, len(x) + 1, 4, dtype=torch.int32)
        gate, value = torch._grouped_mm(x, self.up.mT, offs=ends).chunk(2, -1)
        return self.head(torch._grouped_mm(gate.relu() * value, self.down.mT, offs=ends))


@torch.no_grad()
@pytest.mark.parametrize("fewer", [5, 6])
def test_grouped_products_name_the_multiple_they_need(fewer):
    model, x = GroupedExperts(), torch.randn(12, 8, dtype=torch.float32)
    budget = fewer * 3 * 3 * 8  # of three experts: rows of a gate and of a value, and a column
    free = plan_consolidation(model, [x], "up", budget=budget)
    assert len(free.layers[0].pairs) == fewer
    with pytest.raises(
        ValueError, match=r"multiples of 4 features of this dtype. Pass multiple=4 to consolidate_model"
    ):
        free.carry_out(model, example_input=x)
    smaller, report = consolidate_model(model, [x], "up", budget=budget, multiple=4)
    assert report.compared
    assert smaller.down.shape == (3, 8, 20)


class HeadInTraining(nn.Module):
    """A second head that runs in training only."""

    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(4, 12), nn.Linear(12, 3)
        self.aside = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        h = self.up(x).relu()
        return (self.head(h), self.aside(h)) if self.training else self.head(h)


@torch.no_grad()
def test_what_runs_in_training_only_stays_and_is_named():
    model, x = HeadInTraining().double(), torch.randn(9, 4).double()
    smaller, report = consolidate_model(model, [x], budget=0.1)
    rows = {row.layer: row for row in report.layers}
    assert rows["up"].pairs
    assert "what reads it did not run in these batches" in rows["aside.0"].refused
    assert smaller.aside[0].weight.shape == (6, smaller.up.out_features)
    with pytest.raises(ValueError, match="none of the layers can be cut.\n'aside.0': what reads it did not run"):
        consolidate_model(model, [x], "aside.0", budget=0.1)
