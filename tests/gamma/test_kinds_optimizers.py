"""Loops with more than one optimizer, pass or copy of the weights, and calls from an optimizer's hooks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import sdsd
from tests.zoo.parts import N, class_loss, numbers, perceptron
from tests.zoo.verdict import compare, float64_default, per_sample

from .steps import X, Y, assert_right, attempt, message, truth

REAL = numbers(N, 4)


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        yield


def halves(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    return torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.Adam(model[2].parameters(), 0.1)


class TestSeveralOptimizers:
    def test_together(self):
        model = perceptron()
        optimizers = halves(model)
        with sdsd.GammaMonitor(model) as monitor:
            for _ in range(5):
                class_loss(model, X, Y).backward()
                assert_right(monitor.step(), model)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()

    @pytest.mark.parametrize("frozen", [False, True])
    def test_by_turns(self, frozen):
        """Each step is of one half; the other's gradient is there as well, or it is frozen for that long."""
        model = perceptron()
        optimizers = halves(model)
        with sdsd.GammaMonitor(model) as monitor:
            for k in range(6):
                if frozen:
                    model[0].requires_grad_(k % 2 == 0)
                    model[2].requires_grad_(k % 2 == 1)
                class_loss(model, X, Y).backward()
                verdict = compare(monitor.step(), truth(model))
                assert verdict.kind == "right", verdict.why
                optimizers[k % 2].step()
                model.zero_grad()

    def test_by_turns_where_each_clears_its_own(self):
        """The half that had no turn keeps a gradient of weights that are gone."""
        model = perceptron()
        optimizers = halves(model)
        with sdsd.GammaMonitor(model) as monitor:
            for k in range(4):
                optimizer = optimizers[k % 2]
                optimizer.zero_grad()
                class_loss(model, X, Y).backward()
                verdict = attempt(monitor, model)
                if k:
                    assert "still held the gradient of the step before" in verdict.why
                    assert "of every optimizer of the model" in verdict.why
                else:
                    assert_right(verdict, model)
                optimizer.step()

    def test_the_metric_of_one_is_refused(self):
        model = perceptron()
        optimizer = torch.optim.Adam(model[0].parameters())
        says = message(lambda: sdsd.GammaMonitor(model, precondition=optimizer))
        assert "does not hold 2.weight" in says
        assert "give each a monitor" in says


def judged(scores: Tensor, real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))


def critic_loss(gan: nn.ModuleDict, noise: Tensor, real: Tensor) -> Tensor:
    return judged(gan["critic"](real), True) + judged(gan["critic"](gan["generator"](noise).detach()), False)


def generator_loss(gan: nn.ModuleDict, noise: Tensor, real: Tensor) -> Tensor:
    return judged(gan["critic"](gan["generator"](noise)), True)


class TestAdversaries:
    @pytest.fixture
    def gan(self):
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
        return nn.ModuleDict({"generator": generator, "critic": nn.Linear(4, 1)})

    @pytest.mark.parametrize("none", [True, False])
    def test_one_monitor_of_both(self, gan, none):
        """Right of every step, each with a loss of its own."""
        optimizers = [torch.optim.SGD(gan[part].parameters(), 0.1) for part in ("critic", "generator")]
        with sdsd.GammaMonitor(gan) as monitor:
            for _ in range(3):
                for optimizer, loss in zip(optimizers, (critic_loss, generator_loss), strict=True):
                    gan.zero_grad(set_to_none=none)
                    monitor.forward(loss, gan, X, REAL).backward()
                    stats = monitor.step()

                    def one(each: nn.Module, i: int, loss=loss) -> Tensor:
                        return loss(each, X[i : i + 1], REAL[i : i + 1]) / N

                    other = copy.deepcopy(gan)
                    other.zero_grad()
                    verdict = compare(stats, per_sample(other, one, N))
                    assert verdict.kind == "right", verdict.why
                    optimizer.step()


