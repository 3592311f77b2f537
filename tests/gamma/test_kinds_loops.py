"""Loops as people write them: buffers, prefetching, hooks that clip, heads by turns, what is done between passes."""

from __future__ import annotations

import copy
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

import sdsd
from tests.zoo.parts import N, Net, class_loss, classes, numbers, perceptron
from tests.zoo.verdict import compare, float64_default, per_sample

from .test_kinds_later import ON

STEPS = 8


@pytest.fixture(autouse=True)
def double():
    torch.manual_seed(0)
    with float64_default():
        yield


def batch(k, n=N):
    return numbers(n, 8, seed=k), classes(n)


def truth(model, contribution, n=N):
    """Per-sample gradients of a copy of the model, which nobody watches."""
    return per_sample(copy.deepcopy(model), contribution, n)


def right(stats, model, contribution, n=N):
    verdict = compare(stats, truth(model, contribution, n))
    assert verdict.kind == "right", verdict.why


def by_class(x, y):
    return lambda m, i: class_loss(m, x[i : i + 1], y[i : i + 1]) / len(x)


def tied():
    return Net(lambda m, ids: F.linear(torch.tanh(m.emb(ids)).mean(1), m.emb.weight), emb=nn.Embedding(11, 8))


def twice():
    return Net(lambda m, x: m.head(m.body(m.body(x).tanh()).tanh()), body=nn.Linear(8, 8), head=nn.Linear(8, 3))


def words(k):
    return torch.randint(0, 11, (N, 5), generator=torch.Generator().manual_seed(k))


class TestInputsWrittenOver:
    """A buffer takes the next batch before step(), or before the next micro-batch's forward pass."""

    @pytest.mark.parametrize(("make", "draw"), [(tied, words), (twice, lambda k: batch(k)[0])], ids=["tied", "twice"])
    def test_before_the_step(self, make, draw):
        model, buffer = make(), draw(0)
        with sdsd.GammaMonitor(model) as monitor:
            for k in range(4):
                x = buffer.clone()
                model.zero_grad()
                class_loss(model, buffer, classes()).backward()
                buffer.copy_(draw(k + 1))
                right(monitor.step(), model, by_class(x, classes()))

    def test_between_micro_batches(self):
        model, buffer = tied(), torch.empty(3, 5, dtype=torch.long)
        with sdsd.GammaMonitor(model) as monitor:
            for k in range(4):
                ids, y = words(k), classes()
                model.zero_grad()
                for part in (slice(0, 3), slice(3, 6)):
                    buffer.copy_(ids[part])
                    (class_loss(model, buffer, y[part]) / 2).backward()
                right(monitor.step(), model, by_class(ids, y))


class TestPrefetched:
    """The next batch's forward pass runs before this one's step(), or before its backward pass."""

    @pytest.mark.parametrize("early", [True, False], ids=["two in flight", "before the step"])
    @pytest.mark.parametrize("make", [perceptron, twice])
    def test_measured_in_the_step_of_its_backward_pass(self, make, early):
        model = make()
        with sdsd.GammaMonitor(model) as monitor, warnings.catch_warnings():
            warnings.simplefilter("error")
            (x, y) = batch(0)
            loss = class_loss(model, x, y)
            for k in range(1, STEPS):
                later, of = batch(k), by_class(x, y)
                following = class_loss(model, *later) if early else None
                model.zero_grad()
                loss.backward()
                loss, (x, y) = class_loss(model, *later) if following is None else following, later
                right(monitor.step(), model, of)

    def test_pairs(self):
        model = perceptron()

        def pair(m, x, y):
            one, other = m(x), m(x + 0.1)
            return (F.cross_entropy(one, y, reduction="sum") + (one - other).square().sum()) / N

        with sdsd.GammaMonitor(model, batch_size=N) as monitor:
            x, y = batch(0)
            loss = pair(model, x, y)
            for k in range(1, STEPS):
                later = batch(k)
                model(later[0])  # a look, with gradients, from which none come back
                following = pair(model, *later)
                model.zero_grad()
                loss.backward()
                right(monitor.step(), model, lambda m, i, x=x, y=y: pair(m, x[i : i + 1], y[i : i + 1]))
                loss, (x, y) = following, later

    def test_during_a_step_that_is_left_out_it_is_not_seen_and_the_error_says_so(self):
        model = perceptron()
        with sdsd.GammaMonitor(model, every=2) as monitor:
            loss = class_loss(model, *batch(0))
            for k in range(3):
                model.zero_grad()
                loss.backward()
                loss = class_loss(model, *batch(k + 1))
                if k < 2:
                    assert (monitor.step() is None) == (k == 1)
            with pytest.raises(
                RuntimeError, match="ran before the monitor was attached, or during a step that `every`"
            ):
                monitor.step()

    def test_a_graph_of_an_earlier_step_is_no_batch_of_this_one(self):
        model, kept = nn.Linear(8, 3), None
        with sdsd.GammaMonitor(model) as monitor:
            for k in range(ON + 1):
                model.zero_grad()
                loss = class_loss(model, *batch(k))
                (loss if kept is None or k < ON else loss + kept).backward(retain_graph=True)
                kept = loss
                if k < ON:
                    monitor.step()
            with pytest.raises(ValueError, match="one forward pass was followed by several backward passes"):
                monitor.step()


