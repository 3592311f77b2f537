"""GammaCallback in real Trainers of lightning and pytorch_lightning."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdsd

LIBRARIES = ("lightning.pytorch", "pytorch_lightning")


@pytest.fixture(params=LIBRARIES)
def library(request):
    pytest.importorskip(request.param.split(".")[0], reason="Lightning is not installed: make test-integrations")
    return importlib.import_module(request.param)


def callback_class():
    return importlib.import_module("sdsd.integrations.lightning").GammaCallback


X, Y = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(24, 2)


def module(library, *, call="self", with_forward=True):
    """A LightningModule whose training_step calls itself, or its submodule `net`."""

    class Module(library.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))

        if with_forward:

            def forward(self, x):
                return self.net(x)

        def training_step(self, batch, index):
            x, y = batch
            return (self(x) if call == "self" else self.net(x)).sub(y - 1).square().mean()

        def validation_step(self, batch, index):
            self(batch[0]) if call == "self" else self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    return Module()


def fit(library, model, callback, folder, **options):
    options = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder, **options,
    }  # fmt: skip
    trainer = library.Trainer(callbacks=[callback], **options)
    data = DataLoader(TensorDataset(X, Y), batch_size=4)
    trainer.fit(model, data, DataLoader(TensorDataset(X, Y), batch_size=6))
    return trainer


def by_hand(model, accumulate=1, clip=None):
    """The same training with a monitor of our own."""
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        for step, start in enumerate(range(0, 24, 4), start=1):
            loss = (model(X[start : start + 4]) - (Y[start : start + 4] - 1)).square().mean()
            (loss / accumulate).backward()
            if step % accumulate == 0:
                found.append(monitor.step())
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return found


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (1, 0.01), (2, 0.01), (3, None)])
def test_every_step_is_measured_before_clipping(library, tmp_path, accumulate, clip):
    model = module(library)
    wanted = by_hand(module(library), accumulate, clip)
    callback = callback_class()(mode="exact")
    fit(library, model, callback, tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert callback.monitor is None
    assert callback.stats.n == 4 * accumulate
    assert callback.stats.signal == pytest.approx(wanted[-1].signal, rel=1e-4)
    assert callback.stats.noise == pytest.approx(wanted[-1].noise, rel=1e-4)
    assert callback.stats.smoothed.noise_scale_raw == pytest.approx(wanted[-1].smoothed.noise_scale_raw, rel=1e-3)
    assert not any(name.startswith("_sdsd") for part in model.modules() for name in vars(part))


@pytest.mark.parametrize("named", [True, False])
def test_a_submodule_that_training_step_calls(library, tmp_path, named):
    callback = callback_class()("net" if named else None, mode="exact")
    fit(library, module(library, call="net", with_forward=False), callback, tmp_path)
    assert set(callback.stats.parameters) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert callback.stats.n == 4


@pytest.mark.parametrize("mode", ["exact", "micro"])
def test_a_module_that_is_not_called_is_told(library, tmp_path, mode):
    with pytest.raises(ValueError, match=r"GammaCallback\(module=…\), one of net"):
        fit(library, module(library, call="net"), callback_class()(mode=mode), tmp_path, accumulate_grad_batches=2)


def test_two_optimizers_are_refused(library, tmp_path):
    model = module(library)
    model.automatic_optimization = False
    model.configure_optimizers = lambda: [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(ValueError, match="has 2"):
        fit(library, model, callback_class()(), tmp_path)


def test_values_reach_the_loggers(library, tmp_path):
    logger = importlib.import_module(f"{library.__name__}.loggers").CSVLogger(tmp_path)
    callback = callback_class()(log_every=2, mode="exact")
    fit(library, module(library), callback, tmp_path, logger=logger)
    lines = Path(logger.log_dir, "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("gamma/noise")
    assert sum(bool(line.split(",")[column]) for line in lines[1:]) == 3


def test_bfloat16_autocast(library, tmp_path):
    callback = callback_class()(mode="exact")
    fit(library, module(library), callback, tmp_path, precision="bf16-mixed")
    wanted = by_hand(module(library))[-1]
    assert callback.stats.noise == pytest.approx(wanted.noise, rel=0.1)


def test_averages_go_through_a_checkpoint(library, tmp_path):
    callback = callback_class()(mode="exact")
    trainer = fit(library, module(library), callback, tmp_path)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    resumed = callback_class()(mode="exact")
    again = library.Trainer(
        callbacks=[resumed], max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    again.fit(module(library), DataLoader(TensorDataset(X, Y), batch_size=4), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.state_dict()["monitor"]["steps"] == 12
