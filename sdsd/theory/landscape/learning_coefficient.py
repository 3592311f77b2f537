"""The local learning coefficient λ̂: how fast the volume of parameters with nearly the same loss shrinks.

In singular learning theory the volume of {w : L(w) < L(w*) + ε} near a minimum w* goes like ε^λ (up to a power of
log ε), with λ = d/2 where the minimum is a paraboloid and less where it is flat in some directions. Lau, Furman, Wang,
Murfet and Wei, "The Local Learning Coefficient" (arXiv 2308.12108), estimate it from draws near w*:

    λ̂ = nβ (E[L(w)] − L(w*)),     w ~ exp(−nβ L(w) − (γ/2)‖w − w*‖²),     β = 1 / log n

There draws come from Langevin dynamics with gradients of batches, which samples this distribution only for vanishing
steps, and the number changes with the parameters one happens to have among those that compute the same function. Here
every step is accepted or refused by Metropolis and Hastings' rule on all the data (MALA), so that the distribution is
the one above at any step size; the model first goes to its canonical representative; and a number that the chains do
not support is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._drawing import BLUE, ORANGE, figure_and_axes
from ..._progress import Progress, reporter, sparing
from ..._student_t import student_t_quantile
from ..derivatives import LossFunction, undisturbed
from .chains import effective_draws, split_r_hat
from .landscape import Landscape, landscape_at

TARGET_ACCEPTANCE = 0.574
"""At which MALA moves fastest in many dimensions (Roberts and Rosenthal 1998)."""
LEAST_ACCEPTANCE = 0.05
MOST_R_HAT = 1.1
"""Gelman and Rubin's old bound; stricter ones need longer chains than a network of thousands of parameters gets."""
LEAST_DRAWS = 40.0
"""Independent draws below which an error bar means little."""


class RefusedEstimateError(RuntimeError):
    """The chains do not support a number."""


@dataclass(frozen=True)
class LearningCoefficient:
    """λ̂ at one point, with what the chains say about it; `print` it for a report.

    Attributes:
        estimate: nβ(mean L − L(w*)), whether it can be trusted or not; `value` is the one to use.
        standard_error: of the mean of the chains, the larger of the next two.
        between_error: from the spread of the chains' means.
        within_error: from the spread within chains and `effective_draws`.
        effective_draws: independent draws that all chains together are worth.
        r_hat: split-R̂, the larger of those of the loss and of ‖w − w*‖²; 1 where chains agree and do not drift.
        acceptance: share of steps that were accepted after burn-in, chain by chain.
        step_sizes: of the chains after burn-in.
        loss: L(w*).
        samples, beta, localization: n, β and γ.
        parameters: d.
        canonical: whether w* is the canonical representative.
        refusals: why the number is not to be used; empty where it is.
        losses: L along the chains; shape: (chains, draws).
        squared_distances: ‖w − w*‖² along them; shape: (chains, draws).
    """

    estimate: float
    standard_error: float
    between_error: float
    within_error: float
    effective_draws: float
    r_hat: float
    acceptance: tuple[float, ...]
    step_sizes: tuple[float, ...]
    loss: float
    samples: int
    beta: float
    localization: float
    parameters: int
    canonical: bool
    refusals: tuple[str, ...]
    losses: Tensor = field(repr=False)
    squared_distances: Tensor = field(repr=False)

    @property
    def value(self) -> float:
        """λ̂.

        Raises:
            RefusedEstimateError: the chains do not support it; the message says why.
        """
        if self.refusals:
            raise RefusedEstimateError(f"local learning coefficient refused: {'; '.join(self.refusals)}.")
        return self.estimate

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval round `value`, chains − 1 degrees of freedom.

        Args:
            level: between 0 and 1.

        Returns:
            (low, high).

        Raises:
            RefusedEstimateError: as `value`.
        """
        half = student_t_quantile((1 + level) / 2, len(self.acceptance) - 1) * self.standard_error
        return self.value - half, self.value + half

    def to_dict(self) -> dict[str, Any]:
        """Everything but the draws, ready for a logger."""
        names = (name for name in self.__dataclass_fields__ if name not in ("losses", "squared_distances"))
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        chains, draws = self.losses.shape
        where = "canonical representative" if self.canonical else "parameters as they are"
        head = (
            f"local learning coefficient refused: {'; '.join(self.refusals)}"
            if self.refusals
            else f"local learning coefficient {self.estimate:.4g} ± {self.standard_error:.2g} (standard error)"
        )
        return "\n".join(
            [
                f"{head}, of at most d/2 = {self.parameters / 2:g} at a regular minimum",
                f"  {where}, n = {self.samples}, nβ = {self.samples * self.beta:.4g}, γ = {self.localization:g}, "
                f"L(w*) = {self.loss:.4g}",
                f"  {chains} chains of {draws} draws worth {self.effective_draws:.0f} independent ones, "
                f"R̂ {self.r_hat:.3f}, accepted {min(self.acceptance):.2f} to {max(self.acceptance):.2f}, "
                f"error between chains {self.between_error:.2g}, within {self.within_error:.2g}",
            ]
        )

    def plot(self, *, axes: Any = None) -> tuple[Any, Any]:
        """Draw nβ(L − L(w*)) along every chain, and λ̂ as a line.

        Args:
            axes: matplotlib axes to draw into; None makes a figure.

        Returns:
            The figure and the axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure, axes = figure_and_axes(axes, 7.2, 3.6)
        for chain in self.samples * self.beta * (self.losses - self.loss):
            axes.plot(chain.tolist(), color=BLUE, alpha=0.35, linewidth=0.8)
        axes.axhline(self.estimate, color=ORANGE, linestyle=(0, (5, 2)))
        axes.set_xlabel("draw")
        axes.set_ylabel("nβ (L − L(w*))")
        title = "refused, see the text" if self.refusals else f"λ̂ = {self.estimate:.3g} ± {self.standard_error:.1g}"
        axes.set_title(f"Local learning coefficient: {title}", loc="left", fontsize=10.5)
        return figure, axes


