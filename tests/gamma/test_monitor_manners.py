"""What a monitor leaves as it was."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sdsd
from tests.gamma.models import (
    mean_of_squares,
)

from .exact import N, images


class TestManners:
    def test_detach_leaves_no_trace(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Conv1d(4, 2, 1))
        before = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
        monitor = sdsd.GammaMonitor(model)
        assert type(model[0]) is not nn.Linear
        assert isinstance(model[0], nn.Linear)
        monitor.detach()
        monitor.detach()
        for module, kind, entries in before:
            assert type(module) is kind
            assert module.__dict__ == entries
        assert all(not parameter._backward_hooks for parameter in model.parameters())

    def test_what_is_no_model_or_no_loss_is_named(self):
        model = nn.Linear(5, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for given, got in ((optimizer, "SGD"), (model.parameters(), "generator"), (nn.Linear, "the class Linear")):
            with pytest.raises(TypeError, match=f"model: expected an nn.Module, got {got}"):
                sdsd.GammaMonitor(given)
        batch = torch.randn(6, 5), torch.randint(2, (6,))
        with (
            sdsd.GammaMonitor(model) as monitor,
            pytest.raises(TypeError, match="got torch's CrossEntropyLoss, which takes outputs and targets"),
        ):
            monitor.check(nn.CrossEntropyLoss(), batch)

    @pytest.mark.parametrize("mode", ["exact", "micro"])
    def test_a_step_after_detach_says_so(self, mode):
        model = nn.Linear(5, 2)
        monitor = sdsd.GammaMonitor(model, mode=mode)
        monitor.detach()
        model(torch.randn(6, 5)).square().mean().backward()
        with pytest.raises(RuntimeError, match=r"step\(\) after detach\(\)"):
            monitor.step()

    def test_check_leaves_what_a_forward_changes(self):
        class Leaves(nn.Linear):
            def __init__(self):
                super().__init__(3, 2)
                self.calls = 0
                self.register_buffer("queue", torch.zeros(0, 3))

            def forward(self, x):
                self.calls += 1
                self.queue = torch.cat([self.queue, x.detach()[:1]])
                return super().forward(x)

        model = Leaves()
        queue = model.queue
        with sdsd.GammaMonitor(model) as monitor:
            monitor.check(lambda model, x: model(x).square().sum(1).mean(), torch.randn(5, 3))
            assert model.queue is queue
            assert queue.shape == (0, 3)
            assert model.calls == 0

    def test_names_parameters_and_state_are_the_model_s_own(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
        names, text = [name for name, _ in model.named_parameters()], repr(model)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with sdsd.GammaMonitor(model):
            assert [name for name, _ in model.named_parameters()] == names
            assert list(model.state_dict()) == list(state)
            assert repr(model) == text

    @pytest.mark.parametrize(
        "clone",
        [
            copy.deepcopy,
            lambda model: pickle.loads(pickle.dumps(model)),
            lambda model: _saved(model),
        ],
    )
    def test_copies_are_unmonitored(self, clone):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        with sdsd.GammaMonitor(model) as monitor:
            other = clone(model)
            assert all(type(a) is type(b)._sdsd_original for a, b in zip(other.modules(), model.modules(), strict=True))
            assert all("_sdsd" not in key for module in other.modules() for key in module.__dict__)
            assert all(a is not b for a, b in zip(other.parameters(), model.parameters(), strict=True))
            x = torch.randn(N, 5)
            assert torch.equal(other(x), model(x))
            other(x).sum().backward()
            with pytest.raises(RuntimeError, match="needs a backward pass"):
                monitor.step()

    def test_shallow_copy(self):
        model = nn.Linear(5, 4)
        with sdsd.GammaMonitor(model):
            other = copy.copy(model)
        assert type(other) is nn.Linear
        assert "_sdsd_gamma" not in other.__dict__

    def test_two_monitors_are_refused(self):
        model = nn.Sequential(nn.Linear(5, 4))
        with sdsd.GammaMonitor(model), pytest.raises(ValueError, match="watches it already"):
            sdsd.GammaMonitor(model)
        sdsd.GammaMonitor(model).detach()

    def test_a_refused_attachment_leaves_the_model_alone(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
        with pytest.raises(ValueError, match=r"1: BatchNorm in train mode mixes the samples"):
            sdsd.GammaMonitor(model)
        assert type(model[0]) is nn.Linear

    def test_evaluation_in_between(self):
        model, x, y = (
            nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).double(),
            images(5),
            torch.randn(N, dtype=torch.float64),
        )
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            with torch.no_grad():
                model(images(3, 5))
            mean_of_squares(model(x), y).backward()
            first = monitor.step().noise
            model.zero_grad()
            mean_of_squares(model(x), y).backward()
            assert monitor.step().noise == pytest.approx(first, rel=1e-12)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing(self, reentrant):
        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.shared, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)
                self.on = False

            def forward(self, x):
                run = (lambda f, x: checkpoint(f, x, use_reentrant=reentrant)) if self.on else (lambda f, x: f(x))
                x = torch.tanh(self.first(x))
                x = run(lambda x: torch.tanh(self.shared(x)), x)
                return self.last(run(lambda x: torch.tanh(self.shared(x)), x))

        model, x, y = Checkpointed().double(), images(3, 5), torch.randn(N, dtype=torch.float64)
        found = []
        for model.on in (False, True):
            model.zero_grad()
            with sdsd.GammaMonitor(model, mode="exact") as monitor:
                mean_of_squares(model(x), y).backward()
                found.append(monitor.step().noise)
        assert found[0] == pytest.approx(found[1], rel=1e-12)

    def test_checkpointing_keeps_nothing_of_layers_used_once(self, monkeypatch):
        class Once(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.last = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2)

            def forward(self, x):
                return self.last(checkpoint(self.inner, x, use_reentrant=False))

        model, kept = Once(), []
        monkeypatch.setattr("sdsd.gamma.uses.ledger.combine", lambda pieces, *_: kept.append(pieces))
        with sdsd.GammaMonitor(model) as monitor:
            model(torch.randn(N, 5)).square().mean().backward()
            (ledger,) = monitor._session.passes
            assert not kept
            assert len(ledger.squares) == len(list(model.parameters()))

    def test_every(self):
        model, x = nn.Linear(5, 2), torch.randn(N, 5)
        with sdsd.GammaMonitor(model, every=3) as monitor:
            measured = []
            for _ in range(7):
                model.zero_grad()
                model(x).square().mean().backward()
                measured.append(monitor.step() is not None)
        assert measured == [True, False, False, True, False, False, True]

    def test_observers(self):
        model, seen = nn.Linear(5, 2), []
        with sdsd.GammaMonitor(model) as monitor:
            remove = monitor.add_observer(lambda monitor, stats: seen.append((monitor, stats)))
            for _ in range(2):
                model.zero_grad()
                model(torch.randn(N, 5)).square().mean().backward()
                stats = monitor.step()
                remove() if len(seen) == 1 and _ else None
            assert seen[-1] == (monitor, stats)

    def test_a_non_finite_step_is_flagged_and_leaves_the_averages(self):
        model = nn.Linear(5, 2)
        with sdsd.GammaMonitor(model) as monitor:
            for value in (1.0, float("inf"), 1.0):
                model.zero_grad()
                model(torch.ones(N, 5) * value + torch.arange(N)[:, None]).square().mean().backward()
                before = monitor.state_dict()["averages"]
                stats = monitor.step()
                if math.isinf(value):
                    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
                        assert not stats.finite
                    after = monitor.state_dict()["averages"]
                    assert all(torch.equal(*map(torch.as_tensor, (after[key], before[key]))) for key in after)


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)
