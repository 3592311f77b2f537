"""Statistics as plain scalars, TensorBoard, and what is said where a library is missing."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import sdsd
from sdsd._extras import MissingExtraError
from sdsd.integrations import scalars, write_scalars
from sdsd.integrations.loggers import to_tensorboard


def steps(count):
    model = nn.Linear(4, 2)
    found = []
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        for _ in range(count):
            model.zero_grad()
            (model(torch.randn(8, 4)) - 1).square().mean().backward()
            found.append(monitor.step())
    return found


def test_every_value_is_a_float_under_its_name():
    first, *_, last = steps(4)
    values = scalars(last)
    assert all(type(value) is float for value in values.values())
    assert values["gamma/noise_scale"] == last.noise_scale
    assert values["gamma/batch_size"] == 8
    assert values["gamma/smoothed/gamma_unbiased"] == last.smoothed.gamma_unbiased
    low, high = last.smoothed.interval
    assert (values["gamma/smoothed/gamma_low"], values["gamma/smoothed/gamma_high"]) == (low, high)
    assert "gamma/smoothed/gamma_low" not in scalars(first)
    assert set(scalars(last, "")) == {name.removeprefix("gamma/") for name in values}


def test_of_every_parameter():
    last = steps(3)[-1]
    values = scalars(last, "g/", parameters=True)
    assert values["g/noise_scale/weight"] == last.parameters["weight"].smoothed.noise_scale
    assert "g/gamma_unbiased/bias" in values


def test_of_saved_gradients():
    values = scalars(sdsd.gamma_stats(torch.randn(20, 3) + 1, confidence=0.9))
    assert values["gamma/gamma_low"] < values["gamma/gamma_unbiased"] < values["gamma/gamma_high"]
    assert not any("smoothed" in name for name in values)


def test_a_summary_writer_gets_them(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: make test-integrations")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    found = steps(3)
    with SummaryWriter(tmp_path) as writer:
        for step, stats in enumerate(found):
            write_scalars(writer, stats, step)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    written = events.Scalars("gamma/smoothed/noise")
    assert [event.step for event in written] == [0, 1, 2]
    assert written[-1].value == pytest.approx(found[-1].smoothed.noise)
    assert math.isfinite(events.Scalars("gamma/batch_size")[0].value)


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_a_missing_library_is_named(monkeypatch, library):
    for module in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"sdsd.integrations.{library}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"needs {library}.*pip install '(\.|sdsd)\[integrations\]"):
        __import__(f"sdsd.integrations.{library}")


def test_import_sdsd_loads_none_of_them():
    code = (
        "import sys, sdsd, sdsd.integrations; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('lightning', 'pytorch_lightning', 'transformers', 'accelerate', 'tensorboard', 'wandb')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_whatever_has_add_scalar_gets_them():
    class Writer:
        def __init__(self):
            self.written = {}

        def add_scalar(self, name, value, step):
            self.written[name, step] = value

    writer, last = Writer(), steps(3)[-1]
    write_scalars(writer, last, 7, "run/", parameters=True)
    assert writer.written == {(name, 7): value for name, value in scalars(last, "run/", parameters=True).items()}
    assert ("run/noise_scale/weight", 7) in writer.written
    to_tensorboard(writer)({"a": 1.0}, 8)
    assert writer.written["a", 8] == 1.0