class TestSeveralPasses:
    @pytest.mark.parametrize("inside", [True, False])
    def test_lbfgs(self, inside):
        """step() in the closure is of every evaluation, after the optimizer's step of the last."""
        model = perceptron()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        with sdsd.GammaMonitor(model) as monitor:

            def closure():
                closure.weights = copy.deepcopy(model)
                optimizer.zero_grad()
                loss = class_loss(model, X, Y)
                loss.backward()
                if inside:
                    assert_right(monitor.step(), model)
                return loss

            for _ in range(3):
                optimizer.step(closure)
                if not inside:
                    assert_right(monitor.step(), closure.weights)
        assert monitor.steps == (12 if inside else 3)

    @pytest.mark.parametrize("after", [False, True])
    def test_sharpness_aware(self, after):
        """Of the first pass, with the second one paused; or of the second one, at the weights that were moved to."""
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with sdsd.GammaMonitor(model) as monitor:
            for _ in range(4):
                class_loss(model, X, Y).backward()
                if not after:
                    assert_right(monitor.step(), model)
                with torch.no_grad():
                    moves = [0.05 * parameter.grad for parameter in model.parameters()]
                    torch._foreach_add_(list(model.parameters()), moves)
                optimizer.zero_grad()
                moved = copy.deepcopy(model)
                if after:
                    class_loss(model, X, Y).backward()
                    assert_right(monitor.step(), moved)
                else:
                    with monitor.paused():
                        class_loss(model, X, Y).backward()
                with torch.no_grad():
                    torch._foreach_sub_(list(model.parameters()), moves)
                optimizer.step()
                optimizer.zero_grad()


class TestCopiesOfTheWeights:
    @pytest.mark.parametrize("attached_first", [True, False])
    def test_a_moving_average(self, attached_first):
        """The copy is not watched, and runs between the steps as it likes."""
        model = perceptron()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        average = None if attached_first else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        with sdsd.GammaMonitor(model) as monitor:
            average = average or AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            assert type(average.module[0]) is nn.Linear
            for _ in range(4):
                class_loss(model, X, Y).backward()
                assert_right(monitor.step(), model)
                optimizer.step()
                optimizer.zero_grad()
                average.update_parameters(model)
                class_loss(average, X, Y).backward()

    def test_update_bn(self):
        """Of the average and of the model itself, which it puts into train mode and back."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
        average = AveragedModel(model)
        with sdsd.GammaMonitor(model) as monitor:
            for _ in range(4):
                class_loss(model, X, Y).backward()
                assert_right(monitor.step(), model)
                model.zero_grad()
                average.update_parameters(model)
                update_bn([X[:3], X[3:]], average)
                update_bn([2 * X[:3], X[3:]], model)


@pytest.mark.parametrize("hook", ["register_step_pre_hook", "register_step_post_hook"])
def test_step_in_a_hook_of_the_optimizer(hook):
    """Weight decay and momentum leave .grad as it was; the weights are others by then, which nothing asks for."""
    model, stats = perceptron(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    with sdsd.GammaMonitor(model) as monitor:
        getattr(optimizer, hook)(lambda *_: stats.append(monitor.step()))
        for _ in range(4):
            rows = truth(model)
            class_loss(model, X, Y).backward()
            optimizer.step()
            assert compare(stats[-1], rows).kind == "right"
            optimizer.zero_grad()


@pytest.mark.parametrize("cleared", [True, False])
def test_an_optimizer_inside_the_backward_pass(cleared):
    """Its gradients are gone when step() is called; where they are left, they are the batch's."""
    model = perceptron()
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], 0.1)

        def step(_: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            if cleared:
                optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    with sdsd.GammaMonitor(model) as monitor:
        for _ in range(3):
            model.zero_grad()
            rows = truth(model) if not cleared else None
            class_loss(model, X, Y).backward()
            if cleared:
                assert "measured, but .grad is None" in message(monitor.step)
            else:
                assert compare(monitor.step(), rows).kind == "right"


def test_data_parallel_on_a_cpu():
    """It calls the module."""
    model = perceptron()
    parallel = nn.DataParallel(model)
    for watched in (parallel, model):
        with sdsd.GammaMonitor(watched) as monitor:
            for _ in range(3):
                parallel.zero_grad()
                class_loss(parallel, X, Y).backward()
                assert_right(monitor.step(), model)
