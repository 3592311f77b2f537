"""Losses of derivatives, looks at gradients, and what a step that does not prove itself is told to be of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.parts import class_loss, perceptron
from tests.zoo.verdict import float64_default

from .steps import X, Y, message


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        torch.manual_seed(0)
        yield


def residual(model, x):
    """Of Burgers' equation, as a physics-informed network has it: a loss of derivatives of the output."""
    x = x.clone().requires_grad_()
    u = model(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    curvature = torch.autograd.grad(slope[:, 1].sum(), x, create_graph=True)[0][:, 1]
    return (slope[:, 0] + u[:, 0] * slope[:, 1] - 0.01 * curvature).square().mean()


def equation():
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))


def assert_of_micro_batches(stats, gradients):
    """Signal and noise of micro-batches from their gradients, a row each."""
    assert stats.n == len(gradients)
    assert stats.noise == pytest.approx(gradients.var(0).sum().item())
    assert stats.signal == pytest.approx(gradients.mean(0).square().sum().item())


def flat(loss, model):
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.flatten()
            for g, p in zip(gradients, model.parameters(), strict=True)
        ]
    )


class TestLossesOfDerivatives:
    def test_micro_batches_are_measured(self):
        model, twin, x = equation(), equation(), torch.randn(12, 2)
        twin.load_state_dict(model.state_dict())
        with sdsd.GammaMonitor(model, mode="micro") as monitor:
            for _ in range(2):
                model.zero_grad()
                for part in x.chunk(3):
                    (residual(model, part) / 3).backward()
                stats = monitor.step()
        assert_of_micro_batches(stats, torch.stack([flat(residual(twin, part), twin) for part in x.chunk(3)]))

    def test_exact_mode_names_the_mode_that_works(self):
        model = equation()
        with sdsd.GammaMonitor(model) as monitor:
            residual(model, torch.randn(12, 2)).backward()
            said = message(monitor.step)
        assert "does not prove itself" in said
        assert "0.weight" in said
        assert "derivatives of what the model gave" in said
        assert "mode='micro' with two or more backward passes" in said


def test_a_look_at_gradients_is_no_micro_batch():
    """Losses weighted by their gradients' norms: autograd.grad with respect to parameters adds nothing to .grad."""
    model, twin = perceptron(), perceptron()
    twin.load_state_dict(model.state_dict())
    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        for _ in range(2):
            model.zero_grad()
            for x, y in zip(X.chunk(3), Y.chunk(3), strict=True):
                loss = class_loss(model, x, y)
                torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
                (loss / 3).backward()
            stats = monitor.step()
    parts = zip(X.chunk(3), Y.chunk(3), strict=True)
    assert_of_micro_batches(stats, torch.stack([flat(class_loss(twin, x, y), twin) for x, y in parts]))


class TestWhatAnUnprovedStepIsOf:
    def said(self, change):
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:
            class_loss(model, X, Y).backward()
            change(model)
            said = message(monitor.step)
        assert "does not prove itself" in said
        assert "0.weight" in said
        return said

    def test_clipped(self):
        def clip(model):
            whole = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25 * whole)

        assert "Every gradient is 0.25 times what its samples add up to" in self.said(clip)

    def test_a_scaler_that_was_not_given(self):
        model = perceptron()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with sdsd.GammaMonitor(model) as monitor:
            scaler.scale(class_loss(model, X, Y)).backward()
            scaler.unscale_(optimizer)
            said = message(monitor.step)
        assert "0.125 times" in said
        assert "scaler=…" in said

    def test_cleared_to_zeros(self):
        said = self.said(lambda model: model.zero_grad(set_to_none=False))
        assert "Every .grad is 0" in said
        assert "before gradients are cleared" in said
        assert "inf" not in said

    def test_one_alone(self):
        """Where one gradient is of another size it is no scaling of all."""
        said = self.said(lambda model: model[0].weight.grad.mul_(0.5))
        assert "Likely reasons" in said
        assert "times what its samples" not in said
