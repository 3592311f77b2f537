"""Functions of one's own, in Python and in torch.autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import Net, any_loss, parameter
from tests.zoo.programs.common import SEQUENCES, X, linear, of
from tests.zoo.verdict import Program


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return 2 * w

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class LowRank(torch.autograd.Function):
    """A product of parameters alone, with buffers that carry no gradient beside them (as peft's LoHa)."""

    @staticmethod
    def forward(ctx, a, b, scale):
        ctx.save_for_backward(a, b, scale)
        return a @ b * scale

    @staticmethod
    def backward(ctx, gradient):
        a, b, scale = ctx.saved_tensors
        gradient = gradient * scale
        return gradient @ b.T, a.T @ gradient, None


class RoundThrough(torch.autograd.Function):
    """The straight-through estimator of quantisation-aware training."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.strength * gradient, None


class OwnLinear(torch.autograd.Function):
    """Samples and a parameter of their own."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient @ w, gradient.T @ x


class OwnSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


class Binary(torch.autograd.Function):
    """The gradient of the weight clipped where the weight is large; a mask without gradient goes in."""

    @staticmethod
    def forward(ctx, w, mask):
        ctx.save_for_backward(w, mask)
        return w.sign() * mask

    @staticmethod
    def backward(ctx, gradient):
        w, mask = ctx.saved_tensors
        return gradient * mask * (w.abs() < 1), None


class Centred(torch.autograd.Function):
    """Mixes the samples, unseen."""

    @staticmethod
    def forward(ctx, x):
        return x - x.mean(0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient - gradient.mean(0)


def smuggled(m, x):
    """Samples that carry no gradient, and a parameter, in one function."""
    return m.last(F.linear(x, LowRank.apply(m.a, m.b, x.mean())))


FUNCTIONS = {
    "a function of a weight": of(lambda m, x: F.linear(x, Double.apply(m.w)), w=lambda: parameter(3, 8)),
    "a function of parameters and a buffer": Program(
        lambda: with_buffer(lambda m, x: F.linear(x, LowRank.apply(m.a, m.b, m.factor)), factor=torch.tensor(0.7)),
        (SEQUENCES,),
        any_loss,
        measured=True,
    ),
    "a function of a parameter and a mask": Program(
        lambda: with_buffer(lambda m, x: m.last(F.linear(x, Binary.apply(m.c, m.mask))), mask=torch.ones(8, 8).tril()),
        (X,),
        any_loss,
        measured=True,
    ),
    "a function of a parameter and a fresh constant": of(
        lambda m, x: F.linear(x, LowRank.apply(m.a, m.b, torch.tensor(0.7).to(x))),
        a=lambda: parameter(3, 2),
        b=lambda: parameter(2, 8),
    ),
    "weights rounded, straight through": of(
        lambda m, x: F.linear(x, RoundThrough.apply(3 * m.w) / 3), w=lambda: parameter(3, 8)
    ),
    "weights rounded by detach": of(
        lambda m, x: F.linear(x, m.w + (m.w.round() - m.w).detach()), w=lambda: parameter(3, 8)
    ),
    "activations rounded, straight through": of(
        lambda m, x: m.last(RoundThrough.apply(4 * m.first(x))), first=linear(), last=linear(8, 3)
    ),
    "a gradient reversed": of(lambda m, x: m.last(Reversal.apply(m.first(x), 0.3)), first=linear(), last=linear(8, 3)),
    "an activation of one's own": of(
        lambda m, x: m.last(OwnSwish.apply(m.first(x))), SEQUENCES, first=linear(), last=linear(8, 3)
    ),
    "a linear layer of one's own": of(
        lambda m, x: m.last(OwnLinear.apply(x, m.weight)),
        measured=False,
        weight=lambda: parameter(8, 8),
        last=linear(8, 3),
    ),
    "a function that mixes samples": Program(
        lambda: Net(lambda m, x: m.last(Centred.apply(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 3)),
        (X,),
        any_loss,
        hopeless=True,
    ),
    "a script that mixes samples": Program(
        lambda: Net(
            lambda m, x: m.last((h := m.first(x)) + centred_by_script(h)), first=nn.Linear(8, 8), last=nn.Linear(8, 3)
        ),
        (X,),
        any_loss,
        hopeless=True,
    ),
    "a script that mixes samples of the input": Program(
        lambda: Net(
            lambda m, x: m.last(m.first(x) + projected_by_script(x, m.weight)),
            first=nn.Linear(8, 8),
            weight=parameter(8, 8),
            last=nn.Linear(8, 3),
        ),
        (SEQUENCES,),
        any_loss,
        hopeless=True,
    ),
    "samples without gradient beside parameters in a function": Program(
        lambda: Net(smuggled, a=parameter(8, 2), b=parameter(2, 8), last=nn.Linear(8, 3)), (X,), any_loss, hopeless=True
    ),
}


@torch.jit.script
def centred_by_script(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x - x.mean(0))


@torch.jit.script
def projected_by_script(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)) @ weight.t()


def with_buffer(compute, **buffers):
    model = Net(compute, a=parameter(3, 2), b=parameter(2, 8), c=parameter(8, 8), last=nn.Linear(8, 3))
    for name, value in buffers.items():
        model.register_buffer(name, value)
    return model


PROGRAMS = {"own functions": FUNCTIONS}
