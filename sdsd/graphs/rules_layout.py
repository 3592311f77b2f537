"""Operations that move entries about and compute nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .atoms import INNER, READING, REMOVAL, Ids
from .operations import Step, tensors
from .values import FREE, Axis, Value
from .walk import KEEP_SIZE, Walk, rule


@rule("reshape")
def reshape(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    value = walk.value(given)
    if step.out.dtype != given.dtype:
        walk.unknown(step)
        return
    axes = walk.axes(given)
    walk.give(step.out, reshaped(walk, axes, tuple(given.shape), tuple(step.out.shape)), value)


def reshaped(walk: Walk, axes: list[Axis], before: tuple[int, ...], after: tuple[int, ...]) -> list[Axis]:
    """Entries of the axes after a view. Both shapes are cut into their common factors, then put together anew."""
    if 0 in before:
        return [None] * len(after)
    cuts = _suffix_products(before) | _suffix_products(after)
    parts: list[Axis] = []
    sizes: list[int] = []
    for axis, length, inner in zip(axes, before, _inner(before), strict=True):
        shape = _between(cuts, inner, length)
        if shape is None:
            walk.mixed(axis, f"{walk.name!r} cuts the neurons apart")
            for other in axes:
                walk.mixed(other, f"{walk.name!r} cuts the neurons apart")
            return [None] * len(after)
        parts += _cut(walk, axis, shape)
        sizes += shape
    made: list[Axis] = []
    place = 0
    for length in after:
        taken: list[int] = []
        total = 1
        while total < length or (length > 1 and not taken):
            if sizes[place] > 1:
                taken.append(place)
            total *= sizes[place]
            place += 1
        made.append(_together(walk, [parts[k] for k in taken], [sizes[k] for k in taken]) if length > 1 else None)
    return made


def _suffix_products(shape: tuple[int, ...]) -> set[int]:
    return {math.prod(shape[k:]) for k in range(len(shape) + 1)}


def _inner(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[k + 1 :]) for k in range(len(shape))]


def _between(cuts: set[int], inner: int, length: int) -> list[int] | None:
    """The factors of an axis between the places where a view cuts; None where they are no factors."""
    places = sorted(cut for cut in cuts if inner <= cut <= inner * length)
    factors = []
    for low, high in itertools.pairwise(places):
        if high % low:
            return None
        factors.append(high // low)
    return factors[::-1] or [length]


def _cut(walk: Walk, axis: Axis, shape: list[int]) -> list[Axis]:
    if not isinstance(axis, np.ndarray) or len(shape) == 1:
        return [axis] if len(shape) == 1 else [None] * len(shape)
    grid, roots = axis.reshape(shape), walk.atoms.roots(axis).reshape(shape)
    for k in range(len(shape)):
        rows = np.moveaxis(roots, k, 0).reshape(shape[k], -1)
        if (rows == rows[:, :1]).all():
            first = np.moveaxis(grid, k, 0).reshape(shape[k], -1)[:, 0]
            return [first if place == k else None for place in range(len(shape))]
    return list(walk.atoms.split(grid).factors)


def _together(walk: Walk, axes: list[Axis], sizes: list[int]) -> Axis:
    if len(axes) == 1:
        return axes[0]
    known = [k for k, axis in enumerate(axes) if isinstance(axis, np.ndarray)]
    if not known:
        return None
    whole = _put_back(walk, axes)
    if whole is not None:
        return whole
    unit = walk.most_real(axes)
    if unit is None:
        unit = _decide(walk, axes)
    if unit is None:
        for axis in axes:
            walk.note(axis, f"{walk.name!r} puts two kinds of neurons into one axis")
        return None
    place = next(k for k in known if axes[k] is unit)
    for k in known:
        if k != place and not walk.atoms.has(axes[k], INNER):  # type: ignore[arg-type]
            walk.mixed(axes[k], f"{walk.name!r} puts them into one axis with others")
    outer, inner = math.prod(sizes[:place]), math.prod(sizes[place + 1 :])
    return np.tile(np.repeat(unit, inner), outer)


def _put_back(walk: Walk, axes: list[Axis]) -> Ids | None:
    """The axis that was cut into these, in the same order."""
    for split in walk.atoms.open:
        if len(split.factors) == len(axes) and all(a is b for a, b in zip(split.factors, axes, strict=True)):
            return split.grid.ravel()
    return None


def _decide(walk: Walk, axes: list[Axis]) -> Ids | None:
    """Of the axes that one was cut into, in another order: the longest counts units, as in a shuffle of channels."""
    for split in list(walk.atoms.open):
        mine = {k for k, factor in enumerate(split.factors) if any(axis is factor for axis in axes)}
        if mine:
            k = split.longest(mine)
            walk.atoms.choose(split, k)
            return split.factors[k]
    return None


@rule("permute")
def permute(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    order = list(range(given.ndim))
    if step.name == "permute":
        order = [dim % given.ndim for dim in step.args[1]]
    elif given.ndim > 1:
        one, other = (0, 1) if step.name == "t" else (step.args[1] % given.ndim, step.args[2] % given.ndim)
        order[one], order[other] = order[other], order[one]
    walk.give(step.out, [axes[k] for k in order], walk.value(given))


@rule("squeeze")
def squeeze(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    value = walk.value(given)
    before = value.shape if step.out is given else given.shape  # in place, the tensor has its new shape
    known = value.axes if step.out is given else walk.axes(given)
    kept = [axis for axis, length in zip(known, before, strict=True) if length != 1]
    axes = iter(kept)
    walk.give(step.out, [None if length == 1 else next(axes) for length in step.out.shape], walk.value(given))


@rule("expand")
def expand(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    value = walk.value(given)
    axes = walk.axes(given)
    new = step.out.ndim - given.ndim
    made: list[Axis] = [None] * new
    for axis, length, wide in zip(axes, given.shape, step.out.shape[new:], strict=True):
        made.append(axis if length == wide else FREE)  # the same for all, however many there are
    walk.give(step.out, made, value)
    if step.out is not given and id(given) not in walk.named:
        walk.value(step.out).written_in = walk.sizes_written_in
    if step.out is not given and id(given) not in walk.named:
        walk.value(step.out).statistic = value.statistic


@rule("repeat")
def repeat(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    new = step.out.ndim - given.ndim
    axes = [None] * new + walk.axes(given)
    sizes = [1] * new + list(given.shape)
    made: list[Axis] = [
        FREE if size == 1 < wide else np.tile(axis, wide // size) if isinstance(axis, np.ndarray) and size > 1 else None
        for axis, size, wide in zip(axes, sizes, step.out.shape, strict=True)
    ]
    walk.give(step.out, made, walk.value(given))
    walk.value(step.out).written_in = walk.sizes_written_in


@rule("select")
def select(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    dim = step.argument(1, "dim", 0) % given.ndim
    axes = walk.axes(given)
    if given.shape[dim] > 1:
        walk.mixed(axes[dim], f"{walk.name!r} takes some of them by their places")
    for out in tensors(step.out):
        walk.give(out, axes[:dim] + axes[dim + 1 :], walk.value(given))


@rule("slice")
def slice_(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    dim = step.argument(1, "dim", 0) % given.ndim
    axes = walk.axes(given)
    axis = axes[dim]
    if step.out.shape[dim] != given.shape[dim] and isinstance(axis, np.ndarray):
        start, stride = step.argument(2, "start", 0) or 0, step.argument(4, "step", 1)
        start = max(0, start + len(axis)) if start < 0 else start
        axes[dim] = axis[start : start + stride * step.out.shape[dim] : stride]
        if stride > 1 and start < stride and len(axis) % stride == 0 and len(axes[dim]) == len(axis) // stride:
            walk.every(axis, stride, f"one in {stride} of them is taken")
        else:
            walk.cut_apart(axis, axes[dim], "some of them are taken by their places")
    walk.give(step.out, axes, walk.value(given))


@rule("split")
def split(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    dim = step.argument(2, "dim", 0) % given.ndim
    axes = walk.axes(given)
    start, before = 0, len(walk.pieces.parts)
    for out in step.out:
        axis = axes[dim]
        piece = axis[start : start + out.shape[dim]] if isinstance(axis, np.ndarray) else axis
        if len(step.out) > 1:
            walk.cut_apart(axis, piece, f"{walk.name!r} cuts them into pieces")
        walk.give(out, [*axes[:dim], piece, *axes[dim + 1 :]], walk.value(given))
        start += out.shape[dim]
    pieces = walk.pieces.parts[before:]
    if len(pieces) > 1 and all(len(piece.part) == len(pieces[0].part) for piece in pieces):
        walk.pieces.chunks.append(pieces)


@rule("cat")
def cat(walk: Walk, step: Step) -> None:
    parts = [part for part in step.args[0] if part.shape != (0,)]
    if not parts:
        walk.give(step.out, [FREE] * step.out.ndim)
        return
    dim = step.argument(1, "dim", 0) % parts[0].ndim
    columns: list[Axis] = list(walk.axes(parts[0]))
    for part in parts[1:]:
        for k, axis in enumerate(walk.axes(part)):
            if k != dim and step.out.shape[k] > 1:
                columns[k] = _alongside(walk, columns[k], axis)
    along = [walk.axes(part)[dim] for part in parts]
    if any(isinstance(axis, np.ndarray) for axis in along):
        columns[dim] = np.concatenate(
            [
                axis if isinstance(axis, np.ndarray) else walk.atoms.new(part.shape[dim])
                for axis, part in zip(along, parts, strict=True)
            ]
        )
    else:
        columns[dim] = None
    walk.give(step.out, columns, together(walk, parts))


def _alongside(walk: Walk, one: Axis, other: Axis) -> Axis:
    return None if one is None and other is None else walk.join(one, other)


def together(walk: Walk, parts: list[Tensor]) -> Value:
    """What a tensor made of several is."""
    values = [walk.value(part) for part in parts]
    names = frozenset[str]().union(*(value.parameters for value in values))
    made = Value([], all(v.static for v in values), all(v.linear for v in values), names)
    if made.static and not names:
        made.label = next((v.label for v in values if v.label), "")
    return made


@rule("stack")
def stack(walk: Walk, step: Step) -> None:
    parts = list(step.args[0])
    dim = step.argument(1, "dim", 0) % step.out.ndim
    columns: list[Axis] = list(walk.axes(parts[0]))
    for part in parts[1:]:
        columns = [_alongside(walk, a, b) for a, b in zip(columns, walk.axes(part), strict=True)]
    walk.give(step.out, [*columns[:dim], None, *columns[dim:]], together(walk, parts))


@rule("parts of complex")
def parts_of_complex(walk: Walk, step: Step) -> None:
    """The last axis of the real tensor is of two numbers."""
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    if step.name == "view_as_real":
        axes.append(None)
    else:
        walk.mixed(axes.pop(), f"{walk.name!r} makes one number of two neurons")
    walk.give(step.out, axes, walk.value(given))


@rule("flip")
def flip(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    for dim in step.args[1]:
        axis = axes[dim]
        axes[dim] = axis[::-1].copy() if isinstance(axis, np.ndarray) else axis
    walk.give(step.out, axes, walk.value(given))


@rule("pad")
def pad(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes, widths = walk.axes(given), step.args[1]
    for k in range(len(widths) // 2):
        axis, (before, after) = axes[given.ndim - 1 - k], widths[2 * k : 2 * k + 2]
        if isinstance(axis, np.ndarray) and (before or after):
            walk.mixed(axis, f"{walk.name!r} pads the axis of the neurons", REMOVAL, KEEP_SIZE)
            if before < 0 or after < 0:
                walk.mixed(axis, f"{walk.name!r} takes some of them by their places", READING)
                axes[given.ndim - 1 - k] = None
            else:
                axes[given.ndim - 1 - k] = np.concatenate([walk.atoms.new(before), axis, walk.atoms.new(after)])
    walk.give(step.out, axes, walk.value(given))


@rule("index")
def index(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    if step.name == "index":
        covered = _covered([*step.args[1]], given.ndim)
        for k in covered:
            if given.shape[k] > 1:
                walk.mixed(axes[k], "some of them are looked up by their places")
        adjacent = covered == list(range(covered[0], covered[-1] + 1))
        before = [axes[k] for k in range(covered[0])] if adjacent else []
        after = [axes[k] for k in range(len(before), given.ndim) if k not in covered]
        made: list[Axis] = [*before, *[None] * (step.out.ndim - len(before) - len(after)), *after]
    else:
        dim = step.argument(1, "dim", 0) % given.ndim
        walk.mixed(axes[dim], "some of them are looked up by their places")
        made = [None if k == dim else axis for k, axis in enumerate(axes)]
        if step.name != "index_select":
            walk.join_indices(axes, step.argument(2, "index", None), dim)
            made = [axis if step.out.shape[k] == given.shape[k] else None for k, axis in enumerate(made)]
    walk.give(step.out, made, walk.value(given))


def _covered(chosen: list[Any], ndim: int) -> list[int]:
    """The dimensions that indices take; a mask of several takes several."""
    covered, dim = [], 0
    for each in chosen:
        taken = each.ndim if each is not None and each.dtype in (torch.bool, torch.uint8) else 1
        if each is not None:
            covered += list(range(dim, dim + taken))
        dim += taken
    return [dim for dim in covered if dim < ndim]


@rule("lookup")
def embedding(walk: Walk, step: Step) -> None:
    weight, indices = step.args[0], step.args[1]
    rows, columns = walk.axes(weight)
    walk.mixed(rows, "they are looked up by their places")
    walk.writes(weight, columns)
    made: list[Axis] = [*[None] * indices.ndim, columns]
    value = walk.value(weight)
    walk.give(step.out, made, Value([], walk.value(indices).static, value.linear, value.parameters))


@rule("bag")
def embedding_bag(walk: Walk, step: Step) -> None:
    weight = step.args[0]
    rows, columns = walk.axes(weight)
    walk.mixed(rows, "they are looked up by their places")
    walk.writes(weight, columns)
    out, *others = step.out
    walk.give(out, [None, columns])
    for other in others:
        walk.give(other, [None] * other.ndim)


@rule("shuffle")
def channel_shuffle(walk: Walk, step: Step) -> None:
    given, groups = step.args[0], step.args[1]
    batch, channels, *places = walk.axes(given)
    length = given.shape[1]
    cut = reshaped(walk, [channels], (length,), (groups, length // groups))
    if groups > 1:
        walk.mixed(cut[0], f"{walk.name!r} has {groups} groups written into it", REMOVAL, KEEP_SIZE)
    walk.give(step.out, [batch, *reshaped(walk, cut[::-1], (length // groups, groups), (length,)), *places])


@rule("roll")
def roll(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    dims = step.argument(2, "dims", ()) or range(given.ndim)
    for dim in [dims] if isinstance(dims, int) else dims:
        walk.mixed(axes[dim], f"{walk.name!r} moves them by a number of places")
    walk.give(step.out, axes, walk.value(given))
