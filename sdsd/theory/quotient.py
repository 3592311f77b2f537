"""The quotient S/G: which moves of the parameters leave the function alone, and what is left without them.

Many points of parameter space compute one function: neurons can change places, a ReLU neuron's incoming weights can
grow while its outgoing ones shrink, and a norm undoes the scale of what it reads ("Symmetry-Driven Spatial Density"
§2–4 take states up to such moves, S/G). Here

    symmetries          finds the moves in a model, and says what it did not analyse
    horizontal          the part of an update that moves the function; vertical, the part that does not
    canonicalize        the representative of least norm, neurons in a fixed order
    quotient_gamma      Γ there, the same for every point of an orbit

The orbit is that of the moves analysed, which `symmetries` prints, and Γ of the quotient is a property of that orbit,
not of the function: points that other moves join have other numbers. Left out are, above all, mixing by invertible
matrices: V W = (V M⁻¹)(M W) of adjacent linear layers, of values and output and of queries and keys in attention (of
single scales along such a basis only the diagonal M are found, and only where the model's graph shows them), and of
neurons that a ReLU never cuts. The study `quotient` measures what the first of these does to Γ.

A gradient of an invariant loss is horizontal already, but its squared norm, and with it Γ, changes along the orbit: a
gradient is long where weights are unbalanced. That is why Γ of the quotient is taken at one representative.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..gamma import GammaStats, compute_gamma
from ..models import unwrap
from ._balance import balance
from ._segments import Segment
from ._symmetry_groups import Mixing, Permutation, Point, Scaling, Translation, build
from ._symmetry_trace import trace
from ._tangents import Span, checked_vectors


@dataclass(frozen=True)
class Symmetries:
    """The moves of a model's parameters that leave its function alone; `print` it for a report.

    It holds the structure, not the values: it stays good while the model trains, as long as its layers, their
    `requires_grad` and its graph stay.

    Attributes:
        model: the model it was found in.
        scalings: rescaling of neurons, and scale before a norm.
        translations: adding one vector to all neurons before a norm or a softmax.
        permutations: neurons that can change places.
        mixings: neurons that any invertible matrix may mix: between adjacent linear layers, of values and output and of
            queries and keys in the heads of attention. `scalings` has their scales as well.
        not_analysed: what was left alone, and why.
    """

    model: nn.Module
    scalings: tuple[Scaling, ...]
    translations: tuple[Translation, ...]
    permutations: tuple[Permutation, ...]
    mixings: tuple[Mixing, ...]
    not_analysed: tuple[str, ...]
    _segments: tuple[Segment, ...]

    @property
    def norms(self) -> tuple[tuple[str, str], ...]:
        """Names of the norms that move along, and of the attributes that hold their eps."""
        norms = (norm for move in (*self.scalings, *self.translations) for norm in move.norms)
        return tuple(dict.fromkeys((norm.name, norm.eps) for norm in norms if norm.name))

    @property
    def tangents(self) -> int:
        """How many directions of parameter space leave the function alone at a point (those found)."""
        shapes = self._span().shapes
        return sum(math.prod(shape) for shape in shapes)

    def why_not_rescaled(self, layer: str) -> str:
        """Why the neurons of `layer` cannot be rescaled.

        Returns:
            The reason, in words.
        """
        for segment in self._segments:
            if layer in segment.writers:
                return f"its neurons cannot be rescaled: {next(iter(segment.no_scale), 'nothing reads them')}"
        return "it is no layer that a rule knows"

    def _span(self) -> Span:
        mixed = {part.key for mixing in self.mixings for part in mixing.incoming}
        scalings = [each for each in self.scalings if not {part.key for part in each.incoming} <= mixed]
        moves: list[Scaling | Translation | Mixing] = [*scalings, *self.translations, *self.mixings]
        moves = [move for move in moves if move.has_tangent(self.model)]
        values = {name: parameter.detach().double() for name, parameter in self.model.named_parameters()}
        return Span(moves, values)

    def __str__(self) -> str:
        lines = [f"symmetries of {type(self.model).__name__}, {self.tangents} tangents"]
        for scaling in self.scalings:
            units = (
                f"{scaling.groups} of {scaling.width} neurons"
                if scaling.groups == scaling.width
                else (f"{scaling.groups} group(s) of {scaling.width // scaling.groups} neurons")
            )
            where = ", ".join(scaling.layers) + (" → " + ", ".join(scaling.readers) if scaling.readers else "")
            notes = [] if scaling.exact(self.model) else ["up to the norm's eps"]
            notes += [] if scaling.has_tangent(self.model) else ["norm in eval mode: moves with its statistics only"]
            lines.append(f"  {scaling.kind}: {units}, {where}" + (f" ({'; '.join(notes)})" if notes else ""))
        for translation in self.translations:
            note = "" if translation.has_tangent(self.model) else " (norm in eval mode: moves with its statistics only)"
            lines.append(f"  {translation.kind}: {', '.join(translation.layers)}{note}")
        for mixing in self.mixings:
            sets, size = mixing.sets.shape
            where = ", ".join(mixing.layers) + " → " + ", ".join(mixing.readers)
            lines.append(f"  mixing by any invertible matrix: {sets} set(s) of {size} neurons, {where}")
        for permutation in self.permutations:
            within = "" if permutation.run == permutation.width else f" within runs of {permutation.run}"
            lines.append(f"  permutation: {permutation.width} neurons{within}, {', '.join(permutation.layers)}")
        if self.not_analysed:
            lines += ["not analysed", *(f"  {note}" for note in self.not_analysed)]
        return "\n".join(lines)


def symmetries(model: nn.Module, example_input: Any = None, *, softmax_head: bool = False) -> Symmetries:
    """Find the moves of parameters that leave the model's function alone.

    For nn.Sequential and whatever torch.fx traces: Linear, convolutions, Embedding, norms, residual adds, pooling,
    flattening. Found are rescaling of neurons through ReLU, LeakyReLU, PReLU and dropout (with a norm before the
    activation: of its γ and β); scale and translation before BatchNorm, InstanceNorm, GroupNorm, LayerNorm and
    RMSNorm; permutation; translation of a softmax head. Neurons joined by a residual add move together.

    Not looked for: what belongs to attention and recurrent layers, sign flips of odd activations, permutations of whole
    GroupNorm groups, general linear maps where no activation follows. Anything without a rule is listed in
    `not_analysed`, and neurons that touch it stay as they are.

    Args:
        model: any nn.Module; it is not run, unless on `example_input` (a copy of it, in eval mode).
        example_input: an input, or a tuple of arguments. With it shapes are known; without it a Linear layer is taken
            to give (N, neurons).
        softmax_head: whether a softmax, and nothing else, sees the model's outputs (cross-entropy does), so that a
            shift of all classes does not count. A softmax layer at the end of the model is found in any case.

    Returns:
        `Symmetries`, which print as a list.

    Raises:
        ValueError: torch.fx cannot trace the model, or the model does not run on `example_input`.

    Example:
        >>> print(symmetries(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))))
        symmetries of Sequential, 8 tangents
          rescaling: 8 of 8 neurons, 0 → 2
          permutation: 8 neurons, 0
        not analysed
          outputs of 2: taken as they are; if only a softmax (cross-entropy) sees them, softmax_head=True adds its \
