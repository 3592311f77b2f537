"""Rules for what moves entries about, and puts them side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...graphs import tensors
from .channels import Seen, spread, unique, varies
from .walk import MoveWalk, Step, rule


def _moved(walk: MoveWalk, step: Step, move: Any) -> None:
    """Give the results what `move` makes of the entries."""
    seen = walk.value(step.args[0])
    outs = list(tensors(step.out))
    many = isinstance(step.out, (tuple, list))

    def apply(ids: Tensor) -> list[Tensor]:
        made = move(ids)
        return [spread(each) for each in (made if many else [made])]

    if seen.is_parameter:
        parts = [apply(each) for each in seen.entries]
        for place, out in enumerate(outs):
            walk.give(out, Seen(name=seen.name, entries=tuple(part[place] for part in parts)))
    elif seen.ids is not None:
        for out, ids in zip(outs, apply(seen.ids), strict=True):
            walk.give(out, seen.on(ids))
    else:
        for out in outs:
            walk.give(out, Seen(computed=seen.computed))


@rule("reshape")
def reshape(walk: MoveWalk, step: Step) -> None:
    if step.out.dtype != step.args[0].dtype:
        walk.unknown(step)
    else:
        _moved(walk, step, lambda ids: ids.reshape(step.out.shape))


@rule("permute", "squeeze", "expand")
def turn(walk: MoveWalk, step: Step) -> None:
    _moved(walk, step, lambda ids: step.func(ids, *step.args[1:], **step.kwargs))


@rule("same")
def same(walk: MoveWalk, step: Step) -> None:
    for out in tensors(step.out):
        fits = out.shape == step.args[0].shape
        walk.give(out, walk.value(step.args[0]) if fits else Seen())


@rule("select", "slice", "split")
def pieces(walk: MoveWalk, step: Step) -> None:
    """Those of one piece do not change places with those of another."""
    _moved(walk, step, lambda ids: step.func(ids, *step.args[1:], **step.kwargs))
    seen = walk.value(step.args[0])
    if seen.ids is None or seen.is_parameter:
        return
    everything = unique(seen.ids)
    for out in tensors(step.out):
        part = walk.value(out).ids
        if part is not None and len(mine := unique(part)) < len(everything):
            walk.channels.refine(mine, np.zeros_like(mine))


@rule("flip", "roll", "index", "repeat", "pad", "window", "diagonal")
def placed(walk: MoveWalk, step: Step) -> None:
    """What takes entries by their places lets none of them change places, where it runs over channels."""
    ids = walk.value(step.args[0]).ids
    if ids is not None and any(varies(ids, dim) for dim in step.by_place):
        walk.channels.keep_place(ids, f"{walk.label(step.name)} takes them by their places")
        walk.channels.bend(ids)
    pad: tuple[Any, ...] = (0,) if step.row.kind == "pad" else ()
    rest = step.args[1:2] if pad else step.args[1:]
    _moved(walk, step, lambda ids: step.func(ids, *rest, *pad, **({} if pad else step.kwargs)))


@rule("cat", "stack")
def cat(walk: MoveWalk, step: Step) -> None:
    parts = [each for each in step.args[0] if each.numel() > 0]
    seen = [walk.value(each) for each in parts]
    if all(each.ids is None for each in seen):
        names = [each for each in seen if each.is_parameter]
        walk.outside.update(each.name for each in names)
        walk.give(step.out, Seen(computed=True))
        return
    seen = [walk.as_channels(each, part) for each, part in zip(seen, parts, strict=True)]
    for each in seen:
        walk.regular(each, f"{walk.label(step.name)} joins powers of them")
    dim = step.argument(1, "dim", 0)
    if step.name != "stack" and not any(each.ids is not None and varies(each.ids, dim) for each in seen):
        _in_a_row(walk, seen, step.out, dim)
        return
    shadows = [
        each.ids if each.ids is not None else torch.zeros(1, dtype=torch.int64).expand(part.shape)
        for each, part in zip(seen, parts, strict=True)
    ]
    walk.give(step.out, Seen(spread(step.func(shadows, *step.args[1:], **step.kwargs))))


def _in_a_row(walk: MoveWalk, seen: list[Seen], out: Tensor, dim: int) -> None:
    """Positions one after the other, as a class token before the pictures' patches: of the same channels."""
    first, *others = [None if each.ids is None else each.ids.narrow(dim, 0, 1) for each in seen]
    none = torch.zeros(1, dtype=torch.int64)
    for other in others:
        one, two = (none if each is None else each for each in (first, other))
        walk.channels.tie(one, two, why=f"{walk.label('cat')} joins them with what no layer writes")
        first = other if first is None else first
    assert first is not None
    walk.give(out, Seen(first.expand(out.shape)))
