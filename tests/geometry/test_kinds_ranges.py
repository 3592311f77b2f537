"""Activations at the ends of their dtype's range: as float64 has it near 1, or an error that says why.

Numbers are moved by powers of two, so that what is right is known to the last digit that the dtype kept.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sdsd
from sdsd.geometry import GramAccumulator, LayerComparison, NeuronMap, collect_activations, disjoint_pairs, merge_cost

ENDS = {
    "float64, 1e200": (torch.float64, 664),
    "float64, 1e80": (torch.float64, 266),
    "float64, largest": (torch.float64, 1021),
    "float64, 1e-80": (torch.float64, -266),
    "float64, 1e-200": (torch.float64, -664),
    "float64, subnormal": (torch.float64, -1035),
    "float32, largest": (torch.float32, 125),
    "float32, subnormal": (torch.float32, -137),
    "bfloat16, largest": (torch.bfloat16, 125),
    "float16, largest": (torch.float16, 13),
    "ordinary": (torch.float32, 0),
}


def moved(tensor, exponent):
    return torch.from_numpy(np.ldexp(tensor.double().numpy(), exponent))


def layers(name, n=9, m=7, samples=60):
    """Two layers there, what they are near 1 in float64, and the exponent."""
    dtype, exponent = ENDS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, n, generator=generator, dtype=torch.float64) + 0.5
    y = x @ torch.randn(n, m, generator=generator, dtype=torch.float64) / 4
    y = (y + torch.randn(samples, m, generator=generator, dtype=torch.float64)).clamp(-4, 4)
    far = [moved(each.clamp(-4, 4), exponent).to(dtype) for each in (x, y)]
    return *far, *(moved(each, -exponent) for each in far), exponent


def rotated(x, y):
    """‖XᵀY‖_* of centred layers of norm 1."""
    x, y = x - x.mean(0), y - y.mean(0)
    return torch.linalg.matrix_norm(x.T @ y, "nuc") / (x.norm() * y.norm())


def aligned(x, y):
    k, m = ((each - each.mean(0)) @ (each - each.mean(0)).T for each in (x, y))
    return (k * m).sum() / (k.norm() * m.norm())


def distances(x, y):
    return np.corrcoef(*(torch.pdist(each).square().numpy() for each in (x, y)))[0, 1]


@pytest.mark.parametrize("cut", [60, 17])
@pytest.mark.parametrize("name", ENDS)
def test_layers_are_compared_as_they_would_be_near_one(name, cut):
    x, y, near_x, near_y, _ = layers(name)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    compared = LayerComparison(9, 7, dtype=dtype)
    for ours, theirs in zip(x.split(cut), y.split(cut), strict=True):
        compared.update(ours, theirs)
    for found, wanted in (
        (compared.cka(), aligned(near_x, near_y)),
        (compared.rsa(), distances(near_x, near_y)),
        (compared.procrustes(), rotated(near_x, near_y)),
    ):
        assert 0.1 < wanted < 0.99
        assert found.value == pytest.approx(float(wanted), abs=max(found.rounding, 1e-12)), found.measure
    apart = near_x - near_x.mean(0), near_y - near_y.mean(0)
    left, _, right = torch.linalg.svd(apart[0].T @ apart[1], full_matrices=False)
    torch.testing.assert_close(compared.rotation(), left @ right, rtol=0, atol=1e-4)


@pytest.mark.parametrize("exponents", [(0, 300, -300), (-1000, 0, 900), (900, -900, 0)])
def test_layers_that_grow_and_shrink_between_batches(exponents):
    """What is far smaller than the largest batch does not count beside it."""
    _, _, near_x, near_y, _ = layers("float64, 1e80")
    compared = LayerComparison(9, 7, dtype=torch.float64)
    parts = list(zip(exponents, near_x.split(20), near_y.split(20), strict=True))
    for exponent, ours, theirs in parts:
        compared.update(moved(ours, exponent), moved(theirs, exponent))
    top = max(exponents)
    whole = [torch.cat([moved(part[side], part[0] - top) for part in parts]) for side in (1, 2)]
    assert compared.cka().value == pytest.approx(float(aligned(*whole)), abs=1e-12)
    assert compared.rsa().value == pytest.approx(float(distances(*whole)), abs=1e-9)
    assert compared.procrustes().value == pytest.approx(float(rotated(*whole)), abs=1e-12)


def test_a_layer_that_is_zero_at_first_is_compared_once_it_is_not():
    _, _, near_x, near_y, _ = layers("ordinary")
    near_x[:20] = 0
    compared = LayerComparison(9, 7, dtype=torch.float64)
    for ours, theirs in zip(near_x.split(20), near_y.split(20), strict=True):
        compared.update(moved(ours, 700), theirs)
    assert compared.cka().value == pytest.approx(float(aligned(near_x, near_y)), abs=1e-12)


@pytest.mark.parametrize("name", ENDS)
def test_a_map_has_all_neurons_that_answer(name):
    x, _, near, _, exponent = layers(name)
    mapped = NeuronMap.from_activations(x)
    assert mapped.alive.all()
    assert not mapped.not_finite
    assert mapped.norms.isfinite().all()
    if exponent < 1000:
        torch.testing.assert_close(moved(mapped.norms, -exponent), near.norm(dim=0), rtol=1e-12, atol=0)


def test_a_norm_beyond_the_range_is_its_end_and_infinity_stays_what_it_is():
    largest = torch.finfo(torch.float64).max
    x = torch.full((50, 4), largest, dtype=torch.float64)
    x[:, 1], x[0, 2], x[0, 3] = largest / 4, torch.inf, torch.nan
    mapped = NeuronMap.from_activations(x)
    assert mapped.norms[:2].tolist() == [largest, largest]
    assert mapped.alive.tolist() == [True, True, False, False]
    assert mapped.not_finite == [2, 3]


def behind_a_layer(x, keep):
    """What is collected of a layer that answers `x`."""
    model = nn.Sequential(nn.Linear(x.shape[1], x.shape[1], bias=False, dtype=x.dtype), nn.ReLU())
    model[0].weight.data = torch.eye(x.shape[1], dtype=x.dtype)
    return collect_activations(model, list(x.abs().split(25)), "0", keep=keep)["0"]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_what_is_collected_has_its_norms_and_sums_or_says_why_not(name, keep):
    x, _, near, _, exponent = layers(name)
    got, near = behind_a_layer(x, keep), near.abs()
    assert got.alive.all()
    if exponent < 1000:
        torch.testing.assert_close(moved(got.norms(), -exponent), near.norm(dim=0), rtol=1e-6, atol=0)
    if abs(exponent) > 500:
        with pytest.raises(ValueError, match=r"gram: expected neurons whose sums .* got norms up to .* divide"):
            got.gram()
    else:
        torch.testing.assert_close(moved(got.gram(), -2 * exponent), near.T @ near, rtol=1e-6, atol=0)


@pytest.mark.parametrize("exponent", [664, -664])
def test_sums_that_float64_does_not_have_are_refused_and_those_of_small_neurons_beside_others_are_zero(exponent):
    _, _, near, _, _ = layers("ordinary")
    gram = GramAccumulator(9, center=True, dtype=torch.float64)
    gram.update(moved(near, exponent))
    for call in (gram.gram, gram.covariance):
        with pytest.raises(ValueError, match="gram: expected neurons whose sums of products are within the range"):
            call()
    torch.testing.assert_close(gram.cosine_matrix(), torch.corrcoef(near.T), rtol=0, atol=1e-12)
    mixed = near.clone()
    mixed[:, 3] = moved(mixed[:, 3], -664)
    gram = GramAccumulator(9, dtype=torch.float64)
    gram.update(mixed)
    torch.testing.assert_close(gram.gram(), mixed.T @ mixed, rtol=1e-12, atol=0)
    assert gram.gram()[3, 3] == 0


def definition(x, outgoing, how):
    samples = len(x)
    cost = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            if how == "absorb":
                share = (x[:, i] @ x[:, j]) / (x[:, i] @ x[:, i])
                cost[i, j] = (x[:, j] - share * x[:, i]).norm() * outgoing[j].norm() / samples**0.5
            else:
                cost[i, j] = (x[:, i] - x[:, j]).norm() * (outgoing[i] - outgoing[j]).norm() / (2 * samples**0.5)
    return cost.fill_diagonal_(0)


@pytest.mark.parametrize("of_weights", [0, 300, -300])
@pytest.mark.parametrize("how", ["mean", "absorb"])
@pytest.mark.parametrize("name", ENDS)
def test_costs_are_those_near_one_moved(name, how, of_weights):
    x, _, near, _, exponent = layers(name)
    outgoing = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 8
    weights = moved(outgoing, of_weights)
    wanted = definition(near, outgoing, how)
    if abs(exponent + of_weights) < 1000:
        found = moved(merge_cost(x, weights, how=how), -exponent - of_weights)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
        both = torch.tensor([[0, 1], [5, 2]])
        found = moved(merge_cost(x, weights, both, how=how), -exponent - of_weights)
        torch.testing.assert_close(found, wanted[both[:, 0], both[:, 1]], rtol=1e-9, atol=0)
    pairs = disjoint_pairs(x, 4, by="cost", how=how, outgoing=weights)
    best = disjoint_pairs(near, 4, by="cost", how=how, outgoing=outgoing)
    assert [pair[:2] for pair in pairs] == [pair[:2] for pair in best]
    torch.testing.assert_close(pairs.cosine.double(), best.cosine, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["mean", "absorb"])
@pytest.mark.parametrize("exponent", [266, 450, -266, -450])
def test_costs_from_sums_far_from_one(exponent, how):
    _, _, near, _, _ = layers("ordinary")
    outgoing = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gram = near.T @ near
    found = merge_cost(None, outgoing, gram=moved(gram, 2 * exponent), samples=60, how=how)
    torch.testing.assert_close(moved(found, -exponent), definition(near, outgoing, how), rtol=1e-6, atol=1e-7)
    pairs = disjoint_pairs(gram=moved(gram, 2 * exponent), pairs=4, by="cost", how=how, outgoing=outgoing)
    best = disjoint_pairs(near, 4, by="cost", how=how, outgoing=outgoing)
    assert [pair[:2] for pair in pairs] == [pair[:2] for pair in best]
    torch.testing.assert_close(pairs.cosine, best.cosine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ENDS)
def test_absorbed_neurons_and_biopsies(name):
    x, _, near, _, _ = layers(name)
    model = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2)).double()
    before = model[2].weight.detach().clone()
    with sdsd.merge(model, "0", [(1, 4)], how="absorb", activations=x):
        share = (near[:, 1] @ near[:, 4]) / (near[:, 1] @ near[:, 1])
        torch.testing.assert_close(model[2].weight[:, 1], before[:, 1] + share * before[:, 4], rtol=1e-10, atol=1e-12)
    inputs = torch.randn(30, 3, dtype=torch.float64)
    result = sdsd.biopsy(model, "0", lambda m: m(inputs).square().mean(), pairs=4, activations=x)
    wanted = disjoint_pairs(near, 4)
    assert [pair[:2] for pair in result.near.pairs] == [pair[:2] for pair in wanted]
