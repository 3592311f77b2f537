"""Operations on pictures and signals: pooling, resizing, padding, and channels that become pixels."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from .cut import CutWalk, rule, rule_of_axes
from .operations import Step
from .values import Axis


@rule_of_axes("pool", linear=False)
def spatial(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    size = step.picture_dims
    for axis in axes[given.ndim - size :]:
        walk.mixed(axis, f"{walk.name!r} runs along the axis of the neurons")
    return [*axes[: given.ndim - size], *[None] * size]


@rule_of_axes("patches", "from pixels")
def into_channels(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    """Every channel of every place of a patch, one behind the other; places of a picture are left, or of patches."""
    *batch, channels, _, _ = axes
    made = np.repeat(channels, _places(step)) if isinstance(channels, np.ndarray) else None
    return [*batch, made, *[None] * (step.out.ndim - len(batch) - 1)]


@rule_of_axes("from patches", "to pixels")
def out_of_channels(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    """Patches laid beside or over each other: every place of a patch is of a channel."""
    *batch, channels = axes[: -1 if step.row.kind == "from patches" else -2]
    made: Axis = None
    if isinstance(channels, np.ndarray):
        parts = walk.atoms.split(channels.reshape(-1, _places(step)))
        walk.atoms.choose(parts, 0)
        made = parts.factors[0]
    return [*batch, made, None, None]


def _places(step: Step) -> int:
    """Of a patch."""
    size = step.args[2] if step.row.kind == "from patches" else step.args[1]
    return math.prod(size) if isinstance(size, (tuple, list)) else size**2


@rule("unpool")
def max_unpool(walk: CutWalk, step: Step) -> None:
    """Every entry goes to the place in its picture that an index says."""
    given, indices = step.args[0], step.args[1]
    size = int(step.name[-2])
    axes, places = walk.axes(given), walk.axes(indices)
    for axis in (*axes[-size:], *places[-size:]):
        walk.mixed(axis, f"{walk.name!r} runs along the axis of the neurons")
    pairs = zip(axes, places, strict=True)
    made = [walk.join(one, other) for one, other in pairs]
    walk.give(step.out, [*made[:-size], *[None] * size], walk.value(given))


@rule_of_axes("grid", linear=False)
def grid_sample(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    """Every channel of a picture at points between its pixels."""
    for axis in (*axes[2:], *walk.axes(step.args[1])[1:]):
        walk.mixed(axis, f"{walk.name!r} looks pixels up along the axis of the neurons")
    return [*axes[:2], *[None] * (given.ndim - 2)]


@rule("restride")
def as_strided(walk: CutWalk, step: Step) -> None:
    """What pooling to one entry does, in place: axes of length 1 get other strides, and nothing moves."""
    given: Tensor = step.args[0]
    in_place = step.out is given and len(walk.value(given).axes) == given.ndim
    if not in_place or not given.squeeze().is_contiguous():
        walk.unknown(step)


@rule_of_axes("window")
def unfold(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    """Pieces of an axis, one behind the other; what lies in a piece becomes the last axis."""
    (dim,) = step.by_place
    walk.mixed(axes[dim], f"{walk.name!r} cuts them into pieces")
    return [*axes[:dim], None, *axes[dim + 1 :], None]


@rule_of_axes("diagonal")
def diagonal(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    for dim in step.by_place:
        walk.mixed(axes[dim], f"{walk.name!r} takes some of them by their places")
    return [*(axis for k, axis in enumerate(axes) if k not in step.by_place), None]
