"""How the studies of H_G, V and L_geom train a network on digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How a network with one hidden layer is trained on digits."""

    neurons: int
    batch: int
    learning_rate: float
    momentum: float
    epochs: int

    def start(self, seed: int, weight_decay: float = 0.0) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        """64 pixels, a hidden layer with ReLU, ten classes; and SGD with momentum."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, self.neurons), nn.ReLU(), nn.Linear(self.neurons, 10))
        return model, torch.optim.SGD(model.parameters(), self.learning_rate, self.momentum, weight_decay=weight_decay)

    def with_adam(self, seed: int, learning_rate: float) -> tuple[nn.Sequential, torch.optim.Optimizer]:
        """The same network, and Adam, which gets it to remember labels that mean nothing."""
        model, _ = self.start(seed)
        return model, torch.optim.Adam(model.parameters(), learning_rate)

    def batches(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The indices of one epoch's batches."""
        return torch.randperm(count, generator=generator).split(self.batch)
