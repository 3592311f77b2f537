"""Matrices of cosines as NumPy users pass them, what is no such matrix, and correlations at the ends of a dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd import GramAccumulator, disjoint_pairs, neuron_cosine_matrix, neuron_neighbors, neuron_pairs
from sdsd.geometry import NeuronMap, mass_consolidation
from sdsd.geometry.merging import biopsy

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
COSINE = neuron_cosine_matrix(X)


def loss(model):
    return model(X[:, :3]).square().mean()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_arrays_are_taken(dtype):
    array, alive = COSINE.numpy().astype(dtype), np.arange(8) < 6
    drawn = NeuronMap.from_cosine(array, alive=alive, norms=np.ones(8), correlation=array)
    assert sorted(drawn.order) == [0, 1, 2, 3, 4, 5]
    tensor = biopsy(model(), "0", loss, 2, cosine=torch.from_numpy(array), alive=torch.from_numpy(alive))
    given = biopsy(model(), "0", loss, 2, cosine=array, alive=alive)
    assert given.near == tensor.near
    assert mass_consolidation(model(), "0", loss, 2, cosine=array).pairs


DISTANCES = 1 - COSINE
ASYMMETRIC = COSINE.clone()
ASYMMETRIC[1, 2] += 0.1


@pytest.mark.parametrize(
    ("matrix", "error", "says"),
    [
        (DISTANCES, ValueError, "0 on the whole diagonal, as distances have it. Pass 1 - cosine"),
        (DISTANCES.numpy(), ValueError, "0 on the whole diagonal"),
        (ASYMMETRIC, ValueError, "expected a symmetric matrix"),
        (X.T @ X, ValueError, "expected 1 on the diagonal"),
        (COSINE * 1.5, ValueError, "expected 1 on the diagonal"),
        ((COSINE * 30).fill_diagonal_(1), ValueError, "-1 to 1, got entries up to"),
        (COSINE[:, :5], ValueError, "square"),
        (torch.eye(8).long(), TypeError, "floating-point numbers, got torch.int64"),
        (COSINE.tolist(), TypeError, "Tensor or a NumPy array, got list"),
    ],
)
def test_what_is_no_matrix_of_cosines_is_refused(matrix, error, says):
    with pytest.raises(error, match=says):
        NeuronMap.from_cosine(matrix)
    with pytest.raises(error, match=says):
        biopsy(model(), "0", loss, 2, cosine=matrix)


def test_dead_neurons_and_nan_are_part_of_such_a_matrix():
    cosine = COSINE.clone()
    cosine[3], cosine[:, 3] = 0, 0
    cosine[5], cosine[:, 5] = torch.nan, torch.nan
    assert sorted(NeuronMap.from_cosine(cosine).order) == [0, 1, 2, 4, 6, 7]
    assert NeuronMap.from_cosine(torch.zeros(4, 4)).order == ()


def correlation(values):
    exact = values.numpy().astype(np.longdouble)
    exact = exact / np.abs(exact).max(0)
    exact = exact - exact.mean(0)
    unit = exact / np.sqrt((exact * exact).sum(0))
    return (unit.T @ unit).astype(np.float64)


ENDS = {
    "float32, both signs": (torch.float32, 3.3e38, lambda u: 2 * u - 1),
    "float32, positive": (torch.float32, 3.3e38, lambda u: u),
    "float32, far from 0": (torch.float32, 3.3e38, lambda u: 1 - u / 10),
    "float32, two samples": (torch.float32, 3.3e38, lambda u: (2 * u - 1)[:2]),
    "float32, subnormal": (torch.float32, 1e-41, lambda u: u),
    "float32, from end to end": (torch.float32, 3.3e38, lambda u: u * 10.0 ** torch.linspace(0, -79, 7).double()),
    "float64, both signs": (torch.float64, 1.7e308, lambda u: 2 * u - 1),
    "float64, far from 0": (torch.float64, 1.7e308, lambda u: 1 - u / 10),
    "float64, subnormal": (torch.float64, 1e-312, lambda u: u),
}


@pytest.mark.parametrize("name", ENDS)
def test_correlations_at_the_ends_of_the_range(name):
    dtype, top, shape = ENDS[name]
    uniform = torch.rand(300, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = (shape(uniform) * top).to(dtype)
    assert bool(values.isfinite().all())
    wanted = torch.from_numpy(correlation(values))
    sums = GramAccumulator(7, center=True, dtype=dtype)
    for part in values.split(37):
        sums.update(part)
    for found in (neuron_cosine_matrix(values, center=True), sums.cosine_matrix(center=True)):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    others = wanted - 9 * torch.eye(7)
    nearest = neuron_neighbors(values, 1, center=True).values.double().flatten()
    torch.testing.assert_close(nearest, others.amax(1), rtol=0, atol=1e-6)
    assert len(neuron_pairs(values, above=-0.5, center=True)) == int((others.triu(1) > -0.5).triu(1).sum())


@pytest.mark.parametrize("top", [1e38, 1.0])
def test_the_gradient_of_a_correlation_of_huge_activations_is_finite(top):
    values = ((torch.rand(20, 5, generator=torch.Generator().manual_seed(0)) * 6 - 3) * top).requires_grad_()
    weight = torch.rand(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad((neuron_cosine_matrix(values, center=True) * weight).sum(), values)
    exact = (values.detach().double() / top).requires_grad_()
    unit = functional.normalize(exact - exact.mean(0), dim=0)
    (wanted,) = torch.autograd.grad((unit.T @ unit * weight).sum(), exact)
    torch.testing.assert_close(found.double() * top, wanted, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", "<f8", ">f2"])
def test_arrays_in_any_order_of_bytes(dtype):
    values = np.random.default_rng(0).standard_normal((50, 4))
    native = values.astype(dtype).astype(dtype[1:])
    torch.testing.assert_close(neuron_cosine_matrix(values.astype(dtype)), neuron_cosine_matrix(native))
    torch.testing.assert_close(neuron_cosine_matrix(values.astype(dtype)[::-1]), neuron_cosine_matrix(native))


def small_cosine():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = x / x.norm(dim=0)
    return x, unit.T @ unit


@pytest.mark.parametrize(
    "call", [neuron_cosine_matrix, NeuronMap.from_activations, GramAccumulator(8, dtype=torch.float64).update]
)
def test_a_masked_array_is_refused_where_something_is_masked(call):
    x, _ = small_cosine()
    masked = np.ma.masked_array(x.numpy(), mask=np.zeros((50, 8), bool))
    call(masked)
    masked[3, 2] = np.ma.masked
    with pytest.raises(ValueError, match=r"a masked array with 1 of 400 masked.*activations\.filled"):
        call(masked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["1 - cosine", "euclidean", "angle"])
def test_distances_are_told_whatever_rounding_left_on_their_diagonal(dtype, kind):
    """A computed 1 − cosine has ±1e-16 on its diagonal, or 1e-7: neurons with a direction, some of them."""
    x = torch.randn(60, 9, dtype=torch.float64)
    unit = x / x.norm(dim=0)
    cosine = (unit.T @ unit + torch.full((9,), 1e-16).diag()).clamp(max=1)
    rounding = torch.tensor([1, -1, 2, 0, 3, -2, 1, 0, 1]) * torch.finfo(dtype).eps
    distances = {"1 - cosine": 1 - cosine, "euclidean": 30 * torch.cdist(x.T, x.T), "angle": cosine.arccos()}[kind]
    distances = distances.fill_diagonal_(0).to(dtype) + rounding.to(dtype).diag()
    for call in (NeuronMap.from_cosine, lambda matrix: disjoint_pairs(cosine=matrix, pairs=2)):
        with pytest.raises(ValueError, match="as distances have it"):
            call(distances)
    assert len(disjoint_pairs(cosine=1000 * x.T.cov().to(dtype), pairs=2)) == 2


def test_pairs_are_not_chosen_from_what_is_no_matrix_of_similarities():
    _, cosine = small_cosine()
    turned = cosine + torch.ones(8, 8).triu(1) / 100
    for matrix, says in ((turned, "mirror images"), (1 - cosine.fill_diagonal_(1), "as distances have it")):
        with pytest.raises(ValueError, match=says):
            disjoint_pairs(pairs=2, cosine=matrix)
    wanted = [pair[:2] for pair in disjoint_pairs(pairs=3, cosine=cosine)]
    assert [pair[:2] for pair in disjoint_pairs(pairs=3, cosine=cosine.numpy())] == wanted
    covariance = (cosine * 1e6).float()  # any symmetric matrix may be chosen from, rounded as float32 rounds it
    covariance[0, 1] += 0.5
    assert [pair[:2] for pair in disjoint_pairs(pairs=3, cosine=covariance)] == wanted


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"alive": np.arange(8)}, ValueError, "alive: expected 8 booleans, one a neuron, got torch.int64"),
        ({"alive": torch.ones(8)}, ValueError, "alive: expected 8 booleans, one a neuron, got torch.float32"),
        ({"alive": [True] * 8}, TypeError, "alive: expected a torch.Tensor or a NumPy array, got list"),
        ({"norms": -np.ones(8)}, ValueError, "norms: expected numbers of at least 0, got complex or negative ones"),
        ({"norms": np.ones(8) + 1j}, ValueError, "norms: expected numbers of at least 0, got complex or negative ones"),
        ({"correlation": np.ones((8, 8)) - np.eye(8)}, ValueError, "correlation: .* as distances have it"),
        ({"correlation": np.eye(8) + np.triu(np.ones((8, 8)), 1)}, ValueError, "correlation: .* mirror images"),
    ],
)
def test_what_goes_with_a_matrix_is_checked(options, error, says):
    _, cosine = small_cosine()
    with pytest.raises(error, match=says):
        NeuronMap.from_cosine(cosine, **options)
