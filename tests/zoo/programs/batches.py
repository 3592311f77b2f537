"""Batches of several forward passes, and gradients that do not come from the batch's backward pass alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import N, any_loss, class_loss, classes, numbers
from tests.zoo.programs.passes import X, Y, normal, program


def discriminator_used_by_a_generator(model):
    (-model(numbers(N, 8, seed=9))).mean().backward()
    model.zero_grad()
    any_loss(model, X).backward()


def real_and_fake(model):
    (model(X + 1).square().mean() - model(X).mean()).backward()


def pair_of_batches(m, i):
    return (m(X[i : i + 1] + 1).square().mean() - m(X[i : i + 1]).mean()) / N


def pipelined(model):
    losses = [class_loss(model, X[part], Y[part]) / 2 for part in (slice(0, 3), slice(3, 6))]
    for loss in losses:
        loss.backward()


def accumulated(parts):
    def step(model):
        for part in parts:
            (class_loss(model, X[part], Y[part]) / len(parts)).backward()

    def contribution(model, i):
        size = next(part.stop - part.start for part in parts if part.start <= i < part.stop)
        return class_loss(model, X[i : i + 1], Y[i : i + 1]) / (len(parts) * size)

    return program(step, contribution=contribution, options={"mode": "exact"}, measured=True)


SEVERAL = {
    "a discriminator that a generator used before": program(
        discriminator_used_by_a_generator, loss=any_loss, batch=(X,), measured=True
    ),
    "real and fake, two forward passes": program(
        real_and_fake, model=lambda: nn.Linear(8, 1), loss=any_loss, batch=(X,), contribution=pair_of_batches
    ),
    "two forward passes, then two backward passes": program(pipelined),
    "accumulated over three equal micro-batches": accumulated([slice(0, 2), slice(2, 4), slice(4, 6)]),
    "accumulated over unequal micro-batches": accumulated([slice(0, 3), slice(3, 4), slice(4, 6)]),
    "accumulated over batches of one": accumulated([slice(i, i + 1) for i in range(N)]),
}


def library_pass(model):
    data = [(numbers(8, 8, seed=k), classes(8)) for k in range(3)]
    sdsd.compute_gamma(model, data, lambda m, b: F.cross_entropy(m(b[0]), b[1]), 3)
    normal(model)


def assigned_by_hand(model):
    gradients = torch.autograd.grad(class_loss(model, X, Y), list(model.parameters()))
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g


def changed(how):
    """.grad changed after the backward pass: no longer the sum of what the samples contributed."""

    def step(model):
        normal(model)
        for p in model.parameters():
            how(p)

    return program(step, hopeless=True)


def hooked(model):
    for p in model.parameters():
        p.register_hook(lambda gradient: 0.5 * gradient)
    normal(model)


ELSEWHERE = {
    "compute_gamma on the monitored model": program(library_pass, measured=True),
    "autograd.grad, then .grad by hand": program(assigned_by_hand),
    "clipped before step()": changed(lambda p: p.grad.mul_(0.1)),
    "weight decay in the gradient": changed(lambda p: p.grad.add_(p.detach(), alpha=0.1)),
    "noise in the gradient": changed(lambda p: p.grad.add_(torch.ones_like(p.grad))),
    "replaced by its sign": changed(lambda p: p.grad.sign_()),
    "halved by a hook on the parameter": program(
        # autograd.grad runs the hook too, in the loop over samples.
        hooked,
        permanent=True,
    ),
}

PROGRAMS = {"several": SEVERAL, "elsewhere": ELSEWHERE}
