"""The command `sdsd geometry`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("plotly")
pytest.importorskip("plyfile")


from sdsd import cli
from sdsd.studies.geometry import examine
from sdsd.studies.geometry.arc import ArcConfig
from sdsd.studies.geometry.subject import (
    classification_loss,
)

from ...strict_json import strict_json
from .small_net import data

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
    text = (Path(__file__).resolve().parents[4] / "docs" / "functional-geometry.md").read_text(encoding="utf-8")
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
