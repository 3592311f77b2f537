"""V, the share of the sphere that caps round a layer's directions cover together, and a smooth surrogate of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sdsd_kernels import checks

from ..._student_t import incomplete_beta
from .rows import ROUNDING, check_angle, live_rows, unit_rows

CHUNK = 1 << 22


@dataclass(frozen=True)
class RealizedVolume:
    """The volume of a union of equal caps, measured in caps.

    Attributes:
        value: V = μ(∪E_i) / μ(E).
        standard_error: of `value`, over the sampled points; 0 where all points say the same.
        caps: how many caps, K.
        cap_share: the part of the sphere that one cap covers, σ.
        samples: how many points were drawn.
        angle: the caps' angular radius in radians.
    """

    value: float
    standard_error: float
    caps: int
    cap_share: float
    samples: int
    angle: float

    @property
    def most(self) -> float:
        """The largest volume there can be: min(K, 1/σ), apart or all over the sphere."""
        return min(float(self.caps), 1 / self.cap_share if self.cap_share > 0 else math.inf)


def realized_volume(rows: Tensor, angle: float | None = None, samples: int = 16384, seed: int = 0) -> RealizedVolume:
    """V: how much of the sphere spherical caps of angular radius `angle` round the rows cover together.

        V = μ(∪E_i) / μ(E) = Σ_i E[1 / N(x)],    x uniform in E_i, N(x) = how many caps hold x

    which is the union estimator of Karp and Luby (1983) with as many points in every cap: unbiased, and its error does
    not grow as caps get small. V is exactly 1 when all rows point one way, 2 for antipodes, n for n orthogonal rows and
    angle ≤ π/4. It is a count of directions at the resolution `angle`: another angle is another number. In many
    dimensions a cap's points lie near its edge, and caps overlap little until their centres are much closer than that:
    caps of 60° round the neurons of real layers do not overlap at all, V is K whatever the layer has learned, and a
    warning says so. `telling_angle` is an angle at which V can tell.

    Args:
        rows: one neuron a row, any scale; rows of zeros have no cap.  # shape: (n, d), d ≥ 2
        angle: the caps' angular radius in radians, in (0, π/2]; None takes `telling_angle(K, d)`. V of layers of
            different size is at different angles then; give one to compare them.
        samples: points to draw, rounded up to a multiple of K, 2K at least; the error is at most ½ K/√samples.
        seed: same seed, same points (on the same kind of device).

    Returns:
        `RealizedVolume`: V and its standard error.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: wrong shape, an angle out of range, no sample, non-finite or only zero rows.

    Source:
        Karp, Luby, "Monte-Carlo algorithms for enumeration and reliability problems", FOCS 1983.
    """
    if angle is not None:
        check_angle(angle)
    samples = checks.check_integer(samples, "samples", least=1)
    centres = unit_rows(live_rows(rows, None)[0].detach())
    count, dim = centres.shape
    if dim < 2:
        raise ValueError("rows: expected at least two dimensions a row, got 1, where a sphere is two points.")
    if angle is None:
        angle = telling_angle(count, dim)
    generator = torch.Generator(centres.device).manual_seed(checks.check_integer(seed, "seed"))
    edge = math.cos(angle) - ROUNDING
    each = max(2, -(-samples // count))
    share = centres.new_zeros(count * each)
    for part in torch.arange(count * each, device=centres.device).split(max(1, CHUNK // max(count, dim))):
        points = _uniform_in_caps(centres[part // each], angle, generator)
        share[part] = 1 / (points @ centres.mT >= edge).sum(1).clamp_min(1).double()
    variance, mean = torch.var_mean(share.view(count, each), 1)
    error = math.sqrt(variance.sum().item() / each)
    volume = RealizedVolume(mean.sum().item(), error, count, cap_share(dim, angle), count * each, angle)
    _warn_if_blind(volume, dim)
    return volume


def telling_angle(count: int, dim: int) -> float:
    """The angle at which caps round `count` random directions in `dim` ≥ 2 dimensions cover half of what they could.

    Then V, as a share of K, is about ½ for directions that have nothing to do with each other, lower where they share,
    higher where they avoid each other: it has room both ways. K random caps of share σ cover (1 − (1 − σ)^K)/σ caps.

    Args:
        count: how many directions, K ≥ 1.
        dim: of the space they lie in, at least 2.

    Returns:
        Radians, at most π/2, which it is where even half spheres overlap too little.

    Raises:
        ValueError: a count below 1 or a dimension below 2.

    Example:
        >>> round(math.degrees(telling_angle(512, 785)))
        84
    """
    count = checks.check_integer(count, "count", least=1)
    dim = checks.check_integer(dim, "dim", least=2)
    low, high = 0.0, math.pi / 2
    if count < 2:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _of_random(count, dim, middle) > 0.5 * count else (low, middle)
    return high


def _of_random(count: int, dim: int, angle: float) -> float:
    """The expected V of caps round random directions."""
    share = cap_share(dim, angle)
    return -math.expm1(count * math.log1p(-share)) / share if share > 0 else float(count)


BLIND = 0.99


def _warn_if_blind(volume: RealizedVolume, dim: int) -> None:
    if volume.caps < 2 or volume.value < BLIND * volume.caps:
        return
    if _of_random(volume.caps, dim, volume.angle) >= BLIND * volume.caps:
        warnings.warn(
            f"realized_volume: caps of {math.degrees(volume.angle):.0f}° round {volume.caps} directions in {dim} "
            "dimensions do not overlap, nor would they round random ones, so V is their number and says nothing. "
            f"angle=None takes {math.degrees(telling_angle(volume.caps, dim)):.0f}°.",
            stacklevel=3,
        )


def cap_share(dim: int, angle: float) -> float:
    """The part of the unit sphere in `dim` ≥ 2 dimensions that a cap of angular radius `angle` covers.

    σ = ½ I_{sin²θ}((d − 1)/2, ½), with the regularised incomplete beta function (Li 2011).
    """
    check_angle(angle)
    return 0.5 * incomplete_beta((dim - 1) / 2, 0.5, math.sin(angle) ** 2)


def log_volume(rows: Tensor, epsilon: float = 0.5) -> Tensor:
    """A smooth surrogate of V, in nats a direction: ½ log det(I + d/(nε²) Û Ûᵀ), Û the unit rows.

    What coding one of the directions to within ε takes; all n take n + d times that (Ma, Derksen, Hong, Wright 2007).
    So it says how spread out the directions are, and not how many: 1,000 and 10,000 random ones give nearly the same.
    It is neither V nor log V: they agree in what they order (copies of one direction low, orthogonal ones high), not
    in value.

    Args:
        rows: one neuron a row, any scale; rows of zeros are left out.  # shape: (n, d)
        epsilon: distance at which directions are told apart, > 0.

    Returns:
        A scalar, float64, differentiable.

    Raises:
        TypeError, ValueError: as `orbit_entropy`; epsilon not above 0.
    """
    epsilon = checks.check_number(epsilon, "epsilon", "a number above 0", above=0)
    unit = unit_rows(live_rows(rows, None)[0])
    count, dim = unit.shape
    gram = unit @ unit.mT if count <= dim else unit.mT @ unit
    matrix = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) + dim / (count * epsilon**2) * gram
    return torch.linalg.cholesky(matrix).diagonal().log().sum()


def _uniform_in_caps(centres: Tensor, angle: float, generator: torch.Generator) -> Tensor:
    """One point for each centre, uniform in the cap round it; shape as `centres`.

    The angle φ to the centre has density ∝ sin^(d−2) φ up to `angle`. Two exact rejections share the work; each
    accepts at least a third where it is used. Narrow caps: s = sin φ is proposed with density ∝ s^(d−2), which is a
    power of a uniform number, and kept with probability cos θ / √(1 − s²). Wide ones: uniform in the half sphere, kept
    when inside.
    """
    count, dim = centres.shape
    narrow = math.cos(angle) * math.sqrt(dim) > 1
    points = torch.zeros_like(centres)
    missing = torch.arange(count, device=centres.device)

    def uniform() -> Tensor:
        return torch.rand(len(missing), dtype=torch.float64, generator=generator, device=centres.device)

    while len(missing):
        centre = centres[missing]
        normal = torch.randn(centre.shape, dtype=torch.float64, generator=generator, device=centres.device)
        along = (normal * centre).sum(1, keepdim=True)
        across = normal - along * centre
        across = (
            across - (across * centre).sum(1, keepdim=True) * centre
        )  # rounding left by a normal close to the centre
        length = torch.linalg.vector_norm(across, dim=1, keepdim=True)
        if narrow:
            sine = math.sin(angle) * uniform()[:, None] ** (1 / (dim - 1))
            cosine = (1 - sine.square()).sqrt()
            kept = uniform() * cosine[:, 0] < math.cos(angle)
        else:
            radius = torch.hypot(along, length)
            sine, cosine = length / radius, along.abs() / radius
            kept = cosine[:, 0] >= math.cos(angle)
        points[missing[kept]] = (cosine * centre + sine * across / length)[kept]
        missing = missing[~kept]
    return points
