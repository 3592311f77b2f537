"""Euler–Maruyama, all paths at once, in float64, seeded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdsd_kernels import checks

from ..._progress import Report
from .problem import Diffusion, Potential, Trajectory
from .steps import checked_start, kick, loss_and_gradient, root_function


def simulate(
    potential: Potential,
    diffusion: Diffusion,
    start: Tensor,
    *,
    step_size: float,
    steps: int,
    every: int = 1,
    seed: int = 0,
    progress: Report | None = None,
) -> Trajectory:
    """Euler–Maruyama paths of ds = −∇L dt + √(2D) dW (Itô), in float64.

        s ← s − η ∇L(s) + √η R(s) z,    R Rᵀ = 2D,    z normal

    With D = (η/2) Σ this is a step of stochastic gradient descent of learning rate η and gradient covariance Σ. With
    D = 0 it is gradient descent.

    Args:
        potential: L, see `Potential`.
        diffusion: D, see `Diffusion`.
        start: where paths begin, one a row, any floating-point dtype.  # shape: (paths, dim)
        step_size: η > 0, the time of a step.
        steps: how many steps, ≥ 0.
        every: keep each `every`-th step.
        seed: same seed, same paths.
        progress: called about a hundred times over the run, and at its end.

    Returns:
        `Trajectory` of the states that were kept, the start among them.

    Raises:
        TypeError: start is no floating-point tensor; the potential does not depend on the states through autograd.
        ValueError: shapes or numbers out of range; a potential, gradient or D that is not finite, or a D that is not
            symmetric or not positive semi-definite, with the path and the step.
    """
    states = checked_start(start)
    step_size = checks.check_number(step_size, "step_size", "a number above 0", above=0)
    steps, every = checks.check_integer(steps, "steps", least=0), checks.check_integer(every, "every", least=1)
    root = root_function(diffusion, states.shape[1])
    generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
    kept, losses = [], []
    report = max(1, steps // 100)
    for step in range(steps + 1):
        loss, gradient = loss_and_gradient(potential, states, step)
        if step % every == 0:
            kept.append(states)
            losses.append(loss)
        if progress is not None and (step % report == 0 or step == steps):
            progress(step, steps)
        if step == steps:
            break
        states = states - step_size * gradient + math.sqrt(step_size) * kick(root(states, step), states, generator)
    times = step_size * torch.arange(0, steps + 1, every, dtype=torch.float64)
    return Trajectory(times, torch.stack(kept), torch.stack(losses))
