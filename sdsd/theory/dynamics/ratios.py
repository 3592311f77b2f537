"""Γ_H and Γ: at given states, over a stationary trajectory, and where the loss stops falling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..._progress import Report
from .cases import ornstein_uhlenbeck
from .problem import Case, Diffusion, Estimate, Potential, Trajectory
from .simulate import simulate
from .steps import checked_start, gradient_and_hessian, per_path, root_function


class LocalTerms(NamedTuple):
    """‖∇L‖², Tr(D H) and Tr D at each state; shape: (states,) each."""

    gradient_square: Tensor
    trace_dh: Tensor
    trace_d: Tensor

    @property
    def gamma_h(self) -> Tensor:
        """Γ_H = ‖∇L‖² / Tr(D H); NaN where Tr(D H) is not positive and the ratio decides nothing."""
        return torch.where(self.trace_dh > 0, self.gradient_square / self.trace_dh, math.nan)

    @property
    def gamma_published(self) -> Tensor:
        """The document's Γ = ‖∇L‖² / Tr D."""
        return torch.where(self.trace_d > 0, self.gradient_square / self.trace_d, math.nan)

    @property
    def drift(self) -> Tensor:
        """The exact dE[L]/dt = −‖∇L‖² + Tr(D H)."""
        return self.trace_dh - self.gradient_square


def local_terms(potential: Potential, diffusion: Diffusion, states: Tensor) -> LocalTerms:
    """What drift and diffusion do to the loss at `states` (states, dim), with the exact Hessian.

    Raises:
        TypeError, ValueError: as `simulate`.
    """
    states = checked_start(states)
    gradient, hessian = gradient_and_hessian(potential, states)
    root = root_function(diffusion, states.shape[1])(states, 0)
    if root.ndim <= 1:
        half = (root.square() / 2).expand(len(states))
        trace_dh, trace_d = half * hessian.diagonal(dim1=1, dim2=2).sum(1), half * states.shape[1]
    else:
        matrix = (root @ root.mT / 2).expand_as(hessian)
        trace_dh, trace_d = (matrix * hessian).sum((1, 2)), matrix.diagonal(dim1=1, dim2=2).sum(1)
    return LocalTerms(gradient.square().sum(1), trace_dh, trace_d)


def path_mean(values: Tensor) -> Estimate:
    """Mean of a quantity over time and paths; its error from the spread of the paths' own means.

    Paths are independent, so this holds however long a path remembers itself.

    Args:
        values: ≥ 2 paths.  # shape: (kept, paths)
    """
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise ValueError(f"values: expected (kept, paths) with at least 2 paths, got shape {tuple(values.shape)}.")
    means = values.double().mean(0)
    return Estimate(means.mean().item(), (means.std() / math.sqrt(len(means))).item())


def path_ratio(numerator: Tensor, denominator: Tensor) -> Estimate:
    """Ratio of two means over time and paths, with its standard error to first order; shapes as `path_mean`."""
    above, below = path_mean(numerator), path_mean(denominator)
    ratio = above.value / below.value if below.value else math.nan
    rest = path_mean(numerator - ratio * denominator)
    return Estimate(ratio, rest.standard_error / abs(below.value) if below.value else math.nan)


class StationaryGamma(NamedTuple):
    """Averages over the part of a trajectory that has forgotten its start."""

    gamma_h: Estimate
    gamma_published: Estimate
    loss: Estimate


def stationary_gamma(case: Case, trajectory: Trajectory, burn_in: float = 0.5) -> StationaryGamma:
    """E‖∇L‖² / E Tr(D H), E‖∇L‖² / E Tr D and E L after the share `burn_in` of the trajectory.

    In a state that stays as it is the loss does too, so the first is 1, up to the step size; the second is not.

    Raises:
        ValueError: burn_in outside [0, 1), fewer than two paths.
    """
    if not 0 <= burn_in < 1:
        raise ValueError(f"burn_in: expected a share in [0, 1), got {burn_in!r}.")
    first = math.ceil(burn_in * len(trajectory.times))
    states = trajectory.states[min(first, len(trajectory.times) - 1) :]
    terms = LocalTerms(*map(torch.stack, zip(*(local_terms(*case, at_once) for at_once in states), strict=True)))
    return StationaryGamma(
        path_ratio(terms.gradient_square, terms.trace_dh),
        path_ratio(terms.gradient_square, terms.trace_d),
        path_mean(trajectory.losses[-len(states) :]),
    )


