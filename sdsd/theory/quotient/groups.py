"""The symmetries that segments of neurons give rise to, and how they act on a point.

With w the entries that
write a group of neurons, b its biases and a the entries that read it, the tangents at the point are

    rescaling           (w, b, −a)       w, b → c·w, c·b;   a → a / c
    scale before norm   (w, b)           w, b → c·w, c·b    nothing reads the neurons but a norm
    translation         1 ⊗ u            the same vector u added to the row of every neuron of a group
    shift of keys       u                anything added to the bias of the keys of an attention
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .mixing import Mixing
from .point import Point, frozen, keeps_statistics, wide
from .segments import Norm, Segment, Slice, Trace


def _over_axis(value: Tensor, axis: int) -> Tensor:
    """Sums over all axes but one; shape: (length of `axis`,)."""
    return value.movedim(axis, 0).flatten(1).sum(1) if value.ndim > 1 else value


def _of_units(coefficients: Tensor, units: Tensor, otherwise: float) -> Tensor:
    """The coefficient of each entry's unit; `otherwise` for entries of none."""
    padded = torch.cat([coefficients, coefficients.new_full((1, *coefficients.shape[1:]), otherwise)])
    return padded[units.to(coefficients.device)]


def _add_up(sums: Tensor, units: Tensor, entries: Tensor) -> None:
    """Add entries to the sums of their units."""
    padded = sums.new_zeros(len(sums) + 1, *sums.shape[1:])
    padded.index_add_(0, (units % len(padded)).to(sums.device), entries)
    sums.add_(padded[:-1])


@dataclass(frozen=True)
class Move:
    """What `Scaling` and `Translation` share: neurons in groups of equal size, each with a coefficient of its own.

    Attributes:
        kind: the symmetry's name.
        layers: the layers (or parameters) that write the neurons.
        readers: the layers that read them.
        width, groups: how many neurons, and groups of them that move as one.
        norms: norms that read them.
        bent: a function of single neurons, a pool or the like lies between writers and readers.
    """

    kind: str
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    groups: int
    norms: tuple[Norm, ...]
    bent: bool

    def has_tangent(self, model: nn.Module) -> bool:
        """Whether parameters alone can move along it: not before a norm in eval mode."""
        return not any(norm.name and frozen(model.get_submodule(norm.name)) for norm in self.norms)


