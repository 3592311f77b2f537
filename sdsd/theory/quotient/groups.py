"""The symmetries that segments of neurons give rise to, and how they act on a point.

A point is the model's parameters in float64, with the running statistics and eps of its norms. With w the entries that
write a group of neurons, b its biases and a the entries that read it, the tangents at the point are

    rescaling           (w, b, −a)       w, b → c·w, c·b;   a → a / c
    scale before norm   (w, b)           w, b → c·w, c·b    nothing reads the neurons but a norm
    translation         1 ⊗ u            the same vector u added to the row of every neuron of a group
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .segments import Domain, Norm, Segment, Slice
from .trace import Trace


class Point:
    """Parameters and norm statistics of a model in float64, to be moved along its orbit and written back once."""

    def __init__(self, model: nn.Module, norms: Iterable[str]) -> None:
        self.model = model
        self.values = {name: _wide(parameter) for name, parameter in model.named_parameters()}
        self.buffers: dict[str, Tensor] = {}
        self.eps: dict[str, float] = {}
        for name in norms:
            module: Any = model.get_submodule(name)
            self.eps[name] = torch.finfo(next(model.parameters()).dtype).eps if module.eps is None else module.eps
            if keeps_statistics(module):
                self.buffers[f"{name}.running_mean"] = _wide(module.running_mean)
                self.buffers[f"{name}.running_var"] = _wide(module.running_var)
        self._eps_before = dict(self.eps)

    @torch.no_grad()
    def write_back(self) -> None:
        """Round every value once, into the model's own tensors."""
        targets: dict[str, Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, value in {**self.values, **self.buffers}.items():
            targets[name].copy_(value)
        for name, eps in self.eps.items():
            if eps != self._eps_before[name]:
                self.model.get_submodule(name).eps = eps  # type: ignore[assignment]


def _wide(value: Tensor) -> Tensor:
    """A float64 copy."""
    return value.detach().to(torch.float64, copy=True)


def _over_axis(value: Tensor, axis: int) -> Tensor:
    """Sums over all axes but one; shape: (length of `axis`,)."""
    return value.movedim(axis, 0).flatten(1).sum(1) if value.ndim > 1 else value


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a norm has running statistics."""
    return getattr(module, "running_mean", None) is not None


def frozen(module: nn.Module) -> bool:
    """Whether a norm divides by its running statistics now, so that it undoes no change of parameters."""
    return keeps_statistics(module) and not module.training


@dataclass(frozen=True)
class Move:
    """What `Scaling` and `Translation` share: neurons in groups of equal size, each with a coefficient of its own.

    Attributes:
        kind: the symmetry's name.
        layers: the layers (or parameters) that write the neurons.
        readers: the layers that read them.
        width, groups: how many neurons, and groups of them that move as one.
        norms: norms that read them.
    """

    kind: str
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    groups: int
    norms: tuple[Norm, ...]

    def blocks(self, part: Slice, value: Tensor) -> Tensor:
        """The group of every entry of the axis of `part`; shape: (length of the axis,)."""
        neurons = part.neurons(value.shape[part.axis], self.width)
        return (neurons * self.groups // self.width).to(value.device)

    def per_neuron(self, coefficients: Tensor) -> Tensor:
        """Each neuron's coefficient; shape: (width,)."""
        return coefficients.repeat_interleave(self.width // self.groups)

    def has_tangent(self, model: nn.Module) -> bool:
        """Whether parameters alone can move along it: not before a norm in eval mode."""
        return not any(frozen(model.get_submodule(norm.name)) for norm in self.norms)


@dataclass(frozen=True)
class Scaling(Move):
    """Neurons whose incoming entries can be multiplied by c > 0 and outgoing ones divided by it, group by group."""

    incoming: tuple[Slice, ...]
    outgoing: tuple[Slice, ...]

    @property
    def loops(self) -> bool:
        """Whether some weight both writes and reads these neurons."""
        return bool({part.name for part in self.incoming} & {part.name for part in self.outgoing})

    def exact(self, model: nn.Module) -> bool:
        """Whether the function can stay: eps or the running statistics of every norm move along."""
        return self.groups == 1 or all(keeps_statistics(model.get_submodule(norm.name)) for norm in self.norms)

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
                into[part.name].addcmul_(value, self.along(part, value, coefficients), value=sign)

    def rescale(self, point: Point, factors: Tensor) -> None:
        """Move the point by `factors` > 0; shape: (groups,)."""
        for part in self.incoming:
            value = point.values[part.name]
            value.mul_(self.along(part, value, factors))
        for part in self.outgoing:
            value = point.values[part.name]
            value.div_(self.along(part, value, factors))
        each = self.per_neuron(factors)
        for norm in self.norms:
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
            sums.index_add_(0, self.blocks(part, product), _over_axis(product, part.axis))
        return sums

    def along(self, part: Slice, value: Tensor, coefficients: Tensor) -> Tensor:
        """Coefficients laid along the axis of `part`, ready to broadcast over `value`."""
        shape = [1] * value.ndim
        shape[part.axis] = -1
        return coefficients[self.blocks(part, value)].view(shape)


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
        return sums.index_add_(0, self.blocks(self.part, vector), vector.movedim(self.part.axis, 0))

    def lift(self, coefficients: Tensor, values: Mapping[str, Tensor], into: dict[str, Tensor]) -> None:
        """Add Σ coefficient × tangent to `into`."""
        target = into[self.part.name]
        target.movedim(self.part.axis, 0).add_(coefficients[self.blocks(self.part, target)])

    def shift(self, point: Point, coefficients: Tensor) -> None:
        """Move the point; a running mean that sees the bias moves along."""
        self.lift(coefficients, point.values, point.values)
        for norm in self.norms:
            mean = point.buffers.get(f"{norm.name}.running_mean")
            if mean is not None:
                mean.add_(self.per_neuron(coefficients), alpha=norm.offsets.get(self.part.name, 0.0))


@dataclass(frozen=True)
class Permutation:
    """Neurons that can change places.

    Attributes:
        layers: the layers that write them.
        width: how many there are.
        run: they change places within runs of so many: the width, or the size of a group under GroupNorm.
        parts: all parameters and buffers that have to follow.
    """

    layers: tuple[str, ...]
    width: int
    run: int
    parts: tuple[Slice, ...]

    def permute(self, point: Point, order: Tensor) -> None:
        """Neuron order[k] moves to place k; shape: (width,), on the CPU."""
        for part in self.parts:
            store = point.values if part.name in point.values else point.buffers
            if part.name not in store:  # statistics of a norm that is in no other group of moves
                store[part.name] = _wide(point.model.get_buffer(part.name))
            value = store[part.name]
            length = value.shape[part.axis]
            by_neuron = torch.arange(length).view(-1, self.width) if part.layout == "interleaved" else None
            entries = torch.arange(length).view(self.width, -1)[order] if by_neuron is None else by_neuron[:, order]
            store[part.name] = value.index_select(part.axis, entries.flatten().to(value.device))

    def entries(self, part: Slice, point: Point) -> Tensor:
        """All entries of each neuron in one parameter.  # shape: (width, entries)"""
        value = point.values[part.name].movedim(part.axis, 0)
        by_neuron = value.unflatten(0, (-1, self.width)).movedim(1, 0) if part.layout == "interleaved" else value
        return by_neuron.reshape(self.width, -1)

    def keys(self, point: Point) -> Tensor:
        """Squared norm of all entries of each neuron, wherever the neurons of other layers stand; shape: (width,)."""
        keys = torch.zeros(self.width, dtype=torch.float64)
        for part in self.parts:
            if part.name in point.values:
                entries = _over_axis(point.values[part.name].square(), part.axis).cpu()
                keys.index_add_(0, part.neurons(len(entries), self.width), entries)
        return keys


def build(trace: Trace) -> tuple[list[Scaling], list[Translation], list[Permutation], list[str]]:
    """The symmetries of a trace, and what was not analysed."""
    scalings: list[Scaling] = []
    translations: list[Translation] = []
    notes = list(trace.notes)
    for segment in trace.segments:
        if segment.incoming and segment.width is not None:
            scalings += _scalings(segment, segment.width)
            translations += _translations(segment, segment.width)
            notes += _notes(segment)
    if trace.untouched:
        notes.append(f"no rule reaches these parameters: {', '.join(trace.untouched)}")
    return scalings, translations, _permutations(trace.segments), list(dict.fromkeys(notes))


def _groups(segment: Segment, width: int) -> int:
    """Into how many runs of equal length, each inside one group of every norm, the neurons fall at least."""
    return math.gcd(width, *(norm.groups for norm in segment.norms))


def _kinds(segment: Segment) -> str:
    return " and ".join(sorted({norm.kind for norm in segment.norms}))


def _scalings(segment: Segment, width: int) -> list[Scaling]:
    if segment.no_scale or not (segment.outgoing or segment.norms):
        return []
    return [
        Scaling(
            "rescaling" if segment.outgoing else f"scale before {_kinds(segment)}",
            tuple(segment.writers),
            tuple(segment.readers),
            width,
            _groups(segment, width),
            tuple(segment.norms),
            tuple(segment.incoming),
            tuple(segment.outgoing),
        )
    ]


def _translations(segment: Segment, width: int) -> list[Translation]:
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
        Translation(kind, (part.name,), (), width, _groups(segment, width), norms, part)
        for part in dict.fromkeys(parts)
    ]


def _permutations(segments: list[Segment]) -> list[Permutation]:
    members: dict[Domain, list[Segment]] = {}
    for segment in segments:
        members.setdefault(segment.domain, []).append(segment)
    found = []
    for domain, those in members.items():
        parts = [part for segment in those for part in (*segment.incoming, *segment.outgoing)]
        widths = {segment.width for segment in those if segment.incoming}
        if domain.fixed or len(widths) != 1:
            continue
        width = widths.pop() or 0
        run = math.gcd(width, *(width // groups for groups in domain.groups))
        writers = tuple(dict.fromkeys(writer for segment in those for writer in segment.writers))
        if run > 1:
            found.append(Permutation(writers, width, run, tuple(dict.fromkeys((*parts, *domain.extras)))))
    return found


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
        what = "neither rescaled nor permuted" if segment.domain.fixed else "not rescaled"
        reasons = list(dict.fromkeys(segment.no_scale))
        more = f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
        return [f"{who}: {what}, for {'; '.join(reasons[:3])}{more}"]
    if segment.outgoing and not segment.bent and (segment.matrices or segment.kernels):
        return [f"{who}: no activation follows, so any invertible map of them would do; only scale and order are used"]
    return []