class SignChange(NamedTuple):
    """The values of both ratios at which the expected loss stops falling and starts to rise."""

    gamma_h: Estimate
    gamma_published: Estimate


def loss_sign_change(
    stiffness: float, diffusion: float = 0.1, *, dim: int = 4, paths: int = 4000, seed: int = 0
) -> SignChange:
    """Where E[L] turns from falling to rising in an Ornstein–Uhlenbeck bowl, measured on paths.

    Paths start at nine radii, Γ_H from 0.5 to 2, and run for half a relaxation time. The change of the expected loss
    is a straight line in Γ_H at the start; its zero is fitted by least squares, with the spread of the paths as error.
    """
    step_size, steps = 0.01 / stiffness, 50
    gamma = torch.linspace(0.5, 2.0, 9, dtype=torch.float64).repeat_interleave(paths)
    start = torch.zeros(len(gamma), dim, dtype=torch.float64)
    start[:, 0] = (gamma * diffusion * dim / stiffness).sqrt()
    case = ornstein_uhlenbeck(stiffness, diffusion)
    ran = simulate(*case, start, step_size=step_size, steps=steps, every=steps, seed=seed)
    change = ran.losses[-1] - ran.losses[0]
    centred = gamma - gamma.mean()
    slope = (centred @ change / (centred @ centred)).item()
    zero = (gamma.mean() - change.mean() / slope).item()
    rest = change - slope * (gamma - zero)
    error = (rest.std() / abs(slope)).item() * math.sqrt(
        1 / len(gamma) + (zero - gamma.mean().item()) ** 2 / (centred @ centred).item()
    )
    terms = local_terms(*case, start[:1])
    to_published = (terms.gamma_published / terms.gamma_h).item()
    return SignChange(Estimate(zero, error), Estimate(to_published * zero, to_published * error))


@dataclass(frozen=True)
class PhaseDiagram:
    """Bowls of many stiffnesses k under noise of many strengths D, all started at one distance from the minimum.

    Attributes:
        stiffness, diffusion: the axes.  # shape: (a,), (b,)
        growth: log(E L at the end / L at the start), measured on paths: negative where the loss falls.  # shape: (a, b)
        standard_error: of `growth`.  # shape: (a, b)
        gamma_h, gamma_published: both ratios at the start.  # shape: (a, b)
    """

    stiffness: Tensor
    diffusion: Tensor
    growth: Tensor
    standard_error: Tensor
    gamma_h: Tensor
    gamma_published: Tensor


def phase_diagram(
    stiffness: Tensor,
    diffusion: Tensor,
    *,
    radius: float = 1.0,
    dim: int = 4,
    paths: int = 64,
    seed: int = 0,
    progress: Report | None = None,
) -> PhaseDiagram:
    """Does the loss fall? On paths, and by both ratios, for every pair of stiffness k and diffusion D.

    In a bowl E[L] relaxes from kr²/2 to D·dim/2 without turning, so its change has one sign at all times and the
    measured boundary is where Γ_H = kr²/(D·dim) is 1. The document's Γ = k²r²/(D·dim) is 1 elsewhere, but for k = 1.
    The time is 2 and a step 0.1 / max(k), so that Euler's own shift of the boundary is at most 5%.

    Raises:
        ValueError: stiffness or diffusion not positive, or not one-dimensional.
    """
    for value, name in ((stiffness, "stiffness"), (diffusion, "diffusion")):
        if value.ndim != 1 or not len(value):
            raise ValueError(f"{name}: expected a list of numbers, got shape {tuple(value.shape)}.")
        per_path(value, name, 0.0)
    grid = torch.cartesian_prod(stiffness.double(), diffusion.double())
    k, d = grid.repeat_interleave(paths, 0).unbind(1)
    start = torch.zeros(len(k), dim, dtype=torch.float64)
    start[:, 0] = radius
    case = ornstein_uhlenbeck(k, d)
    step_size = 0.1 / stiffness.max().item()
    steps = math.ceil(2 / step_size)
    ran = simulate(*case, start, step_size=step_size, steps=steps, every=steps, seed=seed, progress=progress)
    terms = local_terms(*case, start)
    shape = (len(stiffness), len(diffusion), paths)
    ratio = (ran.losses[-1] / ran.losses[0]).view(shape)
    return PhaseDiagram(
        stiffness,
        diffusion,
        ratio.mean(2).log(),
        ratio.std(2) / math.sqrt(paths) / ratio.mean(2),
        terms.gamma_h.view(shape)[..., 0],
        terms.gamma_published.view(shape)[..., 0],
    )
