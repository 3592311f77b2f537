"""Networks as users write them, small: what their symmetries are is left to the library, and to the function."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerNorm(nn.Module):
    """With an eps that no attribute holds."""

    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class FusedAttention(nn.Module):
    def __init__(self, size: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(size, 3 * size, bias=bias), nn.Linear(size, size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.size()
        q, k, v = (
            each.view(n, t, self.heads, c // self.heads).transpose(1, 2) for each in self.c_attn(x).split(c, dim=2)
        )
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(n, t, c))


class Block(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(size, False), LayerNorm(size, True)
        self.attn = FusedAttention(size, heads)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.down(functional.gelu(self.up(self.ln_2(x))))


class GPT(nn.Module):
    """With a loss inside, and one table for the first and the last layer."""

    def __init__(self, words: int = 11, size: int = 12, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, size), nn.Embedding(8, size)
        self.h = nn.ModuleList(Block(size, heads) for _ in range(depth))
        self.ln_f, self.head = LayerNorm(size, False), nn.Linear(size, words, bias=False)
        self.wte.weight = self.head.weight

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> Any:
        x = self.wte(ids) + self.wpe(torch.arange(ids.size(1)))
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        if labels is None:
            return logits
        return logits, functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(size)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions.  # shape: (N, heads, T, d)"""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * 10.0 ** -torch.arange(half)
    cos, sin = (torch.cat([each, each], -1).to(x) for each in (angle.cos(), angle.sin()))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Llama(nn.Module):
    """Grouped-query attention, rotary positions, RMSNorm by hand, a gated layer."""

    def __init__(self, words: int = 11, size: int = 16, heads: int = 4, groups: int = 2, norms: bool = False) -> None:
        super().__init__()
        self.heads, self.groups, self.d = heads, groups, size // heads
        self.embed, self.head = nn.Embedding(words, size), nn.Linear(size, words, bias=False)
        self.norm1, self.norm2, self.norm = RMSNorm(size), RMSNorm(size), RMSNorm(size)
        self.q, self.o = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        self.k, self.v = nn.Linear(size, groups * self.d, bias=False), nn.Linear(size, groups * self.d, bias=False)
        self.gate, self.up = nn.Linear(size, 20, bias=False), nn.Linear(size, 20, bias=False)
        self.down = nn.Linear(20, size, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(self.d), RMSNorm(self.d)) if norms else (nn.Identity(), nn.Identity())

    def attend(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, self.d).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = rotated(self.q_norm(q)), rotated(self.k_norm(k))
        k, v = (each.repeat_interleave(self.heads // self.groups, 1) for each in (k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(self.d) + torch.full((t, t), -math.inf).triu(1).to(x)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, -1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attend(self.norm1(x))
        y = self.norm2(x)
        x = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return self.head(self.norm(x))


class ViT(nn.Module):
    """Patches, a class token, torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.cls, self.place = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(12), enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


class ConvNeXt(nn.Module):
    """Depthwise convolution, a norm of the last axis, and a scale of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 6, 2, stride=2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 6)
        self.gamma, self.head = nn.Parameter(torch.full((6,), 0.5)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(functional.relu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Dense(nn.Module):
    """Feature maps side by side, squeeze-and-excitation, a shuffle of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1)
        self.last, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = torch.cat([x, functional.relu(self.second(x))], 1)
        x = x * torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.head(functional.relu(self.last(x)).amax((2, 3)))


class Mixer(nn.Module):
    """Layers over positions, and layers over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.token_up, self.token_down = nn.Linear(4, 7), nn.Linear(7, 4)
        self.up, self.down, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.token_down(functional.relu(self.token_up(x.mT))).mT
        x = x + self.down(functional.relu(self.up(x)))
        return self.head(x.mean(1))


class Adapted(nn.Module):
    """A frozen layer with a low-rank update, and one that is computed from a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 3)
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(8, 2))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.base(x) + x @ self.a.T @ self.b.T
        return self.head(functional.relu(self.normed(functional.relu(x))))


class Bilinear(nn.Module):
    """Neurons times neurons, without a function between, and experts in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4)
        self.experts = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.left(x) * self.right(x))
        return torch.einsum("ni,eio->neo", x, self.experts).relu().mean(1)


class Residual(nn.Module):
    """A table the other way round, convolution and scale of each channel beside the identity, heads side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Parameter(torch.randn(6, 11)), nn.Linear(6, 6)
        self.place, self.gamma = nn.Conv1d(6, 6, 3, padding=1, groups=6), nn.Parameter(torch.ones(6))
        self.heads = nn.ModuleList(nn.Linear(6, 4) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.up(functional.embedding(ids, self.table.T)).relu().mT
        x = (x + self.place(x)).mT
        x = x + self.gamma * x
        return torch.stack([head(x) for head in self.heads]).mean(0)


class GroupedNorm(nn.Module):
    """A norm of groups, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unflatten(1, (2, 4))
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return self.last(x.flatten(1).relu())


def ids(n: int = 2, t: int = 6) -> Tensor:
    return torch.randint(0, 11, (n, t))


USERS = {
    "gpt": (GPT, ids),
    "llama": (Llama, ids),
    "llama with norms of heads": (lambda: Llama(norms=True), ids),
    "vit": (ViT, lambda: torch.randn(2, 3, 8, 8).double()),
    "convnext": (ConvNeXt, lambda: torch.randn(2, 3, 8, 8).double()),
    "dense": (Dense, lambda: torch.randn(2, 3, 8, 8).double()),
    "mixer": (Mixer, lambda: torch.randn(2, 4, 5).double()),
    "adapted": (Adapted, lambda: torch.randn(4, 6).double()),
    "residual": (Residual, ids),
    "grouped norm": (GroupedNorm, lambda: torch.randn(4, 5).double()),
    "bilinear": (Bilinear, lambda: torch.randn(4, 5).double()),
}


def make(name: str) -> tuple[nn.Module, Any]:
    """A network in float64 and eval mode, with nothing in it at a special value, and an input."""
    build, example = USERS[name]
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval(), example()
