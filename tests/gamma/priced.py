"""Small models whose steps are counted, and the count of dispatched operations."""

from __future__ import annotations

import collections
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_one, self.norm_two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention(self.norm_one(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_two(x))))


class Gpt(nn.Module):
    def __init__(self, width: int = 16, words: int = 20, positions: int = 8) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]).expand_as(ids))
        return self.head(self.norm(self.blocks(x)))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.deep, self.two = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.GroupNorm(4, 16)
        self.point, self.three = nn.Conv2d(16, 16, 1, bias=False), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.stem(x)))
        x = F.relu(self.two(self.deep(x)))
        return self.head(F.relu(self.three(self.point(x))).mean((2, 3)))


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))


MODELS = {
    "GPT": (Gpt, lambda: torch.randint(0, 20, (3, 8)), lambda: torch.randint(0, 20, (3, 8))),
    "MLP": (Mlp, lambda: torch.randn(6, 12), lambda: torch.randint(0, 5, (6,))),
    "CNN": (
        lambda: Cnn().to(memory_format=torch.channels_last),
        lambda: torch.randn(3, 3, 6, 6).to(memory_format=torch.channels_last),
        lambda: torch.randint(0, 5, (3,)),
    ),
}


def owners(model: nn.Module) -> int:
    """Modules that own parameters."""
    return sum(1 for module in model.modules() if any(True for _ in module.parameters(recurse=False)))


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func).removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))
