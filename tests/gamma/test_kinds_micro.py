"""Micro-batches as loops make them: each counted once, with its own size, or the step refused by name."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import Net, class_loss, classes, numbers, perceptron
from tests.zoo.verdict import float64_default

from .steps import message


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        torch.manual_seed(0)
        yield


def batches(*sizes):
    return [(numbers(size, 8, seed=k), classes(size)) for k, size in enumerate(sizes)]


EVEN, UNEVEN = batches(4, 4, 4), batches(4, 2, 6)


def gradient(model, batch, loss=class_loss):
    parts = torch.autograd.grad(loss(model, *batch), list(model.parameters()))
    return torch.cat([g.to_dense().flatten() for g in parts])


def assert_right(stats, model, made, loss=class_loss):
    """Against Σ (b / b̄)‖g‖² − M‖ḡ‖² of gradients computed one by one, ḡ weighted by the sizes."""
    gradients = torch.stack([gradient(model, batch, loss) for batch in made])
    sizes = torch.tensor([float(len(batch[0])) for batch in made])
    mean = (sizes[:, None] * gradients).sum(0) / sizes.sum()
    count = len(made)
    noise = ((sizes / sizes.mean() * gradients.square().sum(1)).sum() - count * mean.square().sum()) / (count - 1)
    assert stats.n == count
    assert stats.noise == pytest.approx(noise.item())
    assert stats.signal == pytest.approx(mean.square().sum().item())


def each(model, made, loss=class_loss):
    for batch in made:
        (loss(model, *batch) / len(made)).backward()


def forwards_first(model, made):
    for loss in [class_loss(model, *batch) / len(made) for batch in made]:
        loss.backward()


def looks_between(model, made):
    for batch in made:
        loss = class_loss(model, *batch) / len(made)
        model(batch[0][:1]).sum()  # another size, with gradients, and no backward pass
        loss.backward()


def fails_and_starts_again(model, made):
    (class_loss(model, *made[0]) / len(made)).backward()
    stopped(model, made[1])
    model.zero_grad()
    each(model, made)


def stopped(model, batch):
    def boom(*_):
        raise KeyboardInterrupt("boom")

    handle = model[0].register_full_backward_hook(boom)
    with pytest.raises(KeyboardInterrupt, match="boom"):
        class_loss(model, batch[0].clone().requires_grad_(), batch[1]).backward()
    handle.remove()


@pytest.mark.parametrize("loop", [each, forwards_first, looks_between, fails_and_starts_again])
@pytest.mark.parametrize("made", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_counted(loop, made):
    model = perceptron()
    twin = copy.deepcopy(model)
    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        for _ in range(2):
            model.zero_grad()
            loop(model, made)
            assert_right(monitor.step(), twin, made)


def test_sparse_gradients_of_uneven_micro_batches():
    def model():
        torch.manual_seed(0)
        table, last = nn.Embedding(11, 4, sparse=True), nn.Linear(4, 3)
        return Net(lambda m, x: m.last(m.table(x).mean(1)), table=table, last=last)

    made = [(torch.arange(5 * size).view(size, 5) % 11, classes(size)) for size in (4, 2, 6)]
    watched = model()
    with sdsd.GammaMonitor(watched, mode="micro") as monitor:
        each(watched, made)
        assert_right(monitor.step(), model(), made)


def goes_on_after_an_exception(model):
    each(model, EVEN[:1])
    stopped(model, EVEN[1])
    each(model, EVEN[2:])


def penalty(model):
    each(model, EVEN)
    (1e-2 * model[2].weight.square().sum()).backward()


def two_losses(model):
    for x, y in EVEN:
        out = model(x)
        F.cross_entropy(out, y).backward(retain_graph=True)
        out.square().mean().backward()


def sizes_apart(model):
    for (x, y), (other, _) in zip(EVEN, UNEVEN[1:], strict=False):
        (F.cross_entropy(model(x), y) + model(other).square().mean()).backward()


def clipped(model):
    each(model, EVEN)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)


def halved(model):
    handle = model[2].weight.register_hook(lambda g: g / 2)
    each(model, EVEN)
    handle.remove()


def never_cleared(model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    each(model, EVEN)


@pytest.mark.parametrize(
    ("loop", "what"),
    [
        (goes_on_after_an_exception, "a backward pass ended in an exception"),
        (penalty, "without coming through a forward pass of the model"),
        (two_losses, "one forward pass was followed by several backward passes"),
        (sizes_apart, r"through forward passes of \[2, 4\] samples"),
        (clipped, "times what its samples add up to"),
        (halved, r"does not prove itself(.|\n)*\n  2\.weight \("),
        (never_cleared, r"does not prove itself(.|\n)*\n  0\.weight \("),
    ],
)
def test_refused_by_name(loop, what):
    """And the next step is measured again."""
    model = perceptron()
    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        loop(model)
        assert re.search(what, message(monitor.step))
        model.zero_grad()
        each(model, EVEN)
        assert_right(monitor.step(), copy.deepcopy(model), EVEN)


def test_gradients_that_stay():
    model = perceptron()
    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        each(model, EVEN)
        monitor.step()
        each(model, EVEN)
        assert "still held the gradient of the step before" in message(monitor.step)


def test_clipping_that_begins_later():
    model = perceptron()
    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        for _ in range(5):
            model.zero_grad()
            each(model, EVEN)
            assert_right(monitor.step(), copy.deepcopy(model), EVEN)
        model.zero_grad()
        clipped(model)
        with pytest.warns(UserWarning, match="was written to after a backward pass"):
            assert monitor.step() is None
        model.zero_grad()
        clipped(model)
        assert "times what its samples add up to" in message(monitor.step)


def test_a_part_called_by_itself():
    """Its samples have to be said: nothing is divided by zero, and no size is taken from another batch."""
    model = perceptron()

    def loop(model):
        for x, y in EVEN:
            (F.cross_entropy(model[2](model[1](model[0](x))), y) / len(EVEN)).backward()

    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        loop(model)
        assert "call the model as a whole; or pass batch_size" in message(monitor.step)
    model.zero_grad()
    with sdsd.GammaMonitor(model, mode="micro", batch_size=4) as monitor:
        loop(model)
        assert_right(monitor.step(), copy.deepcopy(model), EVEN)