def local_learning_coefficient(
    model: nn.Module,
    data: Any,
    loss_fn: LossFunction,
    *,
    localization: float = 100.0,
    beta: float | None = None,
    chains: int = 4,
    draws: int = 1000,
    burn_in: int = 1000,
    step_size: float | None = None,
    canonicalize: bool = True,
    softmax_head: bool = False,
    example_input: Any = None,
    seed: int = 0,
    progress: Progress = False,
) -> LearningCoefficient:
    """λ̂ of Lau et al. at the model's canonical representative, the same for every point of its orbit.

    Metropolis-adjusted Langevin steps on U(w) = nβ L(w) + (γ/2)‖w − w*‖²::

        w' = w − (ε/2) ∇U(w) + √ε z,     accepted with probability min(1, π(w') q(w|w') / π(w) q(w'|w))

    `chains` chains start at w*. During burn-in each adapts its own ε to accept 57% of steps; then it is fixed. All the
    data are read at every step: chains · (burn_in + draws) forward and backward passes over them.

    The number is refused (`value` raises, `refusals` say why, `estimate` stays to be looked at) where a chain accepts
    less than 5% of its steps, R̂ of the loss or of ‖w − w*‖² is above 1.1, the chains are worth fewer than 40
    independent draws, or the chains found a lower mean loss than w* has, which is then no minimum. What to do is part
    of the reason.

    λ̂ depends on n through log n, on γ, and on where the model stands: compare numbers of the same n, β and γ. A
    larger γ stays closer and gives less: at a regular minimum each direction of curvature h adds ½ / (1 + γ/(nβh)).
    Known cases, with γ small: d/2 for a regular minimum, 1/4 for u⁴, and for (uv)² 1/2 only as log n → ∞ (about
    1/2 − 1/log n before).

    Args:
        model: at a minimum of the loss, in the mode it is to be measured in (without dropout). It stays as it is.
        data: a batch (a tensor, or tensors in a tuple, a mapping or a list), or an iterable of batches such as a
            DataLoader, which is read once and kept. The loss is the mean over all its samples, n of them.
        loss_fn: (model, batch) → the batch's mean loss, as for `compute_gamma`: for a Bayesian reading the mean
            negative log-likelihood of a sample.
        localization: γ > 0, how strongly draws are held near w*: without the loss each parameter would spread by
            1/√γ.
        beta: β > 0; 1/log n where None.
        chains: at least 2.
        draws: kept from each chain, at least 20.
        burn_in: steps before that.
        step_size: ε > 0, taken as it is; None adapts it.
        canonicalize: whether to go to the representative of least norm first. Without, the number depends on the
            representative.
        softmax_head, example_input: as in `canonicalize`.
        seed: of all random numbers.
        progress: True for a line on standard error, or a function called with (steps done, steps in all).

    Raises:
        TypeError: data of another kind.
        ValueError: numbers out of range; no data; fewer than 3 samples with β = None; a loss that is not finite or
            changes from pass to pass; a model whose canonical representative is not known.

    Example:
        >>> class Bowl(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        >>> found = local_learning_coefficient(
        ...     Bowl(), torch.zeros(1000), lambda model, x: model.w.square().sum() / 2, localization=1.0,
        ...     canonicalize=False,
        ... )
        >>> abs(found.value - 2) < 0.2  # d/2
        True
    """
    gamma = checks.check_number(localization, "localization", "a number above 0", above=0)
    checks.check_count(chains, "chains", least=2)
    checks.check_count(draws, "draws", least=20)
    checks.check_count(burn_in, "burn_in", least=0)
    if step_size is not None:
        checks.check_number(step_size, "step_size", "a number above 0, or None", above=0)
    elif burn_in < 100:
        raise ValueError(f"burn_in: expected at least 100 to adapt step_size in, got {burn_in}. Or give step_size.")
    if beta is not None:
        checks.check_number(beta, "beta", "a number above 0, or None", above=0)
    report = sparing(reporter(progress, "local_learning_coefficient"))
    landscape = landscape_at(model, loss_fn, data, canonicalize, softmax_head, example_input)
    n = landscape.samples
    if beta is None:
        if n < 3:
            raise ValueError(f"data: expected at least 3 samples for β = 1/log n, got {n}. Or give beta.")
        beta = 1 / math.log(n)
    with undisturbed(landscape.model):
        loss = landscape.checked_loss()
        ran = []
        for chain in range(chains):
            draw = torch.Generator().manual_seed(checks.check_integer(seed, "seed") * 1_000_003 + chain)
            sampler = _Chain(landscape, n * beta, gamma, step_size, draw)
            start = chain * (burn_in + draws)

            def tell(step: int, before: int = start) -> None:
                report(before + step, chains * (burn_in + draws))

            ran.append(sampler.run(burn_in, draws, tell))
    return _summary(landscape, ran, loss=loss, n=n, beta=beta, gamma=gamma, canonical=canonicalize)


