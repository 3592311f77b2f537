"""Deep networks and mixtures of experts."""

from __future__ import annotations

import torch
from torch import nn

from tests.geometry.merging.networks import made, tokens


def deep() -> tuple[nn.Sequential, torch.Tensor]:
    model = made(
        nn.Sequential(
            nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6), nn.Sigmoid(), nn.Linear(6, 3)
        )
    )
    return model, tokens(60, 5)
