"""A map's figures against float64, from activations, models and matrices; kernels and memory."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("sklearn")

from sdsd.geometry import GramAccumulator, collect_activations, neuron_cosine_matrix
from sdsd.geometry.cosines import similarity
from sdsd.geometry.map import embedding
from sdsd.geometry.map.neuron_map import NeuronMap

from .layers import exact_cosine, grouped, stress_1


@pytest.fixture(scope="module")
def layer() -> NeuronMap:
    activations = grouped(40, 4)
    activations[:, 7] = 0
    activations[:, 9] *= 1e-5
    activations[:, 12] *= 30
    return NeuronMap.from_activations(activations, layer="hidden", pairs=6)


@pytest.mark.parametrize(("neurons", "groups"), [(5, 2), (30, 3), (130, 7)])
def test_figures_against_float64(neurons, groups):
    from sklearn.metrics import silhouette_score

    activations = grouped(neurons, groups)
    found = NeuronMap.from_activations(activations)
    cosine = exact_cosine(activations)
    assert torch.allclose(found.cosine.double(), cosine, atol=1e-6)
    assert torch.allclose(found.norms, activations.double().norm(dim=0), rtol=1e-12)
    distance = (1 - cosine).fill_diagonal_(0).numpy()
    labels = np.zeros(neurons, dtype=int)
    labels[list(found.order)] = found.clusters
    wanted = silhouette_score(distance, labels, metric="precomputed")
    assert found.silhouette == pytest.approx(wanted, abs=1e-5)
    centred = activations.double() - activations.double().mean(0)
    share = torch.linalg.svdvals(torch.nn.functional.normalize(centred, dim=0)).square() / neurons
    assert found.effective_rank == pytest.approx((-(share * share.log()).sum()).exp().item(), rel=1e-4)
    assert found.stress == pytest.approx(
        stress_1(found.points, cosine[list(found.order)][:, list(found.order)]), abs=1e-5
    )
    if neurons >= 30:
        assert {
            neuron % groups for neuron, cluster in zip(found.order, found.clusters, strict=True) if cluster == 0
        } == {found.order[0] % groups}
        assert len(set(found.clusters)) == groups


def test_dead_neurons_are_set_aside_and_everything_else_is_ordered(layer):
    assert layer.dead == [7, 9]
    assert sorted(layer.order) == [neuron for neuron in range(40) if neuron not in (7, 9)]
    assert list(layer.clusters) == sorted(layer.clusters)
    assert layer.points.shape == (38, 3)
    assert layer.points.dtype == np.float32
    for pairs, sign in ((layer.nearest, 1), (layer.farthest, -1)):
        assert len(pairs) == 6
        assert [pair.cosine * sign for pair in pairs] == sorted((pair.cosine * sign for pair in pairs), reverse=True)
        assert len({neuron for pair in pairs for neuron in pair[:2]}) == 12
        assert all(layer.cosine[pair[:2]].item() == pair.cosine for pair in pairs)
    assert min(pair.cosine for pair in layer.nearest) > max(pair.cosine for pair in layer.farthest)


def test_neighbours_are_the_nearest_alive(layer):
    indices, cosines = layer.neighbours(5)
    cosine = layer.cosine.clone().fill_diagonal_(-2)
    cosine[:, layer.dead] = -2
    for neuron, near, values in zip(layer.order, indices.tolist(), cosines.tolist(), strict=True):
        wanted = cosine[neuron].topk(5)
        assert values == wanted.values.tolist()
        assert near == wanted.indices.tolist()
    assert layer.neighbours(99)[0].shape == (38, 37)


def test_neurons_that_are_nan_are_on_no_map():
    activations = grouped(12, 3)
    activations[3, 5] = torch.nan
    found = NeuronMap.from_activations(activations)
    assert found.dead == [5]
    assert found.silhouette is not None
    assert np.isfinite(found.points).all()


def test_centred_maps_show_correlations():
    activations = grouped(20, 4) + 5
    found = NeuronMap.from_activations(activations, center=True)
    assert np.allclose(found.cosine.numpy(), np.corrcoef(activations.numpy().T), atol=1e-5)
    assert found.nearest[0].cosine < 0.99 < NeuronMap.from_activations(activations).nearest[0].cosine


def test_cluster_count_is_the_users_to_say():
    activations = grouped(30, 3)
    found = NeuronMap.from_activations(activations, clusters=6)
    assert len(set(found.clusters)) == 6
    best = NeuronMap.from_activations(activations)
    assert len(set(best.clusters)) == 3
    assert found.silhouette < best.silhouette
    assert len(set(NeuronMap.from_activations(activations[:, :5], clusters=10).clusters)) == 4
    with pytest.raises(ValueError, match="clusters: expected a whole number of groups, at least 2, or None, got 1"):
        NeuronMap.from_activations(activations, clusters=1)


def test_a_plane_keeps_the_order(layer):
    plane = layer.plane()
    assert plane.points.shape == (38, 2)
    assert layer.stress < plane.stress < 1
    order = list(layer.order)
    assert stress_1(plane.points, layer.cosine[order][:, order]) == pytest.approx(plane.stress, abs=1e-5)


def test_layouts_mean_the_same():
    images = torch.randn(6, 10, 3, 4).relu()
    rows = images.movedim(1, -1).reshape(-1, 10)
    wanted = NeuronMap.from_activations(rows)
    for found in (
        NeuronMap.from_activations(images),
        NeuronMap.from_activations(images.numpy()),
        NeuronMap.from_activations(rows.T, neuron_dim=0),
    ):
        assert found.order == wanted.order
        assert found.samples == wanted.samples == 72
        assert np.allclose(found.points, wanted.points, atol=1e-3)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_few_live_neurons(count, tmp_path):
    activations = torch.zeros(20, 6)
    activations[:, :count] = torch.rand(20, count)
    found = NeuronMap.from_activations(activations)
    assert len(found.order) == len(found.points) == count
    assert (found.silhouette is None) == (count < 4)
    assert (found.effective_rank is None) == (count == 0)
    assert len(found.nearest) == count // 2
    assert (len(found.notes) == 1) == (count < 2)
    for path in (
        *found.save(tmp_path / "map"),
        found.save_png(tmp_path / "a.png"),
        found.save_html(tmp_path / "a.html"),
    ):
        assert path.stat().st_size > 0
    assert found.save_ply(tmp_path / "a.ply").exists()
    assert NeuronMap.load(tmp_path / "map").order == found.order


def test_neurons_that_are_all_alike():
    found = NeuronMap.from_activations(torch.rand(30, 1).expand(30, 8))
    assert found.stress == 0
    assert np.abs(found.points).max() < 1e-3
    assert found.effective_rank == pytest.approx(1, abs=1e-4)


def network() -> tuple[nn.Sequential, list[Tensor]]:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4)), [torch.randn(50, 6) for _ in range(4)]


def test_from_model_is_from_its_activations():
    model, batches = network()
    found = NeuronMap.from_model(model, "0", batches)
    assert (found.layer, found.taken_after, found.samples) == ("0", "relu", 200)
    wanted = NeuronMap.from_activations(model[:2](torch.cat(batches)))
    assert torch.allclose(found.cosine, wanted.cosine, atol=1e-5)
    assert found.effective_rank == pytest.approx(wanted.effective_rank, rel=1e-3)
    assert found.dead == wanted.dead
    assert [pair[:2] for pair in found.nearest] == [pair[:2] for pair in wanted.nearest]
    with pytest.raises(ValueError, match="expected a pattern that matches one layer, got 0, 1, 2"):
        NeuronMap.from_model(model, "*", batches)


def test_what_was_collected_is_mapped():
    model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 5)
    collected = collect_activations(model, [x], "0")["0"]
    once, again = NeuronMap.from_model(model, "0", [x]), NeuronMap.from_activations(collected)
    assert torch.equal(once.cosine, again.cosine)
    assert (again.layer, again.taken_after, again.samples) == ("0", "relu", 40)
    centred = NeuronMap.from_activations(collected, center=True, layer="first")
    assert centred.layer == "first"
    torch.testing.assert_close(centred.cosine, torch.corrcoef(model[:2](x).T), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="neuron_dim: it goes with a tensor"):
        NeuronMap.from_activations(collected, neuron_dim=0)


def test_from_cosine():
    activations = grouped(20, 4)
    cosine, correlation = neuron_cosine_matrix(activations), neuron_cosine_matrix(activations, center=True)
    wanted = NeuronMap.from_activations(activations)
    found = NeuronMap.from_cosine(cosine, norms=activations.norm(dim=0), correlation=correlation)
    assert np.array_equal(found.points, wanted.points)
    assert found.effective_rank == wanted.effective_rank
    bare = NeuronMap.from_cosine(cosine, alive=torch.arange(20) < 15)
    assert bare.norms is None
    assert bare.effective_rank is None
    assert sorted(bare.order) == list(range(15))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"cosine": torch.ones(2, 3)}, r"cosine: expected a square \(n, n\) matrix, got shape \(2, 3\)"),
        ({"cosine": [[1.0]]}, "got list"),
        ({"cosine": torch.eye(3), "norms": torch.ones(2)}, r"norms: expected shape \(3,\) for 3 neurons, got \(2,\)"),
        ({"cosine": torch.eye(3), "alive": torch.ones(4) > 0}, "alive: expected 3 booleans"),
        ({"cosine": torch.eye(3), "correlation": torch.eye(2)}, r"correlation: expected shape \(3, 3\)"),
        ({"cosine": torch.tensor([[1.0, math.nan], [math.nan, 1.0]])}, "cosine: expected finite values"),
    ],
)
def test_matrices_that_are_none(arguments, match):
    with pytest.raises((ValueError, TypeError), match=match):
        NeuronMap.from_cosine(**arguments)


def test_the_kernel_path_is_what_runs(monkeypatch):
    calls = {"cosine_matrix": 0, "update": 0}
    whole, update = similarity.cosine_matrix, GramAccumulator.update

    def counted_matrix(*arguments, **options):
        calls["cosine_matrix"] += 1
        return whole(*arguments, **options)

    def counted_update(self, *arguments, **options):
        calls["update"] += 1
        return update(self, *arguments, **options)

    monkeypatch.setattr(similarity, "cosine_matrix", counted_matrix)
    monkeypatch.setattr(GramAccumulator, "update", counted_update)
    model, batches = network()
    NeuronMap.from_activations(grouped(20, 4))
    assert calls == {"cosine_matrix": 2, "update": 0}
    NeuronMap.from_model(model, "0", batches)
    assert calls == {"cosine_matrix": 2, "update": 4}
    NeuronMap.from_cosine(torch.eye(5))
    assert calls == {"cosine_matrix": 2, "update": 4}


class Float64(TorchDispatchMode):
    """Notes the largest float64 tensor that any torch function gives."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                self.largest = max(self.largest, value.numel())
        return result


