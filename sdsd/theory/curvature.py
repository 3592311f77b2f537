"""Γ with the curvature kept: will the next step lower the loss, what learning rate is too large, what batch too small.

"Symmetry-Driven Spatial Density" §4 takes Γ = ‖∇L‖² / Tr D and writes the drift of the loss as −‖∇L‖² + Tr D. Itô's
formula for dθ = −∇L dt + √(2D) dW puts the Hessian H beside D; Tr D alone belongs to ½‖θ − θ*‖². With μ = ∇L and Σ_B
the covariance of the step's batch gradient, D = (η/2)Σ_B:

    dE[L]/dt = −‖μ‖² + Tr(DH)                                Γ_H = ‖μ‖² / Tr(DH)
    E[ΔL]    = −η‖μ‖² + (η²/2)(μᵀHμ + Tr(HΣ_B))              Γ*  = (‖μ‖² − (η/2) μᵀHμ) / ((η/2) Tr(HΣ_B))

the second for one SGD step, to second order in η. Where the trace is positive the loss falls iff the ratio exceeds 1;
elsewhere the ratio means nothing, and only the difference of both terms decides. For a step −η P g with a diagonal
preconditioner P, ‖μ‖² becomes μᵀPμ, μᵀHμ becomes μᵀPHPμ and Σ_B becomes PΣ_BP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..gamma import precondition as preconditioning
from ..models import unwrap
from ._curvature_moments import Moments
from ._hessian import Hessian, LossFunction, gradient_rows, length_of, undisturbed

EXACT_UP_TO = 128
"""Gradients whose curvature is summed one by one; more take PROBES random combinations of them."""
PROBES = 32


@dataclass(frozen=True)
class CurvatureStats:
    """Signal, noise and their curvature for a step with `learning_rate` on a batch of `batch_size` samples.

    Attributes:
        learning_rate, batch_size: η and B of the step in question.
        n, samples_per_gradient: how many gradients were measured, each a mean over so many samples.
        population: samples that batches are drawn from without replacement; None for unlimited ones.
        signal: ‖μ‖² (preconditioned: μᵀPμ), unbiased; negative where noise hides it.
        noise: Tr Σ_B (preconditioned: Tr PΣ_BP).
        curvature_signal: μᵀHμ, unbiased.
        curvature_noise: Tr(HΣ_B).
        curvature_noise_error: standard error of `curvature_noise` from random probes; 0 where all were summed.
        expected_change_error: standard error of `expected_change` over the samples, by the jackknife, which is rather
            too large than too small; None with probes.
    """

    learning_rate: float
    batch_size: int
    n: int
    samples_per_gradient: int
    population: int | None
    signal: float
    noise: float
    curvature_signal: float
    curvature_noise: float
    curvature_noise_error: float
    expected_change_error: float | None

    @property
    def drift(self) -> float:
        """‖μ‖², at which gradient flow lowers the loss per unit of time (η a step)."""
        return self.signal

    @property
    def diffusion(self) -> float:
        """Tr(DH) with D = (η/2)Σ_B: at which noise raises the loss; negative where it curves downwards."""
        return self.learning_rate / 2 * self.curvature_noise

    @property
    def diffusion_seed(self) -> float:
        """Tr D, which the framework's document puts in the place of Tr(DH)."""
        return self.learning_rate / 2 * self.noise

    @property
    def lyapunov(self) -> float:
        """diffusion − drift = dE[L]/dt along the stochastic differential equation."""
        return self.diffusion - self.drift

    @property
    def lyapunov_seed(self) -> float:
        """Tr D − ‖μ‖², the document's form of the same; right only for L = ½‖θ − θ*‖², where H = 1."""
        return self.diffusion_seed - self.drift

    @property
    def expected_change(self) -> float:
        """E[ΔL] of one step, to second order in the learning rate."""
        return self.learning_rate * (self.lyapunov + self.learning_rate / 2 * self.curvature_signal)

    @property
    def lowers_loss(self) -> bool:
        """Whether the step is expected to lower the loss."""
        return self.expected_change < 0

    @property
    def gamma_seed(self) -> float:
        """The document's Γ = C_α = ‖μ‖² / Tr Σ_B (§5), of the batch gradient."""
        return _ratio(self.signal, self.noise)

    @property
    def gamma_seed_diffusion(self) -> float:
        """The document's Γ = ‖μ‖² / Tr D (§4), which is 2/η times `gamma_seed`: the two thresholds are not one."""
        return _ratio(self.drift, self.diffusion_seed)

    @property
    def gamma_h(self) -> float:
        """Γ_H = drift / diffusion; NaN where diffusion is not positive."""
        return _ratio(self.drift, self.diffusion)

    @property
    def gamma_star(self) -> float:
        """Γ*, above 1 iff one step lowers the expected loss; NaN where diffusion is not positive."""
        return _ratio(self.drift - self.learning_rate / 2 * self.curvature_signal, self.diffusion)

    @property
    def learning_rate_max(self) -> float:
        """η beyond which a step raises the loss at this batch size; NaN where no η does, ≤ 0 where noise hides μ."""
        return _ratio(2 * self.signal, self.curvature_signal + self.curvature_noise)

    @property
    def batch_size_min(self) -> float:
        """Batch, in samples, below which a step raises the loss at this learning rate.

        0 where noise does not raise it; NaN where even the full gradient would not lower it.
        """
        gain = self.drift - self.learning_rate / 2 * self.curvature_signal
        rest = 0.0 if self.population is None else 1 / self.population
        share = 1 / self.batch_size - rest  # Σ_B = share · Σ, Σ of single samples
        if not gain > 0 or share <= 0:
            return math.nan
        return 1 / (share * gain / self.diffusion + rest) if self.diffusion > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All attributes and properties as plain numbers, ready for a logger."""
        return {**asdict(self), **{name: getattr(self, name) for name in _DERIVED}}

    def __str__(self) -> str:
        error, effect = self.expected_change_error, "lowers" if self.lowers_loss else "raises"
        if error is not None and abs(self.expected_change) <= 2 * error:
            effect = "lowers or raises"
        unsure = ", the samples cannot tell" if " or " in effect else ""
        spread = "" if error is None else f" ± {error:.2g}"
        return "\n".join(
            [
                f"a step of {self.learning_rate:g} on {self.batch_size} samples {effect} the loss{unsure}: "
                f"E[ΔL] = {self.expected_change:.4g}{spread}",
                f"  drift ‖μ‖² {self.drift:.4g}   diffusion Tr(DH) {self.diffusion:.4g} "
                f"(Tr D, without curvature: {self.diffusion_seed:.4g})",
                f"  Γ* {self.gamma_star:.4g}   Γ_H {self.gamma_h:.4g}   Γ without curvature {self.gamma_seed:.4g}",
                f"  largest learning rate {self.learning_rate_max:.4g}   smallest batch {self.batch_size_min:.4g}",
            ]
        )


_DERIVED = (
    "drift", "diffusion", "diffusion_seed", "lyapunov", "lyapunov_seed", "expected_change", "lowers_loss", "gamma_seed",
    "gamma_seed_diffusion", "gamma_h", "gamma_star", "learning_rate_max", "batch_size_min",
)  # fmt: skip


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def curvature_gamma(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    learning_rate: float,
    batch_size: int,
    samples_per_gradient: int = 1,
    population: int | None = None,
    precondition: torch.optim.Optimizer | Mapping[str, Tensor] | None = None,
    curvature_batch: Any = None,
    probes: int | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
) -> CurvatureStats:
    """Whether an SGD step of `learning_rate` on `batch_size` samples is expected to lower the loss, and by what margin.

    From n gradients gᵢ with mean ḡ, dᵢ = gᵢ − ḡ, and Hessian-vector products, without H itself::

        Tr(HΣ) = Σ dᵢᵀHdᵢ / (n−1)       μᵀHμ ≈ ḡᵀHḡ − Tr(HΣ)/n       ‖μ‖² ≈ ‖ḡ‖² − Tr Σ/n

    All n products are taken up to 128 gradients; beyond that Tr(HΣ) is the mean of zᵀHz over 32 random sums
    z = Σ ±dᵢ / √(n−1), with its standard error.

    Args:
        model: in the mode it is to be measured in; parameters, .grad, buffers and random state stay as they are, and a
            GammaMonitor on it does not count these passes. Parameters that require no gradient are left out.
        loss_fn: (model, batch) → the batch's mean loss, as for `compute_gamma`.
        batch: tensors (in any nesting of tuples, lists and dicts) with a common first dimension, at least 2 gradients'
            worth of samples.
        learning_rate, batch_size: η and B of the step in question; B need not be the batch measured on.
        samples_per_gradient: 1 takes per-sample gradients; more, means over so many samples (needed for BatchNorm in
            train mode).
        population: N, where batches are drawn without replacement from N samples and `batch` is part of them (or all of
            them): variances and corrections are then of that finite population.
        precondition: an Adam, AdamW or RMSprop optimizer that has made a step, for P = 1 / (√v̂ + ε); or P itself, by
            parameter name. Momentum is not part of the step considered.
        curvature_batch: samples to take H from; `batch` where None. Independent ones remove the (small) dependence of
            H on the gradients.
        probes: 0 to sum over all gradients however many, or a number of random probes, at least 2.
        chunk_size: samples whose graph is kept at a time for the products; all where None.
        seed: of the probes' signs.

    Raises:
        TypeError: `precondition` of another kind.
        ValueError: η or B not positive, fewer than two gradients, samples that do not divide evenly or differ in
            number, a population smaller than what is drawn from it, a preconditioner of other shapes, a loss that is
            no number, gradients that are not finite, BatchNorm in train mode with single samples.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(line.weight)
        >>> half_square = lambda model, x: (model(x) ** 2 / 2).mean()
        >>> stats = curvature_gamma(line, half_square, torch.tensor([[1.0], [2.0]]), learning_rate=0.1, batch_size=1)
        >>> stats.n, stats.noise, stats.curvature_noise  # gradients 1 and 4, H = 2.5
        (2, 4.5, 11.25)
    """
    root = unwrap(model)
    learning_rate = checks.check_number(learning_rate, "learning_rate", "a positive, finite number", above=0)
    batch_size = checks.check_count(batch_size, "batch_size")
    samples_per_gradient = checks.check_count(samples_per_gradient, "samples_per_gradient")
    population = checks.check_count(population, "population", optional=True)
    chunk_size = checks.check_count(chunk_size, "chunk_size", optional=True)
    probes = _check_probes(probes)
    samples = length_of(batch)
    n = samples // samples_per_gradient
    if n < 2:
        raise ValueError(
            f"batch: expected at least 2 gradients of {samples_per_gradient} samples, got {samples} samples."
        )
    if population is not None and population < max(samples, batch_size):
        raise ValueError(
            f"population: expected at least the {max(samples, batch_size)} samples drawn from it, got {population}."
        )
    if not any(parameter.requires_grad for parameter in root.parameters()):
        raise ValueError("model: expected at least one parameter that requires a gradient, got none.")
    scale = _diagonal(root, precondition)
    with undisturbed(root):
        rows = gradient_rows(root, loss_fn, batch, samples_per_gradient)
        if not bool(rows.isfinite().all()):
            raise ValueError("batch: its gradients hold NaN or infinity, and so would everything computed from them.")
        hessian = Hessian(root, loss_fn, batch if curvature_batch is None else curvature_batch, chunk_size)
        exact = probes == 0 or (probes is None and n <= EXACT_UP_TO)
        moments = Moments(rows, scale, hessian, 0 if exact else probes or PROBES, seed)
    unseen = 1 / n if population is None else 1 / n - samples_per_gradient / population
    share = samples_per_gradient * (1 / batch_size - (0.0 if population is None else 1 / population))
    return CurvatureStats(
        learning_rate=float(learning_rate),
        batch_size=batch_size,
        n=n,
        samples_per_gradient=samples_per_gradient,
        population=population,
        signal=moments.plain.mean - unseen * moments.plain.trace,
        noise=share * moments.squared_trace,
        curvature_signal=moments.curved.mean - unseen * moments.curved.trace,
        curvature_noise=share * moments.curved.trace,
        curvature_noise_error=share * moments.trace_error,
        expected_change_error=moments.change_error(learning_rate, unseen, share),
    )


def _diagonal(model: nn.Module, precondition: Any) -> Tensor | None:
    """P over all trainable parameters, flat; None for the identity."""
    if precondition is None:
        return None
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if isinstance(precondition, torch.optim.Optimizer):
        preconditioning.check_optimizer(precondition)
        groups = preconditioning.groups_of(precondition)
        strange = [name for name, parameter in trainable.items() if id(parameter) not in groups]
        if strange:
            raise ValueError(f"precondition: the optimizer does not hold {', '.join(strange[:5])}.")
        found = {
            name: preconditioning.diagonal(precondition, parameter, groups[id(parameter)])
            for name, parameter in trainable.items()
        }
    elif isinstance(precondition, Mapping):
        found = {name: precondition.get(name) for name in trainable}
    else:
        raise TypeError(
            "precondition: expected an optimizer or a mapping from parameter names to tensors, got "
            f"{type(precondition).__name__}."
        )
    for name, diagonal in found.items():
        if diagonal is None:
            raise ValueError(f"precondition: nothing for {name}. An optimizer knows its scale after its first step.")
        if diagonal.shape != trainable[name].shape:
            raise ValueError(
                f"precondition: expected shape {tuple(trainable[name].shape)} for {name}, got {tuple(diagonal.shape)}."
            )
    return torch.cat([found[name].detach().double().flatten() for name in trainable])  # type: ignore[union-attr]


def _check_probes(value: Any) -> int | None:
    probes = checks.check_count(value, "probes", least=0, optional=True)
    if probes == 1:
        raise ValueError(f"probes: expected 0 (sum over all gradients) or a number from 2 up, got {probes!r}.")
    return None if probes is None else int(probes)
