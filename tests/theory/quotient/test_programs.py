"""Forwards written by hand: what moves leaves the function alone, and nothing that can move is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.theory.quotient import canonicalize, random_representative, symmetries
from tests.geometry.networks import Forward


def linear(inputs: int = 5, outputs: int = 6) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def dense(**more):
    return {"a": linear(), "b": linear(6, 3), **more}


def rows():
    return torch.randn(7, 5).double()


def positions():
    return torch.randn(4, 6, 5).double()


def pictures():
    return torch.randn(4, 3, 6, 6).double()


def pooled(m, h):
    return m.b(h.relu().mean((2, 3)))


def kernels(between: nn.Module, outputs: int = 6):
    return {"a": nn.Conv2d(3, 6, 3), "g": between, "b": linear(outputs, 3)}


def in_heads(**more):
    return {name: linear(5, 4) for name in ("q", "k", "v")} | {"b": linear(4, 3), **more}


def attended(m, x, mask):
    return m.b(functional.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), attn_mask=mask))


# What computes, an input, the parts; how many rescalings and permutations are known.
PROGRAMS = {
    "gated": (lambda m, x: m.b(functional.glu(m.a(x))), rows, lambda: dense(a=linear(5, 12)), (1, 0)),
    "gated along positions": (lambda m, x: m.b(functional.glu(m.a(x), dim=1)), positions, dense, (0, 1)),
    "gated by itself": (lambda m, x: m.b(functional.glu(torch.cat([m.a(x)] * 2, -1))), rows, dense, (0, 1)),
    "rows masked": (
        lambda m, x: m.b(m.a(x).relu().masked_fill(torch.arange(len(x))[:, None] % 2 == 0, 0.0)),
        rows,
        dense,
        (1, 1),
    ),
    "neurons masked": (
        lambda m, x: m.b(m.a(x).relu().masked_fill(torch.arange(6) % 2 == 0, 0.0)),
        rows,
        dense,
        (1, 0),
    ),
    "masked by other neurons": (
        lambda m, x: m.b(m.a(x).relu().masked_fill(m.c(x) < 1, 0.0)) + m.d(x).relu() @ m.e,
        rows,
        lambda: dense(c=linear(), d=linear(5, 4), e=parameter(4, 3)),
        (1, 1),
    ),
    "times a comparison": (lambda m, x: m.b((h := m.a(x)) * (h > 0.5)), rows, dense, (0, 1)),
    "threshold": (lambda m, x: m.b(functional.threshold(m.a(x), 0.5, 0.0)), rows, dense, (0, 1)),
    "slopes of two layers": (
        lambda m, x: m.b(functional.prelu(m.a(x), m.slope) + functional.prelu(m.c(x), m.slope)),
        rows,
        lambda: dense(c=linear(), slope=parameter(6)),
        (1, 1),
    ),
    "one factor for all": (lambda m, x: m.b(m.a(x).relu() * m.scale), rows, lambda: dense(scale=parameter(1)), (1, 1)),
    "times its mean": (
        lambda m, x: m.b((h := m.a(x).relu()) * h.mean(-1, keepdim=True)),
        rows,
        dense,
        (0, 1),
    ),
    "and its length": (
        lambda m, x: m.b(torch.cat([h := m.a(x).relu(), h.norm(dim=-1, keepdim=True)], -1)),
        rows,
        lambda: dense(b=linear(7, 3)),
        (0, 1),
    ),
    "both ways round": (lambda m, x: m.b((h := m.a(x).relu()) + h.flip(-1)), rows, dense, (1, 0)),
    "every second": (lambda m, x: m.b(m.a(x).relu()[:, ::2]), rows, lambda: dense(b=linear(3, 3)), (1, 2)),
    "a weight and its transpose": (
        lambda m, x: functional.linear(m.a(x).relu(), m.a.weight.T),
        rows,
        lambda: {"a": linear()},
        (0, 1),
    ),
    "a weight in two parts": (
        lambda m, x: m.b(functional.linear(x, m.a.weight[:6]).relu()) + functional.linear(x, m.a.weight[6:]),
        rows,
        lambda: dense(a=linear(5, 9)),
        (1, 1),
    ),
    "a norm used twice": (
        lambda m, x: m.b(m.n(m.c(m.n(m.a(x)).relu()))),
        rows,
        lambda: dense(c=linear(6, 6), n=nn.LayerNorm(6)),
        (1, 0),
    ),
    "a norm's scale used elsewhere": (
        lambda m, x: m.b(m.n(m.a(x)) * m.n.weight),
        rows,
        lambda: dense(n=nn.LayerNorm(6)),
        (1, 0),
    ),
    "a norm's scale computed": (
        lambda m, x: m.b(functional.rms_norm(m.a(x), (6,), 1 + m.w).relu()),
        rows,
        lambda: dense(w=parameter(6)),
        (1, 0),
    ),
    "depthwise, transposed": (
        lambda m, x: pooled(m, m.g(m.a(x).relu())),
        pictures,
        lambda: kernels(nn.ConvTranspose2d(6, 6, 3, groups=6)),
        (2, 1),
    ),
    "transposed": (
        lambda m, x: pooled(m, m.g(m.a(x).relu())),
        pictures,
        lambda: kernels(nn.ConvTranspose2d(6, 4, 3), 4),
        (2, 2),
    ),
    "scores with a learned table": (
        lambda m, x: attended(m, x, m.table),
        positions,
        lambda: in_heads(table=parameter(6, 6)),
        (1, 1),
    ),
    "scores with others": (
        lambda m, x: attended(m, x, m.c(x) @ m.d(x).mT),
        positions,
        lambda: in_heads(c=linear(5, 4), d=linear(5, 4)),
        (3, 3),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_function_stays(name):
    compute, drawn, parts, known = PROGRAMS[name]
    model, x = Forward(compute, **parts()).double().eval(), drawn()
    moves = symmetries(model, x)
    assert (len(moves.scalings), len(moves.permutations)) == known, str(moves)
    other = drawn()
    for moved in (
        *(random_representative(model, example_input=x, seed=seed) for seed in range(3)),
        canonicalize(model, example_input=x),
    ):
        for each in (x, other):
            wanted = model(each)
            assert (moved(each) - wanted).abs().max() <= 1e-11 * wanted.abs().max()
