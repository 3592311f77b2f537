"""What these programs share: batches, and a program from a function and its parts."""

from __future__ import annotations

from torch import nn

from tests.zoo.parts import N, Net, any_loss, classes, numbers, tokens
from tests.zoo.verdict import Program

X, Y, IDS, SEQUENCES, IMAGES = numbers(N, 8), classes(), tokens(N, 5), numbers(N, 4, 8), numbers(N, 3, 8, 8)
SQUARE = numbers(N, N, 8)


def of(compute, batch=X, measured=True, loss=any_loss, **parts):
    inputs = batch if isinstance(batch, tuple) else (batch,)
    return Program(lambda: Net(compute, **{k: make() for k, make in parts.items()}), inputs, loss, measured=measured)


def linear(inputs=8, outputs=8, **options):
    return lambda: nn.Linear(inputs, outputs, **options)
