"""The units of a layer: every tensor with entries of theirs, every number and every norm that goes by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .atoms import Obstacle

WRITER, BETWEEN, READER, TIED = "writer", "between", "reader", "writer and reader"


class Part(NamedTuple):
    """A tensor with entries for single units.

    Entry k of axis `dim` belongs to unit `units[k]`, or to something else where that is −1. `behind` are the norms over
    all units whose outputs it reads, as they are; "" among them where it reads anything else.
    """

    name: str
    dim: int
    units: Tensor
    role: str  # WRITER: rows that give the values; BETWEEN: entries for values on the way; READER: columns; or TIED
    behind: frozenset[str] = frozenset()

    def entries(self, which: Tensor) -> Tensor:
        """The entries of the units `which`, in their order.  # shape: (len(which) × entries a unit,)"""
        others = int((self.units < 0).sum())
        count = int(self.units.max()) + 1
        return self.units.argsort(stable=True)[others:].reshape(count, -1)[which].flatten()

    @property
    def each(self) -> int:
        """Entries a unit."""
        return int((self.units >= 0).sum()) // (int(self.units.max()) + 1)


class Attribute(NamedTuple):
    """A number that a module holds, which says how long an axis is."""

    module: str
    name: str
    units: Tensor  # of the entries of that axis, −1 for others


class Norm(NamedTuple):
    """A module that takes statistics over the units: entry k of axis `dim`, counted from the end, of what it is called
    on and gives belongs to unit `units[k]`. `readers` are the weights that read what it gives; None where that goes
    elsewhere as well."""

    module: str
    dim: int
    units: Tensor
    readers: frozenset[str] | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """The units of an axis of a parameter: neurons, channels, heads.

    Attributes:
        units: how many.
        rows: the unit of each entry of that axis.
        parts: tensors with entries of theirs.
        obstacles: what stands in the way.
        attributes: numbers that change with them.
        norms: modules that take statistics over them.
    """

    units: int
    rows: Tensor
    parts: tuple[Part, ...]
    obstacles: tuple[Obstacle, ...]
    attributes: tuple[Attribute, ...]
    norms: tuple[Norm, ...]
