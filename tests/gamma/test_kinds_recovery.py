"""After a refusal the next step is measured; micro-batches; advice that works."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import N, Net, class_loss, numbers, perceptron
from tests.zoo.verdict import float64_default

from .steps import X, Y, assert_right, attempt, message, truth


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        yield


class TestAfterARefusal:
    def test_right_again_in_the_next_step(self):
        """Each of these is refused or right; the ordinary step between them is right every time."""
        model = perceptron()

        def two_forwards():
            (class_loss(model, X, Y) - class_loss(model, 2 * X, Y)).backward()

        def clipped():
            class_loss(model, X, Y).backward()
            for p in model.parameters():
                p.grad.mul_(0.5)

        def penalised():
            (class_loss(model, X, Y) + model[0].weight.square().sum()).backward()

        def interrupted():
            with pytest.raises(RuntimeError):
                class_loss(model, numbers(N, 7), Y).backward()

        def nothing():
            pass

        with sdsd.GammaMonitor(model) as monitor:
            for trouble in (two_forwards, clipped, penalised, interrupted, nothing, two_forwards, nothing):
                model.zero_grad()
                try:
                    trouble()
                    monitor.step()
                except (ValueError, RuntimeError):
                    pass
                model.zero_grad()
                class_loss(model, X, Y).backward()
                stats = monitor.step()
                assert_right(stats, model)

    def test_smoothed_averages_hold_only_what_was_measured(self):
        model, clean = perceptron(), None
        with sdsd.GammaMonitor(model) as monitor:
            for trouble in (False, True, False):
                model.zero_grad()
                class_loss(model, X, Y).backward()
                if trouble:
                    for p in model.parameters():
                        p.grad.add_(1.0)
                    assert getattr(attempt(monitor, model), "kind", "") == "refused"
                else:
                    clean = monitor.step()
        assert clean.smoothed.noise == pytest.approx(clean.noise, rel=1e-9)

    def test_a_step_without_a_backward_pass(self):
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:
            with pytest.raises(RuntimeError, match="backward"):
                monitor.step()
            class_loss(model, X, Y).backward()
            assert_right(monitor.step(), model)

    def test_a_gradient_of_zero_is_no_gradient_of_zero_noise(self):
        """A parameter that nothing reached is told apart from one that was measured as zero."""
        model = Net(lambda m, x: m.used(x), used=nn.Linear(8, 3), unused=nn.Linear(8, 3))
        with sdsd.GammaMonitor(model) as monitor:
            class_loss(model, X, Y).backward()
            stats = monitor.step()
        assert stats.parameters["unused.weight"].signal == stats.parameters["unused.weight"].noise == 0
        assert_right(stats, model)


class TestMicroBatches:
    """Whole backward passes are the samples: what cannot be told apart within one does not matter."""

    def rows(self, model, losses):
        model = copy.deepcopy(model)
        found = []
        for loss in losses:
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(model), list(model.parameters()))]))
        return torch.stack(found)

    def check(self, model, losses):
        G = self.rows(model, losses)
        with sdsd.GammaMonitor(model, mode="micro") as monitor:
            for _ in range(2):
                model.zero_grad()
                for loss in losses:
                    (loss(model) / len(losses)).backward()
                stats = monitor.step()
        assert stats.n == len(losses)
        assert stats.noise == pytest.approx(G.var(0).sum().item(), rel=1e-9)
        assert stats.signal == pytest.approx(G.mean(0).square().sum().item(), rel=1e-9)

    def test_two_forward_passes_before_each_backward_pass(self):
        """SimCLR, siamese networks, D(real) − D(fake)."""

        def contrast(k):
            a, b = numbers(4, 8, seed=k), numbers(4, 8, seed=50 + k)
            return lambda m: F.cross_entropy(m(a) @ m(b).T, torch.arange(4))

        self.check(perceptron(), [contrast(k) for k in range(5)])

    def test_batch_norm(self):
        model = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        self.check(model, [lambda m, k=k: class_loss(m, numbers(N, 8, seed=k), Y) for k in range(5)])

    def test_penalties_and_uses_outside_of_layers(self):
        def loss(k):
            x = numbers(N, 8, seed=k)
            return lambda m: class_loss(m, x, Y) + (F.linear(x, m[0].weight) ** 2).mean() + m[0].weight.square().sum()

        self.check(perceptron(), [loss(k) for k in range(5)])

    def test_never_advises_what_is_already_set(self):
        model = perceptron()
        with sdsd.GammaMonitor(model, mode="micro") as monitor:

            def two_forwards():
                (class_loss(model, X, Y) - class_loss(model, 2 * X, Y)).backward()
                monitor.step()

            assert "mode='micro'" not in message(two_forwards)


class TestAdvice:
    """What a refusal says to do has to work, word for word."""

    def test_batch_norm_in_train_mode_offers_lines_of_code_that_work(self):
        def make():
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(28, 3))

        model = make()
        with pytest.raises(ValueError, match="BatchNorm") as caught:
            sdsd.GammaMonitor(model)
        message = str(caught.value)
        assert "mode='micro'" in message
        code = re.search(r"(sdsd\.)?GammaMonitor\(model, mode='micro'\)", message)
        assert code, f"no line of code to copy in: {message}"
        namespace = {"sdsd": sdsd, "GammaMonitor": sdsd.GammaMonitor, "model": model}
        monitor = eval(code.group(0), namespace)
        for k in range(4):
            (class_loss(model, numbers(N, 2, 9, seed=k), Y) / 4).backward()
        assert monitor.step().n == 4

    def test_parameters_argument_leaves_out_what_is_refused(self):
        model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
        with sdsd.GammaMonitor(model, parameters=["2.*"]) as monitor:
            (class_loss(model, X, Y) + model[0].weight.square().sum()).backward()
            stats = monitor.step()
        assert set(stats.parameters) == {"2.weight", "2.bias"}
        wanted = truth(model)
        assert stats.parameters["2.weight"].noise == pytest.approx(
            wanted["2.weight"].flatten(1).var(0).sum().item(), rel=1e-9
        )
