"""Models of plain torch that other libraries have no name for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from tests.zoo.parts import Net, parameter

from .base import TEXT, VOCABULARY, Architecture, ids, labels, of_values, values


def net(compute: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: Net(compute, **{name: part() for name, part in parts.items()})


def classified(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return cross_entropy(model(batch["x"]), batch["y"])


def words(n: int, t: int) -> dict[str, Tensor]:
    return {"x": ids(n, t), "y": labels(n)}


def translate(m: Any, x: Tensor) -> Tensor:
    h = m.emb(x) + m.pos[: x.shape[1]]
    return m.head(m.body(h, h, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]), tgt_is_causal=True))


def u_net(m: Any, x: Tensor) -> Tensor:
    a = silu(m.norm1(m.down1(x)))
    b = silu(m.norm2(m.down2(a)))
    return m.last(torch.cat([m.up(b), a], 1))


def denoise(m: Any, x: Tensor) -> Tensor:
    """A diffusion model's perceptron: every sample has a time of its own."""
    times = x[:, :1, 0] * torch.exp(-torch.arange(4, dtype=x.dtype))
    scale, shift = m.time(torch.cat([times.sin(), times.cos()], 1)).chunk(2, -1)
    return m.out(silu(m.into(x.flatten(1)) * (1 + scale) + shift))


def graph(m: Any, x: Tensor) -> Tensor:
    """A graph a sample, with an adjacency made of its own features."""
    adjacency = (x @ x.transpose(1, 2)).softmax(-1)
    return m.head(torch.relu(adjacency @ m.two(torch.relu(adjacency @ m.one(x)))).sum(1))


def dense(*shape: int) -> Callable[[int, int], Any]:
    return lambda n, t: {"x": values(n, t, *shape), "y": labels(n)}


MODELS = {
    "nn.Transformer": Architecture(
        net(
            translate,
            emb=lambda: nn.Embedding(VOCABULARY, 16),
            pos=lambda: parameter(8, 16),
            body=lambda: nn.Transformer(16, 2, 1, 1, 24, batch_first=True),
            head=lambda: nn.Linear(16, VOCABULARY),
        ),
        ids,
        of_values,
        TEXT,
    ),
    "LSTM tagger": Architecture(
        net(
            lambda m, x: m.head(m.cells(m.emb(x))[0].mean(1)),
            emb=lambda: nn.Embedding(VOCABULARY, 8),
            cells=lambda: nn.LSTM(8, 6, batch_first=True, bidirectional=True),
            head=lambda: nn.Linear(12, 3),
        ),
        words,
        classified,
    ),
    "GRU classifier": Architecture(
        net(
            lambda m, x: m.head(m.cells(m.emb(x))[1][-1]),
            emb=lambda: nn.Embedding(VOCABULARY, 8),
            cells=lambda: nn.GRU(8, 6, 2, batch_first=True, dropout=0.1),
            head=lambda: nn.Linear(6, 3),
        ),
        words,
        classified,
    ),
    "bags of words": Architecture(
        net(lambda m, x: m.head(m.bag(x)), bag=lambda: nn.EmbeddingBag(VOCABULARY, 8), head=lambda: nn.Linear(8, 3)),
        words,
        classified,
    ),
    "U-Net with GroupNorm": Architecture(
        net(
            u_net,
            down1=lambda: nn.Conv2d(3, 8, 3, 2, 1),
            norm1=lambda: nn.GroupNorm(2, 8),
            down2=lambda: nn.Conv2d(8, 16, 3, 2, 1),
            norm2=lambda: nn.GroupNorm(4, 16),
            up=lambda: nn.ConvTranspose2d(16, 8, 2, 2),
            last=lambda: nn.Conv2d(16, 3, 1),
        ),
        lambda n, t: values(n, 3, 8, 8),
        of_values,
    ),
    "denoising perceptron": Architecture(
        net(denoise, time=lambda: nn.Linear(8, 32), into=lambda: nn.Linear(12, 16), out=lambda: nn.Linear(16, 6)),
        lambda n, t: values(n, 4, 3),
        of_values,
        ((4, 4), (3, 4)),
    ),
    "graph networks, a graph a sample": Architecture(
        net(graph, one=lambda: nn.Linear(8, 8), two=lambda: nn.Linear(8, 8), head=lambda: nn.Linear(8, 3)),
        dense(8),
        classified,
    ),
    "deep sets": Architecture(
        net(lambda m, x: m.rho(torch.relu(m.phi(x)).amax(1)), phi=lambda: nn.Linear(8, 8), rho=lambda: nn.Linear(8, 3)),
        dense(8),
        classified,
    ),
}
