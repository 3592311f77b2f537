"""Indexing, read and written: brackets, gather, scatter, index_select, and their kin.

An index that is a constant may pick rows along the samples only if the samples it picks are again in order: its
values are read for that (of a tensor on an accelerator only where nothing is being captured).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .places import names_its_own, piece, rows_written, sequence, single_at
from .table import TORCH, Call, register
from .tracks import Mixed, Single, Track, Verdict, track_of


class Place(NamedTuple):
    """What became of one dimension of an indexed tensor: `kept` under a slice, or `picked` by an index."""

    dimension: int
    index: Any
    out: int


class Indexing(NamedTuple):
    """How an index maps dimensions: those kept, those picked by tensors, and where the picked ones went."""

    kept: list[Place]
    picked: list[Place]
    dropped: dict[int, int]
    """Dimensions that an integer took away, and that integer."""
    start: int
    width: int


def read_index(ndim: int, index: Any) -> Indexing:
    """Read an index as torch does: integers first drop their dimension, then tensors pick jointly."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [torch.as_tensor(i) if isinstance(i, (list, range)) or type(i).__name__ == "ndarray" else i for i in items]
    used = sum(
        0
        if i is None or i is Ellipsis or isinstance(i, bool)
        else i.dim()
        if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)
        else 1
        for i in items
    )
    if not any(i is Ellipsis for i in items):
        items.append(Ellipsis)
    slots: list[tuple[int | None, Any]] = []  # (dimension, or None for a new one; slice or tensor)
    dropped: dict[int, int] = {}
    d = 0
    for item in items:
        if item is Ellipsis:
            slots += [(d + k, slice(None)) for k in range(ndim - used)]
            d += ndim - used
        elif item is None:
            slots.append((None, None))
        elif isinstance(item, bool):
            raise ValueError("an index True or False")
        elif isinstance(item, slice):
            slots.append((d, item))
            d += 1
        elif isinstance(item, Tensor):
            if item.dtype in (torch.bool, torch.uint8):
                if item.dim() == 0:
                    raise ValueError("a mask without dimensions")
                slots += [(d + k, item) for k in range(item.dim())]
                d += item.dim()
            else:
                slots.append((d, item))
                d += 1
        else:
            dropped[d] = int(item)
            d += 1
    places = [k for k, (_, item) in enumerate(slots) if isinstance(item, Tensor)]
    width = 0
    if places:
        shapes = [(1,) if slots[k][1].dtype in (torch.bool, torch.uint8) else tuple(slots[k][1].shape) for k in places]
        width = max(len(s) for s in shapes)
    together = bool(places) and places[-1] - places[0] == len(places) - 1
    start = places[0] if together else 0
    kept: list[Place] = []
    picked: list[Place] = []
    at = 0 if together or not places else width
    for k, (dimension, item) in enumerate(slots):
        if together and k == start:
            at += width
        if isinstance(item, Tensor):
            assert dimension is not None
            picked.append(Place(dimension, item, start))
        else:
            if dimension is not None:
                kept.append(Place(dimension, item, at))
            at += 1
    return Indexing(kept, picked, dropped, start, width)


def picked_in_order(call: Call, index: Tensor, track: Track, size: int) -> tuple[int, int, int] | None:
    """(dimension of the index, outer, inner) if a constant index reads the samples in order along one dimension."""
    if index.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    values = index.detach().cpu()
    samples = (values % size).div(track.inner, rounding_mode="floor") % call.n
    for along in range(samples.dim()):
        line = samples.movedim(along, -1).reshape(-1, samples.shape[along])
        if line.numel() and bool((line == line[0]).all()):
            run = sequence(line[0].tolist(), call.n)
            if run is not None:
                return along, *run
    return None


