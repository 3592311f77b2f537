"""Operands that all samples share beside operands with a row for each: a matrix may be as high as the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tests.zoo.parts import Net, numbers, parameter
from tests.zoo.verdict import Program, judge

N = 4


def losses(y):
    return ((y.reshape(N, -1) * torch.cos(torch.arange(y[0].numel()))).sum(1) - 1).square()


def program(compute, d, **shapes):
    """A sample's contribution is its part of the whole batch's loss, for rows of parameters are of samples by place."""
    batch = (numbers(N, d),)
    return Program(
        lambda: Net(compute, **{name: parameter(*shape) for name, shape in shapes.items()}),
        batch,
        lambda m, x: losses(m(x)).mean(),
        contribution=lambda m, i: losses(m(batch[0]))[i] / N,
        measured=True,
    )


def ids(x):
    return (3 * x.detach().abs()).long() % 3


def samples_and_places(x):
    return torch.arange(N).view(N, 1).to(x), torch.arange(x.shape[1]).to(x)


CASES = {
    "addmm with a row each": (lambda m, x: torch.addmm(m.p, x, m.w), lambda d: {"p": (N, 2), "w": (d, 2)}),
    "einsum of three": (
        lambda m, x: torch.einsum("nd,do,no->no", x, m.w, m.p),
        lambda d: {"p": (N, 2), "w": (d, 2)},
    ),
    "einsum of three, one expanded": (
        lambda m, x: torch.einsum("nd,do,no->no", x, m.w.expand(x.shape[1], 2), m.p),
        lambda d: {"p": (N, 2), "w": (1, 2)},
    ),
    "read in a sample's own row": (lambda m, x: m.p.gather(1, ids(x)), lambda d: {"p": (N, 5)}),
    "added to by index, expanded": (lambda m, x: x.scatter_add(1, ids(x), m.p.expand_as(x)), lambda d: {"p": (d,)}),
    "one parameter in two places": (lambda m, x: torch.addcmul(x, m.p, m.p), lambda d: {"p": (d,)}),
    "rows in two places": (lambda m, x: torch.lerp(x, m.p, m.p), lambda d: {"p": (N, d)}),
    "a row each and one for all": (lambda m, x: torch.addcmul(x, m.p, m.q), lambda d: {"p": (N, 1), "q": (d,)}),
    "rows behind another dimension": (
        lambda m, x: torch.hypot(torch.stack([x, x.sin()]), m.p).transpose(0, 1),
        lambda d: {"p": (N, d)},
    ),
    "expanded to the samples": (
        lambda m, x: torch.bmm(x.unsqueeze(1), m.p.expand(N, x.shape[1], 2)),
        lambda d: {"p": (1, d, 2)},
    ),
    "a mask of samples": (lambda m, x: torch.where(samples_and_places(x)[0] > 1, m.p, x), lambda d: {"p": (d,)}),
    "constants of samples": (lambda m, x: torch.lerp(m.p, x, samples_and_places(x)[0]), lambda d: {"p": (d,)}),
    "constants of places": (lambda m, x: torch.lerp(m.p, x, samples_and_places(x)[1]), lambda d: {"p": (d,)}),
    "a parameter over samples": (lambda m, x: m.p / (1 + x.abs()), lambda d: {"p": (d,)}),
    "a row each over samples": (lambda m, x: m.p / (1 + x.abs()), lambda d: {"p": (N, 1)}),
}


@pytest.mark.parametrize("d", [3, N], ids=["d ≠ N", "d = N"])
@pytest.mark.parametrize("name", CASES)
def test_each_sample_has_its_own(name, d):
    compute, shapes = CASES[name]
    verdict = judge(program(compute, d, **shapes(d)))
    assert verdict.kind == "right", verdict.why


def test_parameters_that_are_alike_everywhere_are_told_apart_all_the_same():
    """As scales of one and tables of zeros are at the start: their values do not say whose rows they have."""
    compute, shapes = CASES["einsum of three"]

    def made():
        model = program(compute, N, **shapes(N)).made()
        for p in model.parameters():
            torch.nn.init.ones_(p)
        return model

    one = program(compute, N, **shapes(N))
    verdict = judge(Program(made, one.batch, one.loss, contribution=one.contribution))
    assert verdict.kind == "right", verdict.why


def test_under_autocast():
    compute, shapes = CASES["addmm with a row each"]
    one = program(compute, N, **shapes(N))

    def loss(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m(x)
        return losses(y.double()).mean()

    def contribution(m, i):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m(one.batch[0].double())
        return losses(y.double())[i] / N

    verdict = judge(Program(one.model, one.batch, loss, contribution=contribution, tolerance=2e-2))
    assert verdict.kind == "right", verdict.why


def test_a_mask_that_is_as_long_as_the_batch_is_of_places():
    mask = torch.arange(N) % 2 == 0
    made = program(lambda m, x: F.softplus(torch.where(mask, m.p, x)), N, p=(N,))
    verdict = judge(made)
    assert verdict.kind == "right", verdict.why
