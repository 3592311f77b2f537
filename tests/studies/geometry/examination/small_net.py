"""A small network, examined in a second."""

from __future__ import annotations

import torch
from torch import nn

from sdsd.geometry import mean_loss, sgd_training
from sdsd.studies.geometry.arc import ArcConfig
from sdsd.studies.geometry.subject import (
    Subject,
    accuracy_on,
    classification_loss,
    standard_controls,
)

CONFIG = ArcConfig(pairs=3, random_pairings=2, epochs=2)


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(30, 6, generator=generator), torch.arange(30) % 3) for _ in range(2)]


def small(calls: list[int] | None = None, stop_at: int | None = None, seed: int = 0) -> Subject:
    """Twenty-four neurons; `calls` counts measurements, and the one numbered `stop_at` is interrupted."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    batches = data()
    loss = mean_loss(batches, classification_loss)

    def measured(network: nn.Module) -> float:
        if calls is not None:
            calls.append(len(calls))
            if len(calls) == stop_at:
                raise KeyboardInterrupt
        return loss(network)

    return Subject(
        "small net",
        model,
        "0",
        batches,
        measured,
        example_input=batches[0][0][:1],
        controls=standard_controls(model, batches, 0),
        accuracy=accuracy_on(batches),
        train=sgd_training(batches, classification_loss),
    )


def quiet():
    from sdsd.studies.engine import Progress

    return Progress()
