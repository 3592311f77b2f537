"""NeuronMap: figures against float64 and scikit-learn, files read back by other programs, one path to the kernels."""

from __future__ import annotations

import doctest
import json
import math
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("sklearn")

from sdsd._extras import MissingExtraError
from sdsd.geometry import GramAccumulator, neuron_cosine_matrix
from sdsd.geometry.cosines import similarity
from sdsd.geometry.map import embedding, export, neuron_map
from sdsd.geometry.map.embedding import cluster, effective_rank, embed, silhouette
from sdsd.geometry.map.neuron_map import NeuronMap


def grouped(neurons: int, groups: int, samples: int = 200, spread: float = 0.4, seed: int = 0) -> Tensor:
    """Activations of neurons in `groups` groups, after ReLU; neuron i is in group i % groups."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, groups, generator=generator)
    noise = torch.randn(samples, neurons, generator=generator)
    return (causes[:, torch.arange(neurons) % groups] + spread * noise).relu()


def exact_cosine(activations: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(activations.double(), dim=0)
    return unit.T @ unit


def distances_of(points: np.ndarray) -> np.ndarray:
    points = points.astype(np.float64)
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def stress_1(points: np.ndarray, cosine: Tensor) -> float:
    wanted = 1 - cosine.double().numpy()
    np.fill_diagonal(wanted, 0)
    return math.sqrt(((distances_of(points) - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.fixture(scope="module")
def layer() -> NeuronMap:
    activations = grouped(40, 4)
    activations[:, 7] = 0
    activations[:, 9] *= 1e-5
    activations[:, 12] *= 30
    return NeuronMap.from_activations(activations, layer="hidden", pairs=6)


# The figures


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


# From where


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


# Kernels, memory


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


# Parts


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


# Files


def test_saved_and_loaded(layer, tmp_path):
    written = layer.save(tmp_path / "layer.1")
    assert [path.name for path in written] == ["layer.1.npz", "layer.1.json"]
    assert not list(tmp_path.glob("*.part"))
    for path in (tmp_path / "layer.1", *written):
        again = NeuronMap.load(path)
        assert again.to_dict() == layer.to_dict()
        assert torch.equal(again.cosine, layer.cosine)
        assert torch.equal(again.norms, layer.norms)
        assert torch.equal(again.alive, layer.alive)
        assert again.points.tobytes() == layer.points.tobytes()
    bare = NeuronMap.from_cosine(torch.eye(4))
    bare.save(tmp_path / "bare")
    assert NeuronMap.load(tmp_path / "bare").norms is None
    json.loads(written[1].read_text(), parse_constant=lambda constant: pytest.fail(constant))


def test_files_that_are_none(layer, tmp_path):
    layer.save(tmp_path / "map")
    with pytest.raises(ValueError, match=r"could not read them"):
        NeuronMap.load(tmp_path / "nothing")
    (tmp_path / "map.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say that it is a neuron map"):
        NeuronMap.load(tmp_path / "map")
    layer.save(tmp_path / "map")
    (tmp_path / "map.npz").write_bytes((tmp_path / "map.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="could not read them"):
        NeuronMap.load(tmp_path / "map")
    np.savez(tmp_path / "map.npz", cosine=np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="could not read them"):
        NeuronMap.load(tmp_path / "map")


def test_ply_is_read_back_by_another_program(layer, tmp_path):
    plyfile = pytest.importorskip("plyfile")
    data = plyfile.PlyData.read(layer.save_ply(tmp_path / "map.ply"))
    vertices, edges = data["vertex"].data, data["edge"].data
    assert np.array_equal(np.stack([vertices[name] for name in "xyz"], 1), layer.points)
    assert vertices["neuron"].tolist() == list(layer.order)
    assert vertices["cluster"].tolist() == list(layer.clusters)
    assert np.allclose(vertices["norm"], layer.norms[list(layer.order)])
    colours = {
        (cluster, *colour)
        for cluster, *colour in zip(
            *(vertices[name].tolist() for name in ("cluster", "red", "green", "blue")), strict=True
        )
    }
    assert len(colours) == len(set(layer.clusters))
    assert (0, 0x3B, 0x78, 0xE7) in colours
    pairs = [tuple(vertices["neuron"][[edge["vertex1"], edge["vertex2"]]].tolist()) for edge in edges]
    assert pairs == [pair[:2] for pair in layer.nearest]


def test_png_is_drawn_and_repeats_itself(layer, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    first, second = (layer.save_png(tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    pixels = imread(tmp_path / "a.png")[..., :3]
    for colour in export.CLUSTER_COLOURS[: len(set(layer.clusters))]:
        wanted = np.array(list(bytes.fromhex(colour[1:]))) / 255
        assert (np.abs(pixels - wanted).max(2) < 0.12).sum() > 15


def test_page_carries_its_data_escaped_and_nothing_from_outside(layer, tmp_path):
    pytest.importorskip("plotly")
    evil = NeuronMap.from_cosine(torch.eye(4), layer="</script><img src=http://example.org/x onerror=alert(1)>")
    text = evil.save_html(tmp_path / "evil.html").read_text(encoding="utf-8")
    assert "<img" not in text.split("drawNeuronMap(name)")[-1].split("<body>")[-1]
    text = layer.save_html(tmp_path / "map.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in text
    assert "default-src 'none'" in text
    data = json.loads(text.split('id="map-data">')[1].split("</script>")[0])
    assert sum(len(trace["points"]) for trace in data["traces"]) == 38
    texts = [text for trace in data["traces"] for text in trace["texts"]]
    pair = layer.nearest[0]
    assert any(
        text.startswith(f"<b>neuron {pair.first}</b>") and f"nearest: {pair.second} ({pair.cosine:.2f})" in text
        for text in texts
    )
    sizes = [size for trace in data["traces"] for size in trace["sizes"]]
    assert max(sizes) == export.LARGEST
    assert len(data["links"]) == 6


def test_files_that_cannot_be_written(layer, tmp_path):
    (tmp_path / "file").touch()
    for save in (layer.save, layer.save_html, layer.save_png, layer.save_ply):
        with pytest.raises(OSError, match="file"):
            save(tmp_path / "file" / "map")


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("plotly", lambda layer, path: layer.save_html(path)),
        ("plyfile", lambda layer, path: layer.save_ply(path)),
        ("matplotlib", lambda layer, path: layer.save_png(path)),
        ("sklearn", lambda layer, path: NeuronMap.from_cosine(layer.cosine)),
    ],
)
def test_missing_extras_are_named(layer, tmp_path, monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install '(\.|sdsd)\[report\]"):
        call(layer, tmp_path / "map")
    assert not list(tmp_path.iterdir())


def test_in_words(layer):
    assert repr(layer).startswith("NeuronMap('hidden': 38 of 40 neurons alive, 4 clusters, silhouette 0.")
    assert "2 dead and left out" in export.summary_of(layer)
    assert export.title_of(NeuronMap.from_cosine(torch.eye(2))) == "Neurons"


def test_plots_into_a_new_figure_or_given_axes(layer):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axes = layer.plot()
    assert axes in figure.axes
    assert sum(len(each.get_offsets()) for each in axes.collections) == len(layer.order)
    assert axes.get_title(loc="left") == "Neurons of layer 'hidden'"
    flat, flat_axes = pyplot.subplots()
    assert layer.plot(axes=flat_axes) == (flat, flat_axes)
    drawn = np.concatenate([each.get_offsets() for each in flat_axes.collections])
    plane = layer.plane().points
    order = np.argsort(np.asarray(layer.clusters), kind="stable")
    assert np.allclose(drawn, plane[order])
    flat.draw_without_rendering()
    assert flat_axes.get_legend().get_window_extent().x0 >= flat_axes.get_window_extent().x1  # it hides no neuron
    deep = pyplot.figure().add_subplot(projection="3d")
    assert layer.plot(axes=deep)[1] is deep
    assert not pyplot.figure().add_subplot().collections
    pyplot.close("all")


def test_notebooks_show_figures_pairs_and_a_picture(layer, monkeypatch):
    pytest.importorskip("matplotlib")
    from sdsd.geometry import NeuronMap

    named = NeuronMap.from_cosine(layer.cosine, alive=layer.alive, layer="<b>")
    shown = named._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>&#x27;" not in shown
    assert "data:image/png;base64,iVBOR" in shown
    first, second, cosine = named.nearest[0]
    assert f"{first} – {second}<br>{cosine:.3f}" in shown
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    without = named._repr_html_()
    assert "<img" not in without
    assert f"{first} – {second}" in without


def test_maps_saved_before_there_was_a_choice_of_method(layer, tmp_path):
    layer.save(tmp_path / "map")
    text = tmp_path / "map.json"
    facts = json.loads(text.read_text())
    assert facts.pop("method") == "smacof"
    text.write_text(json.dumps(facts))
    assert type(layer).load(tmp_path / "map").method == "smacof"


def test_umap_keeps_groups_together_and_says_what_its_distances_are(tmp_path):
    pytest.importorskip("umap")
    from sdsd.geometry import NeuronMap

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(100, 3, generator=generator)
    x = directions.repeat_interleave(20, 1) + 0.3 * torch.randn(100, 60, generator=generator)
    first, second = (NeuronMap.from_activations(x, method="umap", clusters=3, seed=1) for _ in range(2))
    assert np.array_equal(first.points, second.points)
    assert first.method == "umap"
    assert any("UMAP" in note for note in first.notes)
    groups = np.asarray(first.order) // 20
    centres = np.stack([first.points[groups == group].mean(0) for group in range(3)])
    nearest = np.linalg.norm(first.points[:, None] - centres, axis=2).argmin(1)
    assert (nearest == groups).all()
    # The best factor: no other makes the stress smaller.
    wanted = 1 - first.cosine[list(first.order)][:, list(first.order)].numpy()
    shown = np.linalg.norm(first.points[:, None] - first.points, axis=2)
    stress = [np.linalg.norm(factor * shown - wanted) / np.linalg.norm(wanted) for factor in (0.98, 1, 1.02)]
    assert stress[1] == pytest.approx(first.stress, rel=1e-3)
    assert stress[1] <= min(stress)
    first.save(tmp_path / "map")
    assert NeuronMap.load(tmp_path / "map").method == "umap"
    assert first.plane().method == "umap"


def test_umap_where_it_is_not_or_cannot_be(monkeypatch):
    from sdsd.geometry.map.embedding import embed

    with pytest.raises(ValueError, match="method: expected one of 'smacof', 'umap', got 'tsne'"):
        embed(torch.eye(10), method="tsne")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"needs umap-learn.*pip install '(\.|sdsd)\[umap\]"):
        embed(torch.eye(10), method="umap")


def test_examples_in_docstrings():
    assert doctest.testmod(neuron_map).failed == 0
