"""Entries of axes, which of them have to go together, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ids = npt.NDArray[np.int64]
else:
    Ids = np.ndarray
"""The entries of one axis, as numbers that `Atoms` gave out."""

MERGING, READING, REMOVAL = "merging", "reading", "removal"
REAL, INNER, GIVEN, ROWS = 1, 2, 4, 8
"""Flags of a class: it has entries of parameters; its entries are positions inside a unit, such as a head; there are as
many in use as an input has, as of a table of positions; a product gives them on."""

IS_OUTPUT = "its neurons are the model's output"
CHOOSE_ANOTHER = "Choose a layer that is read before this point, or merge by how='mean' without removal."


class Obstacle(NamedTuple):
    """Why the readers of some neurons cannot be changed, or the neurons not be removed."""

    where: str
    reason: str
    advice: str
    blocks: str  # "merging": nothing can be done; "reading": neither readers nor size; "removal": only size
    norm: str | None = None  # the module that takes statistics over all neurons, where that is the reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}. {self.advice}"


@dataclass(eq=False)
class Split:
    """An axis that was cut into several, of which one counts units (heads) and the others lie inside them.

    Attributes:
        grid: the entries of the axis, in the shape it was cut into.
        factors: entries of each new axis.
        inside: which of them lie inside a unit.
        fixed: which of them have a length that is written into the model's forward.
    """

    grid: Ids
    factors: list[Ids]
    inside: set[int] = field(default_factory=set)
    fixed: set[int] = field(default_factory=set)

    def longest(self, among: set[int] | None = None) -> int:
        """Of the factors that may count units: one whose length may change, if there is any."""
        able = [k for k in range(len(self.factors)) if k not in self.inside and (among is None or k in among)]
        return max(able, key=lambda k: (k not in self.fixed, len(self.factors[k])))


class Atoms:
    """A union-find over entries, with what was noted about them."""

    def __init__(self) -> None:
        self.count = 0
        self.parents: Ids = np.zeros(1024, np.int64)
        self.flags = np.zeros(1024, np.int8)
        self.notes: list[tuple[Ids, Obstacle]] = []
        self.open: list[Split] = []

    def new(self, count: int, flags: int = 0) -> Ids:
        start, self.count = self.count, self.count + count
        while self.count > len(self.parents):
            self.parents = np.concatenate([self.parents, np.zeros_like(self.parents)])
            self.flags = np.concatenate([self.flags, np.zeros_like(self.flags)])
        ids = np.arange(start, self.count, dtype=np.int64)
        self.parents[ids] = ids
        self.flags[ids] = flags
        return ids

    def roots(self, ids: Ids) -> Ids:
        """What stands for the class of each entry."""
        roots = self.parents[ids]
        while True:
            above = self.parents[roots]
            if np.array_equal(above, roots):
                self.parents[ids] = roots
                return roots
            roots = above

    def numbered(self, ids: Ids) -> tuple[Ids, Ids]:
        """The classes of entries in the order in which they come, and the number of each entry's."""
        units, first, number = np.unique(self.roots(ids), return_index=True, return_inverse=True)
        order = np.argsort(first)
        return units[order], np.argsort(order)[number]

    def unite(self, one: Ids, other: Ids) -> None:
        """Entry k of both has to go together."""
        if one is other:
            return
        a, b = self.roots(one.ravel()), self.roots(other.ravel())
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        if len(np.unique(b)) == len(b) and not np.isin(b, a).any():
            self.parents[b] = a
            np.bitwise_or.at(self.flags, a, self.flags[b])
            return
        for first, second in zip(a.tolist(), b.tolist(), strict=True):
            left, right = self._root(first), self._root(second)
            if left != right:
                self.parents[right] = left
                self.flags[left] |= self.flags[right]

    def _root(self, one: int) -> int:
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = int(self.parents[one])
        return one

    def kept(self) -> tuple[Ids, npt.NDArray[np.int8]]:
        """What goes together now, for `put_back`."""
        return self.parents.copy(), self.flags.copy()

    def put_back(self, kept: tuple[Ids, npt.NDArray[np.int8]]) -> None:
        self.parents, self.flags = kept

    @contextmanager
    def unless_it_fails(self) -> Iterator[None]:
        """What was said inside is taken back where it raises."""
        kept, count, notes = self.kept(), self.count, len(self.notes)
        open_before = [(split, set(split.inside), set(split.fixed)) for split in self.open]
        try:
            yield
        except Exception:
            self.put_back(kept)
            self.count = count
            del self.notes[notes:]
            for split, inside, fixed in open_before:
                split.inside, split.fixed = inside, fixed
            self.open = [split for split, _, _ in open_before]
            raise

    def mark(self, ids: Ids, flag: int) -> None:
        self.flags[self.roots(ids)] |= flag

    def has(self, ids: Ids, flag: int) -> bool:
        return bool((self.flags[self.roots(ids)] & flag).any())

    def note(self, ids: Ids, obstacle: Obstacle) -> None:
        self.notes.append((ids, obstacle))

    # ---- axes that were cut into several -----------------------------------------------------------------------------

    def split(self, grid: Ids) -> Split:
        made = Split(grid, [self.new(length) for length in grid.shape])
        self.open.append(made)
        return made

    def _in_open(self, ids: Ids) -> list[tuple[Split, int]]:
        if not self.open:
            return []
        mine = self.roots(ids)
        return [
            (split, k)
            for split in self.open
            for k, factor in enumerate(split.factors)
            if k not in split.inside and np.isin(self.roots(factor), mine).any()
        ]

    def inside(self, ids: Ids) -> bool:
        """What happens to this axis leaves no single entry of it removable: if it is one of several that an axis was
        cut into, the units are along another. False where it is none."""
        inside = self.has(ids, INNER)
        splits = self._in_open(ids)
        for split, k in splits:
            split.inside.add(k)
            self.mark(split.factors[k], INNER)
            rest = [place for place in range(len(split.factors)) if place not in split.inside]
            if len(rest) == 1:
                self.choose(split, rest[0])
        return inside or bool(splits)

    def fix(self, ids: Ids) -> None:
        """The length of this axis is written into the model's forward."""
        for split, k in self._in_open(ids):
            split.fixed.add(k)

    def read(self, ids: Ids) -> bool:
        """As `inside`, where a layer reads this axis: one of several that an axis was cut into counts units where it is
        a layer's neurons by itself, or where the lengths of all others are written into the forward."""
        for split, k in self._in_open(ids):
            others = {place for place in range(len(split.factors)) if place not in split.inside} - {k}
            alone = k not in split.fixed and others <= split.fixed
            if split in self.open and (alone or self.has(ids, ROWS)):
                self.choose(split, k)
        return self.inside(ids)

    def counts_units(self, ids: Ids) -> None:
        """This axis counts units, as that of the heads in a batch of matrix products."""
        for split, k in self._in_open(ids):
            if split in self.open:
                self.choose(split, k)

    def choose(self, split: Split, unit: int) -> None:
        self.open.remove(split)
        for k, factor in enumerate(split.factors):
            if k != unit:
                self.mark(factor, INNER)
        rows = np.moveaxis(split.grid, unit, 0).reshape(len(split.factors[unit]), -1)
        self.unite(np.repeat(split.factors[unit], rows.shape[1]), rows.ravel())

    def settle(self) -> None:
        """Choose where nothing has decided."""
        for split in list(self.open):
            self.choose(split, split.longest())
