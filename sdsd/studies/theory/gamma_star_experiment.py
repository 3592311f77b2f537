"""Does Γ* foretell what a step does to the loss, and does the published Γ? One network, label noise, three rates.

Along a run of SGD the change of the loss that one step makes is measured directly, over many batches drawn from the
same samples, and held against what `curvature_gamma` says beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...theory import gradient_rows
from ...theory.curvature import CurvatureStats, curvature_gamma
from ..digits import load_digits


@dataclass(frozen=True)
class StepPrediction:
    """One point of a run: what a step was expected to do to the loss, and what it does on average.

    Attributes:
        learning_rate, step: where in which run.
        loss: over all samples.
        measured: mean change of the loss over batches; `measured_error`, its standard error.
        stats: what `curvature_gamma` says.
    """

    learning_rate: float
    step: int
    loss: float
    measured: float
    measured_error: float
    stats: CurvatureStats

    @property
    def significant(self) -> bool:
        """Whether the sign of the change is beyond doubt: three standard errors from zero."""
        return abs(self.measured) > 3 * self.measured_error

    @property
    def exact_is_right(self) -> bool:
        """Whether the sign of E[ΔL] was predicted (Γ* > 1, or the difference where Γ* is not defined)."""
        return self.stats.lowers_loss == (self.measured < 0)

    @property
    def published_is_right(self) -> bool:
        """Whether "Γ > 1: converges" says the same as the measurement, with the document's Γ = C_α of §5."""
        return (self.stats.gamma_published > 1) == (self.measured < 0)

    @property
    def published_diffusion_is_right(self) -> bool:
        """The same with the document's Γ = ‖∇L‖² / Tr D of §4."""
        return (self.stats.gamma_published_diffusion > 1) == (self.measured < 0)


@dataclass(frozen=True)
class GammaStarResult:
    """All points of the runs, and how many signs each ratio got right."""

    points: tuple[StepPrediction, ...]

    @property
    def significant(self) -> tuple[StepPrediction, ...]:
        """Points whose measured change has a sign."""
        return tuple(point for point in self.points if point.significant)

    @property
    def right(self) -> dict[str, int]:
        """How many of the significant points each ratio got right."""
        names = {"gamma_star": "exact_is_right", "gamma_published": "published_is_right"}
        names["gamma_published_diffusion"] = "published_diffusion_is_right"
        return {ratio: sum(getattr(point, name) for point in self.significant) for ratio, name in names.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON (NaN where a ratio is not defined)."""
        rows = [
            {
                "step": point.step,
                "loss": point.loss,
                "measured": point.measured,
                "measured_error": point.measured_error,
                "significant": point.significant,
                **point.stats.to_dict(),
            }
            for point in self.points
        ]
        return {"points": rows, "significant": len(self.significant), "right": self.right}


def gamma_star_experiment(
    samples: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    learning_rates: Sequence[float] = (0.05, 0.2, 0.5),
    batch_size: int = 16,
    label_noise: float = 0.2,
    hidden: int = 32,
    steps: int = 1500,
    measurements: int = 14,
    batches: int = 400,
    probes: int = 64,
    seed: int = 0,
) -> GammaStarResult:
    """Train with SGD at each learning rate, and at some steps compare predicted and measured changes of the loss.

    Args:
        samples: shape (N, features); None takes 512 of scikit-learn's handwritten digits.
        labels: classes, shape (N,); a part `label_noise` of them is replaced by random ones.
        learning_rates: one run each, from the same start.
        batch_size: of the steps, drawn without replacement from the N samples.
        hidden: width of the one hidden ReLU layer.
        steps: of each run; `measurements` of them are looked at, closer together in the beginning.
        batches: over which a change is measured.
        probes: of `curvature_gamma`.
        seed: of everything random.

    Raises:
        MissingExtraError: no data given, and scikit-learn is not installed.
        ValueError: samples and labels of different number.
    """
    if samples is None or labels is None:
        samples, labels = load_digits(seed, 512, centre=0.0, dtype=torch.float64)
    if len(samples) != len(labels):
        raise ValueError(f"labels: expected one for each of the {len(samples)} samples, got {len(labels)}.")
    generator = torch.Generator().manual_seed(seed)
    classes = int(labels.max()) + 1
    wrong = torch.rand(len(labels), generator=generator) < label_noise
    labels = torch.where(wrong, torch.randint(0, classes, (len(labels),), generator=generator), labels)
    data = (samples.double(), labels)
    when = {round(steps * (place / (measurements - 1)) ** 2) for place in range(measurements)}
    points = []
    for rate in learning_rates:
        model = _network(samples.shape[1], hidden, classes, seed)
        generator.manual_seed(seed)
        for step in range(steps + 1):
            if step in when:
                points.append(
                    _look(model, data, rate, step, generator, batch_size=batch_size, batches=batches, probes=probes)
                )
            chosen = torch.randperm(len(labels), generator=generator)[:batch_size]
            gradients = torch.autograd.grad(_loss(model, (data[0][chosen], labels[chosen])), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter.sub_(gradient, alpha=rate)
    return GammaStarResult(tuple(points))


def _look(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    rate: float,
    step: int,
    generator: torch.Generator,
    *,
    batch_size: int,
    batches: int,
    probes: int,
) -> StepPrediction:
    count = len(data[1])
    stats = curvature_gamma(
        model, _loss, data, learning_rate=rate, batch_size=batch_size, population=count, probes=probes, seed=step
    )
    rows = gradient_rows(model, _loss, data, 1)
    chosen = torch.rand(batches, count, generator=generator).argsort(1)[:, :batch_size]
    drawn = torch.zeros(batches, count, dtype=rows.dtype).scatter_(1, chosen, 1 / batch_size) @ rows
    names = [name for name, _ in model.named_parameters()]
    sizes = [parameter.numel() for parameter in model.parameters()]

    def after(gradient: Tensor) -> Tensor:
        pieces = dict(zip(names, gradient.split(sizes), strict=True))
        moved = {name: p.detach() - rate * pieces[name].view_as(p) for name, p in model.named_parameters()}
        return functional.cross_entropy(torch.func.functional_call(model, moved, (data[0],)), data[1])

    before = _loss(model, data).item()
    changes = torch.func.vmap(after, chunk_size=50)(drawn) - before
    error = changes.std().item() / math.sqrt(batches)
    return StepPrediction(rate, step, before, changes.mean().item(), error, stats)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def _network(features: int, hidden: int, classes: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)).double()
