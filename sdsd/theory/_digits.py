"""Real handwritten digits for the experiments, where no data is given."""

from __future__ import annotations

import torch
from torch import Tensor

from .._extras import require


def some_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` of scikit-learn's 8×8 digits: pixels from 0 to 1 in float64, shape (count, 64), and their classes.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = require("sklearn.datasets", extra="studies", purpose="This experiment")
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.from_numpy(pixels)[order].double() / 16, torch.from_numpy(labels)[order].long()
