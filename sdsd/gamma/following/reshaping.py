"""Where a reshape puts the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .tracks import Track

_A_LENGTH = 1_000_003
"""A prime: no other size is a multiple of it."""


def reshaped(track: Track, old: Sequence[int], new: Sequence[int], n: int) -> Track | None:
    """Where a reshape puts the samples; None where the new dimensions split them.

    In row-major order the entries are (before, N, after). New dimension j holds the samples if what lies before it
    divides `before` and what lies after it divides `after`; the quotients are `outer` and `inner`. More than one
    dimension can fit only if N is 1: the one that other batches would have is preferred.
    """
    axis, outer, inner = track
    if tuple(old) == tuple(new):
        return track
    before, after = math.prod(old[:axis]) * outer, math.prod(old[axis + 1 :]) * inner
    if 0 in old:
        return _without_entries(track, old, new, n)
    fitting = []
    ahead = 1
    for j, size in enumerate(new):
        behind = math.prod(new[j + 1 :])
        if before % ahead == 0 and after % behind == 0:
            fitting.append(Track(j, before // ahead, after // behind))
        ahead *= size
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    from_right = len(new) - len(old) + axis
    return min(fitting, key=lambda t: (t.outer * t.inner, t.axis not in (axis, from_right), abs(t.axis - axis)))


def _without_entries(track: Track, old: Sequence[int], new: Sequence[int], n: int) -> Track | None:
    """The same where there are no entries (sequences of length zero): what it is for every other length.

    Where several dimensions have no entry, the length of one does not follow from the other's: what lies behind the
    samples may change then, and nothing else.
    """
    if list(old).count(0) != 1 or list(new).count(0) != 1:
        front = tuple(old[: track.axis + 1])
        return track if all(front) and tuple(new[: track.axis + 1]) == front else None
    before, after = (math.prod(size for size in sizes if size) for sizes in (old, new))
    old, new = ([size or _A_LENGTH * rest for size in sizes] for sizes, rest in ((old, after), (new, before)))
    inner = track.inner or old[track.axis] // (n * (track.outer or 1))
    outer = old[track.axis] // (n * inner) if inner else 0
    whole = outer * n * inner == old[track.axis]
    put = reshaped(Track(track.axis, outer, inner), old, new, n) if whole else None
    if put is None:
        return None
    return Track(put.axis, *(0 if share % _A_LENGTH == 0 else share for share in put[1:]))
