"""Networks through the whole arc: what is measured, written, kept and judged, and the page in a browser."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("plotly")
pytest.importorskip("plyfile")

from matplotlib.image import imread

from sdsd import cli
from sdsd.geometry import GramAccumulator, NeuronMap, mean_loss, sgd_training, weight_cosine
from sdsd.geometry.map.export import CLUSTER_COLOURS
from sdsd.geometry.merging import consolidate, controls, merge
from sdsd.studies.geometry import examine
from sdsd.studies.geometry.arc import ArcConfig, Examination, describe, weight_magnitudes
from sdsd.studies.geometry.subject import (
    SHUFFLED,
    TRAINED_SHUFFLED,
    UNTRAINED,
    Subject,
    accuracy_on,
    classification_loss,
    digits_mlp,
    standard_controls,
)
from sdsd.studies.geometry.verdicts import judge_network
from tests import browser

from ..strict_json import RESULT, strict_json

CONFIG = ArcConfig(pairs=3, random_pairings=2, epochs=2)


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(30, 6, generator=generator), torch.arange(30) % 3) for _ in range(2)]


def small(calls: list[int] | None = None, stop_at: int | None = None, seed: int = 0) -> Subject:
    """Twenty-four neurons; `calls` counts measurements, and the one numbered `stop_at` is interrupted."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    batches = data()
    loss = mean_loss(batches, classification_loss)

    def measured(network: nn.Module) -> float:
        if calls is not None:
            calls.append(len(calls))
            if len(calls) == stop_at:
                raise KeyboardInterrupt
        return loss(network)

    return Subject(
        "small net",
        model,
        "0",
        batches,
        measured,
        example_input=batches[0][0][:1],
        controls=standard_controls(model, batches, 0),
        accuracy=accuracy_on(batches),
        train=sgd_training(batches, classification_loss),
    )


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    return examine([small()], tmp_path_factory.mktemp("geometry"), CONFIG, quiet=True)


# ---- what is written -------------------------------------------------------------------------------------------------


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
    Examination(subject, CONFIG, None, _quiet()).run()
    assert subject.model.training
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


def _quiet():
    from sdsd.studies.engine import Progress

    return Progress()


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
    Examination(subject, CONFIG, None, _quiet()).run()
    assert calls["update"] == 2 * 3  # two batches, for the map and each of two controls
    assert calls["cosine_matrix"] >= 1
    weight_cosine(subject.model, "0")


# ---- stopped and resumed ---------------------------------------------------------------------------------------------


def test_a_second_run_measures_nothing_again(examined):
    calls: list[int] = []
    again = examine([small(calls)], examined.folder, CONFIG, quiet=True)
    assert len(calls) == 1  # only the untouched network, to see that it is the same
    assert len(again.resumed) == 6
    assert again.result.series == examined.result.series
    assert {path.name for path in again.written} == {path.name for path in examined.written}


def test_a_map_of_a_control_that_is_gone_is_drawn_again(examined):
    (kept,) = (examined.folder / "measurements").glob("*-untrained-map.npz")
    before = (examined.folder / "small-net-untrained-map.ply").read_bytes()
    kept.unlink()
    examine([small()], examined.folder, CONFIG, quiet=True)
    assert kept.exists()
    assert (examined.folder / "small-net-untrained-map.ply").read_bytes() == before


def again_in(folder: Path, subject: Subject, config: ArcConfig = CONFIG) -> Examination:
    examination = Examination(subject, config, folder / "measurements", _quiet())
    examination.run()
    return examination


@pytest.mark.parametrize("stop_at", [1, 16])
def test_an_interrupt_keeps_what_there_is(tmp_path, stop_at):
    stopped = examine([small([], stop_at)], tmp_path, CONFIG, quiet=True)
    assert stopped.result.interrupted
    found = strict_json(tmp_path / "results.json")
    assert (found["status"], len(found["series"])) == ("interrupted", 0 if stop_at == 1 else 1)
    assert "This run was interrupted" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("stop_at", [1, 4, 12, 16, 20, 22])
