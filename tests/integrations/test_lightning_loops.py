"""Lightning as people use it beyond the plain loop: steps left out, modules in parts, checkpoints, Fabric."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdsd
from tests.gamma.models import per_sample_gradients

pytest.importorskip("lightning", reason="Lightning is not installed: make test-integrations")
library = importlib.import_module("lightning.pytorch")

from sdsd.integrations.lightning import GammaCallback  # noqa: E402

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


class Autoencoder(library.LightningModule):
    """Calls its parts, scales by a parameter of its own, logs: what no submodule sees as a whole."""

    def __init__(self, leave_out=()):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(5, 3), nn.Linear(3, 5)
        self.log_scale = nn.Parameter(torch.tensor(0.5))
        self.leave_out, self.seen = leave_out, []

    def training_step(self, batch, index):
        if index in self.leave_out:
            return None
        (x,) = batch
        self.seen.append(({name: p.detach().double().clone() for name, p in self.named_parameters()}, x.double()))
        code = self.encoder(x)
        loss = ((self.decoder(code) - x).square() * self.log_scale.exp()).mean()
        self.log("length", code.norm())
        return {"loss": loss, "code": code.detach()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def by_loop(weights, x):
    """(n, signal, noise), from single samples' gradients in float64."""
    weights = {name: value.requires_grad_() for name, value in weights.items()}
    rows = []
    for one in x:
        code = weights["encoder.weight"] @ one + weights["encoder.bias"]
        again = weights["decoder.weight"] @ code + weights["decoder.bias"]
        loss = ((again - one).square() * weights["log_scale"].exp()).mean()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(weights.values()))]))
    rows = torch.stack(rows)
    return len(rows), rows.mean(0).square().sum().item(), rows.var(0).sum().item()


class Record(library.Callback):
    def __init__(self, gamma):
        self.gamma, self.stats = gamma, []

    def on_train_batch_end(self, *_):
        self.stats.append(self.gamma.stats)


def fit(model, gamma, folder, *, ckpt_path=None, callbacks=(), **options):
    record = Record(gamma)
    trainer = library.Trainer(
        callbacks=[gamma, record, *callbacks],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
    )
    trainer.fit(model, DataLoader(TensorDataset(X), batch_size=4), ckpt_path=ckpt_path)
    return record.stats


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_whole_training_step_is_one_forward_pass(tmp_path, accumulate):
    model = Autoencoder()
    gamma = GammaCallback(whole_step=True, mode="exact")
    found = fit(model, gamma, tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=0.01)
    assert len(model.seen) == len(found) == 6
    for first in range(0, 6, accumulate):
        weights = model.seen[first][0]
        wanted = by_loop(weights, torch.cat([x for _, x in model.seen[first : first + accumulate]]))
        stats = found[first + accumulate - 1]
        assert (stats.n, stats.signal, stats.noise) == pytest.approx(wanted, rel=1e-4)
    assert set(stats.parameters) == set(weights)
    assert "training_step" not in vars(model)


def test_a_module_in_parts_is_told_of_it(tmp_path):
    with pytest.raises(ValueError, match=r"GammaCallback\(whole_step=True\)"):
        fit(Autoencoder(), GammaCallback(mode="exact"), tmp_path)


def test_a_training_step_with_backward_passes_in_it_is_no_forward_pass(tmp_path):
    model = Autoencoder()
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="whole_step: expected automatic optimization.*manual optimization"):
        fit(model, GammaCallback(whole_step=True), tmp_path)
    model = Autoencoder()
    model.training_step = lambda batch, index: None
    with pytest.raises(ValueError, match="whole_step: .*somebody has put in its place"):
        fit(model, GammaCallback(whole_step=True), tmp_path)


@pytest.mark.parametrize("leave_out", [(0, 3), (1, 2, 4, 5)], ids=["the first", "most"])
def test_a_batch_that_training_step_leaves_out_is_no_step(tmp_path, leave_out):
    model, gamma = Autoencoder(leave_out), GammaCallback(whole_step=True, mode="exact")
    found = [stats for index, stats in enumerate(fit(model, gamma, tmp_path)) if index not in leave_out]
    for stats, (weights, x) in zip(found, model.seen, strict=True):
        assert (stats.n, stats.signal, stats.noise) == pytest.approx(by_loop(weights, x), rel=1e-4)
    assert gamma.state_dict()["monitor"]["steps"] == 6 - len(leave_out)


def test_a_history_goes_on_from_a_checkpoint(tmp_path):
    path, checkpoint = tmp_path / "run.jsonl", tmp_path / "some.ckpt"

    class Save(library.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(checkpoint)

    def options():
        return {"whole_step": True, "mode": "exact", "history": path}

    fit(Autoencoder(), GammaCallback(**options()), tmp_path, callbacks=[Save()])
    whole = sdsd.GammaHistory(path).column("signal")
    fit(Autoencoder(), GammaCallback(**options()), tmp_path, ckpt_path=checkpoint, max_epochs=2)
    rows = sdsd.GammaHistory(path)
    assert rows.column("step") == list(range(1, rows[-1]["step"] + 1))
    assert len(rows) > 6
    assert rows.column("signal")[:4] == whole[:4]


def test_averages_of_other_parameters_begin_anew_with_a_warning(tmp_path):
    fit(Autoencoder(), gamma := GammaCallback(whole_step=True, mode="exact"), tmp_path)
    other = GammaCallback(whole_step=True, mode="exact", parameters=["encoder.*"])
    other.load_state_dict(gamma.state_dict())
    with pytest.warns(RuntimeWarning, match="begin anew, those of the checkpoint do not fit: .*other parameters"):
        found = fit(Autoencoder(), other, tmp_path)
    assert found[0].smoothed.noise == pytest.approx(found[0].noise)
    assert other.state_dict()["monitor"]["steps"] == 12


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.filterwarnings("ignore:measured steps run uncompiled")
def test_fabric(precision, compiled):
    """The monitor on what `Fabric.setup` returned, which sets attributes of the model where it is set some."""
    fabric = importlib.import_module("lightning.fabric").Fabric(accelerator="cpu", devices=1, precision=precision)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    kinds = [type(part) for part in net.modules()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model, optimizer = fabric.setup(torch.compile(net, backend="aot_eager") if compiled else net, optimizer)
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        for step in X.split(8):
            wide = copy.deepcopy(net).double()
            for x in step.split(4):  # accumulated
                fabric.backward((model(x) - 1).square().mean() / 2)
            found = monitor.step()
            fabric.clip_gradients(model, optimizer, max_norm=0.01)
            optimizer.step()
            optimizer.zero_grad()
            rows = per_sample_gradients(wide, step.double(), step, lambda out, _: (out - 1).square().mean())
            rows = torch.cat([each.flatten(1) for each in rows.values()], 1)
            wanted = len(rows), rows.mean(0).square().sum().item(), rows.var(0).sum().item()
            assert (found.n, found.signal, found.noise) == pytest.approx(
                wanted, rel=1e-4 if precision == "32-true" else 0.1
            )
            assert set(found.parameters) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert [type(part) for part in net.modules()] == kinds
