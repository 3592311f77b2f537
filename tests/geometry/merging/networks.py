"""Networks with gates, heads, experts, and what merging makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from tests.geometry.networks import scrambled


class Gated(nn.Module):
    """A language model's block without attention: SwiGLU on a residual stream behind RMSNorm."""

    def __init__(self, width=6, hidden=8, out=3):
        super().__init__()
        self.inlet, self.norm = nn.Linear(5, width), nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down, self.head = nn.Linear(hidden, width, bias=False), nn.Linear(width, out)

    def forward(self, x):
        h = self.inlet(x)
        n = self.norm(h)
        return self.head(h + self.down(functional.silu(self.gate(n)) * self.up(n)))


class Experts(nn.Module):
    """Three experts in one tensor; each token goes to two of them."""

    def __init__(self, hidden=6):
        super().__init__()
        self.router = nn.Linear(5, 3)
        self.gate_up, self.down = nn.Parameter(torch.empty(3, 2 * hidden, 5)), nn.Parameter(torch.empty(3, 5, hidden))

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for expert in range(3):
            token, place = torch.where(chosen == expert)
            gate, up = functional.linear(x[token], self.gate_up[expert]).chunk(2, -1)
            made = functional.linear(functional.gelu(gate) * up, self.down[expert])
            out.index_add_(0, token, made * weights[token, place, None])
        return out.sum(-1)


def made(model: nn.Module) -> nn.Module:
    return scrambled(model).double()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert (one - other).abs().max() <= 1e-12 * other.abs().max()


@dataclass
class Config:
    width: int = 6
    intermediate_size: int = 8
    head_dim: int = 2
    layers: int = 2


class Configured(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Gated(config.width, config.intermediate_size, 5) for _ in range(config.layers))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return {"logits": x}


class Attention(nn.Module):
    """Four query heads, two of keys and values, in the ways that libraries write them."""

    def __init__(self, written: str, heads=4, groups=2, size=3):
        super().__init__()
        self.written, self.num_heads, self.groups, self.size = written, heads, groups, size
        self.q, self.k, self.v = nn.Linear(5, heads * size), nn.Linear(5, groups * size), nn.Linear(5, groups * size)
        self.qkv, self.o = nn.Linear(5, 3 * heads * size), nn.Linear(heads * size, 5)
        self.q_norm = nn.LayerNorm(size)

    def forward(self, x):
        b, t, _ = x.shape
        if self.written == "fused":
            q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.written == "chunks":
            q, k, v = (each.view(b, t, self.num_heads, self.size).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        else:
            q, k, v = (layer(x).view(b, t, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
            k, v = (
                each[:, :, None].expand(b, each.shape[1], 2, t, self.size).reshape(b, -1, t, self.size)
                for each in (k, v)
            )
            q = torch.cat((-q[..., self.size // 2 :], q[..., : self.size // 2]), -1)
        if self.written == "products":
            scores = self.q_norm(q) @ k.transpose(2, 3) / self.size**0.5
            mixed = scores.softmax(-1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(b, t, -1)).mean(1)


class Stacked(Experts):
    """Experts apart from their router, as in transformers."""

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique().tolist():
            token, place = torch.where(top_k_index == expert)
            gate, up = functional.linear(hidden_states[token], self.gate_up[expert]).chunk(2, -1)
            made = functional.linear(functional.gelu(gate) * up, self.down[expert])
            out.index_add_(0, token, made * top_k_weights[token, place, None])
        return out


class Mixture(nn.Module):
    def __init__(self, listed: bool):
        super().__init__()
        self.listed, self.router, self.norm = listed, nn.Linear(5, 3), nn.LayerNorm(5)
        each = (nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 5)) for _ in range(3))
        self.experts = nn.ModuleList(each) if listed else Stacked()

    def forward(self, x):
        h = self.norm(x)
        weights, chosen = self.router(h).softmax(-1).topk(2, -1)
        if not self.listed:
            return self.experts(h, chosen, weights)
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            token, place = torch.where(chosen == k)
            out.index_add_(0, token, expert(h[token]) * weights[token, place, None])
        return out