@dataclass(frozen=True)
class Scaling(Move):
    """Neurons whose incoming entries can be multiplied by c > 0 and outgoing ones divided by it, group by group."""

    incoming: tuple[Slice, ...]
    outgoing: tuple[Slice, ...]

    def exact(self, model: nn.Module) -> bool:
        """Whether the function can stay: eps or the running statistics of every norm move along."""
        return all(
            bool(norm.name)
            and (keeps_statistics(model.get_submodule(norm.name)) or bool((norm.units == 0).all() and self.groups == 1))
            for norm in self.norms
        )

    def shape(self, values: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Shape of the coefficients."""
        return (self.groups,)

    def squared_norms(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """‖incoming‖² and ‖outgoing‖² of each group; shape: (groups,) each."""
        return self._sums(self.incoming, values, values), self._sums(self.outgoing, values, values)

    def project(self, vectors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensor:
        """Inner products with the tangents; shape: (groups,)."""
        return self._sums(self.incoming, vectors, values) - self._sums(self.outgoing, vectors, values)

    def lift(self, coefficients: Tensor, values: Mapping[str, Tensor], into: dict[str, Tensor]) -> None:
        """Add Σ coefficient × tangent to `into`."""
        for sign, parts in ((1, self.incoming), (-1, self.outgoing)):
            for part in parts:
                value = values[part.name]
                into[part.name].addcmul_(value, self.along(part, value, coefficients, 0.0), value=sign)

    def rescale(self, point: Point, factors: Tensor) -> None:
        """Move the point by `factors` > 0; shape: (groups,)."""
        for part in self.incoming:
            value = point.values[part.name]
            value.mul_(self.along(part, value, factors))
        for part in self.outgoing:
            value = point.values[part.name]
            value.div_(self.along(part, value, factors))
        for norm in self.norms:
            each = _of_units(factors, norm.units, 1.0)
            eps, variance = point.eps[norm.name], point.buffers.get(f"{norm.name}.running_var")
            if variance is not None:
                point.buffers[f"{norm.name}.running_mean"].mul_(each)
                # √(variance + eps) has to scale with the neuron, whether eps does or not.
                variance.add_(eps).mul_(each.square())
            if self.groups == 1:
                eps *= float(factors[0]) ** 2
                point.eps[norm.name] = eps
            if variance is not None:
                variance.sub_(eps)

    def _sums(self, parts: tuple[Slice, ...], left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
        sums = torch.zeros(self.groups, dtype=torch.float64, device=right[self.incoming[0].name].device)
        for part in parts:
            product = left[part.name] * right[part.name]
            _add_up(sums, part.units, _over_axis(product, part.axis))
        return sums

    def along(self, part: Slice, value: Tensor, coefficients: Tensor, otherwise: float = 1.0) -> Tensor:
        """Coefficients laid along the axis of `part`, ready to broadcast over `value`; `otherwise` for no unit."""
        shape = [1] * value.ndim
        shape[part.axis] = -1
        return _of_units(coefficients, part.units, otherwise).view(shape)


@dataclass(frozen=True)
class Translation(Move):
    """A parameter to which the same can be added for all neurons of a group."""

    part: Slice

    def shape(self, values: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Shape of the coefficients: groups first, then the parameter's other axes."""
        rest = list(values[self.part.name].shape)
        del rest[self.part.axis]
        return (self.groups, *rest)

    def project(self, vectors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensor:
        """Inner products with the tangents: sums over the neurons of each group."""
        vector = vectors[self.part.name]
        sums = torch.zeros(self.shape(values), dtype=torch.float64, device=vector.device)
        _add_up(sums, self.part.units, vector.movedim(self.part.axis, 0))
        return sums

    def lift(self, coefficients: Tensor, values: Mapping[str, Tensor], into: dict[str, Tensor]) -> None:
        """Add Σ coefficient × tangent to `into`."""
        target = into[self.part.name]
        target.movedim(self.part.axis, 0).add_(_of_units(coefficients, self.part.units, 0.0))

    def shift(self, point: Point, coefficients: Tensor) -> None:
        """Move the point; a running mean that sees the bias moves along."""
        self.lift(coefficients, point.values, point.values)
        for norm in self.norms:
            mean = point.buffers.get(f"{norm.name}.running_mean")
            if mean is not None:
                mean.add_(_of_units(coefficients, norm.units, 0.0), alpha=norm.offsets.get(self.part.name, 0.0))


@dataclass(frozen=True)
class Permutation:
    """Neurons that can change places.

    Attributes:
        layers: the layers that write them.
        readers: the layers that read them.
        width: how many there are.
        run: they change places within runs of so many: the width, or the size of a group under GroupNorm.
        parts: all parameters and buffers that have to follow.
        what: they are, "neurons", or "heads" with all their neurons.
    """

    layers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    run: int
    parts: tuple[Slice, ...]
    what: str = "neurons"

    def permute(self, point: Point, order: Tensor) -> None:
        """Neuron order[k] moves to place k; shape: (width,), on the CPU."""
        for part in self.parts:
            store = point.values if part.name in point.values else point.buffers
            if part.name not in store:  # statistics of a norm that is in no other group of moves
                store[part.name] = wide(point.model.get_buffer(part.name))
            value = store[part.name]
            entries = part.entries(self.width)
            places = torch.arange(value.shape[part.axis])
            places[entries.flatten()] = entries[order].flatten()
            store[part.name] = value.index_select(part.axis, places.to(value.device))

    def entries(self, part: Slice, point: Point) -> Tensor:
        """All entries of each neuron in one parameter.  # shape: (width, entries)"""
        value = point.values[part.name].movedim(part.axis, 0)
        return value[part.entries(self.width).to(value.device)].reshape(self.width, -1)

    def keys(self, point: Point) -> Tensor:
        """Squared norm of all entries of each neuron, wherever the neurons of other layers stand; shape: (width,)."""
        keys = torch.zeros(self.width, dtype=torch.float64)
        for part in self.parts:
            if part.name in point.values:
                entries = _over_axis(point.values[part.name].square(), part.axis).cpu()
                _add_up(keys, part.units, entries)
        return keys


def build(trace: Trace) -> tuple[list[Scaling], list[Translation], list[Permutation], list[Mixing], list[str]]:
    """The symmetries of a trace, and what was not analysed."""
    scalings: list[Scaling] = []
    translations: list[Translation] = []
    mixings: list[Mixing] = []
    notes = list(trace.notes)
    for segment in trace.segments:
        scalings += _scalings(segment)
        translations += _translations(segment)
        mixings += _mixings(segment)
        notes += _notes(segment)
    translations += [_shift(part) for part in trace.shifts]
    if trace.untouched:
        notes.append(f"no rule reaches these parameters: {', '.join(trace.untouched)}")
    permutations = [
        Permutation(each.writers, each.readers, each.width, each.run, each.parts, each.what) for each in trace.orders
    ]
    return scalings, translations, permutations, mixings, list(dict.fromkeys(notes))


def _kinds(segment: Segment) -> str:
    return " and ".join(sorted({norm.kind for norm in segment.norms}))


def _scalings(segment: Segment) -> list[Scaling]:
    if segment.no_scale or not (segment.outgoing or segment.norms):
        return []
    return [
        Scaling(
            "rescaling" if segment.outgoing else f"scale before {_kinds(segment)}",
            tuple(segment.writers),
            tuple(segment.readers),
            segment.width,
            segment.count,
            tuple(segment.norms),
            segment.bent,
            tuple(segment.incoming),
            tuple(segment.outgoing),
        )
    ]


def _translations(segment: Segment) -> list[Translation]:
    if segment.no_shift or not segment.norms:
        return []
    kinds, parts = {norm.kind for norm in segment.norms}, list(segment.biases)
    if kinds <= {"LayerNorm", "GroupNorm", "softmax"}:
        parts = segment.matrices + parts
    if kinds == {"softmax"}:
        parts = segment.kernels + parts
    kind = "softmax-head translation" if kinds == {"softmax"} else f"translation before {_kinds(segment)}"
    norms = tuple(norm for norm in segment.norms if norm.name)
    return [
        Translation(kind, (part.name,), (), segment.width, segment.count, norms, segment.bent, part)
        for part in {part.key: part for part in parts}.values()
        if all(
            torch.equal(_each(norm.units, segment.count), _each(part.units, segment.count)) for norm in segment.norms
        )
    ]


def _shift(part: Slice) -> Translation:
    """Every entry of a bias of keys by itself."""
    return Translation("shift of keys", (part.name,), (), part.neurons, part.neurons, (), False, part)


def _each(units: Tensor, count: int) -> Tensor:
    """How many entries each unit has."""
    return torch.bincount(units[units >= 0], minlength=count)


def _mixings(segment: Segment) -> list[Mixing]:
    if segment.blocks is None:
        return []
    return [
        Mixing(
            tuple(segment.writers),
            tuple(segment.readers),
            segment.blocks,
            tuple(segment.incoming),
            tuple(segment.outgoing),
            segment.count,
        )
    ]


def _notes(segment: Segment) -> list[str]:
    """What a reader of the report would miss about this segment."""
    who = "neurons of " + ", ".join(segment.writers)
    if segment.is_output:
        if any(norm.kind == "softmax" for norm in segment.norms):
            return []
        return [
            f"outputs of {', '.join(segment.writers)}: taken as they are; if only a softmax (cross-entropy) sees them, "
            "softmax_head=True adds its translation"
        ]
    if segment.no_scale:
        what = "neither rescaled nor permuted" if segment.no_order else "not rescaled"
        reasons = list(dict.fromkeys(segment.no_scale))
        more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
        return [f"{who}: {what}, for {'; '.join(reasons[:3])}{more}"]
    return []
