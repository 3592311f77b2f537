"""Parameters inside what nobody can look into are named with it, and the line of code that the error offers works."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.parts import N, any_loss, numbers, parameter
from tests.zoo.verdict import compare, per_sample

from .test_kinds_sequences import Net

X = numbers(N, 8).double()


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum(0)


class ScaledAnew(torch.autograd.Function):
    """With the context set up apart."""

    @staticmethod
    def forward(x, scale):
        return x * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    backward = Scaled.backward


def made(function):
    torch.manual_seed(0)
    return Net(
        lambda m, x: m.last(function.apply(m.first(x), m.scale)),
        first=nn.Linear(8, 8),
        last=nn.Linear(8, 3),
        scale=parameter(8),
    ).double()


@pytest.mark.parametrize("function", [Scaled, ScaledAnew])
def test_a_function_of_the_users_is_named_with_a_line_that_works(function):
    model = made(function)
    monitor = sdsd.GammaMonitor(model)
    any_loss(model, X).backward()
    with pytest.raises(
        RuntimeError, match=rf"^scale: read inside {function.__name__}, an autograd\.Function"
    ) as caught:
        monitor.step()
    monitor.detach()
    line = re.search(r"^  monitor = (.*)$", str(caught.value), re.MULTILINE)
    monitor = eval(line[1], {"sdsd": sdsd, "model": model})
    model.zero_grad()
    any_loss(model, X).backward()
    stats = monitor.step()
    rows = per_sample(copy.deepcopy(model), lambda m, i: any_loss(m, X[i : i + 1]) / N, N)
    rows.pop("scale")
    assert compare(stats, rows).kind == "right"


@pytest.mark.parametrize("function", [Scaled, ScaledAnew])
def test_where_nothing_else_trains(function):
    model = Net(lambda m, x: function.apply(x, m.scale), scale=parameter(8)).double()
    monitor = sdsd.GammaMonitor(model)
    for _ in range(2):
        model.zero_grad()
        any_loss(model, X).backward()
        with pytest.raises(RuntimeError, match=rf"(?s)^scale: read inside {function.__name__}, .*mode='micro'"):
            monitor.step()


def test_a_function_of_samples_alone_is_not_named():
    model = Net(
        lambda m, x: m.last(Scaled.apply(m.first(x), torch.ones(8).double())),
        first=nn.Linear(8, 8),
        last=nn.Linear(8, 3),
    ).double()
    monitor = sdsd.GammaMonitor(model)
    any_loss(model, X).backward()
    rows = per_sample(copy.deepcopy(model), lambda m, i: any_loss(m, X[i : i + 1]) / N, N)
    assert compare(monitor.step(), rows).kind == "right"


MEMORY = {
    "empty": lambda x: torch.empty(x.shape, dtype=x.dtype),
    "filled": lambda x: torch.empty(x.shape, dtype=x.dtype).fill_(-1.0),
    "zeroed": lambda x: torch.empty(x.shape, dtype=x.dtype).zero_(),
    "written": lambda x: torch.empty(x.shape, dtype=x.dtype).index_fill_(0, torch.arange(N), 0.0),
    "full": lambda x: torch.full(x.shape, -1.0, dtype=x.dtype),
    "like": lambda x: torch.full_like(x, -1.0),
    "computed": lambda x: torch.ones(x.shape, dtype=x.dtype) * 2,
}


@pytest.mark.parametrize("memory", MEMORY)
def test_a_kernel_of_the_users_mixes_samples_whatever_its_output_was_made_with(memory):
    """Added to its input, its output must not pass for a constant."""

    class Centered(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            out = MEMORY[memory](x)
            with torch._C.DisableTorchFunction():  # out of sight, as a kernel's launch is
                return out.copy_(x - x.mean(0))

        @staticmethod
        def backward(ctx, gradient):
            return gradient - gradient.mean(0)

    first, last = nn.Linear(8, 8), nn.Linear(8, 3)
    model = Net(lambda m, x: m.last(m.first(x) + Centered.apply(m.first(x))), first=first, last=last).double()
    monitor = sdsd.GammaMonitor(model)
    any_loss(model, X).backward()
    with pytest.raises(ValueError, match=r"last\.weight.*CenteredBackward, a function whose inside"):
        monitor.step()


def one(m, x):
    return m.last(torch.tanh(m.first(x)))


TRANSFORMS = {
    "vmap": lambda m, x: torch.func.vmap(lambda row: one(m, row))(x),
    "vmap, torch.func.grad": lambda m, x: torch.func.vmap(torch.func.grad(lambda row: one(m, row).sum()))(x),
    "jvp": lambda m, x: torch.func.jvp(lambda x: one(m, x), (x,), (torch.ones_like(x),))[1],
}


@pytest.mark.parametrize("names", TRANSFORMS)
def test_transforms_are_named_with_what_to_do(names):
    model = Net(TRANSFORMS[names], first=nn.Linear(8, 8), last=nn.Linear(8, 3)).double()
    monitor = sdsd.GammaMonitor(model)
    any_loss(model, X).backward()
    with pytest.raises(ValueError, match=rf"first\.weight.*inside torch\.func\.{names}\. .*call the layer with all"):
        monitor.step()
    model.compute = one  # vmap(layer)(x) is layer(x)
    model.zero_grad()
    any_loss(model, X).backward()
    rows = per_sample(copy.deepcopy(model), lambda m, i: any_loss(m, X[i : i + 1]) / N, N)
    assert compare(monitor.step(), rows).kind == "right"
