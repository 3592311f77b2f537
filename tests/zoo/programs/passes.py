"""Backward passes that are not a batch, batches of several passes, and gradients that come from elsewhere."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.parts import N, Net, class_loss, classes, numbers, perceptron
from tests.zoo.verdict import Program

X, Y = numbers(N, 8), classes()
BATCH = r"\b(batch|batches|forward|backward|pass|passes|paused)\b"


def program(step, *, model=perceptron, loss=class_loss, batch=(X, Y), **options):
    return Program(model, batch, loss, step=step, situation=BATCH, **options)


def normal(model):
    class_loss(model, X, Y).backward()


def cleared_then_normal(clear):
    def step(model):
        class_loss(model, 3 * X, Y).backward()
        clear(model)
        normal(model)

    return program(step, measured=True)


def zeroed(model):
    for p in model.parameters():
        p.grad.zero_()


def none_each(model):
    for p in model.parameters():
        p.grad = None


def closures(model):
    """What an LBFGS closure does: gradients cleared and computed again at other points; the last are stepped with."""
    before = [p.detach().clone() for p in model.parameters()]
    for scale in (0.9, 1.1, 1.0):
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(scale * old)
        model.zero_grad()
        normal(model)


def sharpness_aware(model):
    normal(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * p.grad / p.grad.norm())
    model.zero_grad()
    normal(model)


CLEARED = {
    "zero_grad": cleared_then_normal(lambda model: model.zero_grad()),
    "zero_grad(set_to_none=False)": cleared_then_normal(lambda model: model.zero_grad(set_to_none=False)),
    "zeroed in place": cleared_then_normal(zeroed),
    "set to None": cleared_then_normal(none_each),
    "by the optimizer": cleared_then_normal(lambda m: torch.optim.SGD(m.parameters(), 0.1).zero_grad()),
    "a closure called three times": program(closures, measured=True),
    "the second pass of sharpness-aware minimisation": program(sharpness_aware, measured=True),
}


def adversarial(steps, keep=False):
    def step(model):
        x = X.clone()
        for _ in range(steps):
            x = x.detach().requires_grad_()
            loss = class_loss(model, x, Y)
            if keep:
                loss.backward()
                model.zero_grad()
                gradient = x.grad
            else:
                (gradient,) = torch.autograd.grad(loss, x)
            x = (x + 0.1 * gradient.sign()).detach()
        class_loss(model, x, Y).backward()

    def moved(model):
        x = X.clone()
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(class_loss(model, x, Y), x)
            x = (x + 0.1 * gradient.sign()).detach()
        return x

    def contribution(model, i):
        return class_loss(model, moved(model)[i : i + 1], Y[i : i + 1]) / N

    return program(step, contribution=contribution, measured=True)


def saliency(model):
    x = X.clone().requires_grad_()
    class_loss(model, x, Y).backward(inputs=[x])
    normal(model)


def saliency_afterwards(model):
    normal(model)
    x = X.clone().requires_grad_()
    torch.autograd.grad(model(x).max(1).values.sum(), x)


def hidden_gradient(model):
    """GradCAM: the gradient with respect to what a layer puts out."""
    hidden = model[1](model[0](X))
    torch.autograd.grad(model[2](hidden).sum(), hidden)
    normal(model)


INPUTS = {
    "one step against the input (FGSM)": adversarial(1),
    "three steps against the input (PGD)": adversarial(3),
    "against the input by backward(), gradients cleared": adversarial(1, keep=True),
    "saliency by backward(inputs=...)": program(saliency, measured=True),
    "saliency after the batch's backward pass": program(saliency_afterwards, measured=True),
    "the gradient of hidden activations": program(hidden_gradient, measured=True),
}


def two_losses(model):
    out = model(X)
    F.cross_entropy(out, Y).backward(retain_graph=True)
    out.square().mean().backward()


def losses_one_at_a_time(m, i):
    out = m(X[i : i + 1])
    return (F.cross_entropy(out, Y[i : i + 1]) + out.square().mean()) / N


def two_heads():
    return Net(
        lambda m, x: (m.one(h := torch.tanh(m.body(x))), m.two(h)),
        body=nn.Linear(8, 6),
        one=nn.Linear(6, 3),
        two=nn.Linear(6, 2),
    )


def both_heads(model, x, y):
    one, two = model(x)
    return F.cross_entropy(one, y) + two.square().mean()


def heads_apart(model):
    one, two = model(X)
    F.cross_entropy(one, Y).backward(retain_graph=True)
    two.square().mean().backward()


def one_head_only(model):
    one, _ = model(X)
    F.cross_entropy(one, Y).backward()


def twice(model):
    loss = class_loss(model, X, Y)
    loss.backward(retain_graph=True)
    loss.backward()


def joint(model):
    """torch.autograd.backward on several roots."""
    one, two = model(X)
    torch.autograd.backward([F.cross_entropy(one, Y), two.square().mean()])


def gradient_of_outputs(model):
    out = model(X)
    (at_out,) = torch.autograd.grad(F.cross_entropy(out, Y), out, retain_graph=True)
    out.backward(at_out)


RETAINED = {
    "two losses, two backward passes": program(two_losses, contribution=losses_one_at_a_time),
    "two heads, two backward passes": program(heads_apart, model=two_heads, loss=both_heads),
    "two heads, one of them trained": program(
        one_head_only,
        model=two_heads,
        loss=both_heads,
        contribution=lambda m, i: F.cross_entropy(m(X[i : i + 1])[0], Y[i : i + 1]) / N,
        measured=True,
    ),
    "two heads, one backward pass of two roots": program(joint, model=two_heads, loss=both_heads, measured=True),
    "one loss twice": program(twice, contribution=lambda m, i: 2 * class_loss(m, X[i : i + 1], Y[i : i + 1]) / N),
    "the loss's gradient first, then from the outputs on": program(gradient_of_outputs, measured=True),
}


class Segments(nn.Module):
    def __init__(self, frozen: bool):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 3).requires_grad_(not frozen)

    def forward(self, x, how=None):
        for block in self.blocks:
            x = torch.tanh(block(x) if how is None else checkpoint(block, x, **how))
        return self.head(x)


def checkpointed(frozen, **how):
    def step(model):
        F.cross_entropy(model(X.clone().requires_grad_(), how), Y).backward()

    return program(step, model=lambda: Segments(frozen))


class Fails(torch.autograd.Function):
    failing = True

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if Fails.failing:
            raise MemoryError("simulated: out of memory")
        return gradient


def fallible():
    return Net(lambda m, x: m.last(Fails.apply(m.first(x))), first=nn.Linear(8, 5), last=nn.Linear(5, 3))


def out_of_memory(times):
    def step(model):
        for _ in range(times):
            Fails.failing = True
            try:
                normal(model)
            except MemoryError:
                model.zero_grad()
            finally:
                Fails.failing = False
        normal(model)

    return program(step, model=fallible, measured=True)


def failing_forward(model):
    try:
        model(numbers(N, 7))
    except RuntimeError:
        model.zero_grad()
    normal(model)


def given_up(model):
    loss = class_loss(model, X * float("nan"), Y)
    if loss.isnan():
        del loss
    normal(model)


def metrics_with_graph(model):
    model(numbers(4, 8)).argmax(1)
    normal(model)


def metrics_between(model):
    out = model(X)
    model(numbers(4, 8)).argmax(1)
    F.cross_entropy(out, Y).backward()


def evaluated_between(model):
    out = model(X)
    with torch.no_grad():
        model(numbers(4, 8))
    with torch.inference_mode():
        model(numbers(3, 8))
    F.cross_entropy(out, Y).backward()


def teacher_between(model):
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        teacher(X)
    normal(model)


ABANDONED = {
    "out of memory in the backward pass": out_of_memory(1),
    "out of memory three times": out_of_memory(3),
    "an error in the forward pass": program(failing_forward, measured=True),
    "a loss that is NaN, no backward pass": program(given_up, measured=True),
    "outputs for metrics before, with a graph": program(metrics_with_graph),
    "outputs for metrics between, with a graph": program(metrics_between),
    "evaluation between forward and backward": program(evaluated_between, measured=True),
    "a copy of the model as teacher": program(teacher_between, measured=True),
    "reentrant checkpoints, head frozen": checkpointed(True, use_reentrant=True),
    "reentrant checkpoints": checkpointed(False, use_reentrant=True),
    "checkpoints, head frozen": checkpointed(True, use_reentrant=False),
    "checkpoints": checkpointed(False, use_reentrant=False),
}


PROGRAMS = {"cleared": CLEARED, "inputs": INPUTS, "retained": RETAINED, "abandoned": ABANDONED}
