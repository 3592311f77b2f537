"""The symmetries that are left when a model has run: channels put together to segments of neurons."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...graphs import Ids, Plain, on_inputs, run
from ...models import copy_of, is_attached
from . import rules_functions, rules_layout, rules_norms, rules_products, rules_sums
from .attention import heads_and_shifts
from .channels import EXTRA, MATRIX, READ, WRITING, NormUse, Use, unique
from .segments import Norm, Order, Segment, Slice, Trace
from .walk import MoveWalk

RULE_MODULES = (rules_functions, rules_layout, rules_norms, rules_products, rules_sums)
"""Whose import fills the table of rules."""


def trace(model: nn.Module, example_input: Any = None, softmax_head: bool = False) -> Trace:
    """Run `model` once on an example and put together what can move.

    Raises:
        ValueError: as `symmetries`.
    """
    watched = any(is_attached(module) for module in model.modules())
    run_on = copy_of(model) if watched else model

    def walked(example: Any) -> tuple[MoveWalk, Any]:
        walk = MoveWalk(run_on, softmax_head)
        run(run_on, example, walk, beside=(Plain(),))
        return walk, example

    ((walk, example_input),) = on_inputs(run_on, example_input, walked, most=1)
    finish = _Finish(walk, dict(model.named_parameters()))
    traced = finish.trace()
    heads, traced.shifts, notes = heads_and_shifts(run_on, example_input, walk.channels, finish.free_uses())
    traced.orders[:0] = heads  # first, for inside them neurons change places, too
    traced.notes += notes
    return traced


class _Finish:
    """Puts channels together: what scales as one is a unit, and units of one kind a segment."""

    def __init__(self, walk: MoveWalk, parameters: dict[str, nn.Parameter]) -> None:
        self.walk, self.channels, self.parameters = walk, walk.channels, parameters
        self._keep_what_is_shared()
        everything = np.arange(self.channels.count)
        plus, minus = (self.channels.signs.roots(2 * everything + k) for k in (0, 1))
        self.unit = np.minimum(plus, minus)  # of each channel, named by a node of it
        self.sign = np.where(plus <= minus, 1, -1)
        self.held = plus == minus
        self.place = self.channels.places.roots(everything)

    def trace(self) -> Trace:
        self.segments, self.members = self._segments()
        used = {use.name for use in self.channels.uses}
        untouched = [name for name in self.parameters if name not in used]
        return Trace(self.segments, self._orders(), self.channels.notes, untouched, [])

    def free_uses(self) -> dict[str, list[Use]]:
        """Uses of parameters that train, and that nothing outside a layer takes."""
        free = {name for name, each in self.parameters.items() if each.requires_grad} - self.walk.outside
        return {name: uses for name, uses in self._by_name().items() if name in free}

    def _by_name(self) -> dict[str, list[Use]]:
        by_name: dict[str, list[Use]] = {}
        for use in self.channels.uses:
            by_name.setdefault(use.name, []).append(use)
        return by_name

    # ---- what may not move after all ---------------------------------------------------------------------------------

    def _keep_what_is_shared(self) -> None:
        for name, uses in self._by_name().items():
            calls = {use.call: use.taken for use in uses}
            why = self._why_not(name, calls, {use.axis for use in uses})
            if name not in self.parameters and any(use.role != EXTRA for use in uses):
                why = f"{name} does not train"
            for use in uses if why else ():
                self.channels.fix(use.channels, why)
            for axis in {use.axis for use in uses} if len(calls) > 1 else ():
                self._tie_calls(f"{name} is used {len(calls)} times", [use for use in uses if use.axis == axis], calls)
        norms = [norm.name for norm in self.channels.norms if norm.name]
        for norm in self.channels.norms:
            ids = norm.channels
            if norms.count(norm.name) > 1:
                self.channels.fix(ids, f"{norm.name!r} is used {norms.count(norm.name)} times")
            if norm.kind == "softmax" and len(ids) > 1:
                self.channels.signs.unite(2 * ids[1:], np.full(len(ids) - 1, 2 * ids[0]))

    def _why_not(self, name: str, calls: dict[int, tuple[Ids, ...]], axes: set[int]) -> str:
        taken = list(calls.values())
        if self.walk.model_tensor(name).is_complex():
            return f"{name} is complex"
        if name in self.parameters and not self.parameters[name].requires_grad:
            return f"{name} does not train"
        if name in self.walk.outside:
            return f"{name!r} is used outside a layer"
        shape = self.walk.model_tensor(name).shape
        for axis in axes:
            if len(np.unique(np.concatenate([each[axis] for each in taken]))) < shape[axis]:
                return f"only a part of {name} is used on the example"
        return ""

    def _tie_calls(self, why: str, uses: list[Use], calls: dict[int, tuple[Ids, ...]]) -> None:
        """An entry of an axis that several calls use moves as all of these need, whatever they take of other axes.

        A call with no channels there, or several, or with other entries of the axis than another, holds all still.
        """
        axis = uses[0].axis
        for number, use in enumerate(uses):
            mine = np.flatnonzero(use.channels)
            self.channels.keep_shift(use.channels, why)
            for call, taken in calls.items():
                shared = np.intersect1d(mine, taken[axis])
                theirs = [other for other in uses if other.call == call]
                if call == use.call or not len(shared):
                    continue
                alone = sum(other.call == use.call for other in uses) == 1
                if not alone or len(theirs) != 1 or not np.array_equal(mine, np.flatnonzero(theirs[0].channels)):
                    self.channels.fix(use.channels, why)
                    continue
                inverse = (use.role in WRITING) != (theirs[0].role in WRITING)
                if theirs[0] in uses[:number] and (inverse or not np.array_equal(use.channels, theirs[0].channels)):
                    both = (torch.from_numpy(each.channels) for each in (theirs[0], use))
                    self.channels.tie(*both, inverse=inverse, why=why)
                    for each in (use, theirs[0]):
                        self.channels.bend(each.channels)

    # ---- segments ----------------------------------------------------------------------------------------------------

    def _segments(self) -> tuple[list[Segment], list[Ids]]:
        """Segments in the order of their first channels, and the channels of each."""
        signatures = self._signatures(self.unit, self.sign, self.channels.norms)
        segments, members = [], []
        for units in _alike(_in_order(self.unit, signatures), signatures):
            number = np.full(len(self.channels.signs.parents), -1)
            number[units] = np.arange(len(units))
            segment = self._segment(number[self.unit], len(units))
            segments.append(segment)
            members.append(np.flatnonzero(number[self.unit] >= 0))
        self._reasons(segments, members)
        bent = np.zeros(self.channels.count, dtype=np.bool_)
        for ids in self.channels.bent:
            bent[ids] = True
        for segment, mine in zip(segments, members, strict=True):
            segment.bent = bool(bent[mine].any())
            segment.blocks = self._blocks(segment, mine)
        return segments, members

    def _signatures(self, of: Ids, sign: Ids | None, norms: Iterable[NormUse]) -> dict[int, Any]:
        """For each unit that something writes: what writes and reads it, and how often."""
        rows = []
        for number, use in enumerate(self.channels.uses):
            ids = use.channels[use.channels > 0]
            code = 4 * number + 2 * (use.role in WRITING) + (0 if sign is None else sign[ids] > 0)
            rows.append(np.stack([of[ids], np.broadcast_to(code, ids.shape)]))
        for number, norm in enumerate(norms):
            ids = norm.channels[norm.channels > 0]
            rows.append(np.stack([of[ids], np.full(len(ids), -1 - number)]))
        if not rows:
            return {}
        known, counts = np.unique(np.concatenate(rows, axis=1), axis=1, return_counts=True)
        result: dict[int, list[tuple[int, int]]] = {}
        written = set()
        for unit, code, times in zip(known[0].tolist(), known[1].tolist(), counts.tolist(), strict=True):
            result.setdefault(unit, []).append((code, times))
            if code >= 0 and code & 2:
                written.add(unit)
        return {unit: self._without_sign(codes) for unit, codes in result.items() if unit in written}

    @staticmethod
    def _without_sign(codes: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Units that differ in the sign of all they have are of one kind."""
        flip = not next(code & 1 for code, _ in codes if code >= 0)
        return tuple((code ^ flip if code >= 0 else code, times) for code, times in codes)

    def _segment(self, unit: Ids, count: int) -> Segment:
        """The segment whose channels have a unit ≥ 0."""
        segment = Segment(count)
        lead = np.zeros(count)  # the sign of each unit's first writer
        lists = {name: getattr(segment, name) for name in (*WRITING, READ)}
        known_parts: set[Any] = set()
        for use in self.channels.uses:
            units = use.units(unit)
            mine, signs = units >= 0, self.sign[use.channels]
            if not mine.any() or use.role not in lists:
                continue
            if use.role in WRITING:
                known, first = np.unique(units[mine], return_index=True)
                lead[known] = np.where(lead[known] == 0, signs[mine][first], lead[known])
            alike = signs == np.where(mine, lead[units], 0)
            for part, writes in ((mine & alike, use.role in WRITING), (mine & ~alike, use.role not in WRITING)):
                if not part.any():
                    continue
                role = use.role if (use.role in WRITING) == writes else MATRIX if writes else READ
                made = Slice(use.name, use.axis, torch.from_numpy(np.where(part, units, -1)))
                if (writes, made.key) not in known_parts:
                    known_parts.add((writes, made.key))
                    lists[role].append(made)
                names = segment.writers if writes else segment.readers
                if use.layer not in names:
                    names.append(use.layer)
        for norm in self.channels.norms:
            units = np.where(norm.channels > 0, unit[norm.channels], -1)
            if (units >= 0).any():
                segment.norms.append(Norm(norm.name, norm.kind, torch.from_numpy(units), norm.offsets, norm.eps))
        return segment

    def _reasons(self, segments: list[Segment], members: list[Ids]) -> None:
        owner = self.owner = np.full(self.channels.count, -1)
        for number, mine in enumerate(members):
            owner[mine] = number
        for notes, name in (
            (self.channels.held, "no_scale"),
            (self.channels.still, "no_shift"),
            (self.channels.fixed, "no_order"),
        ):
            for ids, why in notes:
                for number in unique(owner[ids] + 1).tolist():
                    getattr(segments[number - 1], name).append(why)
        for ids in self.channels.outputs:
            for number in unique(owner[ids] + 1).tolist():
                segments[number - 1].is_output = True
        for segment, mine in zip(segments, members, strict=True):
            if self.held[mine].any() and not segment.no_scale:
                segment.no_scale.append("they are tied to neurons that cannot be")

    def _blocks(self, segment: Segment, mine: Ids) -> Tensor | None:
        """Units that pass nothing but what is the same for all of them, in sets that do not mix with one another."""
        if segment.no_scale or segment.norms or not segment.outgoing or segment.scales or segment.bent:
            return None
        units = _in_order(self.unit[mine])
        sets = _alike(range(len(units)), [*map(self._labels(self.unit[mine], mine).__getitem__, units)])
        if len({len(each) for each in sets}) != 1 or len(sets[0]) == 1:
            return None
        for part in (*segment.incoming, *segment.outgoing):
            if len(np.unique(np.bincount(part.units[part.units >= 0].numpy(), minlength=segment.count))) != 1:
                return None
        return torch.tensor(sets)

    def _labels(self, units: Ids, channels: Ids) -> dict[int, tuple[int, ...]]:
        """For each unit the labels of its channels."""
        labels: dict[int, list[int]] = {}
        for unit, label in zip(units.tolist(), self.channels.labels[channels].tolist(), strict=True):
            labels.setdefault(unit, []).append(label)
        return {unit: tuple(sorted(each)) for unit, each in labels.items()}

    # ---- orders ------------------------------------------------------------------------------------------------------

    def _orders(self) -> list[Order]:
        signatures = self._signatures(self.place, None, ())
        bad = {unit for ids, _ in self.channels.fixed for unit in self.place[ids].tolist()}
        for use in self.channels.uses:
            ids = np.unique(use.channels[use.channels > 0])
            units, counts = np.unique(self.place[ids], return_counts=True)
            bad |= set(units[counts > 1].tolist())
        free = [unit for unit in _in_order(self.place, signatures) if unit not in bad]
        labels = self._labels(self.place, np.arange(self.channels.count))
        alike_runs = []
        for alike in _alike(free, signatures):
            runs = _alike(alike, labels)
            sizes = {len(run) for run in runs}
            if len(sizes) == 1:
                alike_runs.append(([unit for run in runs for unit in run], sizes.pop()))
            else:
                alike_runs += [(each, len(each)) for each in runs]
        first = {unit: place for place, unit in enumerate(free)}
        alike_runs.sort(key=lambda each: first[each[0][0]])
        return [self._order(alike, run) for alike, run in alike_runs if run > 1]

    def _order(self, units: list[int], run: int) -> Order:
        number = np.full(len(self.channels.places.parents), -1)
        number[units] = np.arange(len(units))
        unit = number[self.place]
        mine = [(use, use.units(unit)) for use in self.channels.uses]
        mine = [(use, units) for use, units in mine if (units >= 0).any()]
        roles = (*WRITING, READ, EXTRA)

        def place(pair: tuple[Use, Ids]) -> tuple[bool, int, int]:
            use, units = pair
            return use.role == EXTRA, int(self.owner[use.channels[units >= 0]].max()), roles.index(use.role)

        mine.sort(key=place)
        parts = [Slice(use.name, use.axis, torch.from_numpy(units)) for use, units in mine]
        writers = dict.fromkeys(use.layer for use, _ in mine if use.role in WRITING)
        readers = dict.fromkeys(use.layer for use, _ in mine if use.role == READ)
        return Order(
            len(units), run, tuple(writers), tuple(readers), tuple({part.key: part for part in parts}.values())
        )


def _in_order(units: Ids, among: Container[int] | None = None) -> list[int]:
    """Units in the order of their first channels."""
    return [unit for unit in dict.fromkeys(units.tolist()) if among is None or unit in among]


def _alike(units: Iterable[int], kinds: Any) -> list[list[int]]:
    """Those of one kind together, in the order in which they come."""
    sets: dict[Any, list[int]] = {}
    for unit in units:
        sets.setdefault(kinds[unit], []).append(unit)
    return list(sets.values())
