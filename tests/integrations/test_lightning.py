"""GammaCallback in real Trainers of lightning and pytorch_lightning."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
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
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        **options,
    }
    trainer = library.Trainer(callbacks=callback if isinstance(callback, list) else [callback], **options)
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


def two_optimizers(library, *, toggle=True, clip=False):
    """A GAN whose batches and weights are kept at each step of the critic and of the generator."""

    class Gan(library.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5))
            self.critic = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
            self.seen = []

        def keep(self, step, *inputs):
            self.seen.append((step, {k: v.double().clone() for k, v in self.state_dict().items()}, inputs))

        def training_step(self, batch, index):
            real, z = batch[0], torch.randn(len(batch[0]), 3)
            generator, critic = self.optimizers()
            if toggle:
                self.toggle_optimizer(generator)
            self.keep("generator", z)
            generator.zero_grad()
            self.manual_backward(softplus(-self.critic(self.generator(z))).mean())
            generator.step()
            if toggle:
                self.untoggle_optimizer(generator)
                self.toggle_optimizer(critic)
            critic.zero_grad()
            fake = self.generator(z).detach()
            self.keep("critic", real, fake)
            self.manual_backward(softplus(-self.critic(real)).mean() + softplus(self.critic(fake)).mean())
            if clip:
                self.clip_gradients(critic, gradient_clip_val=1e-3)
            critic.step()
            if toggle:
                self.untoggle_optimizer(critic)
            else:
                critic.zero_grad()  # the generator's pass is to find no gradient of this step

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.generator, self.critic)]

    torch.manual_seed(0)
    return Gan()


def loss_of(step, parts, inputs):
    generator, critic = nets(parts, "generator"), nets(parts, "critic")
    if step == "generator":
        return softplus(-critic(generator(inputs[0]))).mean()
    return softplus(-critic(inputs[0])).mean() + softplus(critic(inputs[1])).mean()


def nets(weights, name):
    w = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(name)}
    return lambda x: torch.tanh(x @ w["0.weight"].T + w["0.bias"]) @ w["2.weight"].T + w["2.bias"]


def by_loop(seen, step):
    """(signal, noise) of each step of one optimizer, from single samples' gradients in float64."""
    found = []
    for _, weights, inputs in (each for each in seen if each[0] == step):
        own = {key: value.requires_grad_(key.startswith(step)) for key, value in weights.items()}
        rows = []
        for sample in zip(*inputs, strict=True):
            loss = loss_of(step, own, [each[None].double() for each in sample])
            grads = torch.autograd.grad(loss, [p for p in own.values() if p.requires_grad])
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        rows = torch.stack(rows)
        found.append((rows.mean(0).square().sum().item(), rows.var(0).sum().item()))
    return found


@pytest.mark.parametrize("toggle", [True, False], ids=["toggled", "not toggled"])
def test_two_optimizers_with_a_callback_each(library, tmp_path, toggle):
    """Steps of a GAN's two optimizers against loops over samples; the critic's two passes are of the same samples."""
    kind = callback_class()
    of_generator = kind("generator", optimizer=0, mode="exact", prefix="g/")
    of_critic = kind("critic", optimizer=1, mode="exact", prefix="c/", batch_size=4)
    model = two_optimizers(library, toggle=toggle)
    record = {"generator": [], "critic": []}

    class Record(library.Callback):
        def on_train_batch_end(self, *_):
            for name, callback in (("generator", of_generator), ("critic", of_critic)):
                record[name].append((callback.stats.signal, callback.stats.noise))

    fit(library, model, [of_generator, of_critic, Record()], tmp_path)
    for name, callback in (("generator", of_generator), ("critic", of_critic)):
        wanted = by_loop(model.seen, name)
        assert len(wanted) == len(record[name]) == 6
        for found, true in zip(record[name], wanted, strict=True):
            assert found == pytest.approx(true, rel=1e-4)
        assert set(callback.stats.parameters) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert callback.stats.n == 4
    assert of_generator.state_key != of_critic.state_key


def test_parameters_of_another_optimizer_are_not_measured(library, tmp_path):
    model = module(library)
    model.automatic_optimization = False
    body, head = model.net[0], model.net[2]
    model.configure_optimizers = lambda: [torch.optim.SGD(part.parameters(), lr=0.1) for part in (body, head)]

    def training_step(batch, batch_idx):
        for optimizer in model.optimizers():
            optimizer.zero_grad()
        model.manual_backward((model(batch[0]) - 1).square().mean())
        for optimizer in model.optimizers():
            optimizer.step()

    model.training_step = training_step
    callback = callback_class()(optimizer=1, mode="exact")
    fit(library, model, callback, tmp_path)
    assert set(callback.stats.parameters) == {"net.2.weight", "net.2.bias"}
    assert callback.state_dict()["steps"] == 6


def test_manual_clipping_before_the_step_is_refused(library, tmp_path):
    with pytest.raises(ValueError, match=r"call step\(\) before gradients are clipped"):
        fit(
            library,
            two_optimizers(library, clip=True),
            callback_class()("critic", optimizer=1, mode="exact", batch_size=4),
            tmp_path,
        )


def test_which_of_two_optimizers_has_to_be_said(library, tmp_path):
    kind = callback_class()
    for callbacks, message in (
        ([kind()], "this module has 2. Say which.*optimizer=0"),
        ([kind("critic", optimizer=2)], "index from 0 to 1.*got 2"),
        ([kind("critic", optimizer=True)], "index from 0 to 1.*got True"),
        ([kind("critic", optimizer=0)], "optimizer 0 holds no parameter of the watched module"),
        ([kind("generator", optimizer=0), kind("critic", optimizer=1)], "two of them log under 'gamma/'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(library, two_optimizers(library), callbacks, tmp_path)
    with pytest.raises(ValueError, match="index from 0 to 0"):
        fit(library, module(library), kind(optimizer=1), tmp_path)


def test_deepspeed_is_refused(library, tmp_path):
    """By the strategy's name: the library need not be there."""
    strategies = importlib.import_module(f"{library.__name__}.strategies")
    named = type("DeepSpeedStrategy", (strategies.SingleDeviceStrategy,), {})
    with pytest.raises(ValueError, match="DeepSpeed keeps gradients to itself. Train with DDP or FSDP2"):
        fit(library, module(library), callback_class()(), tmp_path, strategy=named("cpu"))


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
        callbacks=[resumed],
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    again.fit(module(library), DataLoader(TensorDataset(X, Y), batch_size=4), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.state_dict()["monitor"]["steps"] == 12
