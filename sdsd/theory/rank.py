"""Implicit rank regularisation: the published experiment, why it stops where it does, and an honest replacement.

The document "What Moves When Nothing Threatens" reports that 84% of random starts of W = u₁v₁ᵀ + u₂v₂ᵀ converge to
rank 1 when W is fitted to a 2 × 2 matrix, and reads it as SGD's bias to simplicity.

======================  ================================================================================================
`factorise`             that experiment, all starts at once: 42 of 50 at 2,981 steps with seeds 0–49, as published
`sense`                 matrix sensing, where the data leave many solutions open and the size of the start decides
======================  ================================================================================================

The 84% reproduces and is an artefact of stopping: the target has rank 1, so every solution has; the second singular
value goes to zero in all runs and the count is how many have passed the threshold. More steps give 100%, a target of
full rank gives 0%. In matrix sensing the solutions differ, and gradient descent does find nearly the lowest rank, when
it starts near zero (Gunasekar et al. 2017; Li, Ma, Zhang 2018); from a start of ordinary size it does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdsd_kernels import checks

from .._progress import Report

PUBLISHED_TARGET = ((1.0, 2.0), (2.0, 4.0))
PUBLISHED_STEPS = 2981
RANK_THRESHOLD = 1e-3


def published_start(seeds: Iterable[int], scale: float = 0.1) -> tuple[Tensor, Tensor]:
    """The published starts: for each seed u₁, v₁, u₂, v₂ in this order, `scale` · randn(2) after torch.manual_seed.

    Returns:
        (u, v): columns uᵢ, rows vᵢ, so that W = u @ v; float32 as drawn.  # shape: (seeds, 2, 2) each
    """
    drawn = []
    for seed in seeds:
        # The numbers torch.manual_seed gives, with the global state left alone.
        generator = torch.Generator().manual_seed(checks.check_integer(seed, "seeds"))
        drawn.append(torch.stack([scale * torch.randn(2, generator=generator) for _ in range(4)]))
    factors = torch.stack(drawn)
    return factors[:, 0::2].mT, factors[:, 1::2]


@dataclass(frozen=True)
class Factorisation:
    """Fits of W = u₁v₁ᵀ + u₂v₂ᵀ at some steps.

    Attributes:
        steps: after how many updates.
        singular_values: of W, falling.  # shape: (len(steps), starts, 2)
        imbalance: norm of the larger component uᵢvᵢᵀ over that of the smaller.  # shape: (len(steps), starts)
        loss: Σ(W − T)².  # shape: (len(steps), starts)
    """

    steps: tuple[int, ...]
    singular_values: Tensor
    imbalance: Tensor
    loss: Tensor

    def rank(self, threshold: float = RANK_THRESHOLD) -> Tensor:
        """How many singular values exceed `threshold`.  # shape: (len(steps), starts)"""
        return (self.singular_values > threshold).sum(2)

    def rank_one_fraction(self, threshold: float = RANK_THRESHOLD) -> list[float]:
        """The share of starts whose W has rank 1, after each of `steps`."""
        return (self.rank(threshold) == 1).double().mean(1).tolist()


def factorise(
    target: Tensor | Sequence[Sequence[float]] = PUBLISHED_TARGET,
    *,
    seeds: Iterable[int] = range(50),
    steps: Sequence[int] = (PUBLISHED_STEPS,),
    learning_rate: float = 0.05,
    scale: float = 0.1,
    progress: Report | None = None,
) -> Factorisation:
    """Gradient descent on Σ(W − T)² over u₁, v₁, u₂, v₂; the defaults are the published experiment.

    The document does not give the number of updates. 2,981 gives its 42 of 50, and so does any from 2,960 to 3,350,
    with the threshold of 1e-3 for what counts as zero: the count only rises, and at 1e-2 it is 50, at 1e-4 25.

    Args:
        target: T.  # shape: (2, 2)
        seeds: one start each, see `published_start`; computed in float64 from float32 draws.
        steps: when to look, in updates; the last is where it ends.
        learning_rate, scale: of the updates, of the starts.
        progress: called with (updates done, updates in all).

    Returns:
        `Factorisation` at every one of `steps`.

    Raises:
        ValueError: no 2 × 2 target, no seeds, no steps, or a run that is not finite.
    """
    wanted = torch.as_tensor(target, dtype=torch.float64)
    if wanted.shape != (2, 2):
        raise ValueError(f"target: expected a 2 × 2 matrix, got shape {tuple(wanted.shape)}.")
    looks = tuple(sorted({checks.check_integer(step, "steps") for step in steps}))
    seeds = tuple(seeds)
    if not looks or looks[0] < 0 or not seeds:
        raise ValueError(f"steps, seeds: expected at least one of each, steps ≥ 0, got {looks} and {len(seeds)} seeds.")
    u, v = (factor.double() for factor in published_start(seeds, scale))
    components: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(looks[-1] + 1):
        error = u @ v - wanted
        if step in looks:
            _check_finite(error, step)
            components.append(_components(u, v, error))
        if progress is not None and (step % 500 == 0 or step == looks[-1]):
            progress(step, looks[-1])
        slope = 2 * learning_rate * error
        u, v = u - slope @ v.mT, v - u.mT @ slope
    return Factorisation(looks, *(torch.stack(values) for values in zip(*components, strict=True)))