def sliced(call: Call, x: Tensor, item: slice, track: Track, out: int) -> Verdict:
    start, stop, step = item.indices(x.shape[track.axis])
    if step == 1:
        part = piece(track, start, max(0, stop - start), call.n)
        if part is not None:
            return part._replace(axis=out)
    order = sequence([(i // track.inner) % call.n for i in range(start, stop, step)], call.n)
    return Track(out, *order) if order is not None else call.over(x)


def _mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def index_verdicts(call: Call, x: Tensor, how: Indexing, track: Verdict) -> list[Verdict]:
    """Where the samples of the indices, and of `x`, come to lie in x[index]."""
    verdicts: list[Verdict] = []
    for place in how.picked:
        held = track_of(place.index)
        if held is None:
            continue
        if isinstance(held, Track):
            if _mask(place.index):
                return [call.mixed("by a mask that depends on samples")]
            held = held._replace(axis=how.start + how.width - place.index.dim() + held.axis)
        verdicts.append(held)
    if not isinstance(track, Track):
        return [*verdicts, track]
    if track.axis in how.dropped:
        return [*verdicts, single_at(x, [how.dropped[track.axis]], call.n) or call.over(x)]
    for place in how.kept:
        if place.dimension == track.axis:
            return [*verdicts, sliced(call, x, place.index, track, place.out)]
    for place in how.picked:
        if place.dimension == track.axis:
            held = track_of(place.index)
            if names_its_own(place.index, held, track, x.shape[track.axis], call.n):
                return verdicts
            if held is not None or _mask(place.index):
                return [call.over(x)]
            order = picked_in_order(call, place.index, track, x.shape[track.axis])
            if order is None:
                return [*verdicts, _of_one(x, place.index, call.n) or call.over(x)]
            axis = how.start + how.width - place.index.dim() + order[0]
            return [*verdicts, Track(axis, order[1], order[2])]
    return [call.mixed("with an index that could not be read")]


def _of_one(x: Tensor, index: Tensor, n: int) -> Single | None:
    """What a constant index picks, if all of it is of one sample."""
    unread = index.is_cuda and torch.cuda.is_current_stream_capturing()
    return None if unread or not index.numel() else single_at(x, index.flatten().tolist(), n)


def getitem(call: Call, input: Tensor, index: Any) -> Verdict:
    return call.agreed(index_verdicts(call, input, read_index(input.dim(), index), track_of(input)))


def setitem(call: Call, input: Tensor, index: Any, value: Any) -> Verdict:
    """input[index] = value. The value's samples have to lie where the region of `input` has them, or will have."""
    how = read_index(input.dim(), index)
    own = track_of(input)
    if isinstance(own, Mixed):
        return own
    source = track_of(value) if isinstance(value, Tensor) else None
    if isinstance(source, Mixed):
        return source
    masks = [p.index for p in how.picked if _mask(p.index)]
    if masks and any(track_of(m) is not None for m in masks):
        return masked_write(call, input, masks[0], value, how)
    region = index_verdicts(call, input, how, None)
    width = len(how.kept) + how.width + sum(1 for i in (index if isinstance(index, tuple) else (index,)) if i is None)
    if isinstance(source, Track):
        assert isinstance(value, Tensor)
        region.append(source._replace(axis=source.axis + width - value.dim()))
    wanted = call.agreed(region)
    if not isinstance(wanted, Track):
        return own if wanted is None else wanted
    return back(call, input, how, wanted, own)


def back(call: Call, input: Tensor, how: Indexing, wanted: Track, own: Verdict) -> Verdict:
    """The dimension of the whole tensor that `wanted`, in a region of it, runs along."""
    verdict: Verdict = call.mixed(
        f"of samples into a part of shape {tuple(input.shape)} that does not hold all of them"
    )
    for place in how.kept:
        if place.out == wanted.axis and place.index.indices(input.shape[place.dimension]) == (
            0,
            input.shape[place.dimension],
            1,
        ):
            verdict = Track(place.dimension, wanted.outer, wanted.inner)
    for place in how.picked:
        if _mask(place.index) or track_of(place.index) is not None:
            continue
        target = Track(place.dimension, wanted.outer, wanted.inner)
        if input.shape[place.dimension] != wanted.outer * call.n * wanted.inner:
            continue
        order = picked_in_order(call, place.index, target, input.shape[place.dimension])
        if order is None or Track(how.start + how.width - place.index.dim() + order[0], *order[1:]) != wanted:
            continue
        verdict = target
    for place in how.picked if isinstance(verdict, Mixed) else ():
        held = wanted._replace(axis=wanted.axis - (how.start + how.width - place.index.dim()))
        rows = rows_written(input, place.dimension, place.index, held, call.n)
        if rows is not None:
            return rows
    return call.agreed([own, verdict])


def masked_write(call: Call, input: Tensor, mask: Tensor, value: Any, how: Indexing) -> Verdict:
    """input[mask] = one value, or the same row of values at each place; the mask depends on samples."""
    alike = how.picked[0].dimension == 0 and isinstance(value, Tensor) and value.dim() <= input.dim() - mask.dim()
    if isinstance(value, Tensor) and value.numel() != 1 and (not alike or track_of(value) is not None):
        return call.mixed("by a mask that depends on samples")
    track = track_of(mask)
    if len({id(p.index) for p in how.picked}) != 1 or not isinstance(track, Track):
        return call.mixed("by several masks") if isinstance(track, Track) else track
    return call.agreed([track_of(input), track._replace(axis=track.axis + how.picked[0].dimension)])


def gather(call: Call, input: Tensor, dim: int, index: Tensor, **_: Any) -> Verdict:
    """out[i, j] = input[index[i, j], j] for dim = 0."""
    dim %= max(1, input.dim())
    track = track_of(input)
    if isinstance(track, Track):
        if track.axis == dim:
            # Every row asked for itself: by the values of a constant index, which no sample has a part in.
            held = track_of(index)
            if names_its_own(index, held, track, input.shape[dim], call.n):
                return held
            own = held is None and index.shape == input.shape
            return track if own and torch.equal(index, _own_rows(index, dim)) else call.over(input)
        if index.shape[track.axis] != input.shape[track.axis]:
            track = piece(track, 0, index.shape[track.axis], call.n) or call.over(input)
    return call.agreed([track, track_of(index)])


def _own_rows(index: Tensor, dim: int) -> Tensor:
    shape = [1] * index.dim()
    shape[dim] = -1
    return torch.arange(index.shape[dim], device=index.device).view(shape).expand_as(index)


def take_along(call: Call, input: Tensor, indices: Tensor, dim: int | None = None, **_: Any) -> Verdict:
    if dim is None:
        return call.over(input) if track_of(input) is not None else call.mixed("of all entries")
    dim %= input.dim()
    track = track_of(input)
    if isinstance(track, Track) and track.axis == dim:
        return call.over(input)
    return call.agreed([track, track_of(indices)])


def scatter(call: Call, input: Tensor, dim: int, index: Tensor, src: Any = None, *_: Any, **named: Any) -> Verdict:
    """input[index[i, j], j] = src[i, j] for dim = 0; also scatter_add and scatter_reduce."""
    dim %= max(1, input.dim())
    source = named.get("value", src)
    if isinstance(source, Tensor) and source.dim() == 0:
        return (
            call.mixed("of a value that depends on samples")
            if track_of(source) is not None
            else scatter(call, input, dim, index)
        )
    given = call.agreed(track_of(x) for x in (index, source) if isinstance(x, Tensor))
    if isinstance(given, Track) and given.axis == dim:
        fits = not isinstance(source, Tensor) or source.shape[dim] == index.shape[dim]
        rows = rows_written(input, dim, index, given, call.n) if fits else None
        return call.over(input, dim) if rows is None else rows
    tensors = [x for x in (input, index, source) if isinstance(x, Tensor)]
    verdict = call.agreed(track_of(x) for x in tensors)
    if isinstance(verdict, Track) and verdict.axis == dim:
        own = track_of(input)
        if own is not None and track_of(index) is None and not isinstance(source, Tensor):
            return own
        return verdict if _own_places(call, index, dim, verdict, input.shape[dim]) else call.over(input, dim)
    return verdict


def _own_places(call: Call, index: Tensor, dim: int, track: Track, size: int) -> bool:
    """Whether a constant index names, at every position along `dim`, places of that position's own sample."""
    if track_of(index) is not None or (index.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    named, own = (
        (places % size).div(track.inner, rounding_mode="floor") % call.n for places in (index, _own_rows(index, dim))
    )
    return torch.equal(named, own)


def index_select(call: Call, input: Tensor, dim: int, index: Tensor, **_: Any) -> Verdict:
    dim %= input.dim()
    slots: tuple[Any, ...] = (*[slice(None)] * dim, index.reshape(-1) if track_of(index) is None else index)
    return getitem(call, input, slots)


def index_write(
    call: Call, input: Tensor, dim: int, index: Tensor, source: Any = None, *_: Any, value: Any = None, **__: Any
) -> Verdict:
    """index_copy, index_add, index_reduce, index_fill: slices of `source` into those of `input`, or one `value`."""
    source = value if source is None else source
    dim %= input.dim()
    held = track_of(index)
    if isinstance(held, Track):
        return setitem(call, input, (*[slice(None)] * dim, index), source)
    if held is not None:
        return call.mixed("at positions that depend on samples")
    verdicts = [track_of(x) for x in (input, source) if isinstance(x, Tensor)]
    if not isinstance(source, Tensor) or (source.dim() == 0 and verdicts[-1] is None):
        return verdicts[0]  # A constant, wherever it goes.
    if any(isinstance(v, Track) and v.axis == dim for v in verdicts):
        return setitem(call, input, (*[slice(None)] * dim, index), source)
    return call.agreed(verdicts)


def index_put(call: Call, input: Tensor, indices: Sequence[Any], values: Any, *_: Any, **__: Any) -> Verdict:
    return setitem(call, input, tuple(slice(None) if i is None else i for i in indices), values)


def masked_scatter(call: Call, input: Tensor, mask: Tensor, source: Tensor, **_: Any) -> Verdict:
    """Entries of `source` where the mask says: right where each sample has as many places as entries of its own."""
    track, by, given = track_of(input), track_of(mask), track_of(source)
    rows = isinstance(track, Track) and track[:2] == (0, 1) and track == by and mask.dim() == input.dim()
    if rows and isinstance(given, Track) and given[:2] == (0, 1):
        places = mask.detach().expand_as(input).reshape(call.n, -1).sum(1)
        if bool((places == source.numel() // call.n).all()):
            return track
    return call.mixed("which deals the source out in the order of the mask over all samples")


def take(call: Call, input: Tensor, index: Tensor, **_: Any) -> Verdict:
    return call.over(input) if track_of(input) is not None else track_of(index)


def searchsorted(call: Call, sorted_sequence: Tensor, input: Any, **_: Any) -> Verdict:
    verdicts = [track_of(x) for x in (sorted_sequence, input) if isinstance(x, Tensor)]
    if sorted_sequence.dim() == 1 and verdicts[0] is not None:
        return call.over(sorted_sequence)
    track = verdicts[0]
    if isinstance(track, Track) and track.axis == sorted_sequence.dim() - 1:
        return call.over(sorted_sequence)
    return call.agreed(verdicts)


register("__getitem__", getitem, TORCH)
register("__setitem__", setitem, TORCH)
register("gather", gather, TORCH)
register("take_along_dim", take_along, TORCH)
register("scatter scatter_add scatter_reduce", scatter, TORCH)
register("index_select", index_select, TORCH)
register("index_copy index_add index_reduce index_fill", index_write, TORCH)
register("index_put", index_put, TORCH)
register("masked_scatter", masked_scatter, TORCH)
register("take", take, TORCH)
register("searchsorted", searchsorted, TORCH)
