"""x[…] and x[…] = value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .call import Call, Found, aligned
from .track import Track, track_of


def get_item(call: Call, out: Tensor) -> Found:
    x, index = call.args
    return indexed(call, x, index, out, track_of(x))


def indexed(call: Call, x: Tensor, index: Any, out: Tensor, track: Found) -> Found:
    """Where the samples lie in x[index]."""
    entries = _spread(index, x)
    if entries is None:
        return call.mixed("is given an index that is not followed")
    advanced = [e for e in entries if isinstance(e[1], Tensor)]
    by_samples = [(e, found) for e in advanced if isinstance(found := track_of(e[1]), Track)]
    if not advanced:
        return _basic(call, entries, track)
    picks = isinstance(track, Track) and any(e[0] <= track.axis < e[0] + e[2] for e in advanced)
    if by_samples and isinstance(track, Track) and not picks:
        return call.mixed("picks from other dimensions by samples")
    if by_samples and any(e[1].dtype == torch.bool for e, _ in by_samples):
        return call.mixed("takes rows by a mask that depends on samples")
    # Dimensions of the index take the place of the first indexed dimension, or the front where they lie apart.
    spans = [k for k, e in enumerate(entries) if isinstance(e[1], (Tensor, int)) and e[1] is not None]
    together = spans == list(range(spans[0], spans[-1] + 1))
    front = [e for e in entries[: spans[0]]] if together else []
    place = sum(1 for e in front if e[1] is None or isinstance(e[1], slice))
    wide = _index_dims([e[1] for e in advanced])
    if picks:
        assert isinstance(track, Track)
        return _paired(call, x, entries, advanced, track, place, wide)
    if by_samples:
        tracks = {found._replace(axis=place + wide - e[1].ndim + found.axis) for e, found in by_samples}
        return tracks.pop() if len(tracks) == 1 and track is None else call.mixed("joins samples of different layout")
    if not isinstance(track, Track):
        return track
    return _kept(call, entries, track, place, wide)


def _spread(index: Any, x: Tensor) -> list[tuple[int, Any, int]] | None:
    """(first dimension, entry, dimensions) for every entry of the index, the ellipsis spread out."""
    given = list(index) if isinstance(index, tuple) else [index]
    given = [torch.tensor(e) if isinstance(e, (list, range)) and _plain(e) else e for e in given]
    if any(not (e is None or e is Ellipsis or isinstance(e, (int, slice, Tensor))) for e in given):
        return None
    given = [e if not isinstance(e, bool) else None for e in given]
    takes = [
        0
        if e is None or e is Ellipsis
        else (e.ndim if isinstance(e, Tensor) and e.dtype in (torch.bool, torch.uint8) else 1)
        for e in given
    ]
    left = x.ndim - sum(takes)
    if not any(e is Ellipsis for e in given):
        given.append(Ellipsis)
        takes.append(0)
    entries: list[tuple[int, Any, int]] = []
    dim = 0
    for entry, take in zip(given, takes, strict=True):
        if entry is Ellipsis:
            entries += [(dim + k, slice(None), 1) for k in range(left)]
            dim += left
            left = 0
        elif isinstance(entry, Tensor) and entry.ndim == 0 and entry.dtype != torch.bool:
            entries.append((dim, entry, take))
            dim += take
        else:
            entries.append((dim, entry, take))
            dim += take
    return entries


def _plain(value: Any) -> bool:
    return all(isinstance(each, int) or (isinstance(each, (list, tuple)) and _plain(each)) for each in value)


def _index_dims(indices: list[Tensor]) -> int:
    return max(1 if t.dtype in (torch.bool, torch.uint8) else t.ndim for t in indices)


def _slice(call: Call, track: Track, entry: slice, axis: int) -> Found:
    """A slice along the samples' dimension keeps them where it takes whole rounds of all samples."""
    size = track.outer * call.n * track.inner
    start, stop, step = entry.indices(size)
    whole = call.n * track.inner
    if (start, stop, step) == (0, size, 1):
        return track._replace(axis=axis)
    if step == 1 and start % whole == 0 and stop > start and (stop - start) % whole == 0:
        return Track(axis, (stop - start) // whole, track.inner)
    return call.mixed("takes some of the samples")


def _basic(call: Call, entries: list[tuple[int, Any, int]], track: Found) -> Found:
    """Integers, slices and None alone."""
    if not isinstance(track, Track):
        return track
    place = 0
    for dim, entry, _ in entries:
        if entry is None:
            place += 1
        elif dim == track.axis:
            return (
                _slice(call, track, entry, place)
                if isinstance(entry, slice)
                else call.mixed("takes one of the samples")
            )
        elif isinstance(entry, slice):
            place += 1
    return call.mixed("loses the samples")


def _kept(call: Call, entries: list[tuple[int, Any, int]], track: Track, place: int, wide: int) -> Found:
    """The samples' dimension is not picked from: where it comes to lie."""
    here, passed = 0, False
    for k, (dim, entry, take) in enumerate(entries):
        if k == _first_advanced(entries, place):
            here, passed = here + wide, True
        if entry is None:
            here += 1
        elif isinstance(entry, slice):
            if dim == track.axis:
                if not passed and place == 0 and _apart(entries):
                    here += wide
                return _slice(call, track, entry, here)
            here += take
    return call.mixed("loses the samples")


def _apart(entries: list[tuple[int, Any, int]]) -> bool:
    spans = [k for k, e in enumerate(entries) if isinstance(e[1], (Tensor, int))]
    return spans != list(range(spans[0], spans[-1] + 1))


def _first_advanced(entries: list[tuple[int, Any, int]], place: int) -> int:
    """The entry in whose place the index's dimensions come; −1 where they come first of all."""
    if _apart(entries):
        return -1
    return next(k for k, e in enumerate(entries) if isinstance(e[1], (Tensor, int)))


def _paired(
    call: Call, x: Tensor, entries: list[tuple[int, Any, int]], advanced: list[tuple[int, Any, int]], track: Track,
    place: int, wide: int,
) -> Found:  # fmt: skip
    """x[arange(N), positions]: for every sample something of its own."""
    entry = next(e for e in advanced if e[0] <= track.axis < e[0] + e[2])
    own = entry[1]
    size = track.outer * call.n * track.inner
    if (
        own.dtype == torch.bool
        or track_of(own) is not None
        or own.numel() != size
        or (track.outer, track.inner) != (1, 1)
    ):
        return call.mixed("picks from the samples")
    # Whether every sample is asked for its own row is told by the values.
    if not torch.equal(own.flatten(), torch.arange(size, device=own.device)):
        return call.mixed("picks from the samples")
    spot = next((d for d in range(own.ndim) if own.shape[d] == size), 0)
    axis = place + wide - own.ndim + spot
    for other in advanced:
        found = track_of(other[1])
        if other is not entry and isinstance(found, Track):
            there = place + wide - other[1].ndim + found.axis
            if (there, found.outer, found.inner) != (axis, 1, 1):
                return call.mixed("joins samples of different layout")
    return Track(axis)


def set_item(call: Call, out: Tensor) -> Found:
    """The track of x after x[index] = value."""
    x, index, value = call.args
    track = track_of(x)
    given = track_of(value) if isinstance(value, Tensor) else None
    entries = _spread(index, x)
    if entries is None:
        return call.mixed("is given an index that is not followed")
    by_samples = [e for e in entries if isinstance(e[1], Tensor) and track_of(e[1]) is not None]
    if given is None and not by_samples:
        return track
    with torch.no_grad():
        region = x.detach()[index]
    candidates = (
        [track]
        if track is not None
        else [Track(axis, *rest) for axis in range(x.ndim) for rest in _layouts(call, x.shape[axis], given)]
    )
    for candidate in candidates:
        if not isinstance(candidate, Track):
            return candidate
        there = indexed(call, x, index, region, candidate)
        if not isinstance(there, Track):
            continue
        wanted = aligned(call, region, [(value, given)]) if isinstance(given, Track) else there
        if wanted == there:
            return candidate
    return call.mixed("writes samples into a tensor of another layout")


def _layouts(call: Call, size: int, given: Found) -> list[tuple[int, int]]:
    """(outer, inner) that a dimension of `size` could have for samples laid out as `given`."""
    if not isinstance(given, Track) or size % call.n:
        return []
    return [(given.outer, given.inner)] if size == given.outer * call.n * given.inner else []
