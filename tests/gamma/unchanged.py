"""Programs that a monitor may not change."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, classes, numbers, tokens

X, Y, IDS, SIGNALS, SEQUENCES = numbers(N, 8), classes(), tokens(N, 5), numbers(N, 3, 9), numbers(N, 4, 8)


def classify(x):
    def run(model, k):
        out = model(x * (1 + k) if x.is_floating_point() else x)
        out = out.flatten(1)
        loss = F.cross_entropy(out, Y)
        loss.backward()
        return out.detach(), loss.item()

    return run


def chain(*layers):
    return lambda: nn.Sequential(*(make() for make in layers))


def linear(inputs=8, outputs=3):
    return lambda: nn.Linear(inputs, outputs)
