"""The examples, made small."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

FOLDER = Path(__file__).resolve().parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def batch_size():
    return load("batch_size")


def test_batch_size_runs_from_end_to_end(batch_size, monkeypatch, tmp_path, capsys):
    for name, value in {
        "STEPS": 20,
        "SHOWN": (1, 10, 20),
        "BATCHES": (32, 256),
        "RATES": (0.8,),
        "SEEDS": (0,),
    }.items():
        monkeypatch.setattr(batch_size, name, value)
    monkeypatch.setattr(batch_size, "SETTLE_AFTER", (0,))
    monkeypatch.setattr(sys, "argv", ["batch_size.py", "--out", str(tmp_path)])
    batch_size.main()
    assert {path.name for path in tmp_path.iterdir()} == {"batch-size.png", "batch_size.json"}
    printed = capsys.readouterr().out
    assert "step  20: loss" in printed
    assert "batch  256" in printed


def test_critical_batch_of_a_known_curve(batch_size):
    rows = [{"batch": batch, "steps": {0.2: 30 * (1 + 50 / batch)}} for batch in (8, 32, 128)]
    assert batch_size.critical_batch(rows, 0.2) == pytest.approx((30, 50))


def test_geometric_regulariser_runs_from_end_to_end(monkeypatch, tmp_path, capsys):
    example = load("geometric_regulariser")
    for name, value in {"STRENGTHS": (0.0, 0.3), "SEEDS": (0,), "EPOCHS": 3, "ALONE_STEPS": 60}.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr(sys, "argv", ["geometric_regulariser.py", "--out", str(tmp_path)])
    example.main()
    assert [path.name for path in tmp_path.iterdir()] == ["geometric-regulariser.png"]
    printed = capsys.readouterr().out
    entropies = [float(value) for value in re.findall(r"H_G ([0-9.]+),", printed)]
    assert entropies[1] < entropies[0]  # the regulariser does to H_G what it says
    assert "L_geom alone" in printed
