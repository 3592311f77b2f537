"""Channels: the entries of a model's tensors that a scale, a shift or a change of places can move.

Whatever writes neurons (a matrix, a kernel, a table, the γ of a norm, a parameter that is added) makes a channel of
each. Operations tie channels to one another: as large (an addition), inversely (a product that is summed over them),
in the same order. And they hold some still. What is left free is a symmetry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...graphs import Atoms, Ids

MATRIX, KERNEL, SCALE, BIAS, READ, EXTRA = "matrices", "kernels", "scales", "biases", "outgoing", "extras"
"""What a tensor of the model is to channels: it writes them, reads them, or only follows their order."""
WRITING = (MATRIX, KERNEL, SCALE, BIAS)


@dataclass
class Seen:
    """What is known of a tensor while the model runs.

    Attributes:
        ids: the channel of each entry, 0 for none; the tensor's shape, with stride 0 along what it does not vary over.
        name, entries: of a parameter or buffer, or a view of one: for each of its axes, the place on it of each entry.
        computed: it was made of parameters, and is none.
        offsets: bias → factor with which it adds to the tensor; None beyond anything that is not linear.
        power: its scale is that power of its channels'.
        statistic: it is a mean or the like over neurons of one scale.
    """

    ids: Tensor | None = None
    name: str = ""
    entries: tuple[Tensor, ...] = ()
    computed: bool = False
    offsets: dict[str, float] | None = None
    power: float = 1.0
    statistic: bool = False

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter or buffer, or a view of one."""
        return bool(self.entries)

    def on(self, ids: Tensor | None, **changes: Any) -> Seen:
        """The same, of channels at other places."""
        return replace(self, ids=ids, **changes)

    def laid_out(self, shape: Iterable[int]) -> Seen:
        """The same, in another shape."""
        shape = tuple(shape)
        ids = None if self.ids is None else self.ids.reshape(shape)
        return replace(self, ids=ids, entries=tuple(each.reshape(shape) for each in self.entries))


@dataclass(frozen=True, eq=False)
class Use:
    """One axis of a parameter or buffer that runs over channels.

    `channels` has the channel of each entry of the axis, 0 for none; `call` tells one use of the parameter from
    another, and `taken` are the entries of each of its axes which that used.
    """

    role: str
    name: str
    axis: int
    channels: Ids
    layer: str
    call: int
    taken: tuple[Ids, ...]

    def units(self, of: Ids) -> Ids:
        """What `of` has for the channel of each entry, −1 where there is none."""
        return np.where(self.channels > 0, of[self.channels], -1)


@dataclass(frozen=True, eq=False)
class NormUse:
    """A norm that reads channels: the channel of each of its entries, and with which factors biases add to them."""

    name: str  # of the module; "" where that does not hold its eps
    kind: str
    channels: Ids
    offsets: dict[str, float]
    eps: str  # the module's attribute that holds eps


@dataclass(eq=False)
class Attention:
    """Products of queries and keys, one for each head, and the values that are weighted by them.

    Attributes:
        queries, keys: channels of each product.  # shape: (products, entries)
        offsets: names of biases that are added alike to all queries, or to all keys.
        values: as keys; empty until they are seen.
    """

    queries: Ids
    keys: Ids
    offsets: tuple[str, ...]
    values: list[Ids] = field(default_factory=list)


Note = tuple[Ids, str]


