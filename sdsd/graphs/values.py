"""What is known of a tensor while a model runs, the entries of its axes and what it was made of; and what is noted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .atoms import Ids, Obstacle
from .counts import Origin


class _Free:
    """An axis of a tensor that is made with whatever size is asked for: zeros, for example."""

    def __repr__(self) -> str:
        return "FREE"


FREE = _Free()
Axis = Ids | _Free | None
"""The entries of an axis; None where it is not followed: samples, positions, pixels."""

MADE = "numbers that the forward makes for as many as there are, as alibi makes slopes for heads"
"""What tensors are called that are made while a model runs, and not like another."""


@dataclass
class Value:
    """What is known of a tensor.

    Attributes:
        axes: one for each dimension.
        static: it was computed from parameters, buffers and constants alone.
        linear: each entry is a sum of entries of its parameters, times numbers.
        parameters: names of parameters and buffers a static tensor was computed from.
        label: what it is called in messages; "" where it has no name.
        statistic: entries that it holds a mean over, as norms of the last axis take; it is one number for all of them.
        written_in: an axis that is FREE has its size written into the model's forward.
        shape: of the tensor, before the operation that is looked at.
        if_used: what stands in the way of entries if anything is done with this tensor.
        norm: the module of which it is the output, in another layout or times a number; "" where it is of none that
            takes statistics over entries.
    """

    axes: list[Axis]
    static: bool = False
    linear: bool = False
    parameters: frozenset[str] = frozenset()
    label: str = ""
    statistic: Ids | None = None
    written_in: bool = False
    shape: tuple[int, ...] = ()
    if_used: list[tuple[Ids, Obstacle]] = field(default_factory=list)
    norm: str = ""


class Read(NamedTuple):
    """A product with a tensor of the model, over one of its axes."""

    ids: Ids
    parameters: frozenset[str]
    linear: bool
    where: str
    norm: str  # the module whose output is read; "" where it is that of no norm over all neurons, or was changed since


class Written(NamedTuple):
    """Axes of parameters that a product, a convolution or a lookup gives on."""

    ids: Ids
    parameters: frozenset[str]


class Length(NamedTuple):
    """An axis that is as long as another one, over some numbers and times others."""

    ids: Ids
    of: Ids
    over: tuple[Origin, ...]
    obstacle: Obstacle


class Factor(NamedTuple):
    """A tensor of a product, the dimension that is summed over, and its entries."""

    tensor: Tensor
    dim: int
    ids: Axis


class Normed(NamedTuple):
    """One call of a module that gives a tensor of the shape it takes: entries of the axes before and after it, and of
    all axes of what else it takes."""

    before: list[Axis]
    after: list[Axis]
    others: list[Axis]


def weight_of(one: Value, other: Value, own: Collection[Value] | None) -> Value | None:
    """Of two factors that are both computed from parameters, that which is a layer's weight, as where a layer is called
    on learned queries; None where neither is known to be, as in an update of low rank.

    Args:
        own: what is known of parameters, of which one that is turned, so that its columns come first, is a layer's
            weight; None where the second factor is one.
    """
    if one.parameters & other.parameters:
        return None  # what one says of a neuron the other says, too
    if one.linear != other.linear:
        return one if one.linear else other
    return other if other.linear and (own is None or _turned(other, own)) else None


def _turned(value: Value, own: Collection[Value]) -> bool:
    whole = next((each for each in own if each.parameters == value.parameters), None)
    return whole is not None and len(whole.axes) == len(value.axes) == 2 and value.axes[0] is whole.axes[1]


def words(text: str) -> set[str]:
    """Names apart by blanks."""
    return set(text.split())
