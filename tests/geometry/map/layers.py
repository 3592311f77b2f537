"""Layers of neurons in groups, and their map."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def grouped(neurons: int, groups: int, samples: int = 200, spread: float = 0.4, seed: int = 0) -> Tensor:
    """Activations of neurons in `groups` groups, after ReLU; neuron i is in group i % groups."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, groups, generator=generator)
    noise = torch.randn(samples, neurons, generator=generator)
    return (causes[:, torch.arange(neurons) % groups] + spread * noise).relu()


def exact_cosine(activations: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(activations.double(), dim=0)
    return unit.T @ unit


def distances_of(points: np.ndarray) -> np.ndarray:
    points = points.astype(np.float64)
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def stress_1(points: np.ndarray, cosine: Tensor) -> float:
    wanted = 1 - cosine.double().numpy()
    np.fill_diagonal(wanted, 0)
    return math.sqrt(((distances_of(points) - wanted) ** 2).sum() / (wanted**2).sum())
