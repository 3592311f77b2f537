"""Operations that move entries about and compute nothing."""

from __future__ import annotations

import itertools
import math

import numpy as np
from torch import Tensor

from .atoms import INNER, READING, REMOVAL, Ids
from .cut import KEEP_SIZE, CutWalk, rule, rule_of_axes
from .operations import Step
from .values import FREE, Axis, Value


@rule("reshape")
def reshape(walk: CutWalk, step: Step) -> None:
    given: Tensor = step.args[0]
    value = walk.value(given)
    if step.out.dtype != given.dtype:
        walk.unknown(step)
        return
    axes = walk.axes(given)
    walk.give(step.out, reshaped(walk, axes, tuple(given.shape), tuple(step.out.shape)), value)


def reshaped(walk: CutWalk, axes: list[Axis], before: tuple[int, ...], after: tuple[int, ...]) -> list[Axis]:
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


def _cut(walk: CutWalk, axis: Axis, shape: list[int]) -> list[Axis]:
    if not isinstance(axis, np.ndarray) or len(shape) == 1:
        return [axis] if len(shape) == 1 else [None] * len(shape)
    grid, roots = axis.reshape(shape), walk.atoms.roots(axis).reshape(shape)
    for k in range(len(shape)):
        rows = np.moveaxis(roots, k, 0).reshape(shape[k], -1)
        if (rows == rows[:, :1]).all():
            first = np.moveaxis(grid, k, 0).reshape(shape[k], -1)[:, 0]
            return [first if place == k else None for place in range(len(shape))]
    return list(walk.atoms.split(grid).factors)


def _together(walk: CutWalk, axes: list[Axis], sizes: list[int]) -> Axis:
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


def _put_back(walk: CutWalk, axes: list[Axis]) -> Ids | None:
    """The axis that was cut into these, in the same order."""
    for split in walk.atoms.open:
        if len(split.factors) == len(axes) and all(a is b for a, b in zip(split.factors, axes, strict=True)):
            return split.grid.ravel()
    return None


def _decide(walk: CutWalk, axes: list[Axis]) -> Ids | None:
    """Of the axes that one was cut into, in another order: the longest counts units, as in a shuffle of channels."""
    for split in list(walk.atoms.open):
        mine = {k for k, factor in enumerate(split.factors) if any(axis is factor for axis in axes)}
        if mine:
            k = split.longest(mine)
            walk.atoms.choose(split, k)
            return split.factors[k]
    return None