def test_nothing_square_is_copied_to_float64(monkeypatch, tmp_path):
    """In a layer beyond scikit-learn's SMACOF, which works in float64 by itself."""
    monkeypatch.setattr(embedding, "MOST_SMACOF", 100)
    monkeypatch.setattr(embedding, "MOST_TREE", 100)
    n = 700
    activations = grouped(n, 6, samples=300)
    with Float64() as seen:
        found = NeuronMap.from_activations(activations)
        found.save_png(tmp_path / "map.png")
        found.save_html(tmp_path / "map.html")
    assert seen.largest < n * n / 4
    tracemalloc.start()  # sees NumPy's memory, not torch's
    NeuronMap.from_activations(activations)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * n * n
    assert found.cosine.dtype == torch.float32


def test_large_layers_fall_back_and_say_so(monkeypatch):
    activations = grouped(150, 5)
    whole = NeuronMap.from_activations(activations)
    assert whole.notes == ()
    monkeypatch.setattr(embedding, "MOST_SMACOF", 100)
    monkeypatch.setattr(embedding, "MOST_TREE", 100)
    monkeypatch.setattr(embedding, "STEP_PAIRS", 30 * 150**2)
    large = NeuronMap.from_activations(activations)
    assert len(large.notes) == 2
    assert "bounded number of steps" in large.notes[0]
    assert "k-means" in large.notes[1]
    assert whole.stress == pytest.approx(large.stress, rel=0.02)
    assert len(set(large.clusters)) == 5
    assert large.silhouette == pytest.approx(whole.silhouette, abs=0.05)
