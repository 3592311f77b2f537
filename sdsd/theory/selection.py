"""The Selection Principle's toy models: what a second potential picks where the loss is flat.

The document "What Moves When Nothing Threatens" says that on a manifold of zero loss a semantic potential
V_sem = k Σ (w_i − w_j)² makes gradient descent converge to its unique minimum, and proves it on u·v = 1 with the
coordinate α. Two models show what holds:

========================  ==============================================================================================
`select_on_line`          w₁ + w₂ = 1: one minimum, α = w₁ → ½, the distance shrinks by 1 − 4kη a step (for kη < ½)
`select_on_hyperbola`     u·v = 1: α = u²/(u² + v²) → ½, but at two points, (1, 1) and (−1, −1), half of the starts each
========================  ==============================================================================================

So the principle holds up to a symmetry of V_sem itself. And on u·v = 1 the potential is (u − v)² = ‖w‖² − 2: what
selects there is weight decay. Without it (k = 0) the loss selects nothing: every start ends somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdsd_kernels import checks


@dataclass(frozen=True)
class Selection:
    """Gradient descent on loss + k·V_sem from many starts.

    Attributes:
        weights: both weights after each step.  # shape: (steps + 1, starts, 2)
        alpha: the coordinate along the manifold, ½ at the selected point.  # shape: (steps + 1, starts)
        loss: without V_sem.  # shape: (steps + 1, starts)
    """

    weights: Tensor
    alpha: Tensor
    loss: Tensor


def select_on_line(start: Tensor, k: float, learning_rate: float, steps: int) -> Selection:
    """Gradient descent on (w₁ + w₂ − 1)² + k (w₁ − w₂)², α = w₁.

    The loss acts along (1, 1) and V_sem along (1, −1), so they do not meet: w₁ − w₂ shrinks by exactly 1 − 4kη a step
    and converges for kη < ½, w₁ + w₂ − 1 by 1 − 4η.

    Args:
        start: float tensor of weights.  # shape: (starts, 2)
        k: strength of V_sem, ≥ 0; 0 selects nothing.
        learning_rate: η > 0.
        steps: how many, ≥ 0.

    Returns:
        `Selection`: where each start ended, and its α.

    Raises:
        TypeError: start is no floating-point tensor.
        ValueError: a shape or number out of range; steps that diverge (kη or η not below ½).
    """
    _check(start, k, learning_rate, steps)

    def gradient(w: Tensor) -> Tensor:
        together, apart = w.sum(1, keepdim=True) - 1, w[:, :1] - w[:, 1:]
        return 2 * together + 2 * k * torch.cat((apart, -apart), 1)

    weights = _descend(start, gradient, learning_rate, steps)
    return Selection(weights, weights[..., 0], (weights.sum(2) - 1).square())


def select_on_hyperbola(start: Tensor, k: float, learning_rate: float, steps: int) -> Selection:
    """Gradient descent on (uv − 1)² + k (u − v)², α = u² / (u² + v²).

    On the manifold V_sem is u² + v² − 2. Its minima are (1, 1) and (−1, −1), α = ½ at both; the sign of u + v never
    changes and decides which.

    Arguments and errors as `select_on_line`.

    Returns:
        `Selection`: where each start ended, and its α.
    """
    _check(start, k, learning_rate, steps)

    def gradient(w: Tensor) -> Tensor:
        apart = w[:, :1] - w[:, 1:]
        return 2 * (w.prod(1, keepdim=True) - 1) * w.flip(1) + 2 * k * torch.cat((apart, -apart), 1)

    weights = _descend(start, gradient, learning_rate, steps)
    square = weights.square()
    return Selection(weights, square[..., 0] / square.sum(2), (weights.prod(2) - 1).square())


def _check(start: Tensor, k: float, learning_rate: float, steps: int) -> None:
    if not isinstance(start, Tensor) or not start.is_floating_point():
        kind = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start: expected a floating-point torch.Tensor (starts, 2), got {kind}.")
    if start.ndim != 2 or start.shape[1] != 2 or not len(start):
        raise ValueError(f"start: expected shape (starts, 2), got {tuple(start.shape)}.")
    checks.check_number(k, "k", "a number ≥ 0", least=0)
    if not (learning_rate > 0 and max(k, 1) * learning_rate < 0.5):
        raise ValueError(
            f"learning_rate: expected 0 < η < ½ and kη < ½, beyond which w₁ − w₂ grows, got η = {learning_rate!r} with "
            f"k = {k!r}."
        )
    checks.check_integer(steps, "steps", least=0)


def _descend(start: Tensor, gradient: Callable[[Tensor], Tensor], learning_rate: float, steps: int) -> Tensor:
    weights = [start.detach().double()]
    for _ in range(steps):
        weights.append(weights[-1] - learning_rate * gradient(weights[-1]))
    path = torch.stack(weights)
    if not bool(path[-1].isfinite().all()):
        raise _ran_away(path)
    return path


def _ran_away(path: Tensor) -> ValueError:
    bad = ~path.isfinite().all(2)
    step = int(bad.any(1).nonzero()[0])
    return ValueError(
        f"learning_rate: start {int(bad[step].nonzero()[0])} runs away, not finite at step {step}. "
        "Take a smaller learning_rate, or start nearer to the manifold."
    )