def test_a_stopped_run_goes_on(examined, tmp_path, stop_at):
    straight, calls = [], []
    again_in(tmp_path / "straight", small(straight))
    assert stop_at < len(straight)
    with pytest.raises(KeyboardInterrupt):
        again_in(tmp_path, small(calls, stop_at))
    first = len(calls)
    calls.clear()
    assert again_in(tmp_path, small(calls)).series == examined.result.series[0]
    # Made twice are the interrupted measurement, those of the untouched network, and those of smaller networks.
    assert len(calls) + first <= len(straight) + 8


def test_other_settings_and_other_networks_stand_beside(examined):
    other = again_in(examined.folder, small(seed=1))
    assert other.notebook.resumed == []
    assert other.before != examined.result.series[0]["before"]
    assert again_in(examined.folder, small(), dataclasses.replace(CONFIG, pairs=2)).notebook.resumed == []
    assert len(again_in(examined.folder, small()).notebook.resumed) == 6


def test_damaged_notes_are_named(examined, tmp_path):
    again_in(tmp_path, small())
    (path,) = [path for path in (tmp_path / "measurements").glob("*.json") if not path.name.endswith("-map.json")]
    path.write_text("{")
    with pytest.raises(ValueError, match="delete the file"):
        again_in(tmp_path, small())


def test_what_a_layer_cannot_do_is_said(tmp_path):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.norm(torch.relu(self.first(x))))

    torch.manual_seed(0)
    batches = data()
    subject = Subject("normed", Normed(), "first", batches, mean_loss(batches, classification_loss))
    found = examine([subject], tmp_path, CONFIG, quiet=True).result
    assert "statistics over all neurons" in found.series[0]["equal size"]["why not"]
    assert "This layer cannot shrink by itself" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (verdict,) = [verdict.verdict for verdict in found.verdicts if "outperforms naive" in verdict.claim]
    assert verdict == "untestable here"


# ---- verdicts --------------------------------------------------------------------------------------------------------


def run_of(batch=5.0, single=14.0, mass=1.8, near=2.0, pruned=2.0, silhouettes=(0.3, 0.1), points=0.0, wide=False):
    """A made-up run; intervals are ±10%, or reach below 1; `near`: how often as much near pairs by weights cost."""

    def cohort(mean):
        return {"cosine": 0.5, "mean": mean, "sd": 0.1, "changes": [mean]}

    def ratios(value, near=1.0):
        interval = [0.5, value * 2] if wide else [0.9 * value, 1.1 * value]
        cohorts = {"near": cohort(0.01 * near), "random": cohort(0.02), "far": cohort(0.01 * value)}
        cohorts["far"]["changes"][0] = 0.01 * single
        return {**cohorts, "ratio": value, "interval": interval, "single ratio": single}

    interval = [0.5, 2 * mass] if wide else [0.9 * mass, 1.1 * mass]
    random = [0.01, 1.0] if wide else [0.1 * mass, 0.11 * mass]
    at_once = {
        "pairs": 3,
        "change": 0.1,
        "random": random,
        "ratio": mass,
        "interval": interval,
    }
    ways = {
        "nearest activations, averaged": 0.1,
        "nearest activations, absorbed": 0.05,
        "nearest weights, averaged": 0.2,
        "smallest weights, pruned": 0.1 * pruned,
    }
    return {
        "network": "made up",
        "measure": "loss",
        "map": {"compared": silhouettes[0], "effective_rank": 5.0},
        "biopsy": {"activations": ratios(batch), "weights": ratios(batch, near)},
        "consolidation": {"activations": at_once, "weights": {**at_once, "change": 0.2}},
        "equal size": {
            "removed": 3,
            "neurons": [16, 13],
            "ways": {name: {"change": value} for name, value in ways.items()},
        },
        "controls": {UNTRAINED: {"compared": silhouettes[1], "effective_rank": 9.0}},
        "plasticity": {
            "difference": points / 100,
            "geometry": [0.9 + points / 100],
            "random": [0.9],
            "untouched": [0.9],
        },
    }


def verdict_of(part: str, *runs):
    (found,) = [verdict for verdict in judge_network(runs) if part in verdict.claim]
    return found.verdict