@dataclass(frozen=True)
class _Ran:
    losses: Tensor
    squared_distances: Tensor
    acceptance: float
    step_size: float


class _Chain:
    """One chain of MALA from the landscape's start."""

    def __init__(
        self, landscape: Landscape, weight: float, gamma: float, step_size: float | None, draw: torch.Generator
    ) -> None:
        self._landscape, self._weight, self._gamma, self._draw = landscape, weight, gamma, draw
        self._fixed = step_size is not None
        self._here = self._evaluate(landscape.start)
        self._step_size = self._first_step_size() if step_size is None else step_size

    def _evaluate(self, state: Tensor) -> tuple[Tensor, float, float, Tensor]:
        """State, L, U and ∇U."""
        loss, gradient = self._landscape.loss_and_gradient(state)
        away = state - self._landscape.start
        potential = self._weight * loss + self._gamma / 2 * away.square().sum().item()
        return state, loss, potential, self._weight * gradient + self._gamma * away

    def _propose(self, step_size: float) -> tuple[tuple[Tensor, float, float, Tensor], float]:
        """A proposal and the probability to accept it; 0 where its loss is not finite."""
        state, _, potential, slope = self._here
        normal = torch.randn(len(state), dtype=torch.float64, generator=self._draw).to(state.device)
        proposal = self._evaluate(state - step_size / 2 * slope + math.sqrt(step_size) * normal)
        there, _, its_potential, its_slope = proposal
        back = (state - there + step_size / 2 * its_slope).square().sum().item() / (2 * step_size)
        log_ratio = potential - its_potential - back + normal.square().sum().item() / 2
        return proposal, math.exp(min(log_ratio, 0.0)) if math.isfinite(log_ratio) else 0.0

    def _first_step_size(self) -> float:
        """1/γ, halved until a first step is accepted with probability ½ or more."""
        step_size = 1 / self._gamma
        for _ in range(60):
            if self._propose(step_size)[1] >= 0.5:
                break
            step_size /= 2
        return step_size

    def _step(self) -> float:
        proposal, probability = self._propose(self._step_size)
        if torch.rand((), dtype=torch.float64, generator=self._draw).item() < probability:
            self._here = proposal
            self._accepted += 1
        return probability

    def run(self, burn_in: int, draws: int, tell: Callable[[int], None]) -> _Ran:
        self._accepted = 0
        for step in range(burn_in):
            probability = self._step()
            if not self._fixed:  # Robbins and Monro's stochastic approximation
                self._step_size *= math.exp((probability - TARGET_ACCEPTANCE) * (step + 1) ** -0.5)
            tell(step + 1)
        self._accepted = 0
        losses, distances = torch.empty(draws, dtype=torch.float64), torch.empty(draws, dtype=torch.float64)
        for step in range(draws):
            self._step()
            losses[step] = self._here[1]
            distances[step] = (self._here[0] - self._landscape.start).square().sum().item()
            tell(burn_in + step + 1)
        return _Ran(losses, distances, self._accepted / draws, self._step_size)


