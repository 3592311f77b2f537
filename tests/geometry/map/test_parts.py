"""Parts of a map: placing, silhouette, effective rank, clusters."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sdsd.geometry.map import embedding
from sdsd.geometry.map.embedding import cluster, effective_rank, embed, silhouette
from sdsd.geometry.map.neuron_map import NeuronMap

from .layers import distances_of, exact_cosine, grouped, stress_1


@pytest.mark.parametrize("n", [3, 30, 150])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_stress_is_as_low_as_that_of_many_random_starts(n, dimensions):
    from sklearn.manifold import smacof

    cosine = exact_cosine(grouped(n, 5, spread=0.8)).float()
    found = embed(cosine, dimensions)
    distance = (1 - cosine).fill_diagonal_(0).double().numpy()
    points, _ = smacof(
        distance,
        n_components=dimensions,
        n_init=8 if n < 100 else 2,
        random_state=0,
        eps=1e-6,
        max_iter=500,
        normalized_stress=False,
    )
    assert found.method == "smacof"
    assert found.stress <= 1.03 * stress_1(points, cosine) + 1e-3
    assert np.allclose(found.points.mean(0), 0, atol=1e-5)
    spread = found.points.std(0)
    assert list(spread) == sorted(spread, reverse=True)


@pytest.mark.parametrize("rank", [1, 2, 4, 600])
def test_stress_does_not_jump_where_scikit_learn_is_left(monkeypatch, rank):
    cosine = exact_cosine(torch.randn(rank, 150, dtype=torch.float64)).float()
    one = embed(cosine)
    monkeypatch.setattr(embedding, "MOST_SMACOF", 100)
    other = embed(cosine)
    assert other.stress == pytest.approx(one.stress, rel=0.02, abs=1e-3)
    assert np.isfinite(other.points).all()


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_large_layer_of_low_rank_has_a_map(monkeypatch, rank):
    monkeypatch.setattr(embedding, "MOST_TREE", 100)
    activations = torch.randn(rank, 300)
    activations += activations.sign()  # no neuron so small that it counts as dead
    products = []
    monkeypatch.setattr(embedding.torch.linalg, "qr", counted(torch.linalg.qr, products))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = NeuronMap.from_activations(activations)
    assert 0 < len(products) <= 2 * (embedding.KRYLOV + 1)
    assert len(found.order) == 300
    if rank == 1:
        assert len(set(found.clusters)) == 2
        assert found.silhouette == pytest.approx(1)


def counted(function, calls):
    def counting(*arguments, **named):
        calls.append(function)
        return function(*arguments, **named)

    return counting


@pytest.mark.parametrize("n", [40, 200])
def test_classical_scaling_gives_back_points(n):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(n, 3)) * [0.3, 0.2, 0.1]
    found = embedding.classical_scaling(torch.from_numpy(1 - distances_of(points)).float(), 3)
    assert np.allclose(distances_of(found), distances_of(points), atol=2e-3)


def test_same_seed_same_points_and_torch_is_left_alone():
    cosine = exact_cosine(grouped(90, 5)).float()
    state = torch.get_rng_state()
    assert np.array_equal(embed(cosine).points, embed(cosine).points)
    assert torch.equal(torch.get_rng_state(), state)


def test_silhouette_against_scikit_learn():
    from sklearn.metrics import silhouette_score

    cosine = exact_cosine(grouped(600, 5, spread=1.0))
    labels = torch.arange(600) % 5
    labels[0] = 9  # alone
    wanted = silhouette_score((1 - cosine).fill_diagonal_(0).clamp_min(0), labels, metric="precomputed")
    assert silhouette(cosine.float(), labels) == pytest.approx(wanted, abs=1e-6)
    assert silhouette(cosine, torch.zeros(600)) is None
    assert silhouette(cosine, torch.arange(600)) is None


def test_effective_rank_by_hand():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(7, 7)) == pytest.approx(1, abs=1e-5)
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3), torch.zeros(2, 2))
    assert effective_rank(blocks) == pytest.approx(2, abs=1e-5)
    assert effective_rank(torch.zeros(4, 4)) is None


def test_ward_is_scipys_and_picks_the_best_cut():
    cosine = exact_cosine(grouped(24, 3)).float()
    found = cluster(cosine)
    assert found.method == "ward"
    assert sorted(found.order) == list(range(24))
    groups = [{i for i, label in enumerate(found.labels) if label == group} for group in range(3)]
    assert sorted(map(sorted, groups)) == [list(range(first, 24, 3)) for first in range(3)]


@pytest.mark.parametrize("function", [embed, cluster])
@pytest.mark.parametrize(("value", "match"), [(torch.ones(3), "square"), (torch.full((2, 2), math.nan), "finite")])
def test_bad_matrices(function, value, match):
    with pytest.raises(ValueError, match=match):
        function(value)


def test_bad_dimensions():
    with pytest.raises(ValueError, match="dimensions: expected a whole number, at least 1, got 0"):
        embed(torch.eye(4), 0)
