"""Stochastic gradient flow, ds = −∇L dt + √(2D) dW, in potentials where what it does is known.

The document "Symmetry-Driven Spatial Density (SDSD) Framework" holds (§4) that learning converges where
Γ = ‖∇L‖² / Tr D > 1, dissolves where Γ < 1, and almost surely converges iff Γ > 1. By Itô's formula the loss changes by

    dE[L]/dt = E[−‖∇L‖² + Tr(D H)],    so it falls  ⇔  Γ_H = ‖∇L‖² / Tr(D H) > 1    (Tr(D H) > 0)

with the Hessian H, which the document leaves out. Here both ratios are computed beside what paths do.

====================================  ==================================================================================
`simulate`                            Euler–Maruyama, all paths at once, float64, seeded
`local_terms`                         ‖∇L‖², Tr(D H) and Tr D at given states
`stationary_gamma`                    Γ_H and Γ over the stationary half of a trajectory, with standard errors
`loss_sign_change`, `phase_diagram`   where the expected loss stops falling, against where each ratio is 1
`ornstein_uhlenbeck` … `hyperbola`    the named cases, `CASES`
`mean_square_factor`, `decay_rate`    what multiplicative noise does to E[s²], and to almost every path
====================================  ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdsd_kernels import checks

NOISES = ("none", "isotropic", "label")
ROUNDING = 1e-10
"""Relative size of a negative eigenvalue or an asymmetry that counts as rounding."""


class NoiseRoot(NamedTuple):
    """A factor R of the diffusion matrix, 2D = R Rᵀ, for a D that is known in this form."""

    matrix: Tensor  # shape: (paths, dim, k)


Potential = Callable[[Tensor], Tensor]
"""States (paths, dim) → loss (paths,), in differentiable torch operations, each path by itself. If it has a method
`gradient` (states → (paths, dim)), as the named cases have, that is asked on the way instead of autograd: quicker."""
Diffusion = float | Tensor | Callable[[Tensor], "Tensor | NoiseRoot"]
"""D: a number (D·I), a (dim, dim) matrix, or a function of the states (paths, dim) that gives (paths,),
(paths, dim, dim) or a NoiseRoot."""
Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


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


def simulate(
    potential: Potential,
    diffusion: Diffusion,
    start: Tensor,
    *,
    step_size: float,
    steps: int,
    every: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
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
    states = _checked_start(start)
    step_size = checks.check_number(step_size, "step_size", "a number above 0", above=0)
    steps, every = checks.check_integer(steps, "steps", least=0), checks.check_integer(every, "every", least=1)
    root = _root_function(diffusion, states.shape[1])
    generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
    kept, losses = [], []
    report = max(1, steps // 100)
    for step in range(steps + 1):
        loss, gradient = _loss_and_gradient(potential, states, step)
        if step % every == 0:
            kept.append(states)
            losses.append(loss)
        if progress is not None and (step % report == 0 or step == steps):
            progress(step, steps)
        if step == steps:
            break
        states = states - step_size * gradient + math.sqrt(step_size) * _kick(root(states, step), states, generator)
    times = step_size * torch.arange(0, steps + 1, every, dtype=torch.float64)
    return Trajectory(times, torch.stack(kept), torch.stack(losses))


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
    def gamma_seed(self) -> Tensor:
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
    states = _checked_start(states)
    gradient, hessian = _gradient_and_hessian(potential, states)
    root = _root_function(diffusion, states.shape[1])(states, 0)
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
    gamma_seed: Estimate
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
    gamma_seed: Estimate


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
    to_seed = (terms.gamma_seed / terms.gamma_h).item()
    return SignChange(Estimate(zero, error), Estimate(to_seed * zero, to_seed * error))


@dataclass(frozen=True)
class PhaseDiagram:
    """Bowls of many stiffnesses k under noise of many strengths D, all started at one distance from the minimum.

    Attributes:
        stiffness, diffusion: the axes.  # shape: (a,), (b,)
        growth: log(E L at the end / L at the start), measured on paths: negative where the loss falls.  # shape: (a, b)
        standard_error: of `growth`.  # shape: (a, b)
        gamma_h, gamma_seed: both ratios at the start.  # shape: (a, b)
    """

    stiffness: Tensor
    diffusion: Tensor
    growth: Tensor
    standard_error: Tensor
    gamma_h: Tensor
    gamma_seed: Tensor


def phase_diagram(
    stiffness: Tensor,
    diffusion: Tensor,
    *,
    radius: float = 1.0,
    dim: int = 4,
    paths: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
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
        _per_path(value, name, 0.0)
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
        stiffness, diffusion, ratio.mean(2).log(), ratio.std(2) / math.sqrt(paths) / ratio.mean(2),
        terms.gamma_h.view(shape)[..., 0], terms.gamma_seed.view(shape)[..., 0],
    )  # fmt: skip


# --- named cases


@dataclass(frozen=True)
class Bowl:
    """L = k‖s‖²/2."""

    stiffness: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        return self.stiffness * states.square().sum(1) / 2

    def gradient(self, states: Tensor) -> Tensor:
        return self.stiffness[..., None] * states


@dataclass(frozen=True)
class Well:
    """L = 1 − exp(−‖s‖²/2)."""

    def __call__(self, states: Tensor) -> Tensor:
        return 1 - torch.exp(-states.square().sum(1) / 2)

    def gradient(self, states: Tensor) -> Tensor:
        return states * torch.exp(-states.square().sum(1, keepdim=True) / 2)


@dataclass(frozen=True)
class Hyperbola:
    """L = (uv − 1)²/2 + λ(u² + v²)/2."""

    weight_decay: float

    def __call__(self, states: Tensor) -> Tensor:
        u, v = states.unbind(1)
        return (u * v - 1).square() / 2 + self.weight_decay * (u.square() + v.square()) / 2

    def gradient(self, states: Tensor) -> Tensor:
        residual = states[:, :1] * states[:, 1:] - 1
        return residual * states.flip(1) + self.weight_decay * states


def ornstein_uhlenbeck(stiffness: float | Tensor, diffusion: float | Tensor) -> Case:
    """A bowl, L = k‖s‖²/2, under isotropic noise. Γ_H = k‖s‖²/(D·dim); the document's Γ is k times that.

    Args:
        stiffness: k > 0; one number, or one a path for a whole diagram in one run.
        diffusion: D ≥ 0, likewise.
    """
    k, d = _per_path(stiffness, "stiffness", 0.0), _per_path(diffusion, "diffusion", -1.0)
    return Case(Bowl(k), _isotropic(d))


def multiplicative_noise(stiffness: float, sigma: float) -> Case:
    """A bowl in one dimension with noise in proportion to the state: ds = −k s dt + σ s dW, D = σ²s²/2; Γ_H = 2k/σ²."""
    _per_path(sigma, "sigma", -1.0)
    return Case(Bowl(_per_path(stiffness, "stiffness", 0.0)), lambda s: NoiseRoot(sigma * s[:, :, None]))


def saturating_well(diffusion: float | Tensor) -> Case:
    """A well that ends: L = 1 − exp(−‖s‖²/2), isotropic noise, one D or one a path. Nothing pulls back who has left."""
    d = _per_path(diffusion, "diffusion", -1.0)
    return Case(Well(), _isotropic(d))


def hyperbola(
    noise: str = "none", strength: float = 0.0, *, weight_decay: float = 0.0, learning_rate: float = 0.0
) -> Case:
    """u·v = 1, the smallest model with a rescaling symmetry: L = (uv − 1)²/2 + λ(u² + v²)/2, states (u, v).

    Rescaling (u, v) → (cu, v/c) leaves the loss alone, so gradient flow conserves Q = u² − v² (`imbalance`).

    Args:
        noise: "none" | "isotropic" (D = `strength`·I) | "label" (the target 1 gets noise of standard deviation
            `strength` at every step of size `learning_rate`: D = (η/2) strength² (v, u)(v, u)ᵀ).
        weight_decay: λ ≥ 0.
        learning_rate: η, for "label" only.
    """
    checks.check_choice(noise, "noise", NOISES)
    _per_path(strength, "strength", -1.0)
    _per_path(weight_decay, "weight_decay", -1.0)
    if noise == "label" and not learning_rate > 0:
        raise ValueError(
            f"learning_rate: expected the step size (> 0) that label noise comes with, got {learning_rate}."
        )

    def label(s: Tensor) -> NoiseRoot:
        return NoiseRoot(math.sqrt(learning_rate) * strength * s.flip(1)[:, :, None])

    choices: dict[str, Diffusion] = {"none": 0.0, "isotropic": strength, "label": label}
    return Case(Hyperbola(weight_decay), choices[noise])


CASES: dict[str, Callable[..., Case]] = {
    "ornstein-uhlenbeck": ornstein_uhlenbeck,
    "multiplicative-noise": multiplicative_noise,
    "saturating-well": saturating_well,
    "hyperbola": hyperbola,
}


def imbalance(states: Tensor) -> Tensor:
    """Q = u² − v² of states (…, 2) of the hyperbola, which gradient flow conserves.

    Gradient descent multiplies it by ∏(1 − η²r²), r = uv − 1 − label noise; weight decay λ by (1 − ηλ)² − η²r² a step.
    """
    return states[..., 0].square() - states[..., 1].square()


# --- multiplicative noise, exactly


def mean_square_factor(stiffness: float, sigma: float, step_size: float) -> float:
    """By what a step multiplies E[s²]: (1 − kη)² + σ²η, for s ← s(1 − kη + σ√η z). Exact.

    Above 1 the mean square grows, which is where Γ_H = 2k/σ² falls below 1/(1 − kη/2). A mean over sampled paths misses
    this: ever fewer of them carry the mean.
    """
    return (1 - stiffness * step_size) ** 2 + sigma**2 * step_size


def decay_rate(stiffness: float, sigma: float) -> float:
    """The rate at which almost every path decays: |s| ~ exp(−(k + σ²/2) t) (Itô). Positive on both sides of Γ_H = 1."""
    return stiffness + sigma**2 / 2


# --- the steps


def _per_path(value: float | Tensor, name: str, above: float) -> Tensor:
    """A float64 scalar or one number a path; `above` 0 asks for > 0, −1 for ≥ 0."""
    numbers = torch.as_tensor(value, dtype=torch.float64)
    good = numbers.isfinite() & ((numbers > 0) if above == 0 else (numbers >= 0))
    if not bool(good.all()):
        raise ValueError(
            f"{name}: expected numbers {'> 0' if above == 0 else '≥ 0'}, got {numbers[~good][0].item():g}."
        )
    return numbers


def _isotropic(diffusion: Tensor) -> Diffusion:
    return diffusion.item() if diffusion.ndim == 0 else lambda states: diffusion.expand(len(states))


def _checked_start(start: Tensor) -> Tensor:
    if not isinstance(start, Tensor) or not start.is_floating_point():
        kind = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start: expected a floating-point torch.Tensor (paths, dim), got {kind}.")
    if start.ndim != 2 or 0 in start.shape:
        raise ValueError(f"start: expected shape (paths, dim), neither 0, got {tuple(start.shape)}.")
    if not bool(start.isfinite().all()):
        raise ValueError("start: expected finite numbers.")
    return start.detach().double()


def _loss_and_gradient(potential: Potential, states: Tensor, step: int) -> tuple[Tensor, Tensor]:
    known = getattr(potential, "gradient", None)
    here = states if known else states.detach().requires_grad_()
    loss = potential(here)
    if loss.shape != states.shape[:1]:
        raise ValueError(
            f"potential: expected one loss a path, shape ({len(states)},), got {tuple(loss.shape)}. Sum over dim 1."
        )
    if known:
        gradient = known(states)
    elif loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, here, torch.ones_like(loss))
        loss = loss.detach()
    else:
        raise TypeError("potential: expected a loss that depends on the states by torch operations, got a constant.")
    # One sum tells in nearly all cases; it may overflow where no part of it does.
    if not math.isfinite((loss.sum() + gradient.sum()).item()):
        finite = loss.isfinite() & gradient.isfinite().all(1)
        if not bool(finite.all()):
            path = int((~finite).nonzero()[0])
            raise ValueError(
                f"potential: not finite on path {path} at step {step}: L = {loss[path].item():g} at state "
                f"{_listed(states[path])}. If paths run away, take a smaller step_size."
            )
    return loss, gradient


def _gradient_and_hessian(potential: Potential, states: Tensor) -> tuple[Tensor, Tensor]:
    """(states, dim) and (states, dim, dim). Paths do not meet, so one backward pass serves a column of all Hessians."""
    here = states.detach().requires_grad_()
    _loss_and_gradient(potential, states, 0)
    (gradient,) = torch.autograd.grad(potential(here).sum(), here, create_graph=True)
    if not gradient.requires_grad:
        return gradient, gradient.new_zeros(*states.shape, states.shape[1])
    columns = [
        torch.autograd.grad(column.sum(), here, retain_graph=True, materialize_grads=True)[0]
        for column in gradient.unbind(1)
    ]
    return gradient.detach(), torch.stack(columns, 2)


def _listed(state: Tensor) -> str:
    numbers = [f"{value:g}" for value in state[:4].tolist()]
    return f"({', '.join(numbers)}{', …' if len(state) > 4 else ''})"


def _root_function(diffusion: Diffusion, dim: int) -> Callable[[Tensor, int], Tensor]:
    """√(2D) as a function of states and step; worked out once where D is the same everywhere."""
    if callable(diffusion):
        return lambda states, step: _root(diffusion(states), states, step)
    fixed = _fixed_root(diffusion, dim)
    return lambda states, step: fixed


def _fixed_root(diffusion: float | Tensor, dim: int) -> Tensor:
    """√(2D) of a D that does not depend on the state: a scalar, or (dim, dim)."""
    matrix = torch.as_tensor(diffusion, dtype=torch.float64)
    if matrix.ndim == 0:
        return _scalar_root(matrix[None], "")[0]
    if matrix.shape != (dim, dim):
        raise ValueError(
            f"diffusion: expected a number, a ({dim}, {dim}) matrix or a function, got {tuple(matrix.shape)}."
        )
    return _matrix_root(matrix[None], "")[0]


def _root(value: Tensor | NoiseRoot, states: Tensor, step: int) -> Tensor:
    """√(2D) at each state: (paths,), (paths, dim, dim) or (paths, dim, k)."""
    paths, dim = states.shape
    where = f" on path {{path}} at step {step}"
    if isinstance(value, NoiseRoot):
        root = value.matrix
        if root.ndim != 3 or root.shape[:2] != (paths, dim):
            raise ValueError(f"diffusion: expected a root of shape ({paths}, {dim}, k), got {tuple(root.shape)}.")
        if not bool(root.isfinite().all()):
            path = int((~root.isfinite()).nonzero()[0, 0])
            raise ValueError(f"diffusion: not finite{where.format(path=path)}.")
        return root.double()
    if value.shape == (paths,):
        return _scalar_root(value.double(), where)
    if value.shape == (paths, dim, dim):
        return _matrix_root(value.double(), where)
    raise ValueError(
        f"diffusion: expected ({paths},), ({paths}, {dim}, {dim}) or a NoiseRoot from the function, "
        f"got shape {tuple(value.shape)}."
    )


def _scalar_root(value: Tensor, where: str) -> Tensor:
    low, high = (bound.item() for bound in value.aminmax())  # NaN passes through and fails the comparison
    if not 0 <= low <= high < math.inf:
        path = int((~(value.isfinite() & (value >= 0))).nonzero()[0])
        raise ValueError(f"diffusion: expected D ≥ 0, got {value[path].item():g}{where.format(path=path)}.")
    return (2 * value).sqrt()


def _matrix_root(matrix: Tensor, where: str) -> Tensor:
    """The symmetric root of 2D for each matrix of (paths, dim, dim)."""
    finite = matrix.isfinite().all(2).all(1)
    if not bool(finite.all()):
        raise ValueError(f"diffusion: not finite{where.format(path=int((~finite).nonzero()[0]))}.")
    size = matrix.abs().amax((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    askew = (matrix - matrix.mT).abs().amax((1, 2)) > ROUNDING * size
    if bool(askew.any()):
        raise ValueError(f"diffusion: expected a symmetric D, got none{where.format(path=int(askew.nonzero()[0]))}.")
    eigenvalues, vectors = torch.linalg.eigh(2 * matrix)
    negative = eigenvalues[:, 0] < -ROUNDING * size
    if bool(negative.any()):
        path = int(negative.nonzero()[0])
        raise ValueError(
            f"diffusion: expected a positive semi-definite D, got the eigenvalue {eigenvalues[path, 0].item() / 2:g}"
            f"{where.format(path=path)}."
        )
    return vectors * eigenvalues.clamp_min(0).sqrt()[:, None] @ vectors.mT


def _kick(root: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
    """R z for fresh normal z, as `states`."""
    paths, dim = states.shape
    columns = dim if root.ndim < 2 else root.shape[-1]
    normal = torch.randn(paths, columns, dtype=torch.float64, generator=generator)
    if root.ndim == 0:
        return root * normal
    if root.ndim == 1:
        return root[:, None] * normal
    if root.ndim == 2:
        return normal @ root.mT
    return (root * normal[:, None]).sum(2)  # quicker than thousands of tiny matrix products
