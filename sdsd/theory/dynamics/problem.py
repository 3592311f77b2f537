"""What is simulated: a potential, its noise, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class NoiseRoot(NamedTuple):
    """A factor R of the diffusion matrix, 2D = R Rᵀ, for a D that is known in this form."""

    matrix: Tensor  # shape: (paths, dim, k)


Potential = Callable[[Tensor], Tensor]
"""States (paths, dim) → loss (paths,), in differentiable torch operations, each path by itself. If it has a method
`gradient` (states → (paths, dim)), as the named cases have, that is asked on the way instead of autograd: quicker."""
Diffusion = float | Tensor | Callable[[Tensor], "Tensor | NoiseRoot"]
"""D: a number (D·I), a (dim, dim) matrix, or a function of the states (paths, dim) that gives (paths,),
(paths, dim, dim) or a NoiseRoot."""


class Case(NamedTuple):
    """A potential and its noise; `simulate(*case, start, …)`."""

    potential: Potential
    diffusion: Diffusion


class Estimate(NamedTuple):
    """A mean over independent paths and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Trajectory:
    """What `simulate` kept: every `every`-th step and the start.

    Attributes:
        times: step · step_size.  # shape: (kept,)
        states: float64.  # shape: (kept, paths, dim)
        losses: L at `states`.  # shape: (kept, paths)
    """

    times: Tensor
    states: Tensor
    losses: Tensor
