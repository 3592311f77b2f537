"""Maps in files and pages, in words, plots and notebooks, by UMAP."""

from __future__ import annotations

import doctest
import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sdsd._extras import MissingExtraError
from sdsd.geometry.map import export, neuron_map
from sdsd.geometry.map.neuron_map import NeuronMap

from .layers import grouped


@pytest.fixture(scope="module")
def layer() -> NeuronMap:
    activations = grouped(40, 4)
    activations[:, 7] = 0
    activations[:, 9] *= 1e-5
    activations[:, 12] *= 30
    return NeuronMap.from_activations(activations, layer="hidden", pairs=6)


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
    pytest.importorskip("umap", reason="umap-learn is not installed: make test-integrations")
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
