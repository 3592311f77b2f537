"""Adapters and frozen parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import any_loss, class_loss, parameter, perceptron
from tests.zoo.programs.common import IDS, IMAGES, SEQUENCES, X, Y, linear, of
from tests.zoo.verdict import Program


class LoRA(nn.Module):
    def __init__(self, base, rank=2, scale=0.5):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        self.A, self.B = parameter(rank, base.in_features), parameter(base.out_features, rank)

    def forward(self, x):
        return self.base(x) + (x @ self.A.T @ self.B.T) * self.scale


class MergedLoRA(LoRA):
    """The update added to the weight before the product."""

    def forward(self, x):
        return F.linear(x, self.base.weight + self.scale * self.B @ self.A, self.base.bias)


class ConvLoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Conv2d(3, 4, 3).requires_grad_(False)
        self.down, self.up = nn.Conv2d(3, 2, 3, bias=False), nn.Conv2d(2, 4, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Scaled(nn.Module):
    """IA3: learned scales in a dictionary, by the name of the adapter in use."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 3).requires_grad_(False)
        self.scales = nn.ParameterDict({"a": parameter(8), "b": parameter(1, 8), "idle": parameter(8)})

    def forward(self, x):
        return self.last(torch.tanh(self.first(x * self.scales["a"])) * self.scales["b"].flatten())


def bitfit():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    for name, p in model.named_parameters():
        p.requires_grad_("bias" in name)
    return model


def half_frozen(m, x):
    """The first part without a graph."""
    with torch.no_grad():
        h = m.first(x)
    return m.last(torch.tanh(h))


def some_rows_frozen(m, ids):
    """New tokens behind a frozen table."""
    table = torch.cat([m.old.detach(), m.new])
    return m.head(F.embedding(ids, table).mean(1))


def dora(m, x):
    weight = m.base.weight + m.up @ m.down
    return F.linear(x, m.magnitude * weight / weight.norm(dim=1, keepdim=True))


ADAPTERS = {
    "LoRA": Program(
        lambda: nn.Sequential(LoRA(nn.Linear(8, 6)), nn.Tanh(), LoRA(nn.Linear(6, 3))), (X,), any_loss, measured=True
    ),
    "LoRA on sequences": Program(
        lambda: nn.Sequential(LoRA(nn.Linear(8, 6)), nn.Tanh(), LoRA(nn.Linear(6, 3))),
        (SEQUENCES,),
        any_loss,
        measured=True,
    ),
    "LoRA, merged": Program(
        lambda: nn.Sequential(MergedLoRA(nn.Linear(8, 6)), nn.Tanh(), nn.Linear(6, 3)),
        (SEQUENCES,),
        any_loss,
        measured=True,
    ),
    "LoRA of a convolution": Program(lambda: ConvLoRA(), (IMAGES,), any_loss, measured=True),
    "scales in a dictionary": Program(Scaled, (X,), any_loss, measured=True),
    "biases alone": Program(bitfit, (X, Y), class_loss, measured=True),
    "a frozen part without a graph": of(half_frozen, first=linear(), last=linear(8, 3)),
    "new rows behind a frozen table": of(
        some_rows_frozen,
        IDS,
        old=lambda: parameter(6, 8).requires_grad_(False),
        new=lambda: parameter(5, 8),
        head=linear(8, 3),
    ),
    "weight decomposed into size and direction": of(
        dora,
        base=lambda: nn.Linear(8, 5, bias=False).requires_grad_(False),
        up=lambda: parameter(5, 2),
        down=lambda: parameter(2, 8),
        magnitude=lambda: parameter(5, 1),
    ),
    "soft prompts, a network of them": of(
        lambda m, ids: m.head(
            torch.cat([m.mlp(m.prompt).unsqueeze(0).expand(len(ids), -1, -1), m.emb(ids)], 1).cumsum(1).tanh().mean(1)
        ),
        IDS,
        mlp=linear(),
        prompt=lambda: parameter(3, 8),
        emb=lambda: nn.Embedding(11, 8),
        head=linear(8, 3),
    ),
    "an adapter in a hook": Program(lambda: hooked_adapter(), (X, Y), class_loss, measured=True),
    "the layer's weight as a product of Kronecker factors": of(
        lambda m, x: F.linear(x, torch.kron(m.a, m.b)), a=lambda: parameter(2, 4), b=lambda: parameter(3, 2)
    ),
    "an elementwise product of low-rank matrices": of(
        lambda m, x: F.linear(x, (m.a @ m.b) * (m.c @ m.d)),
        SEQUENCES,
        a=lambda: parameter(5, 2),
        b=lambda: parameter(2, 8),
        c=lambda: parameter(5, 2),
        d=lambda: parameter(2, 8),
    ),
}


def hooked_adapter():
    model = perceptron()
    model[0].requires_grad_(False)
    model.adapter = nn.Linear(8, 5, bias=False)
    model[0].register_forward_hook(lambda module, inputs, out: out + model.adapter(inputs[0]))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    return model


PROGRAMS = {"adapters": ADAPTERS}
