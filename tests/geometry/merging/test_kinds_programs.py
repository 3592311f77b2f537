"""More programs of the kinds that go wrong: each smaller network is the merged one in float64."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import consolidate_model

from .programs import (
    built,
    conv,
    dense,
    is_the_merged_one,
    linear,
    pictures,
    pointwise,
    rows,
    words,
)


class Held(nn.Module):
    """A reader with a buffer for each neuron, or with one number."""

    def __init__(self, buffer):
        super().__init__()
        self.inner = linear(12, 4)
        self.register_buffer("held", buffer)

    def forward(self, h):
        return self.inner(h * self.held)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.t() @ x


class Blur(nn.Module):
    """One kernel for every channel, repeated or expanded to as many as there are."""

    def __init__(self, spread):
        super().__init__()
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))
        self.channels, self.spread = 12, spread

    def forward(self, h):
        kernel = self.spread(self, h)
        return functional.conv2d(h, kernel, groups=kernel.shape[0])


def unsqueezed_in_place(m, x):
    return m.b(m.a(x).unsqueeze_(2).transpose_(1, 2)).squeeze_(1)


def of_two_updates(m, x):
    weight = m.a.weight + m.up.weight @ m.down.weight
    scale = m.size.weight.T / weight.norm(dim=1, keepdim=True)
    return m.b(functional.linear(x, weight * scale, m.a.bias).relu())


def in_a_loop(m, x):
    h = m.a(x)
    for layer in m.layers:
        h = h + layer(h.relu())
    return m.b(h)


def densely(m, x):
    all_ = [m.a(x).relu()]
    for layer in m.layers:
        all_.append(layer(torch.cat(all_, 1)).relu())
    return m.b(torch.cat(all_, 1))


def leaving_early(m, x):
    h = m.a(x).relu()
    out = m.early(h)
    return out if bool(out.max() > 1e9) else m.b(m.c(h).relu())


def by_heads(m, x):
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (m.q, m.k, m.a))
    return m.b(
        (m.talk(torch.softmax(q @ k.transpose(2, 3) / 2, -1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v)
        .transpose(1, 2)
        .flatten(2)
    )


RIGHT = {
    "buffer with one number": (lambda m, x: m.b(m.a(x).relu()), rows, lambda: dense(b=Held(torch.tensor(1 / 12)))),
    "buffer with a number for each": (
        lambda m, x: m.b(m.a(x).relu()),
        rows,
        lambda: dense(b=Held(torch.linspace(0, 1, 12))),
    ),
    "function of one's own": (lambda m, x: m.b(Square.apply(m.a(x))), rows, dense),
    "product in a function of one's own": (lambda m, x: Times.apply(m.a(x).relu(), m.b.weight), rows, dense),
    "through vmap": (lambda m, x: torch.vmap(lambda row: m.b(m.a(row).relu()))(x), rows, dense),
    "checkpoint": (
        lambda m, x: torch.utils.checkpoint.checkpoint(lambda y: m.b(m.a(y).relu()), x, use_reentrant=False),
        rows,
        dense,
    ),
    "reader called with other weights": (
        lambda m, x: torch.func.functional_call(m.b, {"weight": m.b.weight * 2}, (m.a(x).relu(),)),
        rows,
        dense,
    ),
    "shape changed in place": (unsqueezed_in_place, rows, dense),
    "squeezed in place": (lambda m, x: m.b(m.a(x)[:, None].squeeze_(1)), rows, dense),
    "added to itself backwards": (lambda m, x: m.b((h := m.a(x)) + h.flip(1)), rows, dense),
    "both signs": (
        lambda m, x: m.b(torch.cat([(h := m.a(x)).relu(), (-h).relu()], 1)),
        rows,
        lambda: dense(b=linear(24, 4)),
    ),
    "attention over places": (
        lambda m, x: m.b((h := m.a(x).flatten(2)) + h @ m.key(h.transpose(1, 2)).softmax(1)),
        pictures,
        lambda: pointwise(b=nn.Conv1d(12, 2, 1), key=linear(12, 1)),
    ),
    "squeezed by the largest": (
        lambda m, x: m.b((h := m.a(x).relu()) * m.up(m.down(h.amax((2, 3), keepdim=True)).relu()).sigmoid()),
        pictures,
        lambda: pointwise(down=conv(12, 3, 1), up=conv(3, 12, 1)),
    ),
    "padded in a circle": (
        lambda m, x: m.b(m.a(x).relu()),
        pictures,
        lambda: {
            "a": conv(3, 12, 3, padding=1, padding_mode="reflect"),
            "b": conv(12, 2, 3, padding=1, padding_mode="circular"),
        },
    ),
    "kernel repeated": (
        lambda m, x: m.b(m.blur(m.a(x))),
        pictures,
        lambda: pointwise(blur=Blur(lambda b, h: b.kernel.repeat(h.shape[1], 1, 1, 1))),
    ),
    "kernel repeated by an attribute": (
        lambda m, x: m.b(m.blur(m.a(x))),
        pictures,
        lambda: pointwise(blur=Blur(lambda b, h: b.kernel.repeat(b.channels, 1, 1, 1))),
    ),
    "kernel expanded by an attribute": (
        lambda m, x: m.b(m.blur(m.a(x))),
        pictures,
        lambda: pointwise(blur=Blur(lambda b, h: b.kernel.expand(b.channels, -1, -1, -1))),
    ),
    "kernel made": (
        lambda m, x: m.b(functional.conv2d(h := m.a(x), torch.ones_like(h[0, :, None, :3, :3]) / 9, groups=h.shape[1])),
        pictures,
        pointwise,
    ),
    "every channel a picture": (
        lambda m, x: m.b(functional.conv2d((h := m.a(x)).reshape(-1, 1, 8, 8), m.one.weight).view(len(h), -1, 6, 6)),
        pictures,
        lambda: pointwise(one=conv(1, 1, 3, bias=False)),
    ),
    "depthwise, two for each": (
        lambda m, x: m.b(m.deep(m.a(x)).relu()),
        pictures,
        lambda: pointwise(deep=conv(12, 24, 3, groups=12), b=conv(24, 2, 1)),
    ),
    "three dimensions, transposed": (
        lambda m, x: m.b(m.a(x).relu()),
        lambda: torch.randn(2, 3, 3, 3, 3, dtype=torch.float64),
        lambda: {"a": nn.ConvTranspose3d(3, 12, 2), "b": nn.ConvTranspose3d(12, 2, 2)},
    ),
    "padded with ones": (lambda m, x: m.b(functional.pad(m.a(x).relu(), (1, 1, 1, 1), value=1.0)), pictures, pointwise),
    "convolution by keywords": (
        lambda m, x: m.b(functional.conv2d(input=(h := m.a(x)), weight=m.deep.weight, groups=h.shape[1])),
        pictures,
        lambda: pointwise(deep=conv(12, 12, 3, groups=12, bias=False)),
    ),
    "shapes by keywords": (
        lambda m, x: m.b(torch.unflatten(input=m.a(x), dim=0, sizes=(1, -1)).view(torch.numel(input=x) // 16, -1)),
        rows,
        dense,
    ),
    "narrowed by keywords": (
        lambda m, x: m.b(torch.narrow(input=(h := m.a(x)), dim=1, start=0, length=h.shape[1]).relu()),
        rows,
        dense,
    ),
    "one row written over others": (
        lambda m, x: m.b(m.a(x).relu().index_put((torch.tensor([0, 2]),), m.c.bias)),
        rows,
        lambda: dense(c=linear(16, 12)),
    ),
    "rows filled with a number in a tensor": (
        lambda m, x: m.b(m.a(x).relu().index_fill(0, torch.tensor([1]), torch.tensor(0.5).double())),
        rows,
        dense,
    ),
    "nothing put in front": (lambda m, x: m.b(torch.cat([x.new_empty(0), m.a(x).relu()])), rows, dense),
    "nothing added up": (lambda m, x: m.b(m.a(x)) + torch.cat([x.new_empty(0)] * 2).sum(), rows, dense),
    "linear as a convolution": (
        lambda m, x: functional.conv2d(m.a(x).relu(), m.b.weight[:, :, None, None]),
        pictures,
        lambda: pointwise(b=linear(12, 4)),
    ),
    "a column of ones first": (
        lambda m, x: m.b(torch.cat([x.new_ones(len(x), 1), m.a(x)], 1)),
        rows,
        lambda: dense(b=linear(13, 4)),
    ),
    "weights of two layers": (
        lambda m, x: m.b(functional.linear(x, (m.a.weight + m.c.weight) / 2).relu()),
        rows,
        lambda: dense(c=linear(16, 12)),
    ),
    "readers' weights one below the other": (
        lambda m, x: functional.linear(m.a(x).relu(), torch.cat([m.b.weight, m.c.weight])),
        rows,
        lambda: dense(c=linear(12, 4)),
    ),
    "some rows of the reader": (lambda m, x: functional.linear(m.a(x).relu(), m.b.weight[[1, 0, 3]]), rows, dense),
    "three factors": (
        lambda m, x: torch.einsum("bn,n,on->bo", m.a(x).relu(), m.scale.weight[0], m.b.weight),
        rows,
        lambda: dense(scale=linear(12, 1, bias=False)),
    ),
    "outer product of two": (
        lambda m, x: functional.linear(m.a(x).relu(), m.up.weight.T @ m.v.weight),
        rows,
        lambda: dense(up=linear(4, 1, bias=False), v=linear(12, 1, bias=False)),
    ),
    "update of the layer, rows of unit length": (
        of_two_updates,
        rows,
        lambda: dense(down=linear(16, 2, bias=False), up=linear(2, 12, bias=False), size=linear(12, 1, bias=False)),
    ),
    "vectors of an update": (
        lambda m, x: m.b(m.a(x) + (m.down(x) * m.d.weight[0]) @ m.up.weight.T * m.v.weight[0]),
        rows,
        lambda: dense(down=linear(16, 3), up=linear(3, 12), d=linear(3, 1), v=linear(12, 1)),
    ),
    "a layer twice": (lambda m, x: m.b(m.s(m.s(m.a(x)).relu())), rows, lambda: dense(s=linear(12, 12))),
    "one reader of two layers": (
        lambda m, x: m.b(m.a(x).relu()) + m.b(m.c(x).tanh()),
        rows,
        lambda: dense(c=linear(16, 12)),
    ),
    "a list in a loop": (in_a_loop, rows, lambda: dense(layers=nn.ModuleList(linear(12, 12) for _ in range(3)))),
    "all before in a loop": (
        densely,
        rows,
        lambda: dense(layers=nn.ModuleList([linear(12, 12), linear(24, 12)]), b=linear(36, 4)),
    ),
    "leaving early": (leaving_early, rows, lambda: dense(early=linear(12, 4), c=linear(12, 12))),
    "one norm on two layers": (
        lambda m, x: m.b(m.norm(m.a(x))) + m.c(m.norm(m.d(x))),
        rows,
        lambda: dense(norm=nn.BatchNorm1d(12), c=linear(12, 4), d=linear(16, 12)),
    ),
    "norm in training": (
        lambda m, x: m.b(m.norm(m.a(x)) if m.training else m.a(x)),
        rows,
        lambda: dense(norm=nn.BatchNorm1d(12)),
    ),
    "in single precision": (lambda m, x: m.b(m.a(x).float().relu().double()), rows, dense),
    "whole numbers": (lambda m, x: m.b((m.a(x) * 10).long().double()), rows, dense),
    "one example": (lambda m, x: m.b(m.a(x).relu()), lambda: torch.randn(16, dtype=torch.float64), dense),
    "largest over time": (lambda m, x: m.b(m.a(x).max(1)[0]), words, dense),
    "scale and shift by another": (
        lambda m, x: m.b((lambda s, t: m.a(x) * (1 + s) + t)(*m.g(x).chunk(2, 1))),
        rows,
        lambda: dense(g=linear(16, 24)),
    ),
    "recurrent layer with a projection": (
        lambda m, x: m.b(m.cell(m.a(x))[0]),
        words,
        lambda: dense(cell=nn.LSTM(12, 8, proj_size=5, batch_first=True), b=linear(5, 3)),
    ),
    "heads that talk": (by_heads, words, lambda: dense(q=linear(16, 12), k=linear(16, 12), talk=linear(3, 3))),
    "one or the other by chance": (
        lambda m, x: (m.b if torch.rand(()) < 0.5 else m.c)(m.a(x)),
        rows,
        lambda: dense(c=linear(12, 4)),
    ),
    "one or the other by Python's chance": (
        lambda m, x: (m.b if random.random() < 0.5 else m.c)(m.a(x)),
        rows,
        lambda: dense(c=linear(12, 4)),
    ),
    "one or the other by NumPy's chance": (
        lambda m, x: (m.b if np.random.rand() < 0.5 else m.c)(m.a(x)),
        rows,
        lambda: dense(c=linear(12, 4)),
    ),
    "skipped by chance in training": (
        lambda m, x: m.b((h := m.a(x)) + (m.c(h) if m.training and torch.rand(1).item() < 0.3 else 0)),
        rows,
        lambda: dense(c=linear(12, 12)),
    ),
    "a norm of each": (lambda m, x: m.b(m.norm(m.a(x))), pictures, lambda: pointwise(norm=nn.GroupNorm(12, 12))),
    "a norm of each, without weights": (
        lambda m, x: m.b(m.norm(m.a(x))),
        pictures,
        lambda: pointwise(norm=nn.GroupNorm(12, 12, affine=False)),
    ),
    "a norm of each by width": (lambda m, x: m.b(functional.group_norm(h := m.a(x), h.shape[1])), pictures, pointwise),
    "a mean that is dropped": (lambda m, x: (m.b(h := m.a(x)), h.mean(-1))[0], rows, dense),
}


@torch.no_grad()
@pytest.mark.parametrize("name", RIGHT)
def test_the_smaller_network_is_the_merged_one(name):
    model, drawn = built(RIGHT[name])
    is_the_merged_one(model, drawn)


def test_a_whole_model_with_a_weight_that_is_computed():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(linear(6, 6))
    model = nn.Sequential(linear(5, 6), nn.ReLU(), normed, nn.ReLU(), linear(6, 6), nn.ReLU(), linear(6, 2))
    smaller, report = consolidate_model(model, [torch.rand(20, 5)], above=-1.0)
    refused = {row.layer: row.refused for row in report.layers}
    assert smaller[4].out_features < 6
    assert refused["4"] == ""
    assert "the norm of a weight is taken over them" in refused["0"]
    assert "is computed from other tensors" in refused["2.parametrizations.weight.original0"]
