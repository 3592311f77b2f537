"""What a walk over a model's graph finds: which axes of which parameters run over the neurons of a layer.

Tensors between which a scaling of single neurons passes unchanged form a *segment*: a Linear layer's output, what ReLU,
pooling and dropout make of it, and everything a residual add joins to it. A segment knows the weights that write it
(`incoming`), the weights that read it (`outgoing`) and the norms that read it. A norm or another activation ends a
segment, but the neurons keep their order beyond it: such segments share a *domain*.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Slice(NamedTuple):
    """One axis of a parameter or buffer runs over the neurons of a segment.

    `layout`: entry k of the axis belongs to neuron k ("plain"), k // r ("blocks", a flattened feature map) or k % width
    ("interleaved", a flattened sequence), r = length / width.
    """

    name: str
    axis: int = 0
    layout: str = "plain"

    def neurons(self, length: int, width: int) -> Tensor:
        """The neuron of each of the axis' `length` entries; shape: (length,)."""
        entries = torch.arange(length)
        return entries % width if self.layout == "interleaved" else entries // (length // width)


class Norm(NamedTuple):
    """A normalisation that reads a segment; "softmax" for the one at the end.

    `groups`: over how many groups of neurons it takes statistics of their own; the width for BatchNorm, 1 for
    LayerNorm. `offsets`: bias → factor with which it adds to the norm's input.
    """

    name: str
    kind: str
    groups: int
    offsets: dict[str, float]


@dataclass(eq=False)
class Domain:
    """The common order of the neurons of some segments."""

    extras: list[Slice] = field(default_factory=list)  # buffers and PReLU weights, which only a permutation touches
    groups: list[int] = field(default_factory=list)  # of GroupNorms: neurons stay within their group
    fixed: list[str] = field(default_factory=list)  # why the order cannot change


@dataclass(eq=False)
class Segment:
    """Tensors between which a scaling of single neurons passes unchanged."""

    width: int | None = None
    matrices: list[Slice] = field(default_factory=list)  # Linear, Embedding: one vector of neurons a sample or token
    kernels: list[Slice] = field(default_factory=list)  # convolutions: several positions a sample
    scales: list[Slice] = field(default_factory=list)  # γ of a norm
    biases: list[Slice] = field(default_factory=list)  # of all of these
    outgoing: list[Slice] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    writers: list[str] = field(default_factory=list)  # layers that own `incoming`
    readers: list[str] = field(default_factory=list)  # layers that own `outgoing`
    no_scale: list[str] = field(default_factory=list)  # why neurons cannot be rescaled
    no_shift: list[str] = field(default_factory=list)  # why adding a constant to a neuron is seen
    is_output: bool = False
    bent: bool = False  # by an activation, dropout or pooling somewhere between writers and readers
    domain: Domain = field(default_factory=Domain)
    merged_into: Segment | None = None

    @property
    def incoming(self) -> list[Slice]:
        """Everything that writes the neurons."""
        return [*self.matrices, *self.kernels, *self.scales, *self.biases]

    def current(self) -> Segment:
        """The segment this one was merged into, or itself."""
        segment = self
        while segment.merged_into is not None:
            segment = segment.merged_into
        return segment


MERGED = (
    "matrices", "kernels", "scales", "biases", "outgoing", "norms", "writers", "readers", "no_scale", "no_shift",
)  # fmt: skip
"""Lists of a segment that are joined when segments are."""


class Edge(NamedTuple):
    """What one graph node hands on: which segment, and where in the tensor its neurons are."""

    origin: Segment
    axis: int | None  # None: unknown, and then the segment is fixed
    ndim: int | None
    layout: str
    offsets: dict[str, float] | None  # bias → factor; None beyond anything that is not linear

    @property
    def segment(self) -> Segment:
        return self.origin.current()

    @property
    def place(self) -> int | None:
        """The axis of the neurons, counted from the last; None where it is unknown."""
        if self.axis is None or self.axis < 0:
            return self.axis
        return None if self.ndim is None else self.axis - self.ndim

    def runs_over(self, dim: int) -> bool:
        """Whether the neurons lie along `dim`. Without shapes a Linear layer's output is taken to be (N, neurons)."""
        if self.axis is None:
            return True
        if self.ndim is None:
            return dim in (self.axis, 1)
        return self.axis % self.ndim == dim % self.ndim