@pytest.mark.parametrize(
    ("claim", "changed", "verdict"),
    [
        ("about 5 times", {}, "reproduced"),
        ("about 5 times", {"batch": 2.0}, "direction only"),
        ("about 5 times", {"batch": 11.0}, "direction only"),
        ("about 5 times", {"batch": 0.7}, "opposite"),
        ("about 5 times", {"wide": True}, "inconclusive"),
        ("1.8 times", {}, "reproduced"),
        ("1.8 times", {"mass": 20.0}, "direction only"),
        ("1.8 times", {"mass": 0.5}, "opposite"),
        ("1.8 times", {"wide": True}, "inconclusive"),
        ("geometry of activations", {}, "inconclusive"),
        ("outperforms naive", {}, "inconclusive"),
        ("differ sharply", {}, "inconclusive"),
        ("peaks lower", {"points": -2.1}, "inconclusive"),
        ("farthest pair", {}, "untestable here"),
    ],
)
def test_each_verdict_can_come_out_otherwise(claim, changed, verdict):
    assert verdict_of(claim, run_of(**changed)) == verdict


@pytest.mark.parametrize(
    ("claim", "changed", "verdict"),
    [
        ("geometry of activations", {}, "reproduced"),
        ("geometry of activations", {"near": 0.5}, "opposite"),
        ("geometry of activations", {"near": 1.0}, "no effect"),
        ("outperforms naive", {}, "reproduced"),
        ("outperforms naive", {"pruned": 0.5}, "opposite"),
        ("outperforms naive", {"pruned": 1.0}, "no effect"),
        ("differ sharply", {}, "reproduced"),
        ("differ sharply", {"silhouettes": (0.3, 0.25)}, "direction only"),
        ("differ sharply", {"silhouettes": (0.3, 0.4)}, "opposite"),
        ("peaks lower", {}, "no effect"),
        ("peaks lower", {"points": -2}, "reproduced"),
        ("peaks lower", {"points": 2}, "opposite"),
    ],
)
def test_what_a_single_run_leaves_open_several_decide(claim, changed, verdict):
    assert verdict_of(claim, *[run_of(**changed)] * 2) == verdict


def test_controls_are_compared_in_the_runs_that_have_them():
    def with_third(compared):
        run = run_of(silhouettes=(0.3, 0.1))
        run["controls"][TRAINED_SHUFFLED] = {"compared": compared, "effective_rank": 3.0}
        return run

    runs = [with_third(None), with_third(0.4), with_third(0.1)]
    (found,) = [verdict for verdict in judge_network(runs) if "differ sharply" in verdict.claim]
    assert found.verdict == "inconclusive"
    assert found.our_figure.value == pytest.approx((0.2 - 0.1 + 0.2) / 3)
    assert "0.25 trained on shuffled inputs" in found.corrected
    assert "in 2 of 3 runs" in found.corrected
    assert verdict_of("differ sharply", with_third(None), with_third(0.1)) == "reproduced"
    assert verdict_of("differ sharply", run_of(silhouettes=(0.3, None)), run_of()) == "untestable here"


def test_too_few_neurons_have_no_ten_clusters():
    def compared(neurons):
        torch.manual_seed(0)
        return describe(NeuronMap.from_activations(torch.rand(50, neurons)))["compared"]

    assert compared(19) is None
    assert -1 < compared(20) < 1


