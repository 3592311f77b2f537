"""What examining a network writes, the numbers in it, and its page in a browser."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("plotly")
pytest.importorskip("plyfile")

from matplotlib.image import imread

from sdsd.geometry import GramAccumulator, weight_cosine
from sdsd.geometry.map.export import CLUSTER_COLOURS
from sdsd.geometry.merging import consolidate, controls, merge
from sdsd.studies.geometry.arc import ArcConfig, Examination, weight_magnitudes
from sdsd.studies.geometry.subject import (
    SHUFFLED,
    TRAINED_SHUFFLED,
    UNTRAINED,
    digits_mlp,
)
from tests import browser

from ...strict_json import RESULT, strict_json
from .small_net import CONFIG, data, quiet, small


def test_files_of_a_run(examined):
    names = {path.name for path in examined.written}
    assert names == {
        "report.html",
        "results.json",
        "small-net-map.png",
        "small-net-map.ply",
        "small-net-cohorts.png",
        "small-net-untrained-map.ply",
        "small-net-shuffled-inputs-map.ply",
        "small-net-consolidation.png",
        "small-net-equal-size.png",
        "small-net-controls.png",
        "small-net-silhouettes.png",
        "small-net-plasticity.png",
    }
    assert all(path.stat().st_size > 500 for path in examined.written)
    found = strict_json(examined.folder / "results.json")
    assert set(found) == RESULT
    assert (found["study"], found["status"], found["seeds"]) == ("geometry", "complete", [0])
    (series,) = found["series"]
    assert series["network"] == "small net"
    assert set(series["controls"]) == {UNTRAINED, SHUFFLED}
    assert len(found["verdicts"]) == 7
    assert len({verdict["claim"] for verdict in found["verdicts"]}) == 7


def test_controls_are_point_clouds_too(examined):
    plyfile = pytest.importorskip("plyfile")
    (series,) = examined.result.series
    clouds = {}
    for name in (UNTRAINED, SHUFFLED):
        stem = name.replace(" ", "-")
        cloud = plyfile.PlyData.read(examined.folder / f"small-net-{stem}-map.ply")["vertex"]
        clouds[name] = np.stack([cloud["x"], cloud["y"], cloud["z"]], 1)
        assert cloud["neuron"].tolist() == series["controls"][name]["order"]
        np.testing.assert_allclose(clouds[name], series["controls"][name]["points"], atol=1e-3)
    assert not np.array_equal(clouds[UNTRAINED][:2], clouds[SHUFFLED][:2])


def test_numbers_are_those_of_the_functions_by_hand(examined):
    """Cosines in float64, merges and losses anew."""
    (series,) = examined.result.series
    subject = small()
    model = subject.model.eval()
    x, y = (torch.cat(part) for part in zip(*data(), strict=True))
    with torch.no_grad():
        hidden = model[:2](x).double().numpy()
        before = cross_entropy(model(x), y).item()
    norms = np.linalg.norm(hidden, axis=0)
    live = np.flatnonzero(norms > 1e-3 * norms.max())
    cosine = (hidden.T @ hidden) / np.outer(norms, norms).clip(1e-30)
    first, second = max(((i, j) for i in live for j in live if i < j), key=lambda pair: cosine[pair])
    assert series["map"]["nearest"][0][:2] == [first, second]
    assert series["before"] == pytest.approx(before, rel=1e-5)
    with torch.no_grad(), merge(model, "0", [(first, second)]):
        change = cross_entropy(model(x), y).item() - before
    assert series["biopsy"]["activations"]["near"]["changes"][0] == pytest.approx(change, abs=2e-6)
    weights = subject.model[0].weight.detach().abs().sum(1)
    assert torch.equal(weight_magnitudes(model[0]), weights)
    pruned = sorted(weights.argsort()[:3].tolist())
    keep = [neuron for neuron in range(24) if neuron not in pruned]
    with torch.no_grad():
        reader = model[2]
        out = model[:2](x)[:, keep] @ reader.weight[:, keep].T + reader.bias
    size = series["equal size"]
    assert size["removed"] == 3
    assert size["ways"]["smallest weights, pruned"]["change"] == pytest.approx(
        cross_entropy(out, y).item() - before, abs=2e-6
    )
    assert size["parameters"] == [24 * 7 + 25 * 3, 21 * 7 + 22 * 3]
    # What is merged with removal computes what merging makes of it.
    assert size["ways"]["nearest activations, averaged"]["change"] == pytest.approx(
        series["consolidation"]["activations"]["change"], abs=2e-6
    )


def test_models_are_left_as_they_were():
    subject = small()
    subject.model.train()
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    Examination(subject, CONFIG, None, quiet()).run()
    assert subject.model.training
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


def test_the_kernel_path_is_what_runs(monkeypatch):
    calls = {"cosine_matrix": 0, "update": 0}
    matrix, update = controls.cosine_matrix, GramAccumulator.update

    def counted_matrix(*arguments, **options):
        calls["cosine_matrix"] += 1
        return matrix(*arguments, **options)

    def counted_update(self, *arguments, **options):
        calls["update"] += 1
        return update(self, *arguments, **options)

    monkeypatch.setattr(controls, "cosine_matrix", counted_matrix)
    monkeypatch.setattr(GramAccumulator, "update", counted_update)
    subject = small()
    Examination(subject, CONFIG, None, quiet()).run()
    assert calls["update"] == 2 * 3  # two batches, for the map and each of two controls
    assert calls["cosine_matrix"] >= 1
    weight_cosine(subject.model, "0")


@pytest.mark.parametrize("seed", range(5))
def test_what_is_learned_shows_in_no_control(seed):
    subject = digits_mlp(seed)
    examination = Examination(subject, ArcConfig(seed), None, quiet())
    trained = examination._mapped()["compared"]
    for name in (UNTRAINED, TRAINED_SHUFFLED):
        assert trained > 1.5 * examination._control(name)["compared"], name
    # What it has learned shows a little even for shuffled inputs.
    assert trained > examination._control(SHUFFLED)["compared"]


def test_the_smaller_digits_network_computes_what_the_merged_one_does():
    subject = digits_mlp(0, epochs=2)
    examination = Examination(subject, ArcConfig(), None, quiet())
    examination._mapped()
    pairs = [pair[:2] for pair in examination.neuron_map.nearest]
    x = subject.batches[0][0]
    smaller, _ = consolidate(subject.model, subject.layer, pairs)
    with torch.no_grad(), merge(subject.model, subject.layer, pairs):
        merged = subject.model(x)
    with torch.no_grad():
        assert (smaller(x) - merged).abs().max() < 1e-5 * merged.abs().max()


def test_the_page_in_a_browser(examined, tmp_path):
    """The map draws and answers the mouse, nothing is asked of the network, nothing is complained of."""
    if browser.executable() is None:
        pytest.skip("no Chromium or Chrome on this machine: apt-get install chromium, or name one in CHROME")
    with browser.Browser(tmp_path) as page:
        page.open(examined.folder / "report.html")
        page.wait_for("document.querySelector('#map0 canvas') !== null")
        page.wait_for("document.querySelector('#map0').data !== undefined")
        drawn = page.evaluate("document.querySelector('#map0').data.map((trace) => trace.x.length)")
        live = len(examined.result.series[0]["map"]["order"])
        markers = page.evaluate(
            "document.querySelector('#map0').data.filter((trace) => trace.mode === 'markers')"
            ".map((trace) => trace.x.length)"
        )
        assert sum(markers) == live
        assert len(drawn) == len(markers) + 1
        assert page.evaluate("document.querySelectorAll('.claims tbody tr').length") == 7
        heads = page.evaluate("[...document.querySelectorAll('h2')].map((head) => head.textContent)")
        assert [head.split(" – ")[0] for head in heads] == [
            "The map",
            "What merging costs",
            "A smaller network",
            "Controls",
            "Training on",
            "The claims of the document, held against this network",
            "How this was made",
        ]
        assert page.evaluate("document.querySelector('h3').textContent") == "small net, layer '0'"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        place = page.evaluate(
            "(() => { const map = document.querySelector('#map0'); map.scrollIntoView();"
            "const box = map.getBoundingClientRect(); return [box.top, box.bottom, box.left, box.right]; })()"
        )
        top, bottom, left, right = (max(0, round(edge)) for edge in place)
        clusters = len(set(examined.result.series[0]["map"]["clusters"]))
        wanted = [np.array(list(bytes.fromhex(colour[1:]))) / 255 for colour in CLUSTER_COLOURS[:clusters]]

        def coloured() -> int:
            pixels = imread(page.screenshot(tmp_path / "page.png"))[top:bottom, left + 220 : right, :3]
            return sum(int((np.abs(pixels - colour).max(2) < 0.15).sum() > 15) for colour in wanted)

        deadline = time.monotonic() + 20
        while coloured() < clusters and time.monotonic() < deadline:
            time.sleep(0.2)
        assert coloured() == clusters
        assert [url for url in page.requests if not url.startswith(("file:", "blob:", "data:"))] == []
        assert page.requests[0].endswith("report.html")
        assert "default-src 'none'" in page.evaluate("document.querySelector('meta[http-equiv]').content")
        assert page.complaints == []
