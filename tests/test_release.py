"""What a release says of itself: one version everywhere, and what SECURITY.md promises of files that are read."""

from __future__ import annotations

import ast
import copy
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import sdsd

ROOT = Path(__file__).resolve().parent.parent
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
LOADERS = ("pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")


def read(name: str) -> str:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not part of this installation")
    return path.read_text(encoding="utf-8")


def test_one_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", sdsd.__version__)
    assert f"\nversion: {sdsd.__version__}\n" in read("CITATION.cff")
    assert 'dynamic = ["version", ' in read("pyproject.toml")
    (newest, released), *_ = re.findall(r"^## \[(\S+)\] – (\S+)$", read("CHANGELOG.md"), re.M)
    assert newest == sdsd.__version__
    assert f'\ndate-released: "{released}"\n' in read("CITATION.cff")


def unsafe(code: str) -> Iterator[str]:
    """Calls in `code` that could run what a file says, as "line: what"."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = ast.unparse(node.func)
        if name in SAFE:
            wanted, value = SAFE[name]
            given = {word.arg: word.value for word in node.keywords}.get(wanted)
            if not isinstance(given, ast.Constant) or given.value is not value:
                yield f"{node.lineno}: {name} without {wanted}={value}"
        elif name.split(".")[0] in LOADERS and name.split(".")[-1] in ("load", "loads", "Unpickler", "open"):
            yield f"{node.lineno}: {name}"


def test_no_file_that_is_read_runs_code():
    found = [
        f"{path.relative_to(ROOT)}:{each}"
        for package in ("sdsd", "sdsd_kernels")
        for path in sorted((ROOT / package).rglob("*.py"))
        for each in unsafe(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=allowed)",
        "numpy.load(path)",
        "pickle.load(file)",
        "joblib.load(path)",
    ],
)
def test_unsafe_reading_is_seen(code):
    assert len(list(unsafe(code))) == 1
    assert list(unsafe("torch.load(path, weights_only=True); np.load(path, allow_pickle=False)")) == []


def test_what_is_kept_loads_without_pickles_of_classes():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    monitor = sdsd.GammaMonitor(model)
    for _ in range(3):
        model(torch.randn(6, 4)).square().mean().backward()
        monitor.step()
        model.zero_grad()
    gram = sdsd.GramAccumulator(8, center=True)
    gram.update(torch.randn(20, 8))
    for kept, again in (
        (monitor, sdsd.GammaMonitor(copy.deepcopy(model))),
        (gram, sdsd.GramAccumulator(8, center=True)),
    ):
        file = io.BytesIO()
        torch.save(kept.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
        assert str(again.state_dict()) == str(kept.state_dict())
