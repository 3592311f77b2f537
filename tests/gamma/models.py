"""Models and the naive per-sample oracle the monitor is held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Gpt(nn.Module):
    """A small transformer decoder: tied head, positional table read with arange, pre-norm blocks."""

    def __init__(self, vocabulary: int = 13, width: int = 8, positions: int = 5, layers: int = 2, tied: bool = True):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "attention": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            q, k, v = block["attention"](block["norm"](x)).chunk(3, -1)
            x = x + block["out"](F.scaled_dot_product_attention(q, k, v, is_causal=True))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x))


class Residual(nn.Module):
    """A residual convolutional network with GroupNorm."""

    def __init__(self, channels: int = 6):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.one = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(2, channels)
        self.two = nn.Conv2d(channels, 2 * channels, 3, stride=2)
        self.head = nn.Linear(2 * channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x = F.relu(x + self.norm(self.one(x)))
        return self.head(F.relu(self.two(x)).mean((2, 3)))


class Reused(nn.Module):
    """One layer used three times, one of them on another shape."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(torch.tanh(self.first(x))))
        return self.last(torch.tanh(self.shared(x)) + self.shared(x.mean(1, keepdim=True)))


class Bare(nn.Module):
    """Parameters of its own beside layers: a matrix, a positional table, a temperature."""

    def __init__(self):
        super().__init__()
        self.matrix, self.table = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(3, 4))
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x @ self.matrix + self.table)) * self.temperature


class Table(nn.Module):
    """A module whose output has no batch dimension."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.randn(3, 5))

    def forward(self) -> Tensor:
        return self.values * 2


class WithTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.last = Table(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x + self.table()))


class CrossAttention(nn.Module):
    """Attention in both layouts, packed and separate projections, masks."""

    def __init__(self):
        super().__init__()
        self.one = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)
        self.two = nn.MultiheadAttention(8, 2, batch_first=True)
        self.three = nn.MultiheadAttention(8, 4, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        t = x.transpose(0, 1)
        y = self.one(t, t[:2, :, :5], t[:2, :, :6])[0].transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        padding[:, -1] = True
        y = self.two(y, x, x, key_padding_mask=padding)[0]
        return self.three(y, y, y, attn_mask=mask, is_causal=True, need_weights=False)[0]


def mean_of_squares(output: Tensor, target: Tensor) -> Tensor:
    """A loss that is a mean over samples, on any output shape; uneven weights, for norms make plain sums constant."""
    flat = output.flatten(1)
    weights = torch.cos(torch.arange(flat.shape[1], dtype=flat.dtype))
    return (flat @ weights - target).square().mean()


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def per_sample_gradients(
    model: nn.Module, x: Tensor, y: Tensor, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """One backward pass a sample; name → (N, *shape), float64."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for i in range(len(x)):
        loss = loss_fn(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            rows[name].append(torch.zeros_like(parameter) if gradient is None else gradient)
    return {name: torch.stack(values).double() for name, values in rows.items()}
