"""Networks are followed from end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sdsd.gamma.following import Track

from .networks import SIZES, D, H, SelfAttention, given, modules
from .oracle import check

pytestmark = pytest.mark.usefixtures("double")


class Block(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = SelfAttention(fused)
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Language(nn.Module):
    """GPT with learned positions of shape (1, T); logits as (N·T, V), the loss of every token."""

    def __init__(self, fused: bool = True, length: int = 16) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(5, D), nn.Embedding(length, D)
        self.blocks = nn.ModuleList([Block(fused), Block(fused)])
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 5, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        where = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        x = self.tokens(ids) + self.positions(where)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, 5), ids[:, 1:].reshape(-1), reduction="none")


def rotated(x: Tensor) -> Tensor:
    t, half = x.shape[-2], x.shape[-1] // 2
    frequencies = torch.outer(torch.arange(t, dtype=x.dtype), 1.0 / 10 ** (torch.arange(0, half) / half))
    both = torch.cat((frequencies, frequencies), dim=-1)
    x1, x2 = x[..., :half], x[..., half:]
    return x * both.cos() + torch.cat((-x2, x1), dim=-1) * both.sin()


def rotated_complex(x: Tensor) -> Tensor:
    t, half = x.shape[-2], x.shape[-1] // 2
    angles = torch.outer(torch.arange(t, dtype=x.dtype), 1.0 / 10 ** (torch.arange(0, half) / half))
    turning = torch.polar(torch.ones_like(angles), angles)
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * turning).flatten(-2)


def grouped_by_hand(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    g = x.view(n, 2, -1)
    g = (g - g.mean(-1, keepdim=True)) / (g.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return g.view(n, c, h, w) * torch.ones(1, c, 1, 1)


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Swin(nn.Module):
    """Shifted windows with a table of relative positions, cut and joined as torchvision does."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size, self.qkv, self.out = size, nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.table = nn.Parameter(torch.randn(9, H))
        where = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        apart = (where[:, :, None] - where[:, None, :]).permute(1, 2, 0) + size - 1
        self.register_buffer("index", (apart[..., 0] * (2 * size - 1) + apart[..., 1]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        s = self.size
        area = s * s
        x = torch.roll(x, shifts=(-1, -1), dims=(1, 2))
        count = (h // s) * (w // s)
        x = x.view(b, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b * count, area, c)
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias).reshape(b * count, area, 3, H, c // H).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = q.matmul(k.transpose(-2, -1))
        scores = scores + self.table[self.index].view(area, area, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        mask = x.new_zeros((h, w))
        mask[-1:, :] = 1
        mask = mask.view(h // s, s, w // s, s).permute(0, 2, 1, 3).reshape(count, area)
        mask = mask.unsqueeze(1) - mask.unsqueeze(2)
        mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        scores = scores.view(b, count, H, area, area) + mask.unsqueeze(1).unsqueeze(0)
        scores = F.softmax(scores.view(-1, H, area, area), dim=-1)
        x = scores.matmul(v).transpose(1, 2).reshape(b * count, area, c)
        x = self.out(x).view(b, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, shifts=(1, 1), dims=(1, 2))


class Vision(nn.Module):
    """Patches by convolution, a class token, positions that the root owns."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, D, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(torch.randn(1, 5, D))
        self.block = nn.TransformerEncoderLayer(D, H, 16, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.head(self.block(x)[:, 0])


class Experts(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(D, count)
        self.experts = nn.ModuleList([nn.Linear(D, D) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(F.softmax(self.router(rows), dim=-1), 2, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(rows)
        for k, expert in enumerate(self.experts):
            index, place = torch.where(chosen == k)
            out.index_add_(0, index, expert(rows[index]) * weights[index, place, None])
        return out.view(x.shape)


class DenseExperts(Experts):
    """Every expert sees every row; the router's weights choose."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(F.softmax(self.router(x), dim=-1), 2, dim=-1)
        full = torch.zeros(*x.shape[:-1], len(self.experts)).scatter(-1, chosen, weights)
        return torch.einsum("nte,nted->ntd", full, torch.stack([e(x) for e in self.experts], 2))


class MaskedMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mask = (x[..., 0] > -1).unsqueeze(-1).to(x.dtype)
        return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


def last_token(x: Tensor) -> Tensor:
    lengths = (x[..., 0] > -1).sum(-1)
    return x[torch.arange(x.shape[0], device=x.device), (lengths - 1).clamp(min=0)]


def padding_mask(x: Tensor) -> Tensor:
    """As transformers builds masks: positions of batch and keys broadcast against each other pick in the mask."""
    keep = x[..., 0] > -1
    batch = torch.arange(x.shape[0])[:, None, None, None]
    keys = torch.arange(x.shape[1])[None, None, None, :]
    return keep[batch, keys] & (torch.arange(x.shape[1])[:, None] >= keys)


def with_mask(x: Tensor) -> Tensor:
    q = x.unsqueeze(1)
    return F.scaled_dot_product_attention(q, q, q, attn_mask=padding_mask(x) | torch.eye(x.shape[1], dtype=torch.bool))


def kept_in_a_buffer(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    state = torch.zeros(x.shape[0], x.shape[2])
    for t in range(x.shape[1]):
        state = torch.tanh(x[:, t] + 0.5 * state)
        out[:, t] = state
    return out


def sine_positions(x: Tensor) -> Tensor:
    table = torch.zeros(x.shape[1], x.shape[2])
    where = torch.arange(x.shape[1], dtype=x.dtype).unsqueeze(1)
    table[:, 0::2] = torch.sin(where)
    table[:, 1::2] = torch.cos(where)
    return x + table


def frames(x: Tensor) -> Tensor:
    """Video: frames folded into the batch, and unfolded by a mean over time."""
    n, t = x.shape[:2]
    y = F.adaptive_avg_pool2d(F.relu(x.flatten(0, 1)), 1).flatten(1)
    return y.view(n, t, -1).mean(1)


def einops_like(x: Tensor) -> Tensor:
    """b c (h p) (w q) -> (b h w) (p q c), and back."""
    b, c, h, w = x.shape
    y = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(b * (h // 2) * (w // 2), 4 * c)
    return y.reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def unfolded(x: Tensor) -> Tensor:
    return F.unfold(x, 2, stride=2).transpose(1, 2) @ torch.ones(12, 3)


def relative_positions(x: Tensor) -> Tensor:
    """T5: a table of buckets, added to (N, H, T, T) scores."""
    t = x.shape[1]
    apart = torch.arange(t)[None, :] - torch.arange(t)[:, None]
    table = nn.Embedding(2 * t, 1)
    torch.manual_seed(1)
    bias = table(apart + t).permute(2, 0, 1).unsqueeze(0)
    scores = (x @ x.transpose(1, 2)).unsqueeze(1) + bias.detach() * 0
    return scores.softmax(-1)


def siamese(x: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat([x, x * 2])
    a, b = F.normalize(both.sin(), dim=-1).chunk(2)
    return (a * b).sum(-1), a


NETWORKS: dict[str, tuple[Callable[[], Callable[..., Any]], str]] = {
    "perceptron": (lambda: modules(nn.Linear(D, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3)), "N D"),
    "perceptron of tokens": (lambda: modules(nn.Linear(D, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3)), "N T D"),
    "attention": (lambda: SelfAttention(False), "N T D"),
    "attention, fused": (lambda: SelfAttention(True), "N T D"),
    "gpt": (Language, "ids"),
    "gpt by hand": (lambda: Language(False), "ids"),
    "multihead": (lambda: _alone(nn.MultiheadAttention(D, H, dropout=0.1, batch_first=True)), "N T D"),
    "multihead with weights": (lambda: _weights(nn.MultiheadAttention(D, H, batch_first=True)), "N T D"),
    "multihead, sequence first": (lambda: _alone(nn.MultiheadAttention(D, H, add_zero_attn=True)), "T N D"),
    "encoder": (lambda: nn.TransformerEncoderLayer(D, H, 16, batch_first=True), "N T D"),
    "encoder, sequence first": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, 16), 2), "T N D"),
    "decoder": (lambda: _twice(nn.TransformerDecoderLayer(D, H, 16, batch_first=True)), "N T D"),
    "cnn": (
        lambda: modules(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        ),
        "N 3 8 8",
    ),
    "cnn in eval": (
        lambda: modules(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 2)).eval(),
        "N 3 8 8",
    ),
    "swin": (Swin, "N 4 4 D"),
    "vit": (Vision, "N 3 4 4"),
    "rotary": (lambda: lambda x: rotated(x.unflatten(-1, (H, -1)).transpose(1, 2)), "N T D"),
    "rotary, complex": (lambda: lambda x: rotated_complex(x.unflatten(-1, (H, -1)).transpose(1, 2)), "N T D"),
    "group norm by hand": (lambda: grouped_by_hand, "N 4 4 4"),
    "squeeze and excitation": (SqueezeExcitation, "N 4 4 4"),
    "channel shuffle": (lambda: shuffled, "N 4 4 4"),
    "pixel shuffle": (lambda: modules(nn.Conv2d(4, 8, 1), nn.PixelShuffle(2), nn.Upsample(scale_factor=2)), "N 4 4 4"),
    "dense experts": (DenseExperts, "N T D"),
    "experts": (Experts, "N T D"),
    "masked mean": (MaskedMean, "N T D"),
    "last token": (lambda: last_token, "N T D"),
    "mask of padding": (lambda: with_mask, "N T D"),
    "recurrence by hand": (lambda: kept_in_a_buffer, "N T D"),
    "lstm": (lambda: _first(nn.LSTM(D, 3, 2, batch_first=True, bidirectional=True)), "N T D"),
    "gru, sequence first": (lambda: _first(nn.GRU(D, 3)), "T N D"),
    "lstm cell": (lambda: _cell(nn.LSTMCell(D, 3)), "N T D"),
    "sine positions": (lambda: sine_positions, "N T D"),
    "relative positions": (lambda: relative_positions, "N T D"),
    "frames": (lambda: frames, "N T 3 4 4"),
    "einops": (lambda: einops_like, "N 3 4 4"),
    "unfolded patches": (lambda: unfolded, "N 3 4 4"),
    "siamese": (lambda: siamese, "N T D"),
}


def _alone(layer: nn.Module) -> Callable[[Tensor], Any]:
    return lambda x: layer(x, x, x, need_weights=False)[0]


def _weights(layer: nn.Module) -> Callable[[Tensor], Any]:
    return lambda x: layer(x, x, x, average_attn_weights=False)


def _twice(layer: nn.Module) -> Callable[[Tensor], Any]:
    return lambda x: layer(x, x.sin())


def _first(layer: nn.Module) -> Callable[[Tensor], Any]:
    return lambda x: (layer(x)[0], layer(x)[1])


def _cell(layer: nn.Module) -> Callable[[Tensor], Any]:
    def unrolled(x: Tensor) -> Tensor:
        state = None
        for row in x.transpose(0, 1).unbind(0):
            state = layer(row, state)
        assert state is not None
        return state[0]

    return unrolled


@pytest.mark.parametrize(("n", "t"), SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_followed(name: str, n: int, t: int) -> None:
    make, spec = NETWORKS[name]
    x, track = given(spec, n, t)
    verdicts = check(make(), [x], [track], n, ("small", "large"))
    assert verdicts
    assert not [v for v in verdicts if not isinstance(v, Track)]