def _summary(
    landscape: Landscape, ran: list[_Ran], *, loss: float, n: int, beta: float, gamma: float, canonical: bool
) -> LearningCoefficient:
    losses = torch.stack([each.losses for each in ran])
    distances = torch.stack([each.squared_distances for each in ran])
    scaled = n * beta * (losses - loss)
    worth = effective_draws(scaled)
    between = scaled.mean(1).std().item() / math.sqrt(len(ran))
    within = scaled.std().item() / math.sqrt(worth) if worth > 0 else math.inf
    estimate, error = scaled.mean().item(), max(between, within)
    r_hat = max(split_r_hat(losses), split_r_hat(distances))
    acceptance = tuple(each.acceptance for each in ran)
    refusals = []
    if min(acceptance) < LEAST_ACCEPTANCE:
        refusals.append(
            f"a chain accepted {min(acceptance):.1%} of its steps, fewer than {LEAST_ACCEPTANCE:.0%}: take a smaller "
            "step_size, or None to adapt it"
        )
    if r_hat > MOST_R_HAT:
        refusals.append(
            f"the chains disagree or still drift, R̂ = {r_hat:.3g} > {MOST_R_HAT}: take more burn_in and draws, a "
            "larger localization, or canonicalize=True"
        )
    if worth < LEAST_DRAWS:
        refusals.append(
            f"all draws are worth {worth:.0f} independent ones, fewer than {LEAST_DRAWS:.0f}: take more draws"
        )
    if estimate + 2 * error < 0:
        refusals.append(
            f"the chains found a mean loss of {losses.mean().item():.4g}, below L(w*) = {loss:.4g}: the model is at no "
            "minimum; train on"
        )
    return LearningCoefficient(
        estimate=estimate,
        standard_error=error,
        between_error=between,
        within_error=within,
        effective_draws=worth,
        r_hat=r_hat,
        acceptance=acceptance,
        step_sizes=tuple(each.step_size for each in ran),
        loss=loss,
        samples=n,
        beta=beta,
        localization=gamma,
        parameters=len(landscape.start),
        canonical=canonical,
        refusals=tuple(refusals),
        losses=losses,
        squared_distances=distances,
    )
