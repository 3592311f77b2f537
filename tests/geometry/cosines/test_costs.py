"""Costs of merges beside definitions, and what a merge does to the readers."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdsd.geometry import GramAccumulator, disjoint_pairs, merge, merge_cost, outgoing_weights
from sdsd.geometry.cosines import costs as module
from tests.geometry.networks import cnn, mlp


def wanted_costs(activations, outgoing):
    """Pair by pair, from differences."""
    a, v = activations.double(), outgoing.double()
    n = a.shape[1]
    pairs = ((a[:, i] - a[:, j]).norm() * (v[i] - v[j]).norm() for i in range(n) for j in range(n))
    return torch.stack(list(pairs)).view(n, n) / (2 * math.sqrt(len(a)))


def greedy(costs, pairs, farthest, alive):
    n, costs, alive = len(costs), costs.tolist(), alive.tolist()
    ranked = sorted(
        ((-1 if farthest else 1) * costs[i][j], i, j)
        for i in range(n)
        for j in range(i + 1, n)
        if alive[i] and alive[j]
    )
    taken, chosen = set(), []
    for _, i, j in ranked:
        if len(chosen) < pairs and not {i, j} & taken:
            chosen.append((i, j))
            taken |= {i, j}
    return chosen


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_costs_are_their_definition(dtype, monkeypatch):
    a, v = (torch.randn(60, 9) + 2).to(dtype), torch.randn(9, 4).to(dtype)
    wanted = wanted_costs(a, v)
    pairs = torch.tensor([[0, 3], [8, 1], [4, 4]])
    monkeypatch.setattr(module, "BLOCK_ROWS", 2)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 50)
    found = merge_cost(a, v)
    assert torch.allclose(found, wanted, atol=1e-7)
    assert found.dtype == torch.float64
    assert torch.equal(found.diagonal(), torch.zeros(9, dtype=torch.float64))
    assert torch.allclose(merge_cost(a, v, pairs), wanted[pairs[:, 0], pairs[:, 1]], rtol=1e-12)
    gram = GramAccumulator(9, dtype=torch.float64)
    gram.update(a.double())
    assert torch.allclose(merge_cost(None, v, gram=gram.gram(), samples=60), wanted, atol=1e-7)
    assert torch.allclose(
        merge_cost(None, v, pairs, gram=gram.gram(), samples=60), wanted[pairs[:, 0], pairs[:, 1]], atol=1e-7
    )
    images = a.T.reshape(9, 3, 4, 5).transpose(0, 1)
    assert torch.allclose(merge_cost(images, v), wanted, atol=1e-7)


def test_near_pairs_keep_their_digits():
    """Two neurons a thousandth apart, far from zero: what cosines in float32 would call equal."""
    a = torch.randn(100, 3, dtype=torch.float64) + 50
    a[:, 1] = a[:, 0] + 1e-3 * torch.randn(100, dtype=torch.float64)
    v = torch.randn(3, 2, dtype=torch.float64)
    wanted = wanted_costs(a, v)
    assert merge_cost(a, v, torch.tensor([[0, 1]])).item() == pytest.approx(wanted[0, 1].item(), rel=1e-9)
    assert merge_cost(a, v)[0, 1].item() == pytest.approx(wanted[0, 1].item(), rel=1e-4)


def test_a_merge_changes_its_readers_by_exactly_its_cost():
    model, x = mlp().double(), torch.randn(40, 5, dtype=torch.float64)
    with torch.no_grad():
        hidden, before = model[:4](x), model(x)
    costs = merge_cost(hidden, outgoing_weights(model, "2"))
    for i, j in ((0, 1), (2, 5), (3, 4)):
        with torch.no_grad(), merge(model, "2", [(i, j)], "act"):
            change = (model(x) - before).square().sum(1).mean().sqrt()
        assert change.item() == pytest.approx(costs[i, j].item(), rel=1e-10)


def absorbed(a, v, kept, dropped):
    """‖a_j − α a_i‖ ‖v_j‖ / √S with α from least squares."""
    share = torch.linalg.lstsq(a[:, [kept]], a[:, dropped]).solution
    return ((a[:, dropped] - a[:, [kept]] @ share).norm() * v[dropped].norm() / math.sqrt(len(a))).item()


def test_absorbing_a_neuron_changes_its_readers_by_exactly_its_cost():
    model, x = mlp().double(), torch.randn(40, 5, dtype=torch.float64)
    with torch.no_grad():
        hidden, before = model[:4](x), model(x)
    gram, outgoing = hidden.T @ hidden, outgoing_weights(model, "2")
    costs = merge_cost(hidden, outgoing, how="absorb")
    pairs = torch.tensor([[0, 1], [1, 0], [5, 2]])
    for source in ({"activations": hidden}, {"activations": None, "gram": gram, "samples": 40}):
        found = merge_cost(outgoing=outgoing, pairs=pairs, how="absorb", **source)
        assert torch.allclose(found, costs[pairs[:, 0], pairs[:, 1]])
    for i, j in pairs.tolist():
        with torch.no_grad(), merge(model, "2", [(i, j)], "absorb", gram=gram):
            change = (model(x) - before).square().sum(1).mean().sqrt()
        assert change.item() == pytest.approx(costs[i, j].item(), rel=1e-9)
        assert absorbed(hidden, outgoing, i, j) == pytest.approx(costs[i, j].item(), rel=1e-9)
    assert costs[0, 1] != pytest.approx(costs[1, 0].item(), rel=1e-3)


@pytest.mark.parametrize("which", ["nearest", "farthest"])
@pytest.mark.parametrize("height", [1, 256])
def test_pairs_to_be_absorbed(which, height, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", height)
    a, v = torch.randn(30, 16, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    both = torch.tensor([[absorbed(a, v, i, j) for j in range(16)] for i in range(16)])
    wanted = greedy(torch.minimum(both, both.T), 8, which == "farthest", torch.ones(16, dtype=torch.bool))
    found = list(disjoint_pairs(a, 8, which, by="cost", how="absorb", outgoing=v))
    assert [tuple(sorted(pair[:2])) for pair in found] == wanted
    assert all(both[kept, dropped] <= both[dropped, kept] for kept, dropped, _ in found)
    assert any(kept > dropped for kept, dropped, _ in found)


def test_outgoing_weights_of_every_reader_and_position():
    model = cnn()
    weights = outgoing_weights(model, "0", torch.rand(1, 2, 8, 8))
    assert weights.shape == (6, 27)
    for channel in range(6):
        own = model[6].weight[:, 9 * channel : 9 * channel + 9].detach().double().flatten()
        assert torch.equal(weights[channel].sort().values, own.sort().values)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.two = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 3, 2), nn.ConvTranspose1d(4, 5, 3)

        def forward(self, x):
            x = self.first(x).relu()
            return self.one(x), self.two(x)

    two = Two()
    weights = outgoing_weights(two, "first", torch.rand(1, 2, 6))
    assert torch.equal(weights[:, :6], two.one.weight.detach().double().transpose(0, 1).flatten(1))
    assert torch.equal(weights[:, 6:], two.two.weight.detach().double().flatten(1))


def test_with_the_loss_half_the_square_is_the_rise_of_the_loss():
    """½ Σ (z − t)² with residuals of unit variance: the Fisher matrix is the curvature, the identity."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().requires_grad_(False)
    x = torch.randn(40_000, 4, dtype=torch.float64)
    targets = model(x) + torch.randn(40_000, 3, dtype=torch.float64)

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(1).mean() / 2

    batches = list(zip(x.split(1000), targets.split(1000), strict=True))
    outgoing = outgoing_weights(model, "0", loss=(batches, loss))
    plain = outgoing_weights(model, "0")
    costs = merge_cost(model[:2](x), outgoing)
    assert torch.allclose(costs, merge_cost(model[:2](x), plain), rtol=0.03)
    before = loss(model, (x, targets))
    for i, j in ((0, 1), (2, 5)):
        with merge(model, "0", [(i, j)], "act"):
            rise = (loss(model, (x, targets)) - before).item()
        assert costs[i, j].square().item() / 2 == pytest.approx(rise, rel=0.15)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_fisher_matrix_of_readers_with_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2)).double()
    x = torch.randn(6, 1, 6, 6, dtype=torch.float64)
    goal = torch.randn(6, 3, 3, 3, dtype=torch.float64)

    def loss(model, batch):
        return (model(batch[0]) * batch[1]).sum((1, 2, 3)).mean()

    outgoing = outgoing_weights(model, "0", x[:1], loss=([(x[:4], goal[:4]), (x[4:], goal[4:])], loss))
    # The gradient of a sample's loss with respect to the reader's output is its goal.
    fisher = torch.einsum("sahw,sbhw->ab", goal, goal) / 6
    weight = model[2].weight.detach()
    wanted = torch.einsum("aiyx,ab,bjyx->ij", weight, fisher, weight)
    assert torch.allclose(outgoing @ outgoing.T, wanted)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.integers(2, 30),
    st.booleans(),
    st.sampled_from([1, 2, 5, 32]),
    st.sampled_from([1, 3, 64]),
    st.integers(0, 2**31),
)
def test_pairs_by_cost_are_those_of_the_whole_matrix(neurons, farthest, candidates, height, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(12, neurons, dtype=torch.float64, generator=generator)
    v = torch.randn(neurons, 3, dtype=torch.float64, generator=generator)
    a[:, torch.rand(neurons, generator=generator) < 0.1] = 0
    a[0, torch.rand(neurons, generator=generator) < 0.05] = math.nan
    alive = a.norm(dim=0) > 0
    pairs = int(alive.sum()) // 2
    if pairs == 0:
        return
    wanted = greedy(wanted_costs(a, v), pairs, farthest, alive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", candidates)
        patch.setattr(module, "BLOCK_ROWS", height)
        found = disjoint_pairs(a, pairs, "farthest" if farthest else "nearest", by="cost", outgoing=v)
    assert [pair[:2] for pair in found] == wanted
    for i, j, cosine in found:
        assert cosine == pytest.approx(torch.nn.functional.cosine_similarity(a[:, i], a[:, j], dim=0).item())


def hubs(kind, generator):
    """Neurons of which some few are near all others, or cost all others least."""
    samples, neurons = 60, 700
    share = torch.rand(neurons, generator=generator, dtype=torch.float64)
    common = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(samples, neurons, generator=generator, dtype=torch.float64)
    outgoing = torch.randn(neurons, 8, generator=generator, dtype=torch.float64)
    if kind == "loud and quiet":
        return noise * (6 * share).exp2(), outgoing
    if kind == "ties":
        return (8 * share).round() * common.round(), (2 * outgoing[:, :1]).round()
    return common * share + noise * (1 - share.square()).sqrt(), outgoing


@pytest.mark.parametrize("kind", ["loud and quiet", "near a mean", "ties"])
@pytest.mark.parametrize("which", ["nearest", "farthest"])
@pytest.mark.parametrize("how", ["mean", "absorb"])
def test_neurons_that_all_others_prefer_take_a_few_passes(kind, which, how, monkeypatch):
    a, v = hubs(kind, torch.Generator().manual_seed(0))
    calls = []
    products = module.Values.products

    def counted(self, some):
        calls.append(len(self.lengths[some]))
        return products(self, some)

    monkeypatch.setattr(module.Values, "products", counted)
    found = disjoint_pairs(a, 300, which, by="cost", how=how, outgoing=v)
    both = 2 if how == "mean" else 1  # of activations and of weights
    assert len(calls) <= both * 100
    assert sum(calls) <= both * 6 * 700
    assert len({neuron for pair in found for neuron in pair[:2]}) == 600
    if kind != "ties":
        costs = merge_cost(a, v, how=how)
        wanted = greedy(torch.minimum(costs, costs.T), 300, which == "farthest", torch.ones(700, dtype=torch.bool))
        assert [tuple(sorted(pair[:2])) for pair in found] == wanted


def test_equal_costs_go_to_the_lower_neurons():
    """Integers, whose costs are exact."""
    generator = torch.Generator().manual_seed(3)
    for how in ("mean", "absorb"):
        a = torch.randint(0, 2, (4, 60), generator=generator).double() * 2
        v = torch.randint(0, 2, (60, 1), generator=generator).double() * 4
        costs = merge_cost(a, v, how=how).square()
        alive = a.norm(dim=0) > 0
        for which in ("nearest", "farthest"):
            wanted = greedy(torch.minimum(costs, costs.T), 20, which == "farthest", alive)
            found = disjoint_pairs(a, 20, which, by="cost", how=how, outgoing=v)
            assert [tuple(sorted(pair[:2])) for pair in found] == wanted


def test_pairs_from_sums_of_products_and_of_some_neurons():
    a, v = torch.randn(50, 12), torch.randn(12, 3)
    alive = torch.arange(12) % 4 != 1
    gram = a.double().T @ a.double()
    for which in ("nearest", "farthest", "random"):
        ours = disjoint_pairs(a, 4, which, by="cost", outgoing=v, alive=alive, seed=3)
        theirs = disjoint_pairs(None, 4, which, by="cost", outgoing=v, alive=alive, gram=gram, seed=3)
        assert [pair[:2] for pair in ours] == [pair[:2] for pair in theirs]
        assert ours.cosine.dtype == torch.float32
        assert not {neuron for pair in ours for neuron in pair[:2]} & {1, 5, 9}
    assert [pair[:2] for pair in disjoint_pairs(a, 4, "random", alive=alive, seed=3)] == [
        pair[:2] for pair in disjoint_pairs(a, 4, "random", by="cost", outgoing=v, alive=alive, seed=3)
    ]


def test_memory_does_not_change_the_outcome():
    a, v = torch.randn(3000, 300), torch.randn(300, 10)
    limit = 2**19
    with pytest.raises(
        ValueError, match="max_bytes: expected at least .* for blocks of one of 300 neurons, got 100,000"
    ):
        disjoint_pairs(a, 50, by="cost", outgoing=v, max_bytes=100_000)
    costs = module.Costs(a, v, max_bytes=limit)
    assert costs.height < 256
    assert costs.step < 3000
    found = disjoint_pairs(a, 100, by="cost", outgoing=v, max_bytes=limit)
    assert list(found) == list(disjoint_pairs(a, 100, by="cost", outgoing=v))


def test_what_is_given_is_left_alone():
    a, v = torch.randn(20, 6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    gram = a.T @ a
    before = [each.clone() for each in (a, v, gram)]
    for source in ({"activations": a}, {"activations": None, "gram": gram}):
        disjoint_pairs(pairs=3, by="cost", outgoing=v, **source)
        merge_cost(outgoing=v, **source, **({} if "gram" not in source else {"samples": 20}))
    assert all(torch.equal(each, kept) for each, kept in zip((a, v, gram), before, strict=True))


def test_pairs_as_people_have_them():
    a, v = torch.randn(20, 6), torch.randn(6, 2)
    chosen = disjoint_pairs(a, 3, by="cost", outgoing=v)
    pairs = torch.stack([chosen.first, chosen.second], 1)
    wanted = merge_cost(a, v, pairs)
    for same in (chosen, list(chosen), pairs.tolist(), pairs.numpy(), pairs.int().numpy()):
        assert torch.equal(merge_cost(a, v, same), wanted)
    assert merge_cost(a, v, []).shape == (0,)
    alive = torch.arange(6) > 1
    for options in ({}, {"by": "cost", "outgoing": v}):
        assert list(disjoint_pairs(a, 2, alive=alive.numpy(), **options)) == list(
            disjoint_pairs(a, 2, alive=alive, **options)
        )


def test_progress():
    seen = []
    disjoint_pairs(torch.randn(9, 20), 5, by="cost", outgoing=torch.randn(20, 2), progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_neurons_that_are_not_finite():
    a, v = torch.randn(20, 4), torch.randn(4, 2)
    a[3, 2] = math.inf
    found = merge_cost(a, v)
    assert found[2].isnan().all()
    assert found[:, 2].isnan().all()
    assert int(found.isnan().sum()) == 7


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"outgoing": None}, 'by="cost": expected outgoing=.* got no outgoing'),
        ({"center": True}, "got center=True"),
        ({"cosine": torch.eye(4)}, "got cosine"),
        ({"by": "price"}, "by: expected one of 'cosine', 'cost', got 'price'"),
        ({"by": "cosine"}, 'outgoing, gram: they go with by="cost"'),
        ({"outgoing": torch.ones(3, 2)}, r"outgoing: expected \(4, weights\).*got shape \(3, 2\)"),
        ({"gram": torch.eye(4)}, "activations, gram: expected exactly one of them, got both"),
        ({"activations": None}, "expected exactly one of them, got neither"),
        ({"activations": None, "gram": torch.ones(4, 3)}, r"gram: expected a square \(n, n\) matrix"),
        ({"pairs": 3}, "pairs: expected at most 2, for 4 of 4 neurons may be paired"),
        ({"alive": torch.ones(3, dtype=torch.bool)}, "alive: expected 4 booleans"),
        ({"which": "closest"}, "which: expected one of"),
    ],
)
def test_bad_input(options, match):
    given = {"activations": torch.randn(9, 4), "pairs": 1, "by": "cost", "outgoing": torch.randn(4, 2)}
    with pytest.raises(ValueError, match=match):
        disjoint_pairs(**given | options)


