"""Programs that cannot be cut, each named before anything is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from .programs import (
    built,
    dense,
    is_refused,
    linear,
    pictures,
    pointwise,
    rows,
    tokens,
    words,
)


class Counting(nn.Module):
    """A reader whose number is a size and a factor."""

    def __init__(self, scale):
        super().__init__()
        self.inner, self.n, self.scale = linear(12, 4), 12, scale

    def forward(self, h):
        return self.inner(h.view(-1, self.n)) * self.scale(self.n)


class Property(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear(12, 4)

    @property
    def factor(self):
        return self.inner.weight.shape[1] ** -0.5

    def forward(self, h):
        return self.inner(h) * self.factor


class ByWidth(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / x.shape[1]

    @staticmethod
    def backward(ctx, grad):
        return grad / grad.shape[1]


def updated_reader(m, x):
    weight = m.b.weight + m.up.weight @ m.down.weight
    scale = m.size.weight.T / weight.norm(dim=1, keepdim=True)
    return functional.linear(m.a(x).relu(), weight * scale, m.b.bias)


REFUSED = {
    "view and divide": (
        lambda m, x: m.b(m.a(x).relu()),
        rows,
        lambda: dense(b=Counting(lambda n: 1 / n)),
        "uses 'n' of module 'b' as a number",
    ),
    "view and root": (
        lambda m, x: m.b(m.a(x).relu()),
        rows,
        lambda: dense(b=Counting(math.sqrt)),
        "uses 'n' of module 'b' as a number",
    ),
    "property": (lambda m, x: m.b(m.a(x).relu()), rows, lambda: dense(b=Property()), "uses the number of neurons"),
    "function of one's own, by width": (lambda m, x: m.b(ByWidth.apply(m.a(x))), rows, dense, "number of neurons"),
    "embedding by the root of its width": (
        lambda m, x: m.b(m.a(x) * math.sqrt(m.a.embedding_dim)),
        tokens,
        lambda: {"a": nn.Embedding(20, 12), "b": linear(12, 4)},
        "number of neurons",
    ),
    "divided by what a recurrent layer reads": (
        lambda m, x: m.b(m.cell(m.a(x))[0]) / m.cell.input_size,
        words,
        lambda: dense(cell=nn.LSTM(12, 8, batch_first=True), b=linear(8, 3)),
        "number of neurons",
    ),
    "rounded": (lambda m, x: m.b(h := m.a(x)) / round(h.shape[1]), rows, dense, "number of neurons"),
    "negative": (lambda m, x: m.b(h := m.a(x)) * -h.shape[1], rows, dense, "number of neurons"),
    "shifted": (lambda m, x: m.b(h := m.a(x)) * (h.shape[1] >> 1), rows, dense, "number of neurons"),
    "rest of a division": (lambda m, x: m.b(h := m.a(x)) * divmod(h.shape[1], 5)[1], rows, dense, "number of neurons"),
    "absolute": (lambda m, x: m.b(h := m.a(x)) * abs(h.shape[1]), rows, dense, "number of neurons"),
    "in bits": (lambda m, x: m.b(h := m.a(x)) * h.shape[1].bit_length(), rows, dense, "number of neurons"),
    "updated reader, rows of unit length": (
        updated_reader,
        rows,
        lambda: dense(down=linear(12, 2, bias=False), up=linear(2, 4, bias=False), size=linear(4, 1, bias=False)),
        "summed up by 'linalg_vector_norm'",
    ),
    "a norm of each, written": (
        lambda m, x: m.b(functional.group_norm(m.a(x), 12)),
        pictures,
        pointwise,
        "'group_norm' has the size 12 written into it",
    ),
    "slopes for a number of heads": (
        lambda m, x: m.b(m.a(x) + 2.0 ** -torch.arange(12)),
        rows,
        dense,
        "joins the neurons with numbers that the forward makes .* alibi .* Keep them in a buffer",
    ),
    "a gradient in the forward": (
        lambda m, x: torch.autograd.grad(m.b(m.a(y := x.clone().requires_grad_()).tanh()).sum(), y)[0],
        rows,
        dense,
        "takes gradients in its forward, which are not followed",
    ),
    "kernel of each from a table": (
        lambda m, x: m.b(functional.conv2d(m.a(x), torch.arange(108.0).double().view(12, 1, 3, 3), groups=12)),
        pictures,
        pointwise,
        "multiplies each by what no layer writes",
    ),
    "channels padded in a circle": (
        lambda m, x: m.b(functional.pad(m.a(x)[None], (2, 2), mode="circular")[0]),
        rows,
        lambda: dense(b=linear(16, 3)),
        "taken by their places",
    ),
    "cropped": (lambda m, x: m.b(functional.pad(m.a(x), (-2, 2))), rows, dense, "pads the axis of the neurons"),
    "neurons of two layers in one axis": (
        lambda m, x: m.b((m.a(x)[:, :, None] * m.c(x)[:, None]).flatten(1)),
        rows,
        lambda: dense(b=linear(144, 4), c=linear(16, 12)),
        "puts two kinds of neurons into one axis",
    ),
    "size changed in place": (
        lambda m, x: m.b(m.a(x).detach().clone().resize_(16, 6)),
        rows,
        lambda: dense(b=linear(6, 3)),
        "no rule for 'resize'",
    ),
    "attention over channels": (
        lambda m, x: m.b(torch.softmax((f := m.a(x).flatten(2)) @ f.transpose(1, 2), -1) @ f),
        pictures,
        lambda: pointwise(b=linear(64, 3)),
        "softmax",
    ),
    "convolution over channels": (
        lambda m, x: m.b((h := m.a(x)) * m.over(h.mean((2, 3))[:, None]).mT[..., None].sigmoid()),
        pictures,
        lambda: pointwise(over=nn.Conv1d(1, 1, 3, padding=1)),
        "joins the neurons with what no layer writes",
    ),
    "gate by the first": (lambda m, x: m.b((h := m.a(x)) * h[:, :1].sigmoid()), rows, dense, "taken by their places"),
    "a list of cuts": (
        lambda m, x: sum(layer(part) for layer, part in zip(m.parts, m.a(x).split(4, 1), strict=True)),
        rows,
        lambda: dense(parts=nn.ModuleList(linear(4, 2) for _ in range(3))),
        "cuts them into pieces",
    ),
    "penalty kept in training": (
        lambda m, x: (setattr(m, "penalty", m.a.weight.square().sum() if m.training else None), m.b(m.a(x)))[1],
        rows,
        dense,
        "in training: a weight of theirs is summed up",
    ),
    "a mean that is kept": (
        lambda m, x: (setattr(m, "seen", m.a(x).mean(-1)), m.b(m.a(x)))[1],
        rows,
        dense,
        "'mean' mixes all neurons",
    ),
    "a mean in a list": (
        lambda m, x: m.b(h := m.a(x)) * h.mean(-1).tolist()[0],
        rows,
        dense,
        "'mean' mixes all neurons",
    ),
    "a convolution along them, beside a reader": (
        lambda m, x: (m.b(h := m.a(x)), m.c(h).sum(-1)),
        words,
        lambda: dense(c=nn.Conv1d(7, 7, 3, padding=1)),
        "'convolution' in module 'c': 'convolution' runs along the axis of the neurons",
    ),
    "pixels of a convolution beside a reader": (
        lambda m, x: (m.b(h := m.a(x)), m.c(h.transpose(1, 2)).sum(2)),
        pictures,
        lambda: pointwise(c=nn.ConvTranspose2d(8, 2, 1)),
        "'convolution' in module 'c': 'convolution' runs along the axis of the neurons",
    ),
    "channels shuffled in as many groups": (
        lambda m, x: m.b(functional.channel_shuffle(m.a(x), 12)),
        pictures,
        pointwise,
        "'channel_shuffle' has 12 groups written into it",
    ),
    "a mean in place": (lambda m, x: m.b(h := m.a(x)).add_(h.mean()), rows, dense, "'mean' mixes all neurons"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(name):
    model, drawn = built(REFUSED[name])
    is_refused(model, drawn, REFUSED[name][3])