@dataclass
class Channels:
    """All channels of one run, and what was said of them."""

    count: int = 1  # 0 is no channel
    signs: Atoms = field(default_factory=Atoms)  # nodes 2c and 2c + 1: c, and its inverse
    places: Atoms = field(default_factory=Atoms)
    along: Atoms = field(default_factory=Atoms)  # as places, without what shares an entry of a parameter
    labels: Ids = field(default_factory=lambda: np.zeros(1, np.int64))  # those of one label can change places
    writers: Ids = field(default_factory=lambda: np.zeros(1, np.int64))  # which made them
    uses: list[Use] = field(default_factory=list)
    norms: list[NormUse] = field(default_factory=list)
    held: list[Note] = field(default_factory=list)
    still: list[Note] = field(default_factory=list)
    fixed: list[Note] = field(default_factory=list)
    bent: list[Ids] = field(default_factory=list)
    outputs: list[Ids] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    next_label: int = 1
    next_writer: int = 1

    def __post_init__(self) -> None:
        self.signs.new(2)
        self.places.new(1)
        self.along.new(1)

    def new(self, count: int) -> Ids:
        """New channels, of one writer."""
        first, self.count = self.count, self.count + count
        self.signs.new(2 * count)
        self.places.new(count)
        self.along.new(count)
        self.labels = np.concatenate([self.labels, np.zeros(count, np.int64)])
        self.writers = np.concatenate([self.writers, np.full(count, self.next_writer)])
        self.next_writer += 1
        return np.arange(first, self.count, dtype=np.int64)

    def renewed(self, ids: Tensor) -> tuple[Ids, Ids]:
        """A new channel for each: those there were, and a table from them to the new ones."""
        known = unique(ids)
        made = self.new(len(known))
        table = np.zeros(max(self.count, int(known.max(initial=0)) + 1), np.int64)
        table[known] = made
        return known, table

    # ---- what is said of them ----------------------------------------------------------------------------------------

    def hold(self, ids: Tensor | Ids, reason: str) -> None:
        """They cannot be rescaled."""
        ids = self._noted(self.held, ids, reason)
        self.signs.unite(2 * ids, 2 * ids + 1)

    def keep_shift(self, ids: Tensor | Ids, reason: str) -> None:
        """Nothing can be added to them."""
        self._noted(self.still, ids, reason)

    def keep_place(self, ids: Tensor | Ids, reason: str) -> None:
        """They cannot change places."""
        self._noted(self.fixed, ids, reason)

    def _noted(self, notes: list[Note], ids: Tensor | Ids, reason: str) -> Ids:
        if len(ids := unique(ids)):
            notes.append((ids, reason))
        return ids

    def fix(self, ids: Tensor | Ids, reason: str) -> None:
        """Nothing may move them."""
        self.hold(ids, reason)
        self.keep_shift(ids, reason)
        self.keep_place(ids, reason)

    def bend(self, ids: Tensor | Ids) -> None:
        """They cannot be mixed: each goes through something of its own."""
        self.bent.append(unique(ids))

    def pass_through(self, ids: Tensor | Ids, reason: str) -> None:
        """They go through a function of single neurons: nothing can be added to them, and they cannot be mixed."""
        self.keep_shift(ids, reason)
        self.bend(ids)

    def is_held(self, ids: Tensor | Ids) -> bool:
        """Whether none of them can be rescaled."""
        ids = unique(ids)
        return bool((self.signs.roots(2 * ids) == self.signs.roots(2 * ids + 1)).all())

    def alike(self, one: Seen, other: Seen) -> bool:
        """Whether both scale and change places alike."""
        if one.ids is None or other.ids is None:
            return one.ids is other.ids
        a, b = pairs(one.ids, other.ids)
        same = np.array_equal(self.signs.roots(2 * a), self.signs.roots(2 * b))
        same &= np.array_equal(self.places.roots(a), self.places.roots(b))
        return same and (one.power, one.statistic) == (other.power, other.statistic)

    def tie(
        self,
        one: Tensor,
        other: Tensor,
        *,
        inverse: bool = False,
        order: bool = True,
        shared: bool = False,
        why: str = "",
    ) -> None:
        """Channels at the same place of both scale alike (or inversely) and change places together.

        `shared`: for they share an entry of a parameter, and not because one becomes of the other.
        """
        a, b = pairs(one, other)
        for mine, theirs in ((a, b), (b, a)):
            alone = mine[(theirs == 0) & (mine > 0)]
            if len(alone):
                self.hold(alone, why)
                self.keep_place(alone, why)
        both = (a > 0) & (b > 0) & ((a != b) | inverse)
        a, b = a[both], b[both]
        if not len(a):
            return
        self.signs.unite(2 * a, 2 * b + inverse)
        self.signs.unite(2 * a + 1, 2 * b + (not inverse))
        if order:
            self.places.unite(a, b)
            if not shared:
                self.along.unite(a, b)
            if not inverse:
                self.bend(np.concatenate([a, b])[np.tile(self.writers[a] == self.writers[b], 2)])

    def follow(self, one: Ids, other: Ids) -> None:
        """Each of one changes places with that of the other, whatever their scales."""
        self.places.unite(one, other)
        self.along.unite(one, other)

    def refine(self, ids: Ids, parts: Ids) -> None:
        """Those in different parts do not change places with one another."""
        ids, first = np.unique(ids, return_index=True)
        parts = parts[first]
        ids, parts = ids[ids > 0], parts[ids > 0]
        if len(ids):
            known, place = np.unique(np.stack([self.labels[ids], parts]), axis=1, return_inverse=True)
            self.labels[ids] = self.next_label + place.ravel()
            self.next_label += known.shape[1]


def varies(ids: Tensor, dim: int) -> bool:
    """Whether entries differ along a dimension."""
    return ids.shape[dim] > 1 and ids.stride(dim) != 0


def along(ids: Tensor) -> list[int]:
    """The dimensions along which entries differ."""
    return [dim for dim in range(ids.ndim) if varies(ids, dim)]


def spread(ids: Tensor) -> Tensor:
    """The same, with stride 0 along all dimensions over which it does not vary."""
    shape = ids.shape
    if 0 in shape:
        return ids
    ids = narrowed(ids)
    for dim in along(ids):
        first = ids.narrow(dim, 0, 1)
        if bool((ids == first).all()):
            ids = first
    return ids.expand(shape)


def narrowed(ids: Tensor, *others: Tensor) -> Tensor:
    """One entry of each dimension along which neither it varies nor others of its shape."""
    for dim in range(ids.ndim):
        if not any(varies(each, dim) for each in (ids, *others)):
            ids = ids.narrow(dim, 0, min(1, ids.shape[dim]))
    return ids


def compact(*tensors: Tensor) -> list[Ids]:
    """Entries of tensors of one shape, without dimensions along which none of them varies."""
    shown = torch.broadcast_tensors(*tensors)
    return [narrowed(each, *shown).reshape(-1).numpy() for each in shown]


def pairs(one: Tensor, other: Tensor) -> tuple[Ids, Ids]:
    """The different pairs of entries at the same place."""
    a, b = compact(one, other)
    if len(a) > 1:
        different = np.unique(np.stack([a, b]), axis=1)
        a, b = different[0], different[1]
    return a, b


def unique(ids: Tensor | Ids) -> Ids:
    """All that are channels, each once."""
    channels = np.unique(compact(ids)[0] if isinstance(ids, Tensor) else ids)
    return channels[channels > 0]


def renamed(ids: Tensor, table: Ids) -> Tensor:
    """Other channels at the same places."""
    return torch.from_numpy(table)[narrowed(ids)].expand(ids.shape)