def test_refusals():
    a, v = torch.randn(9, 4), torch.randn(4, 2)
    with pytest.raises(TypeError, match="pairs: expected a tensor of integers, got torch.float32"):
        merge_cost(a, v, torch.ones(2, 2))
    for wrong in (3, [(0, 0.5)], [(0,), (1, 2)], [0, 1]):
        with pytest.raises(TypeError, match=f"pairs: expected pairs of integers, got {type(wrong).__name__}"):
            merge_cost(a, v, wrong)
    with pytest.raises(ValueError, match=r"pairs: expected shape \(k, 2\), got \(1, 1\)"):
        merge_cost(a, v, [(0,)])
    with pytest.raises(ValueError, match="pairs: expected neurons from 0 to 3, got 0 to 4"):
        merge_cost(a, v, torch.tensor([[0, 4]]))
    with pytest.raises(TypeError, match="samples: expected an int"):
        merge_cost(None, v, gram=a.T @ a)
    model = mlp()
    with pytest.raises(ValueError, match="outgoing_weights"):
        outgoing_weights(model, "4")
    with pytest.raises(ValueError, match="loss: expected a loss over at least one batch"):
        outgoing_weights(model, "2", loss=([], lambda model, batch: model(batch).sum()))


def test_examples():
    import importlib

    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(importlib.import_module("sdsd.geometry.merging.cost")).failed == 0