def test_several_seeds_are_judged_by_their_spread():
    assert verdict_of("farthest pair", *[run_of(single=value) for value in (13.0, 14.0, 15.0)]) == "reproduced"
    assert verdict_of("farthest pair", *[run_of(single=value) for value in (0.5, 14.0, 300.0)]) == "inconclusive"
    assert verdict_of("farthest pair", *[run_of(single=value) for value in (20.0, 60.0, 300.0)]) == "direction only"
    assert verdict_of("about 5 times", *[run_of(batch=value, wide=True) for value in (4.0, 5.0, 6.0)]) == "reproduced"
    runs = [run_of(near=value) for value in (0.5, 1.1, 3.0)]
    assert verdict_of("geometry of activations", *runs) == "inconclusive"
    mean = math.exp(sum(math.log(value) for value in (4.0, 5.0, 6.0)) / 3)
    (found,) = [
        each for each in judge_network([run_of(batch=value) for value in (4.0, 5.0, 6.0)]) if "5 times" in each.claim
    ]
    assert found.our_figure.value == pytest.approx(mean)
    # A run in which near merges changed nothing has no ratio, and no verdict is made of the others alone.
    runs[0]["biopsy"]["activations"]["ratio"] = None
    assert verdict_of("about 5 times", *runs) == "untestable here"
    assert verdict_of("differ sharply", run_of(), run_of(silhouettes=(0.02, -0.18))) == "direction only"
    assert verdict_of("differ sharply", run_of(), run_of(silhouettes=(0.2, -0.01))) == "reproduced"


# ---- real digits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_what_is_learned_shows_in_no_control(seed):
    subject = digits_mlp(seed)
    examination = Examination(subject, ArcConfig(seed), None, _quiet())
    trained = examination._mapped()["compared"]
    for name in (UNTRAINED, TRAINED_SHUFFLED):
        assert trained > 1.5 * examination._control(name)["compared"], name
    # What it has learned shows a little even for shuffled inputs.
    assert trained > examination._control(SHUFFLED)["compared"]


def test_the_smaller_digits_network_computes_what_the_merged_one_does():
    subject = digits_mlp(0, epochs=2)
    examination = Examination(subject, ArcConfig(), None, _quiet())
    examination._mapped()
    pairs = [pair[:2] for pair in examination.neuron_map.nearest]
    x = subject.batches[0][0]
    smaller, _ = consolidate(subject.model, subject.layer, pairs)
    with torch.no_grad(), merge(subject.model, subject.layer, pairs):
        merged = subject.model(x)
    with torch.no_grad():
        assert (smaller(x) - merged).abs().max() < 1e-5 * merged.abs().max()


# ---- the command -----------------------------------------------------------------------------------------------------

SCRIPT = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
x, y = torch.randn(60, 6), torch.arange(60) % 3
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=20, shuffle=True)

def loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])

def wider():
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))

def text():
    return "no module"
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(SCRIPT)
    return path


def command(capsys, *words):
    status = cli.main(["geometry", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_on_a_users_file(capsys, script, tmp_path):
    out = tmp_path / "out"
    words = ("--model", script, "--layer", "0", "--out", out, "--quick")
    status, printed, _ = command(capsys, *words)
    assert status == 0
    assert "VERDICT" not in printed.split("verdict")[0]
    assert "5 times" in printed
    assert "written to" in printed
    assert (out / "net-map.ply").exists()
    assert strict_json(out / "results.json")["config"] == {
        "quick": True,
        "seed": 0,
        "pairs": 10,
        "random_pairings": 4,
        "epochs": 0,
    }
    _, printed, _ = command(capsys, *words)
    assert "5 steps were finished by an earlier run" in printed


def test_a_function_makes_the_model_and_a_file_has_the_data(capsys, script, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(50, 6)).astype("f4"), y=np.arange(50) % 3)
    status, _, err = command(
        capsys,
        "--model",
        f"{script}:wider",
        "--layer",
        "0",
        "--data",
        tmp_path / "data.npz",
        "--out",
        tmp_path / "out",
        "--quick",
        "--quiet",
        "--plasticity",
    )
    assert (status, err) == (0, "")
    (series,) = strict_json(tmp_path / "out" / "results.json")["series"]
    assert series["map"]["neurons"] == 20
    assert series["map"]["samples"] == 50
    assert len(series["plasticity"]["geometry"]) == 5


def test_without_classes_what_the_untouched_network_says_decides(capsys, script, tmp_path):
    script.write_text(SCRIPT.replace("def loss", "def unused"))
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(50, 6)).astype("f4"))
    out = tmp_path / "out"
    words = ("--model", script, "--layer", "0", "--data", tmp_path / "data.npy", "--out", out, "--quick", "--quiet")
    assert command(capsys, *words)[0] == 0
    (series,) = strict_json(out / "results.json")["series"]
    assert series["measure"] == "KL divergence"
    assert series["before"] == 0


