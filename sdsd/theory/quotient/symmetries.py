"""The moves of a model's parameters that leave its function alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...graphs import call_of, likely_inputs
from ...models import plainly, unwrap
from .groups import Permutation, Scaling, Translation, build
from .mixing import Mixing
from .point import wide
from .segments import Segment
from .tangents import Span
from .trace import trace

NOT_LOOKED_FOR = (
    "signs of neurons before and behind an odd function",
    "mixing of neurons that a ReLU cuts on no input",
    "rotations of a stream that only an RMSNorm reads",
    "a bias that another one takes back behind a linear map, as of attention's values",
    "places of groups under GroupNorm, and of query heads that share their keys",
    "recurrent layers of torch.nn",
)
"""Moves that leave the function of some models alone and are in no list of `symmetries`."""


@dataclass(frozen=True)
class Symmetries:
    """The moves of a model's parameters that leave its function alone; `print` it for a report.

    It holds the structure, not the values: it stays good while the model trains, as long as its layers, their
    `requires_grad` and its graph stay.

    Attributes:
        model: the model it was found in.
        scalings: rescaling of neurons, and scale before a norm.
        translations: adding one vector to all neurons before a norm or a softmax, or anything to the bias of keys.
        permutations: heads of attention, and neurons, that can change places.
        mixings: neurons that any invertible matrix may mix: between adjacent linear layers, of values and output, of
            queries and keys in a head of attention. Their scales are among `scalings` as well.
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
        values = {name: wide(parameter) for name, parameter in self.model.named_parameters()}
        return Span(moves, values)

    def __str__(self) -> str:
        lines = [f"symmetries of {type(self.model).__name__}, {self.tangents} tangents"]
        for scaling in self.scalings:
            units = (
                f"{scaling.groups} of {scaling.width} neurons"
                if scaling.groups == scaling.width
                else f"{scaling.groups} group(s) of {scaling.width // scaling.groups} neurons"
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
            lines.append(f"  mixing by invertible matrices: {sets} set(s) of {size} neurons, {where}")
        for permutation in self.permutations:
            within = "" if permutation.run == permutation.width else f" within runs of {permutation.run}"
            what = f"{permutation.width} {permutation.what}{within}"
            lines.append(f"  permutation: {what}, {', '.join(permutation.layers)}")
        if self.not_analysed:
            lines += ["not analysed", *(f"  {note}" for note in self.not_analysed)]
        lines += ["not looked for", *(f"  {each}" for each in NOT_LOOKED_FOR)]
        return "\n".join(lines)


def symmetries(model: nn.Module, example_input: Any = None, *, softmax_head: bool = False) -> Symmetries:
    """Find the moves of parameters that leave the model's function alone.

    The model runs once on an example, in eval mode, and what torch carries out is followed operation by operation:
    products with parameters, convolutions, attention, norms (put together by hand too), residual adds, gates, pooling,
    views. Found are rescaling of neurons through ReLU, LeakyReLU, PReLU and dropout (with a norm before the activation:
    of its γ and β); scale and translation before BatchNorm, InstanceNorm, GroupNorm, LayerNorm and RMSNorm;
    permutation; mixing by invertible matrices where nothing but linear maps lies between, as for values and output and
    for queries and keys of a head (with rotary positions: scales of the pairs); translation of a softmax head. Neurons
    joined by a residual add move together, and so do uses of a parameter that is used several times. Of attention also
    places of whole heads (of heads that share keys, together) and shifts of the bias of keys: each is tried once, on a
    copy of the model in float64 with random numbers added to its parameters.

    What the report lists as not looked for may be there all the same. Anything without a rule is listed in
    `not_analysed`, and neurons that touch it stay as they are. What a branch on values would do for other inputs is not
    seen.

    Args:
        model: any nn.Module; it is left as it was.
        example_input: an input, a tuple of arguments or a dictionary of keyword arguments. None: the first of likely
            shape that the model runs on.
        softmax_head: whether a softmax, and nothing else, sees the model's outputs (cross-entropy does), so that a
            shift of all classes does not count. A softmax layer at the end of the model is found in any case.

    Returns:
        `Symmetries`, which print as a list.

    Raises:
        ValueError: the model does not run on `example_input` or, without one, on nothing of a likely shape; it runs,
            but what it does cannot be followed; parameters that were made under torch.inference_mode.

    Example:
        >>> print(symmetries(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))))
        symmetries of Sequential, 8 tangents
          rescaling: 8 of 8 neurons, 0 → 2
          permutation: 8 neurons, 0
        not analysed
          outputs of 2: taken as they are; if only a softmax (cross-entropy) sees them, softmax_head=True adds its \
translation
        not looked for
          signs of neurons before and behind an odd function
          mixing of neurons that a ReLU cuts on no input
          rotations of a stream that only an RMSNorm reads
          a bias that another one takes back behind a linear map, as of attention's values
          places of groups under GroupNorm, and of query heads that share their keys
          recurrent layers of torch.nn
    """
    root = unwrap(model)
    with plainly(root):  # in inference mode layers are one operation each, under autocast they multiply copies
        traced = trace(root, example_input, softmax_head)
    scalings, translations, permutations, mixings, notes = build(traced)
    return Symmetries(
        root,
        tuple(scalings),
        tuple(translations),
        tuple(permutations),
        tuple(mixings),
        tuple(notes),
        tuple(traced.segments),
    )


def example_for(model: nn.Module, data: Iterable[Any], loss_fn: Callable[[nn.Module, Any], Any]) -> Any:
    """An input for `symmetries`, where nothing of a likely shape is one: how `loss_fn` calls the model on a batch.

    Returns:
        None where the model runs on something of a likely shape, or where `loss_fn` does not call it.
    """
    root = unwrap(model)
    if next(likely_inputs(root), None) is not None:
        return None
    with torch.random.fork_rng(devices=[]):
        batch = next(iter(data), None)
    return call_of(root, lambda: loss_fn(root, batch))
