"""Neurons that have to go together, and every tensor that has entries of theirs."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from .atoms import INNER, READING, REMOVAL, Ids, Obstacle
from .counts import Origin
from .cut import IN_TRAINING
from .parts import BETWEEN, READER, TIED, WRITER, Attribute, Group, Norm, Part
from .recording import Recording
from .values import Axis, Read
from .vocabulary import MAKE_PERMANENT

REACH_ALL = (
    "Pass an example_input that reaches all of them, take what never runs out of the model, or merge without removal "
    "(remove=False)."
)
USE_SIZES = "Cut by chunk, or by sizes of tensors or of layers, or merge without removal (remove=False)."


class Groups:
    """Groups of one recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.atoms = recording, recording.atoms
        self.axes: list[tuple[str, int, Ids]] = []
        seen: set[int] = set()
        for name, value in recording.values.items():
            if id(value) not in seen:
                seen.add(id(value))
                self.axes += [(name, dim, axis) for dim, axis in enumerate(value.axes) if isinstance(axis, np.ndarray)]
        sizes = [len(ids) for _, _, ids in self.axes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.all = self.atoms.roots(np.concatenate([ids for _, _, ids in self.axes] or [np.zeros(0, np.int64)]))

    @functools.cached_property
    def _notes(self) -> tuple[Ids, Ids]:
        """Roots of all that was noted, and the note of each."""
        notes = self.atoms.notes
        numbers = np.repeat(np.arange(len(notes)), [len(ids) for ids, _ in notes]) if notes else np.zeros(0, np.int64)
        return self.atoms.roots(np.concatenate([ids for ids, _ in notes] or [np.zeros(0, np.int64)])), numbers

    @functools.cached_property
    def _reads(self) -> dict[str, list[Read]]:
        reads: dict[str, list[Read]] = {}
        for read in [read for walk in self.recording.walks for read in walk.reads]:
            for name in read.parameters:
                reads.setdefault(name, []).append(read)
        return reads

    @functools.cached_property
    def _written(self) -> dict[str, list[Ids]]:
        written: dict[str, list[Ids]] = {}
        for walk in self.recording.walks:
            for ids, names in walk.written:
                for name in names:
                    written.setdefault(name, []).append(ids)
        return written

    def canonical(self, name: str) -> str:
        """The name under which a tensor with several names is listed."""
        value = self.recording.values[name]
        return next(each for each, other in self.recording.values.items() if other is value)

    def used(self, name: str) -> bool:
        """Whether it is a parameter that was a factor of a product, or looked up."""
        if name not in self.recording.values:
            return False  # it is computed from others
        return self.canonical(name) in self._written or self.canonical(name) in self._reads

    def rows_of(self, name: str) -> list[int]:
        """The axes of a parameter that a product gives on."""
        name = self.canonical(name)
        dims = []
        for dim, axis in enumerate(self.recording.values[name].axes):
            if isinstance(axis, np.ndarray):
                mine = set(self.atoms.roots(axis).tolist())
                if any(mine & set(self.atoms.roots(ids).tolist()) for ids in self._written.get(name, [])):
                    dims.append(dim)
        return dims

    def of(self, name: str, dim: int) -> Group:
        """The group of an axis of a parameter."""
        axis = self.recording.values[name].axes[dim]
        assert isinstance(axis, np.ndarray)
        units, rows = self.atoms.numbered(axis)
        order = {int(root): k for k, root in enumerate(units)}
        parts, obstacles = self._parts(units, order), self._obstacles(units)
        per_unit = np.bincount(rows)
        if (per_unit != per_unit[0]).any():
            reason = "its neurons are coupled in sets of different sizes"
            obstacles.append(Obstacle(repr(name), reason, "Choose another layer.", "merging"))
        for part in parts:
            counts = np.bincount(part.units[part.units >= 0].numpy(), minlength=len(units))
            if (counts != counts[0]).any():
                reason = f"its units have different numbers of entries in {part.name!r}"
                obstacles.append(Obstacle(repr(part.name), reason, "Choose another layer.", "merging"))
                parts = [each for each in parts if each is not part]
        obstacles += self._unreached(parts) if self.recording.lists else []
        attributes, both = self._attributes(order)
        noted = (*obstacles, *both)
        norms = tuple(
            norm for name in dict.fromkeys(each.norm for each in noted) if (norm := self._norm(name, order)) is not None
        )
        return Group(len(units), torch.from_numpy(rows), tuple(parts), noted, attributes, norms)

    @functools.cached_property
    def _idle(self) -> list[tuple[list[str], str]]:
        """Of lists of modules or of parameters, those that were used, beside one with weights that was not."""
        lists = []
        for names in self.recording.lists:
            used = [name for name in names if name in self.recording.ran or any(map(self.used, self._weights(name)))]
            idle = [name for name in names if name not in used and self._weights(name)]
            lists += [(used, idle[0])] if used and idle else []
        return lists

    def _weights(self, name: str) -> list[str]:
        """The matrices of a module, or the one of this name."""
        inside = [each for each in self.recording.values if f"{each}.".startswith(f"{name}.")]
        return [each for each in inside if len(self.recording.values[each].axes) > 1]

    def _unreached(self, parts: list[Part]) -> list[Obstacle]:
        """What stands beside a reader or writer in a list, and did not run: an expert, or the head of another task."""
        obstacles = []
        for used, idle in self._idle:
            mine = [name for name in used if any((part.name + ".").startswith(name + ".") for part in parts)]
            if mine and not all((part.name + ".").startswith(mine[0] + ".") for part in parts):
                reason = f"{mine[0]!r} holds entries of theirs, and {idle!r} beside it did not run"
                obstacles.append(Obstacle(repr(idle), reason, REACH_ALL, REMOVAL))
        return obstacles

    def _norm(self, name: str | None, order: dict[int, int]) -> Norm | None:
        """What a norm was called on; None where it was called on anything else as well, or gives another order."""
        norm: Norm | None = None
        for call in [call for walk in self.recording.walks for call in walk.norms.get(name or "", [])]:
            sides = [self._units_of(axes, order) for axes in call] if call is not None else []
            if [len(side) for side in sides] != [1, 1, 0]:
                return None
            (dim, before), (other, after) = sides[0][0], sides[1][0]
            same = norm is None or (norm.dim == dim and torch.equal(norm.units, before))
            if dim != other or not torch.equal(before, after) or bool((before < 0).any()) or not same:
                return None
            norm = Norm(name or "", dim, before)
        return norm if norm is None else norm._replace(readers=self._readers_of(norm.module, order))

    def _readers_of(self, norm: str, order: dict[int, int]) -> frozenset[str] | None:
        """The weights that read what a norm gives; None where that goes elsewhere as well."""
        walks = self.recording.walks
        reads = [read for walk in walks for read in walk.reads if read.norm == norm]
        if any(norm in walk.read_otherwise for walk in walks) or not all(self._are_of(read, order) for read in reads):
            return None
        return frozenset[str]().union(*(read.parameters for read in reads))

    def _are_of(self, read: Read, order: dict[int, int]) -> bool:
        return any(int(root) in order for root in self.atoms.roots(read.ids))

    def _units_of(self, axes: list[Axis], order: dict[int, int]) -> list[tuple[int, Tensor]]:
        """Axes with entries of the units, counted from the end, and the unit of each entry."""
        by_dim = []
        for dim, axis in enumerate(axes):
            if isinstance(axis, np.ndarray):
                units = torch.tensor([order.get(int(root), -1) for root in self.atoms.roots(axis)])
                if bool((units >= 0).any()):
                    by_dim.append((dim - len(axes), units))
        return by_dim

    def _parts(self, units: Ids, order: dict[int, int]) -> list[Part]:
        hit = np.isin(self.all, units)
        places = np.unique(np.searchsorted(self.starts, hit.nonzero()[0], side="right") - 1)
        parts = []
        for place in places.tolist():
            name, dim, ids = self.axes[place]
            roots = self.all[self.starts[place] : self.starts[place + 1]]
            mine = torch.tensor([order.get(int(root), -1) for root in roots])
            behind = frozenset(read.norm for read in self._reads.get(name, []) if self._are_of(read, order))
            parts.append(Part(name, dim, mine, self._role(name, ids), behind))
        return parts

    def _role(self, name: str, axis: Ids) -> str:
        """What an axis of a tensor is for: its own entries say, or, where it was computed with, those it goes with."""
        reads = [read.ids for read in self._reads.get(name, [])]
        for entries in (lambda ids: ids, self.atoms.roots):
            mine = entries(axis)
            read = any(np.isin(entries(ids), mine).any() for ids in reads)
            written = any(np.isin(entries(ids), mine).any() for ids in self._written.get(name, []))
            if read or written:
                return TIED if read and written else READER if read else WRITER
        return BETWEEN

    def _obstacles(self, units: Ids) -> list[Obstacle]:
        roots, numbers = self._notes
        hit = np.unique(numbers[np.isin(roots, units)])
        noted = [self.atoms.notes[int(k)][1] for k in hit]
        if bool((self.atoms.flags[units] & INNER).any()):
            noted.append(Obstacle("its neurons", "they are places inside a head", "Choose another layer.", READING))
        for name, reads in self._reads.items():
            computed = [(read.ids, read.where) for read in reads if not read.linear]
            where = next((where for ids, where in computed if np.isin(self.atoms.roots(ids), units).any()), None)
            if where is not None:
                reason = f"a weight that reads them is computed from others, as from {name!r}"
                noted.append(Obstacle(where, reason, MAKE_PERMANENT, READING))
        return list({(each.where.removesuffix(IN_TRAINING), each.reason): each for each in reversed(noted)}.values())[
            ::-1
        ]

    def _attributes(self, order: dict[int, int]) -> tuple[tuple[Attribute, ...], list[Obstacle]]:
        """Numbers that say how many there are; an obstacle where one says as well how many others there are."""
        counted: dict[Origin, Attribute] = {}
        elsewhere: dict[Origin, str] = {}
        walks = self.recording.walks
        firm = {origin for walk in walks for origin, _ in walk.linked}
        for walk in walks:
            placed = [(origin, ids) for origin, ids in walk.placed if origin not in firm]
            for (module, name), ids in (*walk.linked, *placed):
                units = torch.tensor([order.get(int(root), -1) for root in self.atoms.roots(ids)])
                if bool((units >= 0).any()):
                    counted.setdefault((module, name), Attribute(module, name, units))
                else:
                    elsewhere[module, name] = f"{name!r} of module {module!r}"
        unclear = self._of_computed(order, counted, elsewhere) if any(w.products or w.shares for w in walks) else []
        for dividend, divisor in {each for walk in walks for each in walk.quotients}:
            if dividend in counted and divisor not in {*counted, *elsewhere}:
                counted[divisor] = Attribute(*divisor, counted[dividend].units)
        lengths = self._of_lengths(order, counted) if any(walk.lengths for walk in walks) else []
        reason = "it is the size of these neurons and of others, which would not change"
        advice = "Give the module a number for each, or merge without removal (remove=False)."
        both = [Obstacle(label, reason, advice, REMOVAL) for origin, label in elsewhere.items() if origin in counted]
        both += [obstacle for walk in walks for origin, obstacle in walk.numbers if origin in counted]
        return tuple(counted.values()), both + unclear + lengths

    def _of_lengths(self, order: dict[int, int], counted: dict[Origin, Attribute]) -> list[Obstacle]:
        """Axes as long as a share of another, where one would shrink and the other not."""
        obstacles: dict[tuple[str, str], Obstacle] = {}
        for ids, of, over, obstacle in (each for walk in self.recording.walks for each in walk.lengths):
            here, there = (np.mean([int(root) in order for root in self.atoms.roots(axis)]) for axis in (ids, of))
            if here != there - sum(origin in counted for origin in over):
                obstacles.setdefault((obstacle.where.removesuffix(IN_TRAINING), obstacle.reason), obstacle)
        return list(obstacles.values())

    def _of_computed(
        self, order: dict[int, int], counted: dict[Origin, Attribute], elsewhere: dict[Origin, str]
    ) -> list[Obstacle]:
        """Numbers that sizes are computed from. Where an axis is a share of one and the units vary along it, the number
        grows and shrinks with them, and the number of shares stays; where the units are the shares, as heads are, and
        the axis lies inside them, the number shrinks with these."""
        for dividend, divisor, ids in (each for walk in self.recording.walks for each in walk.shares):
            units = torch.tensor([order.get(int(root), -1) for root in self.atoms.roots(ids)])
            if bool((units >= 0).any()) and len(units.unique()) == len(units):
                elsewhere[divisor] = f"{divisor[1]!r} of module {divisor[0]!r}"
                if dividend is not None:
                    counted.setdefault(dividend, Attribute(dividend[0], dividend[1], units))
            elif dividend is not None and divisor in counted and not bool((units >= 0).any()):
                counted.setdefault(dividend, Attribute(dividend[0], dividend[1], counted[divisor].units))
        return self._of_products(order, counted)

    def _of_products(self, order: dict[int, int], counted: dict[Origin, Attribute]) -> list[Obstacle]:
        """Of a product of numbers that is a size, one changes with the units; an obstacle where it is not known which,
        or where several do."""
        obstacles = []
        for walk in self.recording.walks:
            for factors, ids, where in walk.products:
                if not any(int(root) in order for root in self.atoms.roots(ids)):
                    continue
                count = sum(origin in counted for origin in factors)
                if count != 1:
                    names = " · ".join(repr(name) for _, name in factors)
                    which = "it is not known which of them counts the neurons" if count == 0 else "several count them"
                    reason = f"pieces have {names} entries, and {which}"
                    obstacles.append(Obstacle(where, reason, USE_SIZES, REMOVAL))
        return obstacles