class Heads(nn.Module):
    """Several tasks on one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk, self.heads = nn.Linear(8, 5), nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, x, task):
        return self.heads[task](torch.tanh(self.trunk(x)))


class TestZerosAreNoGradient:
    """zero_grad(set_to_none=False) leaves zeros where nothing came: heads of other tasks, frozen layers."""

    def test_heads_by_turns(self):
        model, y = Heads(), classes()
        with sdsd.GammaMonitor(model) as monitor, warnings.catch_warnings():
            warnings.simplefilter("error")
            for k in range(STEPS):
                x, task = batch(k)[0], k % 3
                model.zero_grad(set_to_none=False)
                F.cross_entropy(model(x, task), y).backward()
                stats, one = (
                    monitor.step(),
                    lambda m, i, x=x, task=task: F.cross_entropy(m(x[i : i + 1], task), y[i : i + 1]),
                )
                right(stats, model, lambda m, i, one=one: one(m, i) / N)

    @pytest.mark.parametrize("at_first", [True, False])
    def test_a_frozen_layer(self, at_first):
        model = perceptron()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        if at_first:
            model[0].requires_grad_(False)
        with sdsd.GammaMonitor(model) as monitor:
            for k in range(STEPS):
                if k == ON:
                    model[0].requires_grad_(False)
                x, y = batch(k)
                model.zero_grad(set_to_none=False)
                class_loss(model, x, y).backward()
                right(monitor.step(), model, by_class(x, y))

    def test_a_gradient_that_was_left_there_is_still_named(self):
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:
            class_loss(model, *batch(0)).backward()
            monitor.step()
            model[0].requires_grad_(False)
            model[2].zero_grad()
            class_loss(model, *batch(1)).backward()
            with pytest.raises(RuntimeError, match=r"0\.weight, 0\.bias have gradients, but no operation"):
                monitor.step()


def scale(p):
    p.grad.mul_(0.5)


def take_away(p):
    p.grad = None


def put_another(p):
    p.grad = 2 * p.grad


class TestBetweenPasses:
    """What is done to .grad between two backward passes of a step, from some step on."""

    @staticmethod
    def step(model, k, between, mode):
        x, y = batch(k)
        model.zero_grad()
        for part in (slice(0, 3), slice(3, 6)):
            (class_loss(model, x[part], y[part]) / 2).backward()
            if part.start == 0:
                between(model)
        if mode == "exact":
            return by_class(x, y), N
        return lambda m, i: class_loss(m, x[3 * i : 3 * i + 3], y[3 * i : 3 * i + 3]) / 2, 2

    @pytest.mark.parametrize("mode", ["exact", "micro"])
    @pytest.mark.parametrize("name", ["0.weight", "2.weight"])
    @pytest.mark.parametrize("change", [scale, take_away, put_another, lambda p: p.grad.zero_()])
    def test_is_seen_at_once(self, change, name, mode):
        model = perceptron()
        with sdsd.GammaMonitor(model, mode=mode) as monitor:
            for k in range(ON):
                of = self.step(model, k, lambda m: None, mode)
                right(monitor.step(), model, *of)
            self.step(model, ON, lambda m: change(m.get_parameter(name)), mode)
            with pytest.warns(UserWarning, match=rf"step skipped: \.grad of {name} was written to after a backward"):
                assert monitor.step() is None
            self.step(model, ON + 1, lambda m: change(m.get_parameter(name)), mode)
            with pytest.raises(ValueError, match=rf"does not prove itself(.|\n)*{name} \("):
                monitor.step()
            of = self.step(model, ON + 2, lambda m: None, mode)
            right(monitor.step(), model, *of)

    @pytest.mark.parametrize("mode", ["exact", "micro"])
    def test_clipping_that_changes_nothing_costs_one_step(self, mode):
        model = perceptron()
        with sdsd.GammaMonitor(model, mode=mode) as monitor:
            for k in range(30):
                clip = (lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e9)) if k >= ON else (lambda m: None)
                of = self.step(model, k, clip, mode)
                if k == ON:
                    with pytest.warns(UserWarning, match="was written to after a backward pass"):
                        assert monitor.step() is None
                else:
                    right(monitor.step(), model, *of)


def on_gradients(model):
    for p in model.parameters():
        p.register_hook(lambda gradient: gradient.clamp(-1, 1))


def after_they_came(model):
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: nn.utils.clip_grad_value_(p, 1))


@pytest.mark.parametrize("mode", ["exact", "micro"])
@pytest.mark.parametrize("clip", [on_gradients, after_they_came])
def test_hooks_that_clip_from_the_first_step_and_bite_later(clip, mode):
    """The first gradients are small, so that these steps prove themselves."""
    model, bites = perceptron(), 12
    with sdsd.GammaMonitor(model, mode=mode) as monitor:
        clip(model)
        for k in range(bites + 1):
            model.zero_grad()
            x, y = batch(k)
            for part in (slice(0, 3), slice(3, 6)):
                (class_loss(model, x[part], y[part]) / 2 * (1 if k < bites else 1000)).backward()
            if k < bites:
                assert monitor.step().n == (N if mode == "exact" else 2)
        with pytest.raises(ValueError, match=r"does not prove itself(.|\n)*0\.weight"):
            monitor.step()


class TestMetric:
    """precondition=: an optimizer whose state goes, or never comes."""

    def test_a_step_without_state_is_none_and_in_no_average(self):
        model = perceptron()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with sdsd.GammaMonitor(model, precondition=optimizer) as monitor:
            for k in range(STEPS):
                optimizer.zero_grad()
                class_loss(model, *batch(k)).backward()
                assert (monitor.step() is None) == (k in (0, ON, ON + 2)), k
                optimizer.step()
                if k == ON - 1:
                    optimizer.state.clear()
                if k == ON + 1:
                    optimizer.state[model[0].weight] = {}

    def test_a_parameter_that_is_never_used_stands_in_no_way(self):
        model = Heads()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        with sdsd.GammaMonitor(model, precondition=optimizer) as monitor:
            for k in range(4):
                optimizer.zero_grad()
                F.cross_entropy(model(batch(k)[0], 1), classes()).backward()
                assert (monitor.step() is None) == (k == 0)
                optimizer.step()


def test_passes_without_a_backward_pass_keep_no_inputs():
    """Looks at other batches with gradients on, and steps that nobody asks about."""
    model, inputs = perceptron(), []
    with sdsd.GammaMonitor(model) as monitor:
        for k in range(20):
            x, y = batch(k)
            inputs.append(weakref.ref(x))
            model.zero_grad()
            (model(x) if k % 2 else class_loss(model, x, y).backward())
        del x
        assert (
            sum(each() is not None for each in inputs) <= 2
        )  # of the last pass that gradients came from, and of the last one
        model.zero_grad()
        class_loss(model, *batch(0)).backward()
        assert monitor.step().n == N


@pytest.mark.parametrize("mode", ["exact", "micro", "auto"])
def test_made_and_asked_in_inference_mode(mode):
    model, passes = perceptron(), 6 if mode == "auto" else 2
    with torch.inference_mode():
        monitor = sdsd.GammaMonitor(model, mode=mode)
    for k in range(4):
        model.zero_grad()
        x, y = batch(k)
        for part in zip(x.chunk(passes), y.chunk(passes), strict=True):
            (class_loss(model, *part) / passes).backward()
        with torch.inference_mode():
            stats = monitor.step()
        assert stats.n == (passes if mode == "micro" or (mode == "auto" and k) else N)
    monitor.detach()


def test_where_warnings_are_errors_the_step_that_switches_counts():
    model = perceptron()
    with sdsd.GammaMonitor(model) as monitor, warnings.catch_warnings():
        warnings.simplefilter("error")
        x, y = batch(0)
        for part in zip(x.chunk(6), y.chunk(6), strict=True):
            (class_loss(model, *part) / 6).backward()
        with pytest.raises(UserWarning, match="from the next one on micro-batches are the samples"):
            monitor.step()
        assert monitor.stats.n == N


def test_a_reentrant_checkpoint_round_the_whole_model_is_named():
    model, (x, y) = perceptron(), batch(0)
    with sdsd.GammaMonitor(model) as monitor:
        F.cross_entropy(checkpoint(model, x.requires_grad_(), use_reentrant=True), y).backward()
        with pytest.raises(RuntimeError, match="the model ran inside the backward pass(.|\n)*use_reentrant=False"):
            monitor.step()
        model.zero_grad()
        F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
        right(monitor.step(), model, by_class(x.detach(), y))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_micro_batches_without_samples(reduction):
    model, (x, y) = perceptron(), batch(0)
    with sdsd.GammaMonitor(model, mode="micro", loss_reduction=reduction) as monitor:
        for part in (slice(0, 3), slice(3, 3), slice(3, 6)):
            F.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
        if reduction == "mean":
            with pytest.raises(ValueError, match="a micro-batch without samples among those of"):
                monitor.step()
            return
        stats = monitor.step()
    rows = truth(model, lambda m, i: class_loss(m, x[3 * i : 3 * i + 3], y[3 * i : 3 * i + 3]) / 2, 2)
    assert compare(stats, rows).kind == "right"
