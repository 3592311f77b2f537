"""scikit-learn's 1,797 handwritten digits, installed with it: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .._extras import require

CENTRE = 0.3
"""About the mean of a pixel, which is from 0 to 1."""


def load_digits(
    seed: int, count: int | None = None, *, centre: float = CENTRE, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The first `count` digits, or all, in an order of the seed's: pixels less `centre`, and classes.

    Returns:
        Images and classes; shapes: (count, 64), (count,).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = require("sklearn.datasets", extra="report", purpose="the built-in digits")
    pixels, classes = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:count]
    return (torch.from_numpy(pixels).to(dtype) / 16 - centre)[order], torch.from_numpy(classes).long()[order]


@dataclass(frozen=True)
class Digits:
    """All digits, shuffled and split; shapes: (n, 64) and (n,)."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def split_digits(seed: int, held_out: int = 450) -> Digits:
    """All digits in an order of the seed's, the last `held_out` of them kept apart.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    images, labels = load_digits(seed)
    split = len(images) - held_out
    return Digits(images[:split], labels[:split], images[split:], labels[split:])


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """(mean loss, accuracy)."""
    scores = network(images)
    return cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).double().mean().item()
