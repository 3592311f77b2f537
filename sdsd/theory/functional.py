"""The learning functional L_geom = H_G + λV: symmetry redundancy plus the volume that a layer's directions fill.

The document "Symmetry-Driven Spatial Density (SDSD) Framework" names the two terms and defines neither. Here a layer of
n neurons is n directions û_j, the unit rows of (incoming weights, bias), with a share p_j ∝ ‖(in_j, b_j)‖ ‖out_j‖ of
the layer's mass, Σ p_j = 1:

========================  ==============================================================================================
`orbit_entropy`           H_G: von Neumann entropy of M_ij = √(p_i p_j) cos_ij; smooth, in nats
`log_orbit_count`         H_G to the letter: log of the size of the permutation orbit, log(n! / ∏ n_c!) / n
`realized_volume`         V: share of the sphere that caps round û_j cover together, in caps, with its standard error
`log_volume`              ½ log det(I + d/(nε²) Û Ûᵀ): a smooth surrogate that orders like V, in nats a direction
`participation_ratio`     1 / Tr M²: how many directions the mass is spread over
`geometric_functional`    H_G + λ · (`log_volume`, the surrogate, or V) of a model; with the first, to add to a loss
========================  ==============================================================================================

p_j does not change when a ReLU neuron's incoming weights grow by c and its outgoing ones shrink by c, and neither does
û_j, so a network with one hidden layer needs no canonical form first. Deeper ones do: there the same c also stretches
one entry of every row of the next layer. Take `canonicalize` first where the number must not depend on it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdsd_kernels import checks, cosine_matrix

from ..gamma.student import incomplete_beta
from ._segments import Slice
from .quotient import Symmetries, symmetries

VOLUMES = ("log", "union")
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HINT = "layers=[('fc1', 'fc2')] for the neurons that fc1 writes and fc2 reads"
ROUNDING = 1e-12
"""A cap holds its edge: points are drawn up to it, and their cosine with the centre is rounded."""
CHUNK = 1 << 22


def orbit_entropy(rows: Tensor, mass: Tensor | None = None) -> Tensor:
    """H_G, the von Neumann entropy of the mass-weighted cosine matrix, in nats.

        H = −Tr M log M,    M_ij = √(p_i p_j) cos(r_i, r_j),    p = mass / Σ mass

    0 when all neurons point one way (or opposite ways), log n when n equal ones are orthogonal; unchanged when one
    neuron is split into copies that share its mass. Σ p_j û_j û_jᵀ has the same non-zero eigenvalues, so the smaller of
    (n, n) and (d, d) is taken: for n ≤ d `sdsd_kernels.cosine_matrix` makes it. Differentiable in both arguments;
    eigenvalues below the rounding of the dtype count as zero and have no gradient.

    Args:
        rows: one neuron a row, any scale; float64, float32, float16 or bfloat16.  # shape: (n, d)
        mass: what each neuron weighs, ≥ 0, any scale; all the same by default. A neuron without mass or without a
            direction counts as absent.  # shape: (n,)

    Returns:
        A scalar, float64, between 0 and log min(n, d).

    Raises:
        TypeError: not floating-point tensors.
        ValueError: wrong shapes, a negative or non-finite number, no neuron with mass and direction.

    Example:
        >>> orbit_entropy(torch.eye(4, dtype=torch.float64)).exp().item()
        4.0
    """
    rows, share = _live(rows, mass)
    if rows.shape[0] <= rows.shape[1]:
        root = share.sqrt()
        matrix = cosine_matrix(rows, neuron_dim=0).double() * torch.outer(root, root)
    else:
        matrix = (_unit(rows) * share[:, None]).mT @ _unit(rows)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    precision = torch.finfo(torch.promote_types(rows.dtype, torch.float32)).eps
    kept = eigenvalues[eigenvalues > precision]
    return -(kept * kept.log()).sum()


def log_orbit_count(rows: Tensor, angle: float) -> float:
    """H_G to the letter: the log of how many distinct arrangements permuting the neurons makes, for each neuron.

        H_orb = log(n! / ∏_c n_c!) / n

    n! permutations fall together where neurons are interchangeable, n_c! for a cluster of n_c (orbit–stabiliser
    theorem). Neurons belong to one cluster when a chain of neighbours closer than `angle` joins them. Not smooth, and
    blind to anything that happens farther out than `angle`.

    Args:
        rows: one neuron a row, any scale; rows of zeros are left out.  # shape: (n, d)
        angle: radians, in (0, π/2].

    Returns:
        Nats a neuron, 0 when all are in one cluster, log(n!)/n when none is with another.

    Raises:
        TypeError, ValueError: as `orbit_entropy`; an angle out of range.
    """
    _check_angle(angle)
    unit = _unit(_live(rows, None)[0].detach())
    near = unit @ unit.mT >= math.cos(angle)
    near.fill_diagonal_(True)
    cluster = torch.arange(len(unit), device=unit.device)
    while True:
        joined = torch.where(near, cluster, len(unit)).amin(1)
        if torch.equal(joined, cluster):
            break
        cluster = joined
    sizes = torch.bincount(cluster).tolist()
    return (math.lgamma(len(unit) + 1) - sum(math.lgamma(size + 1) for size in sizes)) / len(unit)


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
        _check_angle(angle)
    samples = checks.check_integer(samples, "samples", least=1)
    centres = _unit(_live(rows, None)[0].detach())
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
    _check_angle(angle)
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
    unit = _unit(_live(rows, None)[0])
    count, dim = unit.shape
    gram = unit @ unit.mT if count <= dim else unit.mT @ unit
    matrix = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) + dim / (count * epsilon**2) * gram
    return torch.linalg.cholesky(matrix).diagonal().log().sum()


def participation_ratio(rows: Tensor, mass: Tensor | None = None) -> Tensor:
    """1 / Tr M²: over how many directions the mass is spread; 1 for one direction, n for n equal orthogonal ones.

    Arguments and errors as `orbit_entropy`, which it follows with less arithmetic; differentiable, float64.
    """
    rows, share = _live(rows, mass)
    unit = _unit(rows)
    if rows.shape[0] <= rows.shape[1]:
        return 1 / (share @ (unit @ unit.mT).square() @ share)
    return 1 / ((unit * share[:, None]).mT @ unit).square().sum()


class NeuronLayer(NamedTuple):
    """One hidden layer: a row and a mass for each of its neurons.

    `rows` (n, d): incoming weights and bias. `mass` (n,): ‖row‖ · ‖outgoing weights‖.
    """

    name: str
    rows: Tensor
    mass: Tensor


def hidden_layers(model: nn.Module | Symmetries, layers: Iterable[tuple[str, str]] | None = None) -> list[NeuronLayer]:
    """The hidden layers of `model` as rows and masses, in the graph of its parameters.

    Without `layers` these are the neurons that `symmetries` finds can be rescaled: those behind which scale passes to
    the next weights, as through ReLU, pooling and dropout. Neurons that a residual add joins are one layer. A norm
    between weights and activation leaves (γ, β) as all that can be rescaled, which is no direction in the inputs: name
    such layers.

    Args:
        model: what `symmetries` can trace, or its result, found once for many calls; any module with `layers`.
        layers: (name of the layer that writes the neurons, name of the layer that reads them), as in
            `model.named_modules()`. Whether scale may pass between the two is then the caller's word.

    Returns:
        One `NeuronLayer` a hidden layer, in the order of the model.

    Raises:
        ValueError: no hidden layer found; a norm that writes the neurons; an unknown name; layers whose sizes do not
            fit, or grouped convolutions as readers; a model that torch.fx cannot trace.
        TypeError: a name that is no Linear or convolution.
    """
    if layers is not None:
        module = model.model if isinstance(model, Symmetries) else model
        pairs = [_neuron_layer(module, writer, reader) for writer, reader in layers]
    else:
        pairs = _rescalable_layers(model if isinstance(model, Symmetries) else symmetries(model))
    if not pairs:
        raise ValueError("layers: expected at least one pair of names, got none.")
    return pairs


@dataclass(frozen=True)
class GeometricFunctional:
    """L_geom of a model.

    Attributes:
        value: H_G + λV summed over hidden layers; carries the gradient. A scalar, float64.
        entropy: H_G, summed over layers.
        volume: V, or its logarithmic surrogate, summed over layers.
        volume_error: the standard error of `volume` ("union"), else 0.
        layers: name → (H_G, V) of each layer.
    """

    value: Tensor
    entropy: Tensor
    volume: Tensor
    volume_error: float
    layers: dict[str, tuple[float, float]]


def geometric_functional(
    model: nn.Module | Symmetries,
    lam: float,
    *,
    volume: str = "log",
    layers: Sequence[tuple[str, str]] | None = None,
    epsilon: float = 0.5,
    angle: float | None = None,
    samples: int = 16384,
    seed: int = 0,
) -> GeometricFunctional:
    """L_geom = H_G + λ · volume of the hidden layers, to watch or to add to a loss.

    The volume is by default the surrogate `log_volume`, which has a gradient; V itself, with volume="union", has none.

        loss = cross_entropy(model(x), y) + strength * geometric_functional(model, 0.1).value

    It is a regulariser and no learning rule: with nothing beside it, its minimum is one direction for all neurons.

    Args:
        model, layers: see `hidden_layers`.
        lam: λ ≥ 0, what a unit of volume costs in nats (a nat a direction with "log", a cap with "union").
        volume: "log" takes `log_volume`, which is differentiable; "union" takes `realized_volume`, which is not, and
            the whole result then carries no gradient.
        epsilon: for "log".
        angle, samples, seed: for "union"; see `realized_volume`.

    Returns:
        `GeometricFunctional`: the value and its parts, differentiable with "log".

    Raises:
        ValueError: λ negative or not finite, an unknown volume, and what `hidden_layers` and the parts raise.
        TypeError: as `hidden_layers`.
    """
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(
            f"lam: expected λ ≥ 0, got {lam!r}. A negative λ would pay for volume; to spread neurons apart, "
            "subtract the functional from the loss instead."
        )
    checks.check_choice(volume, "volume", VOLUMES)
    entropies, volumes, errors = [], [], []
    found = hidden_layers(model, layers)
    with torch.set_grad_enabled(torch.is_grad_enabled() and volume == "log"):
        for layer in found:
            entropies.append(orbit_entropy(layer.rows, layer.mass))
            rows = layer.rows[layer.mass > 0]
            if volume == "log":
                volumes.append(log_volume(rows, epsilon))
                continue
            union = realized_volume(rows, angle, samples, seed)
            volumes.append(entropies[-1].new_tensor(union.value))
            errors.append(union.standard_error)
        entropy, filled = torch.stack(entropies).sum(), torch.stack(volumes).sum()
        value = entropy + lam * filled
    parts = {layer.name: (h.item(), v.item()) for layer, h, v in zip(found, entropies, volumes, strict=True)}
    return GeometricFunctional(value, entropy, filled, math.hypot(*errors), parts)


def _check_angle(angle: float) -> None:
    if not 0 < angle <= math.pi / 2:
        raise ValueError(f"angle: expected radians in (0, π/2], got {angle!r}. Degrees? Use math.radians.")


def _live(rows: Tensor, mass: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows that have mass and direction, and their shares in float64, which sum to 1."""
    for value, name in ((rows, "rows"), (mass, "mass")):
        if value is not None and not (isinstance(value, Tensor) and value.is_floating_point()):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point torch.Tensor, got {kind}.")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"rows: expected shape (neurons, dimensions), neither 0, got {tuple(rows.shape)}.")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"rows: expected finite numbers, got {int((~rows.isfinite()).sum())} that are not.")
    if mass is None:
        mass = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    if mass.shape != rows.shape[:1]:
        raise ValueError(f"mass: expected one number a row, {len(rows)}, got shape {tuple(mass.shape)}.")
    if not bool((mass.isfinite() & (mass >= 0)).all()):
        raise ValueError(f"mass: expected finite numbers ≥ 0, got {mass.min().item():g} … {mass.max().item():g}.")
    live = (mass.detach() > 0) & (rows.detach() != 0).any(1)
    if not bool(live.any()):
        raise ValueError("rows: expected at least one neuron with mass and a direction, got none.")
    share = mass[live].double()
    return rows[live], share / share.sum()


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1 in float64; divided by their largest entry first, so that no square leaves the range."""
    rows = rows.double()
    rows = rows / rows.detach().abs().amax(1, keepdim=True)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


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


def _rescalable_layers(found: Symmetries) -> list[NeuronLayer]:
    """One layer for each set of neurons that can be rescaled one by one."""
    parameters = dict(found.model.named_parameters())
    layers = []
    for scaling in found.scalings:
        if not scaling.outgoing:
            continue
        name = " + ".join(scaling.layers)
        if scaling.norms or all(parameters[part.name].ndim < 2 for part in scaling.incoming):
            raise ValueError(
                f"model: a norm stands between the weights and the activation of {name!r} and has a scale of its own. "
                f"Name the hidden layers to measure: {HINT}."
            )
        rows, out = (_by_neuron(parameters, parts, scaling.groups) for parts in (scaling.incoming, scaling.outgoing))
        mass = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(out, dim=1)
        layers.append(NeuronLayer(name, rows, mass))
    if not layers:
        raise ValueError(
            f"model: no hidden layer whose neurons can be rescaled in {type(found.model).__name__}, so their masses "
            f"are not defined. To measure some all the same: {HINT}. "
            f"Found: {'; '.join(found.not_analysed) or 'nothing'}."
        )
    return layers


def _by_neuron(parameters: dict[str, nn.Parameter], parts: Iterable[Slice], groups: int) -> Tensor:
    """All entries of `parts` that belong to each neuron; shape: (groups, entries)."""
    columns = []
    for part in parts:
        entries = parameters[part.name].movedim(part.axis, 0)
        columns.append(entries[part.entries(groups).to(entries.device)].reshape(groups, -1))
    return torch.cat(columns, 1)


def _neuron_layer(model: nn.Module, writer: str, reader: str) -> NeuronLayer:
    incoming, outgoing = (_weighted(model, name) for name in (writer, reader))
    neurons, columns = incoming.weight.shape[0], outgoing.weight[0].numel()
    if getattr(outgoing, "groups", 1) != 1:
        raise ValueError(f"layers: expected {reader!r} to read all neurons, got a convolution of groups.")
    if columns % neurons:
        raise ValueError(
            f"layers: expected {reader!r} to read the {neurons} neurons of {writer!r}, got {columns} inputs."
        )
    rows = incoming.weight.flatten(1)
    if incoming.bias is not None:
        rows = torch.cat((rows, incoming.bias[:, None]), 1)
    out = outgoing.weight.flatten(1).unflatten(1, (neurons, -1))
    mass = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(out, dim=(0, 2))
    return NeuronLayer(writer, rows, mass)


def _weighted(model: nn.Module, name: str) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d:
    known = {key: module for key, module in model.named_modules() if isinstance(module, WEIGHTED)}
    if name in known:
        return known[name]
    if any(name == key for key, _ in model.named_modules()):
        raise TypeError(f"layers: expected a Linear or convolution layer, got {name!r}, which is none.")
    raise ValueError(f"layers: the model has no layer {name!r}. It has: {', '.join(known) or 'none'}.")
