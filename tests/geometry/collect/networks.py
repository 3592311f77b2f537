"""Networks and batches to collect from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Tokens(nn.Module):
    """A feed-forward block over (batch, tokens, features), with a function as its nonlinearity."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 9), nn.LayerNorm(9), nn.Linear(9, 4)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return hidden + self.down(functional.gelu(self.norm(self.up(hidden))))


def tokens() -> tuple[nn.Module, list[Tensor]]:
    return Tokens(), [torch.randn(3, 6, 4), torch.randn(2, 5, 4)]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
