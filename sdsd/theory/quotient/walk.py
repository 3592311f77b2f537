"""What can be moved: channels while a model runs, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ...graphs import Ids, Step, Walk, adding_to, tensors
from .channels import KERNEL, READ, Channels, NormUse, Seen, Use, compact, unique, varies

Rule = Callable[["MoveWalk", Step], None]
ChannelRule = Callable[["MoveWalk", Step, Seen, Tensor], None]
RULES: dict[str, Rule] = {}
"""The rule of each kind of operation that can be followed."""
TRY_SHAPES = "pass example_input if this is wrong"


rule = adding_to(RULES)


def rule_of_channels(*kinds: str) -> Callable[[ChannelRule], ChannelRule]:
    """As `rule`, for operations that are followed if their first tensor has channels, which the rule gets as well."""

    def add(made: ChannelRule) -> ChannelRule:
        @rule(*kinds)
        def with_channels(walk: MoveWalk, step: Step) -> None:
            seen = walk.value(step.args[0])
            if seen.ids is None:
                walk.unknown(step)
            else:
                made(walk, step, seen, seen.ids)

        return made

    return add


def plain_type(module: nn.Module) -> type:
    """The module's class as its author wrote it, under a GammaMonitor too."""
    return getattr(type(module), "_sdsd_original", type(module))


def layer_of(name: str) -> str:
    """The layer that owns a parameter."""
    return name.rpartition(".")[0] or name