@dataclass(frozen=True)
class Sensing:
    """Matrix sensing at several sizes of the start; all shapes (len(scales), problems).

    Attributes:
        scales: sizes of the start.
        effective_rank: of the matrix found, see `effective_rank`.
        residual: mean square error on the measurements, relative to their mean square.
        error: ‖W − T‖² / ‖T‖²: whether the unmeasured part was found too.
    """

    scales: tuple[float, ...]
    effective_rank: Tensor
    residual: Tensor
    error: Tensor


def sense(
    scales: Sequence[float] = (1e-3, 1e-2, 0.1, 0.3, 1.0),
    *,
    dim: int = 10,
    measurements: int = 40,
    rank: int = 1,
    problems: int = 4,
    steps: int = 5000,
    learning_rate: float = 0.02,
    seed: int = 0,
    progress: Report | None = None,
) -> Sensing:
    """Find a matrix of low rank from fewer measurements than entries, by gradient descent on W = UVᵀ, U and V square.

        loss = mean_m ⟨A_m, UVᵀ − T⟩² / 2,    A_m normal,    T of `rank`, ‖T‖_F = 1,    U, V ~ scale · normal

    Every scale gets the same problems and the same starts, multiplied. With measurements < dim² nothing but the way
    that gradient descent takes decides which of the exact solutions it finds.

    Args:
        scales: sizes of the start, > 0.
        dim, measurements, rank: of each problem.
        problems: how many, each with its own T, A and start.
        steps, learning_rate: of the descent.
        seed: same seed, same problems.
        progress: called with (steps done, steps in all).

    Returns:
        `Sensing`, a row a scale and a column a problem.

    Raises:
        ValueError: a number out of range, or a run that is not finite.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales: expected numbers > 0, got {tuple(scales)}.")
    if not (1 <= rank <= dim and measurements >= 1 and problems >= 1 and steps >= 1):
        raise ValueError(
            f"expected 1 ≤ rank ≤ dim and at least one measurement, problem and step, got rank={rank}, dim={dim}, "
            f"measurements={measurements}, problems={problems}, steps={steps}."
        )
    generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))

    def normal(*shape: int) -> Tensor:
        return torch.randn(problems, *shape, dtype=torch.float64, generator=generator)

    target = normal(dim, rank) @ normal(rank, dim)
    target = target / torch.linalg.matrix_norm(target, keepdim=True)
    sensors = normal(measurements, dim * dim)
    seen = (sensors @ target.flatten(1)[:, :, None])[:, :, 0]
    size = torch.tensor(scales, dtype=torch.float64)[:, None, None, None]
    u, v = size * normal(dim, dim), size * normal(dim, dim)
    for step in range(steps):
        # shape: (problems, measurements, scales), one product for all scales of a problem
        off = sensors @ (u @ v.mT).flatten(2).permute(1, 2, 0) - seen[:, :, None]
        slope = (sensors.mT @ off).permute(2, 0, 1).unflatten(2, (dim, dim)) * (learning_rate / measurements)
        u, v = u - slope @ v, v - slope.mT @ u
        if progress is not None and (step % 100 == 0 or step == steps - 1):
            progress(step + 1, steps)
    product = u @ v.mT
    _check_finite(product.flatten(0, 1), steps)
    residual = (sensors @ (product - target).flatten(2).permute(1, 2, 0)).square().mean(1).T / seen.square().mean(1)
    error = (product - target).square().sum((2, 3)) / target.square().sum((1, 2))
    return Sensing(tuple(scales), effective_rank(product), residual, error)


def effective_rank(matrix: Tensor) -> Tensor:
    """exp of the entropy of the singular values, scaled to sum 1 (Roy, Vetterli 2007); r for r equal ones.

    Args:
        matrix: (…, m, n), not zero.
    """
    values = torch.linalg.svdvals(matrix)
    share = values / values.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()


def _components(u: Tensor, v: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = torch.linalg.vector_norm(u, dim=1) * torch.linalg.vector_norm(v, dim=2)
    return torch.linalg.svdvals(u @ v), size.amax(1) / size.amin(1), error.square().sum((1, 2))


def _check_finite(values: Tensor, step: int) -> None:
    """`values` (runs, …) must be finite."""
    bad = ~values.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        raise ValueError(
            f"learning_rate: run {int(bad.nonzero()[0])} runs away, not finite by step {step}. Take a smaller one."
        )