@rule_of_axes("permute")
def permute(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    order = list(range(given.ndim))
    if step.name == "permute":
        order = [dim % given.ndim for dim in step.args[1]]
    elif given.ndim > 1:
        one, other = (0, 1) if step.name == "t" else (step.args[1] % given.ndim, step.args[2] % given.ndim)
        order[one], order[other] = order[other], order[one]
    return [axes[k] for k in order]


@rule("squeeze")
def squeeze(walk: CutWalk, step: Step) -> None:
    given: Tensor = step.args[0]
    value = walk.value(given)
    before = value.shape if step.out is given else given.shape  # in place, the tensor has its new shape
    known = value.axes if step.out is given else walk.axes(given)
    kept = [axis for axis, length in zip(known, before, strict=True) if length != 1]
    axes = iter(kept)
    walk.give(step.out, [None if length == 1 else next(axes) for length in step.out.shape], walk.value(given))


@rule("expand")
def expand(walk: CutWalk, step: Step) -> None:
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


@rule("pack")
def pack(walk: CutWalk, step: Step) -> None:
    """Sequences of several lengths, laid behind each other place by place."""
    given, (out, others) = step.args[0], step.out
    *places, features = walk.axes(given)
    for axis in places:
        walk.mixed(axis, "some of them are taken by their places")
    walk.give(out, [None, features], walk.value(given))
    walk.give(others, [None])


@rule("repeat")
def repeat(walk: CutWalk, step: Step) -> None:
    given: Tensor = step.args[0]
    new = step.out.ndim - given.ndim
    axes = [None] * new + walk.axes(given)
    sizes = [1] * new + list(given.shape)
    made: list[Axis] = [
        axis
        if size == wide
        else FREE
        if size == 1
        else np.tile(axis, wide // size)
        if isinstance(axis, np.ndarray)
        else None
        for axis, size, wide in zip(axes, sizes, step.out.shape, strict=True)
    ]
    walk.give(step.out, made, walk.value(given))
    walk.value(step.out).written_in = walk.sizes_written_in


@rule_of_axes("select")
def select(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    dim = step.argument(1, "dim", 0) % given.ndim
    if given.shape[dim] > 1:
        walk.mixed(axes[dim], f"{walk.name!r} takes some of them by their places")
    return axes[:dim] + axes[dim + 1 :]


@rule_of_axes("slice")
def slice_(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    dim = step.argument(1, "dim", 0) % given.ndim
    axis = axes[dim]
    if step.out.shape[dim] != given.shape[dim] and isinstance(axis, np.ndarray):
        start, stride = step.argument(2, "start", 0) or 0, step.argument(4, "step", 1)
        start = max(0, start + len(axis)) if start < 0 else start
        axes[dim] = axis[start : start + stride * step.out.shape[dim] : stride]
        if stride > 1 and start < stride and len(axis) % stride == 0 and len(axes[dim]) == len(axis) // stride:
            walk.every(axis, stride, f"one in {stride} of them is taken")
        else:
            walk.cut_apart(axis, axes[dim], "some of them are taken by their places")
    return axes


@rule("split")
def split(walk: CutWalk, step: Step) -> None:
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
def cat(walk: CutWalk, step: Step) -> None:
    parts = [part for part in step.args[0] if part.shape != (0,)]
    if not parts:
        walk.give(step.out, [FREE] * step.out.ndim)
        return
    dim = step.argument(1, "dim", 0) % parts[0].ndim
    columns: list[Axis] = list(walk.axes(parts[0]))
    for part in parts[1:]:
        for k, axis in enumerate(walk.axes(part)):
            if k != dim and step.out.shape[k] > 1:
                columns[k] = walk.join(columns[k], axis)
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
    walk.give(step.out, columns, walk.together(parts))


@rule("stack")
def stack(walk: CutWalk, step: Step) -> None:
    parts = list(step.args[0])
    dim = step.argument(1, "dim", 0) % step.out.ndim
    columns: list[Axis] = list(walk.axes(parts[0]))
    for part in parts[1:]:
        columns = [walk.join(a, b) for a, b in zip(columns, walk.axes(part), strict=True)]
    walk.give(step.out, [*columns[:dim], None, *columns[dim:]], walk.together(parts))


@rule_of_axes("parts of complex")
def parts_of_complex(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    """The last axis of the real tensor is of two numbers."""
    if step.name == "view_as_real":
        axes.append(None)
    else:
        walk.mixed(axes.pop(), f"{walk.name!r} makes one number of two neurons")
    return axes


@rule_of_axes("flip")
def flip(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    for dim in step.by_place:
        axis = axes[dim]
        axes[dim] = axis[::-1].copy() if isinstance(axis, np.ndarray) else axis
    return axes


@rule_of_axes("pad")
def pad(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    widths = step.args[1]
    for k in range(len(widths) // 2):
        axis, (before, after) = axes[given.ndim - 1 - k], widths[2 * k : 2 * k + 2]
        if isinstance(axis, np.ndarray) and (before or after):
            walk.mixed(axis, f"{walk.name!r} pads the axis of the neurons", REMOVAL, KEEP_SIZE)
            if before < 0 or after < 0:
                walk.mixed(axis, f"{walk.name!r} takes some of them by their places", READING)
                axes[given.ndim - 1 - k] = None
            else:
                axes[given.ndim - 1 - k] = np.concatenate([walk.atoms.new(before), axis, walk.atoms.new(after)])
    return axes


@rule_of_axes("index")
def index(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    taken = step.by_place
    if step.name == "index":
        for k in taken:
            if given.shape[k] > 1:
                walk.mixed(axes[k], "some of them are looked up by their places")
        adjacent = taken == list(range(taken[0], taken[-1] + 1))
        before = [axes[k] for k in range(taken[0])] if adjacent else []
        after = [axes[k] for k in range(len(before), given.ndim) if k not in taken]
        made: list[Axis] = [*before, *[None] * (step.out.ndim - len(before) - len(after)), *after]
    else:
        (dim,) = taken
        walk.mixed(axes[dim], "some of them are looked up by their places")
        made = [None if k == dim else axis for k, axis in enumerate(axes)]
        if step.name != "index_select":
            walk.join_indices(axes, step.argument(2, "index", None), dim)
            made = [axis if step.out.shape[k] == given.shape[k] else None for k, axis in enumerate(made)]
    return made


@rule("lookup")
def embedding(walk: CutWalk, step: Step) -> None:
    weight, indices = step.args[0], step.args[1]
    rows, columns = walk.axes(weight)
    walk.mixed(rows, "they are looked up by their places")
    walk.writes(weight, columns)
    made: list[Axis] = [*[None] * indices.ndim, columns]
    value = walk.value(weight)
    walk.give(step.out, made, Value([], walk.value(indices).static, value.linear, value.parameters))


@rule("bag")
def embedding_bag(walk: CutWalk, step: Step) -> None:
    weight = step.args[0]
    rows, columns = walk.axes(weight)
    walk.mixed(rows, "they are looked up by their places")
    walk.writes(weight, columns)
    out, *others = step.out
    walk.give(out, [None, columns])
    for other in others:
        walk.give(other, [None] * other.ndim)


@rule("shuffle")
def channel_shuffle(walk: CutWalk, step: Step) -> None:
    given, groups = step.args[0], step.args[1]
    batch, channels, *places = walk.axes(given)
    length = given.shape[1]
    cut = reshaped(walk, [channels], (length,), (groups, length // groups))
    if groups > 1:
        walk.mixed(cut[0], f"{walk.name!r} has {groups} groups written into it", REMOVAL, KEEP_SIZE)
    walk.give(step.out, [batch, *reshaped(walk, cut[::-1], (length // groups, groups), (length,)), *places])


@rule_of_axes("roll")
def roll(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    for dim in step.by_place:
        walk.mixed(axes[dim], f"{walk.name!r} moves them by a number of places")
    return axes
