"""A history's rows in real loggers: what they wrote is read back from their own files."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdsd
from sdsd.integrations.loggers import RowLogger, row_scalars, to_mlflow, to_tensorboard, to_trackio, to_wandb

WITHOUT = "is not installed: make test-integrations"


@pytest.fixture
def history(tmp_path) -> sdsd.GammaHistory:
    """Twelve steps of a model whose gradients are almost nothing but noise, in total and by parameter."""
    model = nn.Sequential(nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(3)
    with sdsd.GammaMonitor(model, history=sdsd.GammaHistory(parameters=True)) as monitor:
        for _ in range(12):
            model.zero_grad()
            x, y = (torch.randn(8, size, generator=generator) for size in (4, 2))
            (model(x) - 3 * y).square().mean().backward()
            monitor.step()
    return monitor.history


def wanted(history: sdsd.GammaHistory, name: str, parameter: str = "total") -> dict[int, float]:
    """A column by step, without what is missing."""
    pairs = zip(history.column("step"), history.column(name, parameter), strict=True)
    return {step: value for step, value in pairs if value is not None and not math.isnan(value)}


def test_the_history_of_these_tests_has_what_loggers_stumble_over(history):
    assert any(map(math.isinf, history.column("noise_scale_high")))
    assert any(map(math.isnan, history.column("noise_scale_high")))
    assert any(map(math.isfinite, history.column("smoothed_noise_scale")))
    assert None in history.column("recommended_batch")


def test_scalars_of_a_row(history):
    scalars = row_scalars(history[-2], "g/")
    assert history[-2]["parameter"] == "0.weight"
    assert scalars["g/0.weight/noise"] == history[-2]["noise"]
    assert all(type(value) is float and not math.isnan(value) for value in scalars.values())
    first = row_scalars(history[0])
    assert "gamma/noise_scale_high" not in first
    assert "gamma/recommended_batch" not in first
    assert first["gamma/batch_size"] == 8


def test_each_step_is_sent_once(history):
    sent: list[tuple[int, int]] = []
    send = RowLogger(lambda scalars, step: sent.append((step, len(scalars))))
    rows = list(history)
    assert send(rows[:9]) == 3
    assert send(rows) == 9
    assert send(rows) == 0
    assert [step for step, _ in sent] == list(range(1, 13))
    assert all(count > 20 for _, count in sent)


def test_tensorboard(history, tmp_path):
    pytest.importorskip("tensorboard", reason=f"TensorBoard {WITHOUT}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        assert RowLogger(to_tensorboard(writer))(history) == 12
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    events.Reload()
    for name in ("noise_scale_high", "smoothed_gamma"):
        found = {event.step: event.value for event in events.Scalars(f"gamma/{name}")}
        assert found == pytest.approx(wanted(history, name), rel=1e-6)
    found = {event.step: event.value for event in events.Scalars("gamma/0.bias/noise")}
    assert found == pytest.approx(wanted(history, "noise", "0.bias"), rel=1e-6)


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline run: after a header of 7 bytes a log of LevelDB's form, in blocks of 32 KiB."""
    data, place, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def finished_run(path: Path, record_type: Any) -> list[Any]:
    """All records of an offline run: its process goes on writing after `finish`, up to a last record that says so."""
    end = time.monotonic() + 60
    while True:
        records = [record_type.FromString(data) for data in wandb_records(path)]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < end, f"{path} was not written to its end: {len(records)} records"
        time.sleep(0.1)


def test_weights_and_biases_offline(history, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason=f"wandb {WITHOUT}")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
    with wandb.init(project="sdsd", dir=tmp_path, mode="offline", settings=settings) as run:
        assert RowLogger(to_wandb(run))(history) == 12
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, dict[int, float]] = {}
    for record in finished_run(path, wandb_internal_pb2.Record):
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            found.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
    for name in ("noise_scale_high", "smoothed_gamma"):
        assert found[f"gamma/{name}"] == pytest.approx(wanted(history, name))
    assert found["gamma/0.bias/noise"] == pytest.approx(wanted(history, "noise", "0.bias"))


def test_mlflow_in_a_folder(history, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases ask for a database otherwise
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow", reason=f"mlflow {WITHOUT}")
    client = mlflow.MlflowClient((tmp_path / "runs").as_uri())
    run_id = client.create_run(client.create_experiment("sdsd")).info.run_id
    assert RowLogger(to_mlflow(run_id, client))(history) == 12

    def read(name: str) -> dict[int, float]:
        return {metric.step: metric.value for metric in client.get_metric_history(run_id, name)}

    high = wanted(history, "noise_scale_high")
    assert read("gamma/noise_scale_high") == {step: value for step, value in high.items() if math.isfinite(value)}
    flags = {step: float(math.isinf(value)) for step, value in high.items()}
    assert read("gamma/noise_scale_high_is_infinite") == flags
    assert read("gamma/0.bias/noise") == wanted(history, "noise", "0.bias")


def test_names_that_mlflow_refuses_are_changed():
    class Client:
        def __init__(self) -> None:
            self.told: list[tuple[Any, ...]] = []

        def log_metric(self, run_id: str, name: str, value: float, step: int) -> None:
            self.told.append((run_id, name, value, step))

    client = Client()
    to_mlflow("r", client)({"gamma/blocks[0].Γ/noise": 2.0}, 3)
    assert client.told == [("r", "gamma/blocks_0_._/noise", 2.0, 3)]


def test_trackio(history, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trackio = pytest.importorskip("trackio", reason=f"trackio {WITHOUT}")
    run = trackio.init(project="sdsd", name="run", embed=False)
    assert RowLogger(to_trackio(run))(history) == 12
    trackio.finish()
    found: dict[str, dict[int, float]] = {}
    with sqlite3.connect(tmp_path / "sdsd.db") as database:
        for step, metrics in database.execute("SELECT step, metrics FROM metrics"):
            for name, value in json.loads(metrics).items():
                found.setdefault(name, {})[step] = math.inf if value == "Infinity" else value
    assert found["gamma/noise_scale_high"] == pytest.approx(wanted(history, "noise_scale_high"))
    assert found["gamma/0.bias/noise"] == pytest.approx(wanted(history, "noise", "0.bias"))