translation
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}.")
    root = unwrap(model)
    found = trace(root, example_input, softmax_head)
    scalings, translations, permutations, mixings, notes = build(found)
    return Symmetries(
        root,
        tuple(scalings),
        tuple(translations),
        tuple(permutations),
        tuple(mixings),
        tuple(notes),
        tuple(found.segments),
    )


Vectors = Mapping[str, Tensor] | Iterable[Tensor]


@overload
def vertical(
    model: nn.Module | Symmetries, vectors: Mapping[str, Tensor], *, softmax_head: bool = False
) -> dict[str, Tensor]: ...
@overload
def vertical(
    model: nn.Module | Symmetries, vectors: Iterable[Tensor], *, softmax_head: bool = False
) -> list[Tensor]: ...
def vertical(model: nn.Module | Symmetries, vectors: Any, *, softmax_head: bool = False) -> Any:
    """The part of an update that leaves the function alone: its projection onto the span of all tangents.

    Args:
        model: the model at the point in question, or its `symmetries` (which saves finding them anew).
        vectors: an update (a gradient, a step of Adam, weight decay, noise): a mapping from parameter names to
            tensors, or tensors in the order of model.parameters(). Parameters that do not train may be missing from a
            mapping.
        softmax_head: as in `symmetries`; goes with a model, not with a `Symmetries`.

    Returns:
        float64 tensors, as a dict or a list like `vectors`.

    Raises:
        TypeError: something else than tensors.
        ValueError: no symmetry is known; missing or unknown names; shapes that differ from the parameters'.
    """
    return _split(model, vectors, softmax_head)[1]


@overload
def horizontal(
    model: nn.Module | Symmetries, vectors: Mapping[str, Tensor], *, softmax_head: bool = False
) -> dict[str, Tensor]: ...
@overload
def horizontal(
    model: nn.Module | Symmetries, vectors: Iterable[Tensor], *, softmax_head: bool = False
) -> list[Tensor]: ...
def horizontal(model: nn.Module | Symmetries, vectors: Any, *, softmax_head: bool = False) -> Any:
    """The part of an update that moves the function: `vectors` less their `vertical` part, orthogonal to it.

    Arguments, results and errors as in `vertical`.
    """
    return _split(model, vectors, softmax_head)[0]


