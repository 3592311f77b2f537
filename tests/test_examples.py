"""The examples, made small."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import sdsd

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


@pytest.fixture
def schedule():
    return load("batch_size_schedule")


def test_batch_size_schedule_runs_from_end_to_end(schedule, monkeypatch, capsys):
    for name, value in {"SEEDS": (0,), "TARGET": 0.3, "LARGEST": 64, "AT_ONCE": 16}.items():
        monkeypatch.setattr(schedule, name, value)
    monkeypatch.setattr(sys, "argv", ["batch_size_schedule.py"])
    schedule.main()
    printed = capsys.readouterr().out
    batches = [int(line.split()[3]) for line in printed.splitlines()[1:] if line.endswith("can grow")]
    assert batches == sorted(batches)
    assert batches[0] == schedule.FIRST
    assert batches[-1] > schedule.FIRST
    means = dict(re.findall(r"(\S+)(?: throughout)?: +\d+ steps +([0-9,]+) samples\n", printed))
    assert set(means) == {"scheduled", "8", "64"}  # each reached the target
    assert int(means["scheduled"].replace(",", "")) < int(means["64"].replace(",", ""))


@pytest.mark.parametrize(
    ("verdict", "interval", "batch", "wanted"),
    [
        ("can grow", (100.0, 200.0), 80, 100),  # as far as the lower bound
        ("can grow", (100.0, float("inf")), 80, 100),
        ("can grow", (100.0, 200.0), 20, 40),  # no more than the double
        ("can grow", (1000.0, 2000.0), 200, 256),  # no more than the largest
        ("about right", (50.0, 200.0), 80, 80),
        ("too large", (50.0, 60.0), 80, 80),
        (None, None, 80, 80),
    ],
)
def test_the_schedule_follows_the_lower_bound(schedule, verdict, interval, batch, wanted):
    advice = sdsd.BatchRecommendation(batch, None, interval, verdict, None, 0.95)
    assert schedule.next_batch(advice, batch) == wanted


def test_the_schedule_accumulates_the_gradient_of_the_whole_batch(schedule):
    """37 samples, 16 at once: passes of 16, 16 and 5."""
    images, labels = torch.randn(37, 64, dtype=torch.float64), torch.randint(10, (37,))
    schedule.AT_ONCE = 16
    model = schedule.network(0).double()
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        schedule.backward(model, images, labels)
        stats = monitor.step()
    accumulated = [p.grad for p in model.parameters()]
    loss = torch.nn.functional.cross_entropy(model(images), labels, reduction="none")
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(each, list(model.parameters()), retain_graph=True)])
            for each in loss
        ]
    )
    torch.testing.assert_close(torch.cat([g.flatten() for g in accumulated]), rows.mean(0))
    assert stats.n == 37
    assert stats.noise == pytest.approx(rows.var(0).sum().item(), rel=1e-10)


@pytest.fixture
def norm_layers(monkeypatch):
    example = load("norm_layers")
    for name, value in {"STEPS": 14, "FROM": 6, "APART": 3, "SEEDS": (0,), "ROUNDS": 1}.items():
        monkeypatch.setattr(example, name, value)
    return example


def test_norm_layers_runs_from_end_to_end(norm_layers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["norm_layers.py"])
    norm_layers.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == ["| GPT, LayerNorm", "| CNN, GroupNorm", "| ViT, LayerNorm"]
    assert all(0 < float(row[1].rstrip("%")) < 2 for row in rows)
    assert all(len(row) == 8 for row in rows)


def test_part_is_what_a_monitor_of_the_norm_layers_alone_gives(norm_layers):
    for task in norm_layers.tasks():
        found = {}
        for options in ({}, {"parameters": task.pattern}):
            torch.manual_seed(0)
            model, draw = task.make(), torch.Generator().manual_seed(1)
            with sdsd.GammaMonitor(model, mode="exact", **options) as monitor:
                for _ in range(3):
                    model.zero_grad()
                    norm_layers.backward(model, task.batch(draw))
                    smoothed = monitor.step().smoothed
            found[len(options)] = norm_layers.part(smoothed, task.pattern)
        assert found[0] == pytest.approx(found[1], rel=1e-4)
        assert found[1] == pytest.approx(smoothed.noise_scale, rel=1e-9)
        assert norm_layers.part(smoothed, "no such layer") != found[1]


def test_compare_of_known_noise_scales(norm_layers):
    total = torch.tensor([10.0, 20, 40, 20, 10, 5, 10, 40], dtype=torch.float64).numpy()
    rows = norm_layers.np.stack([total, 0.5 * total], 1)
    rows[3, 1] = float("nan")
    found = norm_layers.compare(rows)
    assert (found["correlation"], found["of changes"], found["ratio"]) == pytest.approx((1, 1, 0.5))
    assert (found["first"], found["last"], found["unseen"]) == pytest.approx((10, 40, 1 / 8))
    assert norm_layers.compare(norm_layers.np.stack([total, 100 / total], 1))["correlation"] == pytest.approx(-1)
