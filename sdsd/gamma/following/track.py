"""Where a tensor carries samples, and how a tensor remembers it."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

from torch import Tensor

KEY = "_sdsd_track"
"""The attribute of a tensor that holds its `Track` or `Mixed`."""


class Track(NamedTuple):
    """Dimension `axis` has size outer·N·inner; index along it is (o·N + n)·inner + i, n the sample."""

    axis: int
    outer: int = 1
    inner: int = 1


class Summed(NamedTuple):
    """The tensor is a sum over samples of something of each alone, as a loss is; `reason` says where it was summed."""

    reason: str


class Mixed(NamedTuple):
    """The tensor depends on samples that cannot be told apart in it; `reason` says through which operation."""

    reason: str


class Part(NamedTuple):
    """One of `count` pieces that a tensor was parted into along its samples; put together again they are followed on."""

    reason: str
    key: int
    place: int
    count: int


Found: TypeAlias = "Track | Summed | Mixed | Part | None"


def track_of(tensor: Tensor) -> Found:
    """Where `tensor` carries samples; None where it carries none."""
    found: Found = tensor.__dict__.get(KEY)
    return found


def set_track(tensor: Tensor, track: Found) -> None:
    """Remember where `tensor` carries samples, or forget it."""
    if track is None:
        tensor.__dict__.pop(KEY, None)
        tensor.__dict__.pop(SECOND, None)
    else:
        tensor.__dict__[KEY] = track


SECOND = "_sdsd_second"
"""The attribute of tensors that come from the model's further inputs alone: these may be no samples, but a mask (T, T)."""


def is_second(tensor: Tensor) -> bool:
    return SECOND in tensor.__dict__


def set_second(tensor: Tensor) -> None:
    tensor.__dict__[SECOND] = True


def arrange(x: Tensor, track: Track, n: int, features: int) -> Tensor:
    """`x` as (N, T, *its last `features` dimensions): samples first, all other dimensions joined; a view if it can be."""
    if track.axis == 0 and track.outer == 1:
        return x.reshape(n, -1, *x.shape[x.ndim - features :])
    split = x.unflatten(track.axis, (track.outer, n, track.inner)).movedim(track.axis + 1, 0)
    return split.reshape(n, -1, *x.shape[x.ndim - features :])


def reshaped(old: tuple[int, ...], new: tuple[int, ...], track: Track, n: int) -> Track | None:
    """The track after a reshape in row-major order; None where the samples are split over dimensions.

    In row-major order the entries are (pre, N, post); the new dimension j has to hold a whole number of each.
    """
    pre = math.prod(old[: track.axis]) * track.outer
    post = math.prod(old[track.axis + 1 :]) * track.inner
    before = 1
    for axis, size in enumerate(new):
        after = math.prod(new[axis + 1 :])
        if before and after and pre % before == 0 and post % after == 0:
            outer, inner = pre // before, post // after
            if outer * n * inner == size:
                return Track(axis, outer, inner)
        before *= size
    return None
