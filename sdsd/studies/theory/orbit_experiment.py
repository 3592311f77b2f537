"""What moves along an orbit and what does not: gradient, Γ, Γ of the quotient, and the vertical part of updates."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...gamma import gamma_stats
from ...theory import gradient_rows
from ...theory.quotient import canonicalize, random_representative, symmetries, vertical_fraction
from ..digits import load_digits


@dataclass(frozen=True)
class OrbitResult:
    """One trained network, and random points of its orbit under rescaling, translation of the head and permutation.

    Lists hold the network itself first, then the random points.

    Attributes:
        output_change: largest change of a log-probability on any of the points.
        squared_norms: ‖θ‖².
        canonical_squared_norm: ‖θ‖² at the canonical representative, the least of the orbit.
        squared_gradients: ‖∇L‖².
        gammas: Γ of per-sample gradients, at the point itself.
        quotient_gammas: the same at the point's canonical representative.
        vertical: part of the squared length of an update that leaves the function alone, by name: the gradient, a step
            of Adam, isotropic noise, weight decay, and weight decay at the canonical representative.
    """

    output_change: float
    squared_norms: list[float]
    canonical_squared_norm: float
    squared_gradients: list[float]
    gammas: list[float]
    quotient_gammas: list[float]
    vertical: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


def orbit_experiment(
    samples: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    hidden: int = 32,
    steps: int = 20,
    points: int = 8,
    spread: float = 1.0,
    seed: int = 0,
) -> OrbitResult:
    """Train a ReLU network with Adam, then measure it at random points of its orbit.

    Args:
        samples: shape (N, features); None takes 256 of scikit-learn's handwritten digits.
        labels: classes, shape (N,).
        hidden: width of both hidden layers.
        steps: of Adam on all samples.
        points: how many random points of the orbit.
        spread: of the logarithm of the rescaling factors.
        seed: of everything random.

    Raises:
        MissingExtraError: no data given, and scikit-learn is not installed.
        ValueError: samples and labels of different number.
    """
    if samples is None or labels is None:
        samples, labels = load_digits(seed, 256, centre=0.0, dtype=torch.float64)
    if len(samples) != len(labels):
        raise ValueError(f"labels: expected one for each of the {len(samples)} samples, got {len(labels)}.")
    data = (samples.double(), labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network(samples.shape[1], hidden, int(labels.max()) + 1)
        noise = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    adam_step = _train(model, data, steps)
    members = [model, *(random_representative(model, spread=spread, seed=k, softmax_head=True) for k in range(points))]
    forms = [canonicalize(member, softmax_head=True) for member in members]
    before = model(data[0]).log_softmax(1)
    changes = [(member(data[0]).log_softmax(1) - before).abs().max().item() for member in (*members, *forms)]
    rows = [gradient_rows(member, _loss, data, 1) for member in members]
    structure = symmetries(model, softmax_head=True)
    gradient = torch.autograd.grad(_loss(model, data), list(model.parameters()))
    return OrbitResult(
        output_change=max(changes),
        squared_norms=[_squared_norm(member) for member in members],
        canonical_squared_norm=_squared_norm(forms[0]),
        squared_gradients=[each.mean(0).square().sum().item() for each in rows],
        gammas=[gamma_stats(each).gamma for each in rows],
        quotient_gammas=[gamma_stats(gradient_rows(form, _loss, data, 1)).gamma for form in forms],
        vertical={
            "gradient": vertical_fraction(structure, gradient),
            "Adam step": vertical_fraction(structure, adam_step),
            "isotropic noise": vertical_fraction(structure, noise),
            "weight decay": vertical_fraction(structure, list(model.parameters())),
            "weight decay, canonical": vertical_fraction(forms[0], list(forms[0].parameters()), softmax_head=True),
        },
    )


def mixing_experiment(
    *, bottleneck: int = 12, hidden: int = 32, steps: int = 20, mixes: int = 8, seed: int = 0
) -> dict[str, Any]:
    """Two ways to mix neurons that keep the function, with Γ at the canonical representative of each point.

    Adjacent linear layers, V W = (V M⁻¹)(M W) for any invertible M, are analysed: attention has the same freedom
    between values and output. Two neurons that a ReLU cuts on no sample can be mixed as well, by M with entries above
    0, and that is not: it depends on the data.

    Returns:
        "output_change", the largest of a log-probability; "gammas" and "uncut_gammas" of the two ways, the network as
        trained first.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    samples, labels = load_digits(seed, 256, centre=0.0, dtype=torch.float64)
    data = (samples, labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = nn.Linear(64, bottleneck), nn.Linear(bottleneck, hidden)
        model = nn.Sequential(first, second, nn.ReLU(), nn.Linear(hidden, 10)).double()
        mixing = [torch.eye(bottleneck).double(), *torch.randn(mixes, bottleneck, bottleneck).double()]
        inside, outside = nn.Linear(64, hidden), nn.Linear(hidden, 10)
        uncut = nn.Sequential(inside, nn.ReLU(), outside).double()
        positive = [torch.eye(2).double(), *(torch.eye(2) + torch.rand(mixes, 2, 2)).double()]
    _train(model, data, steps)
    with torch.no_grad():
        inside.bias[:2] += 10.0
    _train(uncut, data, steps)
    assert bool((inside(samples)[:, :2] > 0).all()), "no sample cuts the two neurons"
    change, by_name = 0.0, {}
    for name, network, matrices, pair in (
        ("gammas", model, mixing, (first, second)),
        ("uncut_gammas", uncut, positive, (inside, outside)),
    ):
        before, gammas = network(samples).log_softmax(1), []
        taken, bias, given = (each.detach().clone() for each in (pair[0].weight, pair[0].bias, pair[1].weight))
        for matrix in matrices:
            n = len(matrix)
            with torch.no_grad():
                pair[0].weight[:n] = matrix @ taken[:n]
                pair[0].bias[:n] = matrix @ bias[:n]
                pair[1].weight[:, :n] = given[:, :n] @ torch.linalg.inv(matrix)
            form = canonicalize(network, softmax_head=True)
            change = max(change, (form(samples).log_softmax(1) - before).abs().max().item())
            gammas.append(gamma_stats(gradient_rows(form, _loss, data, 1)).gamma)
        by_name[name] = gammas
    return {"output_change": change, **by_name}


def _network(features: int, hidden: int, classes: int) -> nn.Module:
    layers = [nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers).double()


def _train(model: nn.Module, data: tuple[Tensor, Tensor], steps: int) -> list[Tensor]:
    """Adam for some steps; returns its last."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(steps):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        _loss(model, data).backward()
        optimizer.step()
    optimizer.zero_grad()
    return [now.detach() - then.detach() for now, then in zip(model.parameters(), before, strict=True)]


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def _squared_norm(model: nn.Module) -> float:
    return math.fsum(parameter.detach().square().sum().item() for parameter in model.parameters())
