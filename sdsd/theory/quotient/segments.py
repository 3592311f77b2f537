"""What a walk over a running model finds: which axes of which parameters run over the neurons of a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Slice:
    """One axis of a parameter or buffer runs over units: neurons, or groups of them that move as one.

    `units` has the unit of each entry of the axis, −1 for none.  # shape: (length of the axis,), int64
    """

    name: str
    axis: int
    units: Tensor

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal slices."""
        return self.name, self.axis, self.units.numpy().tobytes()

    @property
    def neurons(self) -> int:
        """How many entries belong to a unit."""
        return int((self.units >= 0).sum())

    def entries(self, count: int) -> Tensor:
        """The entries of each of `count` units, in their order.  # shape: (count, entries a unit)"""
        others = int((self.units < 0).sum())
        return self.units.argsort(stable=True)[others:].reshape(count, -1)


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation that reads units; "softmax" for the one at the end.

    Attributes:
        name: of its module; "" where it is none, or none that holds its eps.
        kind: "LayerNorm", "BatchNorm2d", …
        units: the unit of each of its entries, −1 for none.
        offsets: bias → factor with which it adds to the norm's input.
        eps: the module's attribute that holds eps.
    """

    name: str
    kind: str
    units: Tensor
    offsets: dict[str, float]
    eps: str


@dataclass(eq=False)
class Segment:
    """Units between whose writers and readers a scale passes, or may not pass for the reasons given."""

    count: int
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
    no_order: list[str] = field(default_factory=list)  # why they cannot change places
    is_output: bool = False
    bent: bool = False  # by a function of single neurons, a pool or the like between writers and readers
    blocks: Tensor | None = None  # units that any invertible matrix may mix, a row a set of them

    @property
    def incoming(self) -> list[Slice]:
        """Everything that writes the neurons."""
        return [*self.matrices, *self.kernels, *self.scales, *self.biases]

    @property
    def width(self) -> int:
        """How many neurons: entries of what writes them."""
        return max((part.neurons for part in self.incoming), default=0)


@dataclass(eq=False)
class Order:
    """Neurons that can change places, all in one way.

    Attributes:
        width: how many.
        run: they change places within runs of so many.
        writers, readers: the layers that write and read them.
        parts: every tensor that has entries of theirs.
        what: they are, "neurons" or "heads".
    """

    width: int
    run: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    parts: tuple[Slice, ...]
    what: str = "neurons"


@dataclass
class Trace:
    """What `trace` finds."""

    segments: list[Segment]
    orders: list[Order]
    notes: list[str]  # what was not analysed, and why
    untouched: list[str]  # parameters that no rule knows
    shifts: list[Slice]  # entries of biases to which anything can be added
