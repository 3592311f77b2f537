"""The learning functional L_geom = H_G + λV of a model, to watch or to add to a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..quotient import Symmetries
from .layers import hidden_layers
from .redundancy import orbit_entropy
from .volume import log_volume, realized_volume

VOLUMES = ("log", "union")


@dataclass(frozen=True)
class GeometricFunctional:
    """L_geom of a model.

    Attributes:
        value: H_G + λV summed over hidden layers; carries the gradient. A scalar, float64.
        entropy: H_G, summed over layers.
        volume: V, or its logarithmic surrogate, summed over layers.
        volume_error: the standard error of `volume` ("union"), else 0.
        layers: name → (H_G, V) of each layer.
    """

    value: Tensor
    entropy: Tensor
    volume: Tensor
    volume_error: float
    layers: dict[str, tuple[float, float]]


def geometric_functional(
    model: nn.Module | Symmetries,
    lam: float,
    *,
    volume: str = "log",
    layers: Sequence[tuple[str, str]] | None = None,
    example_input: Any = None,
    epsilon: float = 0.5,
    angle: float | None = None,
    samples: int = 16384,
    seed: int = 0,
) -> GeometricFunctional:
    """L_geom = H_G + λ · volume of the hidden layers, to watch or to add to a loss.

    The volume is by default the surrogate `log_volume`, which has a gradient; V itself, with volume="union", has none.

        loss = cross_entropy(model(x), y) + strength * geometric_functional(model, 0.1).value

    It is a regulariser and no learning rule: with nothing beside it, its minimum is one direction for all neurons.

    Args:
        model, layers, example_input: see `hidden_layers`.
        lam: λ ≥ 0, what a unit of volume costs in nats (a nat a direction with "log", a cap with "union").
        volume: "log" takes `log_volume`, which is differentiable; "union" takes `realized_volume`, which is not, and
            the whole result then carries no gradient.
        epsilon: for "log".
        angle, samples, seed: for "union"; see `realized_volume`.

    Returns:
        `GeometricFunctional`: the value and its parts, differentiable with "log".

    Raises:
        ValueError: λ negative or not finite, an unknown volume, and what `hidden_layers` and the parts raise.
        TypeError: as `hidden_layers`.
    """
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(
            f"lam: expected λ ≥ 0, got {lam!r}. A negative λ would pay for volume; to spread neurons apart, "
            "subtract the functional from the loss instead."
        )
    checks.check_choice(volume, "volume", VOLUMES)
    entropies, volumes, errors = [], [], []
    hidden = hidden_layers(model, layers, example_input=example_input)
    with torch.set_grad_enabled(torch.is_grad_enabled() and volume == "log"):
        for layer in hidden:
            entropies.append(orbit_entropy(layer.rows, layer.mass))
            rows = layer.rows[layer.mass > 0]
            if volume == "log":
                volumes.append(log_volume(rows, epsilon))
                continue
            union = realized_volume(rows, angle, samples, seed)
            volumes.append(entropies[-1].new_tensor(union.value))
            errors.append(union.standard_error)
        entropy, filled = torch.stack(entropies).sum(), torch.stack(volumes).sum()
        value = entropy + lam * filled
    parts = {layer.name: (h.item(), v.item()) for layer, h, v in zip(hidden, entropies, volumes, strict=True)}
    return GeometricFunctional(value, entropy, filled, math.hypot(*errors), parts)
