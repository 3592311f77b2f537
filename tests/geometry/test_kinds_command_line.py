"""`sdsd geometry` on data the model does not run on, and `sdsd map --key`: one line and status 2."""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pytest

from sdsd.cli import main

MLP = "model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 4))\n"
TOKENS = "model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))\n"
LOSS = "def loss(model, batch):\n    return model(batch[0]).square().mean()\n"
BROKEN = {
    "too wide": (MLP, "loader = [torch.randn(5, 21)]\n"),
    "too wide, in a tuple": (MLP, "loader = [(torch.randn(5, 21),)]\n"),
    "with classes": (MLP, "loader = [(torch.randn(5, 21), torch.zeros(5, dtype=torch.long))]\n"),
    "only a later batch": (MLP, "loader = [torch.randn(5, 20), torch.randn(5, 21)]\n"),
    "another dtype": (MLP, "loader = [torch.ones(5, 20, dtype=torch.long)]\n"),
    "tokens out of range": (TOKENS, "loader = [torch.full((3, 5), 10)]\n"),
    "a loss of its own": (MLP, LOSS + "loader = [(torch.randn(5, 21), None)]\n"),
    "a dictionary": (MLP, "loader = [{'input': torch.randn(5, 21)}]\n"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_data_the_model_does_not_run_on(tmp_path, capfd, name):
    network, rest = BROKEN[name]
    path = tmp_path / "file.py"
    path.write_text("import torch\nfrom torch import nn\n" + network + rest)
    layer = "1" if network is TOKENS else "0"
    status = main(["geometry", "--model", str(path), "--layer", layer, "--quick", "--out", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "the model raised" in error or "the model does not run on it" in error


@pytest.mark.parametrize(
    ("loader", "says"),
    [
        ("[(torch.randn(5, 20), torch.full((5,), 9))]", "batch 0: expected classes from 0 to 3, .* got 9"),
        ("[(torch.randn(5, 20), torch.tensor([0, 1, 2, 3, -1]))]", "batch 0: expected classes from 0 to 3, .* got -1"),
        ("[{'foo': torch.randn(5, 20)}]", "got one sample of a dict with no entry that its forward names"),
    ],
)
def test_classes_and_entries_that_the_model_does_not_have(tmp_path, capfd, loader, says):
    path = tmp_path / "file.py"
    path.write_text(f"import torch\nfrom torch import nn\n{MLP}loader = {loader}\n")
    status = main(["geometry", "--model", str(path), "--layer", "0", "--quick", "--out", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert re.search(says, error)


def test_an_archive_with_a_member_that_is_no_array(tmp_path, capfd):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "words")
    assert main(["map", str(tmp_path / "a.npz"), "--out", str(tmp_path / "out")]) == 2
    assert "expected at least one tensor" in capfd.readouterr().err


def test_data_from_a_file_that_the_model_does_not_run_on(tmp_path, capfd):
    (tmp_path / "file.py").write_text("import torch\nfrom torch import nn\n" + MLP)
    np.savez(tmp_path / "data.npz", x=np.ones((5, 21), dtype=np.float32))
    status = main(
        [
            "geometry",
            "--model",
            str(tmp_path / "file.py"),
            "--layer",
            "0",
            "--quick",
            "--data",
            str(tmp_path / "data.npz"),
            "--out",
            str(tmp_path / "out"),
        ]
    )
    error = capfd.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert "batch 0: expected inputs that the model runs on, got one sample of shape (1, 21)" in error


def test_a_map_of_one_entry_whatever_the_others_are(tmp_path, capfd):
    values = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    np.savez(tmp_path / "a.npz", layer1=values, model=np.array("resnet18"), more=np.array([None], dtype=object))
    out = ["--out", str(tmp_path / "out")]
    assert main(["map", str(tmp_path / "a.npz"), "--key", "layer1", *out]) == 0
    assert main(["map", str(tmp_path / "a.npz"), "--key", "model", *out]) == 2
    assert main(["map", str(tmp_path / "a.npz"), "--key", "nothing", *out]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 2
    assert "Its entries: layer1, model, more" in error


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            "file.py:make",
            r"make\(width, depth=2\) cannot be called without arguments: missing a required argument: 'width'",
        ),
        ("file.py:number", "number: expected a function that gives the model, got int"),
        ("file.py:gives_a_number", r"gives_a_number\(\): expected an nn.Module, got int"),
        ("folder", "expected a Python file, got a folder. Write one that says model = …"),
        ("saved", r"got a folder. Write one that says model = AutoModel.from_pretrained\(…\)"),
        ("none.py", "there is no such file"),
    ],
)
def test_what_makes_no_model(tmp_path, capfd, model, says):
    (tmp_path / "folder").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    (tmp_path / "file.py").write_text(
        "from torch import nn\nnumber = 3\ndef make(width, depth=2):\n    return nn.Linear(width, 3)\n"
        "def gives_a_number():\n    return 3\n"
    )
    status = main(["geometry", "--model", str(tmp_path / model), "--layer", "0", "--out", str(tmp_path / "out")])
    error = capfd.readouterr().err
    assert status == 2
    assert re.search(says, error)
    assert error.count("\n") == 1
