"""Operations on pictures and signals: pooling, resizing, padding, and channels that become pixels."""

from __future__ import annotations

import math
import re

import numpy as np
from torch import Tensor

from .operations import Step, tensors
from .values import Axis
from .walk import Walk, rule


@rule("pool")
def spatial(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    size = int(match[1]) if (match := re.search(r"(\d)d", step.name)) else 2
    for axis in axes[given.ndim - size :]:
        walk.mixed(axis, f"{walk.name!r} runs along the axis of the neurons")
    for out in tensors(step.out):
        walk.give(out, [*axes[: given.ndim - size], *[None] * size], walk.value(given), linear=False)


@rule("patches")
def im2col(walk: Walk, step: Step) -> None:
    """Every channel of every place of a patch, one behind the other."""
    given: Tensor = step.args[0]
    *batch, channels, _, _ = walk.axes(given)
    places = math.prod(step.args[1])
    made = np.repeat(channels, places) if isinstance(channels, np.ndarray) else None
    walk.give(step.out, [*batch, made, None], walk.value(given))


@rule("restride")
def as_strided(walk: Walk, step: Step) -> None:
    """What pooling to one entry does, in place: axes of length 1 get other strides, and nothing moves."""
    given: Tensor = step.args[0]
    in_place = step.out is given and len(walk.value(given).axes) == given.ndim
    if not in_place or not given.squeeze().is_contiguous():
        walk.unknown(step)


@rule("to pixels")
def pixel_shuffle(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    channels, times = axes[-3], step.args[1] ** 2
    made: Axis = None
    if isinstance(channels, np.ndarray):
        parts = walk.atoms.split(channels.reshape(-1, times))
        walk.atoms.choose(parts, 0)
        made = parts.factors[0]
    walk.give(step.out, [*axes[:-3], made, None, None], walk.value(given))


@rule("from pixels")
def pixel_unshuffle(walk: Walk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes, times = walk.axes(given), step.args[1] ** 2
    channels = axes[-3]
    made = np.repeat(channels, times) if isinstance(channels, np.ndarray) else None
    walk.give(step.out, [*axes[:-3], made, None, None], walk.value(given))
