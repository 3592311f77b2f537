"""Other points of a model's orbit, above all the canonical one, and Γ there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ...gamma import GammaStats, compute_gamma
from ...models import copy_of
from .balance import balance
from .point import Point
from .symmetries import Symmetries, example_for, symmetries

ROUNDS = 1000
"""Of balancing scales and mixings in turn."""
TOLERANCE = 1e-11
"""It ends when no log factor moves by more."""


def canonicalize(
    model: nn.Module,
    *,
    order: bool = True,
    approximate: bool = False,
    softmax_head: bool = False,
    example_input: Any = None,
    in_place: bool = False,
) -> nn.Module:
    """The representative of least norm that computes the same function, its neurons ordered by weight.

    Neurons are rescaled until the weights each takes in are as long as those it gives out: ‖θ‖² is convex in the logs
    of the factors, and Newton's method finds its one minimum. A neuron without incoming or outgoing weight becomes zero
    on both sides. Where only a norm reads neurons there is no least norm, for they could shrink to nothing: there
    ‖(w, b)‖ = 1 (of each neuron before BatchNorm, of the layer before LayerNorm), mean over neurons zero. That is a
    convention, the same for all points of an orbit, and what is least then is ‖θ‖² less twice the log factors of these.
    So ‖θ‖² never rises in a model without such neurons, and may in one with them: in a ResNet whose weights before
    BatchNorm are shorter than 1 it does. Where any invertible matrix may mix neurons, B A = U S Wᵀ of what they take in
    (A) and give out (B) is cut in the middle, into √S Wᵀ and U √S: the least norm, with AAᵀ = BᵀB, and the largest
    entry of each row positive. Scales and mixings are balanced in turn until neither moves. Neurons are ordered by the
    squared norm of all their entries, largest first; ties keep their order.

    The function stays to rounding: running statistics of a BatchNorm and eps of a LayerNorm, RMSNorm or one-group
    GroupNorm move along. Only BatchNorm in train mode changes, by the part of eps in its variance.

    Args:
        model: left as it is, unless `in_place`. Optimizer state does not move along.
        order: whether to order neurons.
        approximate: fix the scale before norms as well whose eps cannot move along (GroupNorm with several groups,
            InstanceNorm or BatchNorm without running statistics); outputs change by about eps / variance.
        softmax_head: as in `symmetries`; outputs then change by a shift common to all classes.
        example_input: as in `symmetries`.
        in_place: change `model` itself.

    Returns:
        The model at the canonical point: a copy, or `model`.

    Raises:
        ValueError: no symmetry is known, or parameters are not finite.
        RuntimeError: Newton's method does not converge, or scales and mixings do not settle.
    """
    moves, point = _start(model, softmax_head, example_input, in_place)
    for translation in moves.translations:
        size = translation.part.neurons // translation.groups
        translation.shift(point, -translation.project(point.values, point.values) / size)
    scalings = [scaling for scaling in moves.scalings if approximate or scaling.exact(moves.model)]
    for _ in range(ROUNDS):
        moved = balance(scalings, point)
        for mixing in moves.mixings:
            mixing.balance(point)
        if not moves.mixings or moved <= TOLERANCE:
            break
    else:
        raise RuntimeError(f"scales and mixings did not settle in {ROUNDS} rounds: scales still moved by {moved:.1e}.")
    for permutation in moves.permutations if order else ():
        keys = permutation.keys(point).view(-1, permutation.run)
        places = keys.argsort(dim=1, descending=True, stable=True)
        places += torch.arange(0, permutation.width, permutation.run)[:, None]
        permutation.permute(point, places.flatten())
    point.write_back()
    return point.model


def rescale(
    model: nn.Module, layer: str, factors: Tensor, *, example_input: Any = None, in_place: bool = False
) -> nn.Module:
    """Multiply what the neurons of `layer` take in by `factors`, and divide what they give out: the same function.

    Args:
        layer: a layer's name, as in model.named_modules(). Neurons that a residual add joins to its own move too.
        factors: positive; one a neuron, or one a group where a norm lets neurons move only together.
        model, example_input, in_place: as in `canonicalize`.

    Raises:
        ValueError: no such layer, neurons that cannot be rescaled (the message says why), factors of another number
            or not positive and finite.
    """
    moves, point = _start(model, False, example_input, in_place)
    scaling = next((scaling for scaling in moves.scalings if layer in scaling.layers), None)
    if scaling is None:
        raise ValueError(f"layer: {layer!r}: {moves.why_not_rescaled(layer)}.")
    factors = torch.as_tensor(factors).detach().double()
    if factors.shape != (scaling.groups,):
        raise ValueError(
            f"factors: expected {scaling.groups}, one a group of {scaling.width // scaling.groups} neurons of "
            f"{layer!r}, got shape {tuple(factors.shape)}."
        )
    if not bool((factors > 0).all() and factors.isfinite().all()):
        raise ValueError("factors: expected positive and finite numbers.")
    scaling.rescale(point, factors.to(point.values[scaling.incoming[0].name].device))
    point.write_back()
    return point.model


def random_representative(
    model: nn.Module,
    *,
    spread: float = 1.0,
    seed: int = 0,
    permute: bool = True,
    approximate: bool = False,
    softmax_head: bool = False,
    example_input: Any = None,
    in_place: bool = False,
) -> nn.Module:
    """A random point of the model's orbit: the same function with other weights, to test what should not care.

    Args:
        spread: factors are exp(spread × standard normal); translations are that much of a parameter's own size; mixing
            matrices are the exponentials of normal ones of that size.
        seed: of the random numbers; torch's generators are left alone.
        permute: whether neurons change places too.
        model, approximate, softmax_head, example_input, in_place: as in `canonicalize`.

    Raises:
        ValueError: no symmetry is known, `spread` is negative or not finite.
    """
    checks.check_number(spread, "spread", "a finite number, 0 or more", least=0)
    moves, point = _start(model, softmax_head, example_input, in_place)
    generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))

    def normal(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(like.device)

    for translation in moves.translations:
        value = point.values[translation.part.name]
        amount = spread * value.square().mean().sqrt()
        translation.shift(point, amount * normal(translation.shape(point.values), value))
    for scaling in moves.scalings:
        if approximate or scaling.exact(moves.model):
            value = point.values[scaling.incoming[0].name]
            scaling.rescale(point, (spread * normal((scaling.groups,), value)).exp())
    for mixing in moves.mixings:
        count, size = mixing.sets.shape
        value = point.values[mixing.incoming[0].name]
        mixing.mix(point, torch.matrix_exp(spread / math.sqrt(size) * normal((count, size, size), value)))
    for permutation in moves.permutations if permute else ():
        keys = torch.rand(permutation.width, generator=generator).view(-1, permutation.run)
        places = keys.argsort(dim=1) + torch.arange(0, permutation.width, permutation.run)[:, None]
        permutation.permute(point, places.flatten())
    point.write_back()
    return point.model


def _start(model: nn.Module, softmax_head: bool, example_input: Any, in_place: bool) -> tuple[Symmetries, Point]:
    """The symmetries and the point of `model` or of a copy."""
    moves = symmetries(model if in_place else copy_of(model), example_input, softmax_head=softmax_head)
    if not (moves.scalings or moves.translations or moves.permutations):
        raise ValueError(f"model: no symmetry is known.\n{moves}")
    point = Point(moves.model, moves.norms)
    infinite = [name for name, value in point.values.items() if not bool(value.isfinite().all())]
    if infinite:
        raise ValueError(f"model: expected finite parameters, but {', '.join(infinite[:5])} hold NaN or infinity.")
    return moves, point


def quotient_gamma(
    model: nn.Module,
    dataloader: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    n_samples: int = 20,
    *,
    samples_per_gradient: int | None = None,
    confidence: float | None = None,
    approximate: bool = False,
    softmax_head: bool = False,
    example_input: Any = None,
) -> GammaStats:
    """Γ_{S/G}: Γ at the canonical representative, the same for every point of the model's orbit.

    The orbit under the moves that `symmetries` lists: moves that are not analysed give the same function another
    number, see `sdsd.theory.quotient`.

    Batches of one sample give it for per-sample gradients. Arguments as in `compute_gamma` and `canonicalize`; the
    model itself is left alone.

    Args:
        approximate, softmax_head: as in `canonicalize`.
        example_input: as in `canonicalize`; where it is None and the model runs on nothing of a likely shape, it is
            what `loss_fn` gives the model.
        others: as in `compute_gamma`.

    Returns:
        `GammaStats` at the canonical point.

    Raises:
        ValueError: as in `compute_gamma` and `canonicalize`.
    """
    if example_input is None:
        if iter(dataloader) is dataloader:
            dataloader = list(itertools.islice(dataloader, n_samples))
        example_input = example_for(model, dataloader, loss_fn)
    canonical = canonicalize(
        model, order=False, approximate=approximate, softmax_head=softmax_head, example_input=example_input
    )
    return compute_gamma(
        canonical, dataloader, loss_fn, n_samples, samples_per_gradient=samples_per_gradient, confidence=confidence
    )
