"""How much of parameter space lies in the basin of a minimum, by the length of random rays from it.

The basin here is the set of points w* + v with L(w* + sv) ≤ L(w*) + threshold for all s from 0 to 1. A ray in a random
direction leaves it at some radius; the mean of radius^d over directions gives its volume. In many dimensions a few long
rays hold nearly all of that mean and are never drawn, so the estimate is too low far more often than too high. Two
things are done about it (as by Scherlis and Belrose, "Estimating the Probability of Sampling a Trained Neural Network
at Random", arXiv 2501.18812): directions are drawn in coordinates in which the basin is rounder, which is importance
sampling, and the answer comes with a bound. By Markov's inequality an unbiased estimate is more than 1/δ times too
large with a probability of at most δ, however its rays are spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter, sparing
from ..derivatives import LossFunction, undisturbed
from .landscape import Landscape, landscape_at

STRETCH = 2**0.5
"""Between the radii at which a ray is looked at before the interval in which it leaves the basin is halved."""
HALVINGS = 12
LONGEST = 1e6
"""Rays this many times as long as the first look are without end."""
GRID = 4000


@dataclass(frozen=True)
class BasinVolume:
    """The volume of a basin, or its share of a Gaussian.

    Attributes:
        log_volume: natural logarithm of the estimate: of a volume, or of a probability where `prior_scale` is given.
        effective_directions: (Σw)²/Σw² of the rays' shares w; near 1, one ray decides, and `log_volume` is most likely
            too low.
        directions: rays drawn.
        threshold: how far the loss may rise.
        prior_scale: standard deviation of the Gaussian; None for a volume.
        parameters: d.
        loss: L(w*).
        canonical: whether w* is the canonical representative.
        log_shares: logarithm of what each ray says of the volume; shape: (directions,).
    """

    log_volume: float
    effective_directions: float
    directions: int
    threshold: float
    prior_scale: float | None
    parameters: int
    loss: float
    canonical: bool
    log_shares: Tensor = field(repr=False)

    def lower_bound(self, confidence: float = 0.95) -> float:
        """What log V is at least, with this probability: `log_volume` + log(1 − confidence), by Markov's inequality.

        Args:
            confidence: between 0 and 1.

        Returns:
            In nats, as `log_volume`.

        Raises:
            ValueError: a confidence out of range.
        """
        checks.check_number(confidence, "confidence", "a number between 0 and 1", above=0, below=1)
        return self.log_volume + math.log(1 - confidence)

    def __str__(self) -> str:
        what = "volume" if self.prior_scale is None else f"share of a Gaussian of width {self.prior_scale:g}"
        return (
            f"basin: log {what} {self.log_volume:.4g} nats, at least {self.lower_bound():.4g} with 95% confidence; "
            f"{self.parameters} parameters, {self.directions} rays worth {self.effective_directions:.1f}"
        )


def basin_volume(
    model: nn.Module,
    data: Any,
    loss_fn: LossFunction,
    *,
    threshold: float = 0.1,
    prior_scale: float | None = None,
    directions: int = 200,
    probes: int = 20,
    canonicalize: bool = True,
    softmax_head: bool = False,
    example_input: Any = None,
    seed: int = 0,
    progress: Progress = False,
) -> BasinVolume:
    """Volume of the star-shaped basin round a minimum, by importance sampling of rays, with a lower bound.

    With w = w* + A y, A diagonal, u uniform on the unit sphere and R(u) the radius at which the ray A u leaves the
    basin, on d parameters::

        V = det A · 2π^{d/2}/Γ(d/2) · E_u ∫₀^{R(u)} r^{d−1} ρ(w* + r A u) dr

    ρ is 1 for a volume, or the density of independent normal parameters of mean 0 and standard deviation `prior_scale`
    for a probability. A is (|h| + h̄/1000)^{−1/2} with Hutchinson's estimate h of the Hessian's diagonal, h̄ its mean
    size; with a prior (|h| d/(2 threshold) + 1/prior_scale²)^{−1/2}.

    The volume of one network's basin is not that of its function: neurons in another order have as much, and rescaled
    ones another.

    Args:
        model, data, loss_fn, canonicalize, softmax_head, example_input: as in `local_learning_coefficient`.
        threshold: > 0, how far the loss may rise above that of the model.
        prior_scale: > 0, or None for a volume.
        directions: rays, at least 2; each takes about 30 passes over the data.
        probes: random vectors for the Hessian's diagonal; 0 takes A = 1, so that rays are drawn as they come.
        seed, progress: as in `local_learning_coefficient`.

    Returns:
        `BasinVolume`.

    Raises:
        TypeError, ValueError: as `local_learning_coefficient`; a ray that never leaves the basin, without a prior.

    Example:
        >>> class Bowl(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> found = basin_volume(
        ...     Bowl(), torch.zeros(1), lambda model, x: model.w.square().sum() / 2, threshold=0.5, canonicalize=False
        ... )
        >>> round(math.exp(found.log_volume), 2)  # the unit circle
        3.14
    """
    checks.check_number(threshold, "threshold", "a number above 0", above=0)
    if prior_scale is not None:
        checks.check_number(prior_scale, "prior_scale", "a number above 0, or None", above=0)
    directions = checks.check_count(directions, "directions", least=2)
    probes = checks.check_count(probes, "probes", least=0)
    report = sparing(reporter(progress, "basin_volume"))
    landscape = landscape_at(model, loss_fn, data, canonicalize, softmax_head, example_input)
    d, device = len(landscape.start), landscape.start.device
    draw = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
    with undisturbed(landscape.model):
        loss = landscape.checked_loss()
        stretch = _stretch(landscape, probes, threshold, prior_scale, draw)
        shares = torch.empty(directions, dtype=torch.float64)
        first = math.sqrt(threshold)
        for place in range(directions):
            ray = torch.randn(d, dtype=torch.float64, generator=draw).to(device)
            ray = stretch * ray / ray.norm()
            radius = _radius(landscape, ray, loss + threshold, first, prior_scale is not None)
            first = radius if math.isfinite(radius) else first
            shares[place] = _log_share(landscape.start, ray, radius, prior_scale)
            report(place + 1, directions)
    sphere = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    shares = shares + stretch.log().sum().item() + sphere
    total = torch.logsumexp(shares, 0)
    effective = torch.exp(2 * total - torch.logsumexp(2 * shares, 0)).item()
    return BasinVolume(
        log_volume=total.item() - math.log(directions),
        effective_directions=effective,
        directions=directions,
        threshold=float(threshold),
        prior_scale=prior_scale,
        parameters=d,
        loss=loss,
        canonical=canonicalize,
        log_shares=shares,
    )


def _stretch(
    landscape: Landscape, probes: int, threshold: float, prior_scale: float | None, draw: torch.Generator
) -> Tensor:
    """The diagonal of A; shape: (d,)."""
    d = len(landscape.start)
    landscape.move(landscape.start)
    curvature = torch.zeros_like(landscape.start)
    for _ in range(probes):
        signs = (torch.randint(0, 2, (d,), generator=draw).double() * 2 - 1).to(curvature.device)
        curvature += signs * landscape.curvature(signs) / probes
    curvature = curvature.abs()
    if prior_scale is not None:
        return (curvature * d / (2 * threshold) + 1 / prior_scale**2).rsqrt()
    floor = curvature.mean().item() / 1000
    return (curvature + floor).rsqrt() if floor > 0 else torch.ones_like(curvature)


def _radius(landscape: Landscape, ray: Tensor, most: float, first: float, endless: bool) -> float:
    """Where the ray leaves the basin: the first of looks √2 farther out each whose loss is above `most`."""

    def inside(radius: float) -> bool:
        return landscape.loss(landscape.start + radius * ray) <= most  # NaN is outside

    low = first / 8
    while not inside(low):  # at the latest where `low` does not move the parameters any more
        low /= 8
    high = low * STRETCH
    while inside(high):
        low, high = high, high * STRETCH
        if high > first * LONGEST:
            if endless:
                return math.inf
            raise ValueError(
                f"threshold: a ray is still in the basin {LONGEST:,.0f} times as far out as rays are first looked at: "
                "its volume is infinite, or probes=0 expects one that is far too small. Give prior_scale for its share "
                "of a Gaussian, or more probes."
            )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return (low + high) / 2


def _log_share(start: Tensor, ray: Tensor, radius: float, prior_scale: float | None) -> float:
    """log ∫₀^R r^{d−1} ρ(w* + r·ray) dr."""
    d = len(start)
    if prior_scale is None:
        return d * math.log(radius) - math.log(d)
    # ρ = (2πs²)^{−d/2} exp(−(c + 2br + ar²)/2s²): the integrand has one peak, where (d−1)/r = (b + ar)/s².
    a, b, c = (x.dot(y).item() for x, y in ((ray, ray), (start, ray), (start, start)))
    square = prior_scale**2
    peak = (-b + math.sqrt(b * b + 4 * a * (d - 1) * square)) / (2 * a)
    # The logarithm's curvature there is at least a/s², so that twelve widths hold the integral.
    end = min(radius, max(peak, 0.0) + 12 * prior_scale / math.sqrt(a))
    begin = max(0.0, min(peak, end) - 12 * prior_scale / math.sqrt(a))
    width = (end - begin) / GRID
    r = begin + width * (torch.arange(GRID, dtype=torch.float64) + 0.5)
    log_density = (d - 1) * r.log() - (c + 2 * b * r + a * r.square()) / (2 * square)
    return torch.logsumexp(log_density, 0).item() + math.log(width) - d / 2 * math.log(2 * math.pi * square)