def vertical_fraction(model: nn.Module | Symmetries, vectors: Vectors, *, softmax_head: bool = False) -> float:
    """‖vertical‖² / ‖vectors‖², the share of an update that leaves the function alone; NaN for an update of zero.

    Args:
        model: or its `symmetries`, found once for many calls.
        vectors: as in `vertical`.
        softmax_head: as in `symmetries`.

    Returns:
        A float between 0 and 1.
    """
    across, along = (
        sum(part.square().sum().item() for part in (parts.values() if isinstance(parts, dict) else parts))
        for parts in _split(model, vectors, softmax_head)
    )
    return along / (across + along) if across + along > 0 else math.nan


def _split(model: nn.Module | Symmetries, vectors: Any, softmax_head: bool) -> tuple[Any, Any]:
    found = model if isinstance(model, Symmetries) else symmetries(model, softmax_head=softmax_head)
    span = found._span()
    if not span.moves:
        raise ValueError(f"model: no continuous symmetry is known.\n{found}")
    given = checked_vectors(found.model, vectors)
    solution = span.lift(span.solve(given))
    along = {name: solution.get(name, torch.zeros_like(value)) for name, value in given.items()}
    across = {name: value - along[name] for name, value in given.items()}
    if isinstance(vectors, Mapping):
        return {name: across[name] for name in vectors}, {name: along[name] for name in vectors}
    return list(across.values()), list(along.values())


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
    BatchNorm are shorter than 1 it does. Neurons are ordered by the squared norm of all their entries, largest first;
    ties keep their order.

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
        RuntimeError: Newton's method does not converge.
    """
    found, point = _start(model, softmax_head, example_input, in_place)
    for translation in found.translations:
        size = translation.part.neurons // translation.groups
        translation.shift(point, -translation.project(point.values, point.values) / size)
    balance([scaling for scaling in found.scalings if approximate or scaling.exact(found.model)], point)
    for permutation in found.permutations if order else ():
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
    found, point = _start(model, False, example_input, in_place)
    scaling = next((scaling for scaling in found.scalings if layer in scaling.layers), None)
    if scaling is None:
        raise ValueError(f"layer: {layer!r}: {found.why_not_rescaled(layer)}.")
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
        spread: factors are exp(spread × standard normal); translations are that much of a parameter's own size.
        seed: of the random numbers; torch's generators are left alone.
        permute: whether neurons change places too.
        model, approximate, softmax_head, example_input, in_place: as in `canonicalize`.

    Raises:
        ValueError: no symmetry is known, `spread` is negative or not finite.
    """
    checks.check_number(spread, "spread", "a finite number, 0 or more", least=0)
    found, point = _start(model, softmax_head, example_input, in_place)
    generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))

    def normal(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(like.device)

    for translation in found.translations:
        value = point.values[translation.part.name]
        amount = spread * value.square().mean().sqrt()
        translation.shift(point, amount * normal(translation.shape(point.values), value))
    for scaling in found.scalings:
        if approximate or scaling.exact(found.model):
            value = point.values[scaling.incoming[0].name]
            scaling.rescale(point, (spread * normal((scaling.groups,), value)).exp())
    for permutation in found.permutations if permute else ():
        keys = torch.rand(permutation.width, generator=generator).view(-1, permutation.run)
        places = keys.argsort(dim=1) + torch.arange(0, permutation.width, permutation.run)[:, None]
        permutation.permute(point, places.flatten())
    point.write_back()
    return point.model


def _start(model: nn.Module, softmax_head: bool, example_input: Any, in_place: bool) -> tuple[Symmetries, Point]:
    """The symmetries and the point of `model` or of a copy."""
    found = symmetries(model if in_place else copy.deepcopy(model), example_input, softmax_head=softmax_head)
    if not (found.scalings or found.translations or found.permutations):
        raise ValueError(f"model: no symmetry is known.\n{found}")
    point = Point(found.model, found.norms)
    infinite = [name for name, value in point.values.items() if not bool(value.isfinite().all())]
    if infinite:
        raise ValueError(f"model: expected finite parameters, but {', '.join(infinite[:5])} hold NaN or infinity.")
    return found, point


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
    number, see the module.

    Batches of one sample give it for per-sample gradients. Arguments as in `compute_gamma` and `canonicalize`; the
    model itself is left alone.

    Args:
        approximate, softmax_head, example_input: as in `canonicalize`.
        others: as in `compute_gamma`.

    Returns:
        `GammaStats` at the canonical point.

    Raises:
        ValueError: as in `compute_gamma` and `canonicalize`.
    """
    canonical = canonicalize(
        model, order=False, approximate=approximate, softmax_head=softmax_head, example_input=example_input
    )
    return compute_gamma(
        canonical, dataloader, loss_fn, n_samples, samples_per_gradient=samples_per_gradient, confidence=confidence
    )