class MoveWalk(Walk[Seen]):
    """What one run says about channels."""

    rules = RULES

    def __init__(self, model: nn.Module, softmax_head: bool = False) -> None:
        super().__init__({})
        self.softmax_head = softmax_head
        self.channels = Channels()
        self.scores: Any = WeakIdKeyDictionary()  # what became of products of queries and keys: which attention's
        self.outside: set[str] = set()  # parameters that go into something without a rule
        self.calls = 0
        self.modules = dict(model.named_modules())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            places = [
                torch.arange(length).view([-1 if k == axis else 1 for k in range(tensor.ndim)]).expand(tensor.shape)
                for axis, length in enumerate(tensor.shape)
            ]
            if places:
                self.named[id(tensor)] = Seen(name=name, entries=tuple(places))

    # ---- values ------------------------------------------------------------------------------------------------------

    def given(self, tensor: Any) -> Seen:
        return Seen()

    def give(self, tensor: Any, value: Seen) -> None:
        """Note what a result is."""
        if isinstance(tensor, Tensor) and id(tensor) not in self.named:
            if value.ids is not None and (tuple(value.ids.shape) != tuple(tensor.shape) or not value.ids.any()):
                assert tuple(value.ids.shape) == tuple(tensor.shape), (value.ids.shape, tensor.shape)
                value = Seen()
            self.values[tensor] = value

    def label(self, op: str) -> str:
        """An operation as a reader of the model knows it."""
        module = self.modules.get(self.module)
        if module is not None and self.module and not list(module.children()):
            kind = plain_type(module)
            if kind.__module__.startswith("torch.nn"):
                return f"{self.module!r} ({kind.__name__})"
        return f"{op!r} in {self.module!r}" if self.module else repr(op)

    def follow(self, step: Step) -> None:
        self.pass_scores(step)
        if any(each.ids is not None or each.entries or each.computed for each in map(self.value, step.given)):
            before = [(each, self.value(each)) for each in step.written]
            super().follow(step)
            for tensor, was in before:
                self.spread(tensor, was, f"{self.label(step.name)} writes in place into what is seen elsewhere, too")

    def spread(self, tensor: Tensor, was: Seen, why: str) -> None:
        """What shares memory with a tensor that was written is no longer what was known of it."""
        now = self.value(tensor)
        alike = self.channels.alike(was, now)
        if alike and was.offsets == now.offsets:
            return
        others = [each.ids for _, each in self.sharing(tensor) if each.ids is not None]
        if others:
            all_ids = (each for each in (was.ids, now.ids, *others) if each is not None)
            ids = np.concatenate([unique(each) for each in all_ids])
            say = self.channels.keep_shift if alike else self.channels.fix
            say(ids, why)

    def pass_scores(self, step: Step) -> None:
        """What is made of scores of attention are scores still, until values are weighted by them."""
        if step.row.kind == "matrix product":
            return
        for given in step.given:
            scores = self.scores.get(given)
            if scores is not None:
                for out in tensors(step.out):
                    self.scores[out] = scores
                return

    def written_into(self, parameter: Tensor) -> None:
        self.outside.add(self.value(parameter).name)

    def ended(self, outputs: list[Any]) -> None:
        why, channels = "they are the model's outputs", self.channels
        for seen in map(self.value, outputs):
            if seen.is_parameter:
                self.outside.add(seen.name)
            if seen.ids is None:
                continue
            known = unique(seen.ids)
            channels.outputs.append(known)
            channels.hold(known, why)
            channels.keep_place(known, why)
            if self.softmax_head and not any(varies(seen.ids, dim) for dim in range(seen.ids.ndim - 1)):
                channels.norms.append(NormUse("", "softmax", compact(seen.ids)[0], {}, ""))
            else:
                channels.keep_shift(known, why)

    # ---- what no rule knows ------------------------------------------------------------------------------------------

    def unknown(self, step: Step, why: str = "") -> None:
        """Channels that enter stay as they are."""
        given = [self.value(each) for each in step.given]
        for each in given:
            if each.is_parameter:
                self.outside.add(each.name)
        moving = [each.ids for each in given if each.ids is not None]
        if moving:
            reason = why or f"no rule for {self.label(step.name.strip('_'))}"
            self.channels.notes.append(f"{reason}; neurons that enter or leave it stay as they are")
            for ids in moving:
                self.channels.fix(ids, reason)
        for out in tensors(step.out):
            self.give(out, Seen(computed=not moving and any(each.entries or each.computed for each in given)))

    def regular(self, seen: Seen, why: str) -> None:
        """Its channels scale it as they are, or not at all."""
        if seen.ids is None or (seen.power == 1 and not seen.statistic):
            return
        self.channels.hold(seen.ids, why)
        self.channels.keep_shift(seen.ids, why)
        if seen.statistic:
            self.channels.keep_place(seen.ids, why)

    # ---- parameters --------------------------------------------------------------------------------------------------

    def taken(self, weight: Seen) -> tuple[Ids, ...]:
        """Which entries of each axis a view of a parameter has."""
        self.calls += 1
        return tuple(np.unique(compact(each)[0]) for each in weight.entries)

    def use(self, role: str, weight: Seen, axis: int, entries: Ids, channels: Ids, taken: tuple[Ids, ...]) -> None:
        """Note which channels the entries of an axis belong to."""
        length = self.model_tensor(weight.name).shape[axis]
        units = np.zeros(length, np.int64)
        units[entries] = channels
        layer = layer_of(weight.name)
        self.channels.uses.append(Use(role, weight.name, axis, units, layer, self.calls, taken))

    def model_tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its name."""
        owner, _, local = name.rpartition(".")
        return getattr(self.modules[owner], local)  # type: ignore[no-any-return]

    def axis_along(self, weight: Seen, dim: int) -> int | None:
        """The axis of a parameter that lies along a dimension of a view of it; None where there is not just one."""
        axes = [axis for axis, each in enumerate(weight.entries) if varies(each, dim)]
        return axes[0] if len(axes) == 1 else None

    def apart(self, ids: Tensor, batch: int) -> None:
        """Those of different products of a batch (of heads, that is) do not change places with one another."""
        if any(varies(ids, dim) for dim in range(min(batch, ids.ndim))):
            products = ids.shape[:batch]
            each = torch.arange(int(np.prod(products))).view(*products, *[1] * (ids.ndim - batch))
            numbers, places = compact(ids, each.expand(ids.shape))
            self.channels.refine(numbers, places)

    def through(self, given: Seen, weight: Seen, dims: tuple[int, int], shape: Iterable[int], role: str) -> Seen:
        """A product with a parameter: `dims` of its view are read and written, the last of `given` is read.

        The result has the written dimension last.
        """
        into, onto = dims
        rank = weight.entries[0].ndim
        axes = [self.axis_along(weight, dim) for dim in dims]
        short = [axis for axis, length in enumerate(self.model_tensor(weight.name).shape) if length == 1]
        for place, dim in enumerate(dims):
            if axes[place] is None and weight.entries[0].shape[dim] == 1 and short:
                axes[place] = short.pop(0 if len(short) == 1 or place == 1 else -1)
        layer = layer_of(weight.name)
        stray = any(varies(each, dim) for each in weight.entries for dim in range(rank) if dim not in dims)
        if None in axes or axes[0] == axes[1] or stray:
            self.outside.add(weight.name)
            if given.ids is not None:
                self.channels.fix(given.ids, f"{layer!r} multiplies them by a weight in parts")
            return Seen()
        taken = self.taken(weight)
        ids = given.ids
        if ids is not None:
            others = [dim for dim in range(ids.ndim - 1) if varies(ids, dim)]
            if others and not varies(ids, ids.ndim - 1):
                self.channels.keep_shift(ids, f"{layer!r} sums over their positions")
                self.outside.add(weight.name)
                return Seen(ids[..., :1].expand(tuple(shape)))
            if others:
                self.channels.fix(ids, f"{layer!r} reads another axis than theirs")
            else:
                self.regular(given, f"{layer!r} reads a power or a mean of them")
                self.read(ids[(0,) * (ids.ndim - 1)], weight, axes[0], into, taken)
        return self.write(weight, axes[1], onto, tuple(shape), role, taken)

    def read(self, ids: Tensor, weight: Seen, axis: Any, dim: int, taken: tuple[Ids, ...]) -> None:
        """An axis of a parameter multiplies channels, and their sum is taken."""
        entries = weight.entries[axis].movedim(dim, 0).reshape(ids.shape[0], -1)[:, 0].numpy()
        self.use(READ, weight, axis, entries, ids.numpy(), taken)
        self.channels.keep_shift(ids, f"{layer_of(weight.name)!r} reads them")

    def write(
        self, weight: Seen, axis: Any, dim: int, shape: tuple[int, ...], role: str, taken: tuple[Ids, ...]
    ) -> Seen:
        """An axis of a parameter writes new channels along the last dimension of the result."""
        view = weight.entries[axis]
        entries = view.movedim(dim, 0).reshape(view.shape[dim], -1)[:, 0].numpy()
        made = self.channels.new(len(entries))
        self.use(role, weight, axis, entries, made, taken)
        return Seen(torch.from_numpy(made).expand(shape), offsets={})

    def as_channels(self, seen: Seen, tensor: Tensor) -> Seen:
        """A parameter that is a tensor among others: its last axis writes channels."""
        if not seen.is_parameter:
            return seen
        for dim in reversed(range(tensor.ndim)):
            axis = self.axis_along(seen, dim)
            if axis is not None:
                made = self.write(
                    seen,
                    axis,
                    dim,
                    (*tensor.shape[:dim], *tensor.shape[dim + 1 :], tensor.shape[dim]),
                    KERNEL,
                    self.taken(seen),
                )
                assert made.ids is not None
                return Seen(made.ids.movedim(-1, dim))
        self.outside.add(seen.name)
        return Seen(computed=True)

    def laid(self, ids: Tensor, weight: Seen, shape: tuple[int, ...]) -> tuple[int, Ids, Ids] | None:
        """The axis of a parameter that lies along channels, its entries and the channel of each.

        Channels that share an entry are tied. None where there is no such axis, or where it is no single one.
        """
        wide = ids.expand(shape)
        places = [each.expand(shape) for each in weight.entries]
        dims = [dim for dim in range(len(shape)) if varies(wide, dim)]
        axes = [axis for axis, each in enumerate(places) if any(varies(each, dim) for dim in dims)]
        if not dims and len(places) == 1 and places[0].shape[-1:] == (1,) and weight.entries[0].shape == (1,):
            axes = [0]  # a layer of one neuron
        if len(axes) != 1:
            return None
        entries, channels = compact(places[axes[0]], wide)
        entries, channels = np.unique(np.stack([entries, channels]), axis=1)
        if (channels == 0).any():
            return None
        first, where = np.unique(entries, return_index=True)
        lead = channels[where][np.searchsorted(first, entries)]
        self.channels.tie(torch.from_numpy(channels), torch.from_numpy(lead), shared=True)
        return axes[0], entries, channels


def eps_of(walk: MoveWalk, eps: float | None) -> str:
    """The attribute of the module that runs which holds eps."""
    module = walk.modules.get(walk.module)
    if module is None:
        return ""
    held = vars(module)
    if "eps" in held and (held["eps"] is None or _alike(held["eps"], eps)):
        return "eps"
    floats = [name for name, value in held.items() if isinstance(value, float) and _alike(value, eps)]
    return floats[0] if len(floats) == 1 else ""


def _alike(one: Any, other: float | None) -> bool:
    """Whether both are one number, in float32 at least."""
    return isinstance(one, float) and other is not None and abs(one - other) <= 1e-6 * abs(one)


def kind_of(walk: MoveWalk, names: tuple[str, ...], otherwise: str) -> str:
    """The class of the norm that runs, where its name says what it is."""
    module = walk.modules.get(walk.module)
    kind = plain_type(module).__name__ if module is not None and walk.module else ""
    return kind if any(each in kind for each in names) else otherwise


def noted(walk: MoveWalk, ids: Ids, kind: str, eps: float | None, offsets: dict[str, float] | None = None) -> None:
    """A norm reads channels; it moves along if its module holds its eps."""
    attribute = eps_of(walk, eps)
    name = walk.module if attribute else ""
    walk.channels.norms.append(NormUse(name, kind, ids, dict(offsets or {}), attribute))
