"""The moves of a model's parameters that leave its function alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...models import unwrap
from .groups import Permutation, Scaling, Translation, build
from .segments import Segment
from .tangents import Span
from .trace import trace


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
        not_analysed: what was left alone, and why.
    """

    model: nn.Module
    scalings: tuple[Scaling, ...]
    translations: tuple[Translation, ...]
    permutations: tuple[Permutation, ...]
    not_analysed: tuple[str, ...]
    _segments: tuple[Segment, ...]

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the norms that move along."""
        names = (norm.name for move in (*self.scalings, *self.translations) for norm in move.norms)
        return tuple(dict.fromkeys(names))

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
        moves: list[Scaling | Translation] = [*self.scalings, *self.translations]
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
    scalings, translations, permutations, notes = build(found)
    return Symmetries(
        root, tuple(scalings), tuple(translations), tuple(permutations), tuple(notes), tuple(found.segments)
    )
