"""`CurvatureStats`: signal, noise and their curvature for one step, and what follows; formulas in curvature.py."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..._student_t import student_t_quantile


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
        expected_change_error: standard error of `expected_change` over the samples, those that H comes from included,
            by a jackknife over groups; None with probes, or with fewer than 3 gradients in a half.
        degrees_of_freedom: of that error: its groups less one.
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
    degrees_of_freedom: int | None

    @property
    def drift(self) -> float:
        """‖μ‖², at which gradient flow lowers the loss per unit of time (η a step)."""
        return self.signal

    @property
    def diffusion(self) -> float:
        """Tr(DH) with D = (η/2)Σ_B: at which noise raises the loss; negative where it curves downwards."""
        return self.learning_rate / 2 * self.curvature_noise

    @property
    def diffusion_published(self) -> float:
        """Tr D, which the framework's document puts in the place of Tr(DH)."""
        return self.learning_rate / 2 * self.noise

    @property
    def lyapunov(self) -> float:
        """diffusion − drift = dE[L]/dt along the stochastic differential equation."""
        return self.diffusion - self.drift

    @property
    def lyapunov_published(self) -> float:
        """Tr D − ‖μ‖², the document's form of the same; right only for L = ½‖θ − θ*‖², where H = 1."""
        return self.diffusion_published - self.drift

    @property
    def expected_change(self) -> float:
        """E[ΔL] of one step, to second order in the learning rate."""
        return self.learning_rate * (self.lyapunov + self.learning_rate / 2 * self.curvature_signal)

    @property
    def expected_change_interval(self) -> tuple[float, float] | None:
        """95% interval of E[ΔL], by Student's t; None where there is no error."""
        if self.expected_change_error is None or self.degrees_of_freedom is None:
            return None
        half = student_t_quantile(0.975, self.degrees_of_freedom) * self.expected_change_error
        return self.expected_change - half, self.expected_change + half

    @property
    def lowers_loss(self) -> bool:
        """Whether the step is expected to lower the loss."""
        return self.expected_change < 0

    @property
    def gamma_published(self) -> float:
        """The document's Γ = C_α = ‖μ‖² / Tr Σ_B (§5), of the batch gradient."""
        return _ratio(self.signal, self.noise)

    @property
    def gamma_published_diffusion(self) -> float:
        """The document's Γ = ‖μ‖² / Tr D (§4), which is 2/η times `gamma_published`: the two thresholds are not one."""
        return _ratio(self.drift, self.diffusion_published)

    @property
    def gamma_h(self) -> float:
        """Γ_H = drift / diffusion; NaN where diffusion is not positive."""
        return _ratio(self.drift, self.diffusion)

    @property
    def gamma_star(self) -> float:
        """Γ*, above 1 iff one step lowers the expected loss; NaN where diffusion is not positive."""
        return _ratio(self.drift - self.learning_rate / 2 * self.curvature_signal, self.diffusion)

    @property
    def b_simple(self) -> float:
        """B_simple = Tr Σ / ‖μ‖², in samples: the noise scale without curvature; NaN where no signal is seen."""
        return _ratio(self.noise / self._drawn, self.signal) if self._drawn > 0 else math.nan

    @property
    def b_noise(self) -> float:
        """B_noise = Tr(HΣ) / μᵀHμ, in samples: McCandlish's critical batch; NaN unless μᵀHμ is positive."""
        return _ratio(self.curvature_noise / self._drawn, self.curvature_signal) if self._drawn > 0 else math.nan

    @property
    def _drawn(self) -> float:
        """Σ_B over Σ, that of single samples."""
        return 1 / self.batch_size - (0.0 if self.population is None else 1 / self.population)

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
        if not gain > 0 or self._drawn <= 0:
            return math.nan
        return 1 / (self._drawn * gain / self.diffusion + rest) if self.diffusion > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All attributes and properties as plain numbers, ready for a logger."""
        return {**asdict(self), **{name: getattr(self, name) for name in _DERIVED}}

    def __str__(self) -> str:
        interval, effect = self.expected_change_interval, "lowers" if self.lowers_loss else "raises"
        if interval is not None and interval[0] <= 0 <= interval[1]:
            effect = "lowers or raises"
        unsure = ", the samples cannot tell" if " or " in effect else ""
        spread = "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
        return "\n".join(
            [
                f"a step of {self.learning_rate:g} on {self.batch_size} samples {effect} the loss{unsure}: "
                f"E[ΔL] = {self.expected_change:.4g}{spread}",
                f"  drift ‖μ‖² {self.drift:.4g}   diffusion Tr(DH) {self.diffusion:.4g} "
                f"(Tr D, without curvature: {self.diffusion_published:.4g})",
                f"  Γ* {_shown(self.gamma_star)}   Γ_H {_shown(self.gamma_h)}   "
                f"Γ without curvature {_shown(self.gamma_published)}",
                f"  largest learning rate {_shown(self.learning_rate_max)}   "
                f"smallest batch {_shown(self.batch_size_min)}",
                f"  noise scales: B_simple {_shown(self.b_simple)}   B_noise, with curvature, {_shown(self.b_noise)}",
            ]
        )


_DERIVED = (
    "drift",
    "diffusion",
    "diffusion_published",
    "lyapunov",
    "lyapunov_published",
    "expected_change",
    "lowers_loss",
    "gamma_published",
    "gamma_published_diffusion",
    "gamma_h",
    "gamma_star",
    "b_simple",
    "b_noise",
    "learning_rate_max",
    "batch_size_min",
)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _shown(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.4g}"