@pytest.mark.parametrize(
    ("words", "replaced", "says"),
    [
        (("--layer", "O"), {}, "Did you mean"),
        ((), {}, "name the layer to examine. Its Linear layers and convolutions: 0, 2"),
        (("--layer", "2"), {}, "Choose a layer before it"),
        (("--layer", "1"), {}, "expected an nn.Linear, a convolution or another layer"),
        (("--layer", "0"), {"model = ": "network = "}, "expected it to define model"),
        (("--layer", "0"), {"loader = ": "batches = "}, "expected it to define loader"),
        (("--layer", "0"), {"loader = ": "loader = iter(())  #"}, "loader gave no batch"),
        (("--layer", "0"), {"randn(60, 6)": "randn(60, 5)"}, "expected inputs that the model runs on"),
        (
            ("--layer", "0"),
            {"randn(60, 6)": "full((60, 6), torch.nan)"},
            "batch 0, layer '0': expected finite",
        ),
        (("--layer", "0"), {"return cross": "return missing"}, "missing"),
        (
            ("--layer", "0"),
            {"x, y =": "model[0].bias.data.fill_(-1e3)\nx, y ="},
            "0 of the 16 neurons",
        ),
        (("--layer", "0", "--pairs", "0"), {}, "at least 1"),
        (("--layer", "0", "--data", "nowhere.npz"), {}, "nowhere.npz"),
    ],
)
def test_bad_input_ends_in_one_line(capsys, script, tmp_path, words, replaced, says):
    text = SCRIPT
    for old, new in replaced.items():
        text = text.replace(old, new)
    script.write_text(text)
    status, _, err = command(capsys, "--model", script, "--out", tmp_path / "out", "--quiet", *words)
    assert status == 2
    assert says in err


def test_more_bad_input(capsys, script, tmp_path):
    out = ("--out", tmp_path / "out", "--quiet")
    assert "pass --model" in command(capsys, "--layer", "0")[2]
    assert "It defines: loss, wider, text" in command(capsys, "--model", f"{script}:deeper", "--layer", "0", *out)[2]
    assert "text(): expected an nn.Module" in command(capsys, "--model", f"{script}:text", "--layer", "0", *out)[2]
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 6), "f4"), b=np.zeros((3, 6), "f4"))
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 6), "f4"), y=np.zeros(4, int))
    for name, says in (("two.npz", "expected one tensor of inputs"), ("odd.npz", "as many classes as inputs")):
        assert says in command(capsys, "--model", script, "--layer", "0", "--data", tmp_path / name, *out)[2]
    (tmp_path / "file").write_text("")
    assert "is a file" in command(capsys, "--model", script, "--layer", "0", "--out", tmp_path / "file")[2]
    with pytest.raises(ValueError, match="at least one network"):
        examine([], tmp_path)
    for bad in ({"seed": -1}, {"pairs": 0}, {"random_pairings": 1}, {"epochs": -1}, {"pairs": 2.5}):
        with pytest.raises(ValueError, match="expected a whole number"):
            ArcConfig(**bad)


def test_the_page_in_docs_says_what_runs(tmp_path, monkeypatch):
    """The second block of Python in docs/functional-geometry.md, on a small network of that shape."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "functional-geometry.md").read_text(encoding="utf-8")
    _, code, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    layers = {"fc1": nn.Linear(6, 40), "relu": nn.ReLU()}
    model = nn.Sequential()
    model.add_module("encoder", nn.Sequential())
    for name, layer in layers.items():
        model.encoder.add_module(name, layer)
    model.add_module("head", nn.Linear(40, 3))
    names = {"model": model, "loader": data(), "loss": classification_loss}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["smaller"].encoder.fc1.out_features == 40 - len(names["neurons"].nearest)
    assert (tmp_path / "map.html").exists()
    assert names["measured"].near.pairs[0] == names["neurons"].nearest[0]


# ---- in a browser ----------------------------------------------------------------------------------------------------


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
