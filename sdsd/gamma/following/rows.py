"""Rows that a mask or an index chose by what the samples hold, as experts' are chosen, and their way back.

`x[mask]`, `mask.nonzero()` and `torch.where(mask)` choose rows, whose owners are read off the mask; sorting whole
numbers, as those of experts, orders all rows. On rows of the same choice every other function works as on a batch of
rows. `index_add`, `index_copy` and writes into brackets bring them
back: right where every row goes to a place of its own sample, which its index says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import elementwise, indexing, reductions, shapes
from .indexing import read_index
from .places import joined, owners_of, rows_at, sequence
from .table import name_of
from .tracks import Mixed, Owners, Rows, Single, Track, Verdict, chosen_by, owners_of_rows, rows_in_view, track_of


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def chosen(rule: Any, func: Any, args: Sequence[Any], out: Any, n: int) -> Any:
    """The verdict of a call that chooses rows by a mask with samples, or sorts them; None where it is none."""
    if rule is indexing.getitem and len(args) > 1:
        masked = _is_mask(args[1]) and args[1].dim() and track_of(args[1]) is not None
        return _picked_by_mask(args[0], args[1], n) if masked else _at_places(args[0], args[1], n)
    if rule in (reductions.sort, reductions.along) and name_of(func).split(".")[-1] in ("sort", "argsort"):
        return _sorted(args[0], out, n)
    alone = rule is reductions.chosen or (rule is elementwise.where and len(args) == 1)
    return _positions(args[0], out, n) if alone and args else None


def _positions(mask: Tensor, out: Any, n: int) -> Any:
    """nonzero, argwhere, torch.where(mask): positions of the places where the mask is true."""
    owners = chosen_by(mask, n)
    if owners is None or (isinstance(out, Tensor) and out.shape == (mask.numel(), mask.dim())):
        return None
    verdict = Rows(Track(0), owners)
    return verdict if isinstance(out, Tensor) else [verdict] * len(out)


def _sorted(x: Tensor, out: Any, n: int) -> Any:
    """sort and argsort of whole numbers (rows,), as those of the experts that tokens go to: the rows in their order."""
    track = track_of(x)
    if type(track) is not Track or x.dim() != 1 or x.is_floating_point() or x.dtype == torch.bool:
        return None
    indices = out if isinstance(out, Tensor) else out[1]
    samples = owners_of_rows(indices.div(track.inner, rounding_mode="floor") % n)
    owners = Owners(samples, x.shape[0], track.inner, x.detach()[indices])
    owners.places, rows = None if rows_in_view() else indices, Rows(Track(0), owners)
    return rows if isinstance(out, Tensor) else [rows, rows]


def sorted_offsets(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Where torch._grouped_mm(rows, matrices, offs) parts rows that were sorted by their group: `offs`; else None.

    Then every row meets the matrix of its own number, whatever other samples there are.
    """
    offs = args[2] if len(args) > 2 else kwargs.get("offs")
    rows, matrices = args[:2]
    held = track_of(rows)
    owners = held.owners if type(held) is Rows else rows_in_view()
    if owners is None or owners.order is None or not isinstance(offs, Tensor) or offs.dim() != 1 or matrices.dim() != 3:
        return None
    if offs.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    numbers = torch.arange(len(offs), device=offs.device, dtype=owners.order.dtype)
    counted = torch.searchsorted(owners.order, numbers, right=True)
    return offs if len(offs) == matrices.shape[0] and torch.equal(counted, offs.to(counted.dtype)) else None


def _picked_by_mask(x: Tensor, mask: Tensor, n: int) -> Verdict:
    """x[mask]: the first dimensions of `x` become one, of the places where the mask is true."""
    if track_of(x) is not None and track_of(x) != track_of(mask):
        return None
    owners = chosen_by(mask, n)
    return None if owners is None else Rows(Track(0), owners)


def _at_places(x: Tensor, index: Any, n: int) -> Rows | Single | None:
    """x[index] where a constant index takes samples out of their order; None where it does not, or cannot be read."""
    track, how = track_of(x), read_index(x.dim(), index)
    if type(track) is not Track or any(track_of(place.index) is not None for place in how.picked):
        return None
    for place in how.kept:
        if place.dimension == track.axis:
            length = x.shape[track.axis]
            return rows_at(x, range(length)[place.index], place.out, n)
    if any(place.index.dim() != 1 or _is_mask(place.index) for place in how.picked):
        return None
    for place in how.picked:
        if place.dimension == track.axis and len(place.index) == max(len(other.index) for other in how.picked):
            return rows_at(x, _values(place.index), how.start, n)
    return None


def _values(index: Tensor) -> list[int]:
    unread = index.is_cuda and torch.cuda.is_current_stream_capturing()
    return [] if unread else index.tolist()


def _picked_again(x: Tensor, index: Any, n: int) -> Verdict:
    """rows[index], a constant index: other rows, or the samples in their order again; None where it is neither."""
    verdict = track_of(x)
    if type(verdict) is not Rows or verdict.owners.known is None or verdict.track != Track(verdict.track.axis):
        return None
    how = read_index(x.dim(), index)
    axis, known = verdict.track.axis, verdict.owners.known
    for place in how.kept:
        if place.dimension == axis:
            chosen, out = known[place.index], place.out
            break
    else:
        if len(how.picked) != 1 or how.picked[0].dimension != axis:
            return None
        at = how.picked[0].index
        if track_of(at) is not None or at.dim() != 1 or _is_mask(at):
            return None
        chosen, out = tuple(known[place] for place in _values(at)), how.start
    if chosen == known or not chosen:
        return verdict._replace(track=Track(out)) if chosen else None
    order = sequence(chosen, n)
    if order is not None:
        return Track(out, *order)
    if len(set(chosen)) == 1:
        return Single(chosen[0])
    return Rows(Track(out), owners_of(chosen, x, verdict.owners.size, verdict.owners.inner))


def on_rows(
    rule: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], n: int, verdicts: Sequence[Verdict]
) -> Verdict | Owners:
    """The verdict of a call on chosen rows; their owners where it is a call on a batch of rows like any other."""
    for verdict in verdicts:
        if type(verdict) is Mixed:
            return verdict
    owners = {v.owners for v in verdicts if type(v) is Rows}
    if rule is shapes.cat:
        dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        together = joined(args[0] if args else kwargs["tensors"], dim, n)
        if together is not None:
            return together
    if len(owners) > 1:
        return Mixed(f"{name_of(func)} of rows that were chosen in different ways")
    (own,) = owners
    if rule is indexing.getitem or (rule is indexing.index_select and len(args) == 3):
        index = args[1] if len(args) == 2 else (*[slice(None)] * (args[1] % args[0].dim()), args[2])
        taken = _put_back(args[0], index, own, n) or _picked(args[0], index, own, n) or _picked_again(args[0], index, n)
        if taken is not None:
            return taken
    if rule is indexing.index_write and len(args) > 2:
        return _added(func, args, kwargs, own, n)
    if rule is indexing.scatter and len(args) > 2:
        return _scattered(func, args, kwargs, own, n)
    if rule is indexing.setitem:
        return _written(args[0], args[1], args[2], own, n)
    if rule is indexing.masked_scatter and len(args) == 3:
        return _dealt(args[0], args[1], args[2], own, n)
    if any(v is not None and type(v) is not Rows for v in verdicts):
        return Mixed(f"{name_of(func)} of chosen rows and of whole samples")
    return own


def of_one_row(verdict: Any, out: Any, n: int) -> Any:
    """The verdict of a call on one chosen row, or on none, where its rule lost the row.

    All of what came of one row alone is of it, along whichever dimension it is said to lie, and of none nothing is. A
    rule cannot tell from sizes of 1 and 0 where the row went.
    """
    outputs = [out] if isinstance(out, Tensor) else list(out)
    verdicts = verdict if isinstance(verdict, list) else [verdict] * len(outputs)
    return [
        _anywhere(x, n) or each if type(each) is Mixed or (type(each) is Track and not _there(each, x, n)) else each
        for x, each in zip(outputs, verdicts, strict=True)
    ]


def _there(track: Track, x: Tensor, n: int) -> bool:
    return track.axis < x.dim() and x.shape[track.axis] == track.outer * n * track.inner


def _anywhere(x: Tensor, n: int) -> Track | None:
    """A dimension that one row may lie along, or none of it."""
    if n:
        return Track(0, 1, x.shape[0]) if x.numel() and x.dim() else None
    return next((Track(axis) for axis, size in enumerate(x.shape) if not size), None)


def _belongs(index: Tensor, owners: Owners, size: int, inner: int, n: int) -> bool:
    """Whether all positions (rows, …) along a dimension with samples are of the row's own sample."""
    if not index.dim() or (index.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    samples = (index.detach() % size).div(inner, rounding_mode="floor") % n
    own = owners.samples.view(-1, *[1] * (index.dim() - 1))
    return len(samples) == len(own) and bool((samples == own).all())


def _rows_of(index: Any, owners: Owners) -> bool:
    """Whether `index` is a position for each of the rows."""
    if not isinstance(index, Tensor) or index.dim() != 1:
        return False
    held = track_of(index)
    constant = held is None and len(index) == len(owners.samples) and not _is_mask(index)
    return constant or held == Rows(Track(0), owners)


def _picked(x: Tensor, index: Any, owners: Owners, n: int) -> Verdict:
    """x[index] of whole samples, the index being rows: those of each row's own sample."""
    track = track_of(x)
    if type(track) is not Track:
        return None
    how = read_index(x.dim(), index)
    picked = [place.index for place in how.picked]
    if not all(_rows_of(each, owners) or (track_of(each) is None and each.dim() < 2) for each in picked):
        return Mixed("an index of chosen rows among others")
    mine = [place for place in how.picked if place.dimension == track.axis and _rows_of(place.index, owners)]
    if not mine or not _belongs(mine[0].index, owners, x.shape[track.axis], track.inner, n):
        return Mixed("rows read at places of other samples")
    return Rows(Track(how.start), owners)


def _put_back(x: Tensor, index: Any, owners: Owners, n: int) -> Verdict:
    """rows[index], the index being a row's number at each place of whole samples: right where it is that sample's."""
    place = track_of(index) if isinstance(index, Tensor) else None
    if (
        type(place) is not Track
        or index.dim() != 1
        or index.is_floating_point()
        or track_of(x) != Rows(Track(0), owners)
    ):
        return None
    if index.is_cuda and torch.cuda.is_current_stream_capturing():
        return Mixed("rows put back at places that are not read while a graph is captured")
    samples = torch.arange(len(index), device=index.device).div(place.inner, rounding_mode="floor") % n
    return place if torch.equal(owners.samples[index], samples) else Mixed("rows put back at places of other samples")


def _target(x: Tensor, dim: int, owners: Owners, n: int) -> Track | None:
    """Where the samples of `x` lie, or will lie once rows are written into it along `dim`; None where not along it."""
    track = track_of(x)
    if type(track) is Track:
        return track if track.axis == dim else None
    if track is not None or x.shape[dim] != owners.size or owners.size % (n * owners.inner):
        return None
    return Track(dim, owners.size // (n * owners.inner), owners.inner)


def _added(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], owners: Owners, n: int) -> Verdict:
    """index_add, index_copy, index_fill of (input, dim, index, source): rows, or one number, back to whole samples."""
    input, dim, index = args[0], args[1] % args[0].dim(), args[2]
    source = args[3] if len(args) > 3 else kwargs.get("tensor", kwargs.get("source"))
    target = _target(input, dim, owners, n)
    whose = not isinstance(source, Tensor) or track_of(source) in (None, Rows(Track(dim), owners))
    if target is None or not whose or not _rows_of(index, owners):
        return Mixed(f"{name_of(func)} of chosen rows")
    if not _belongs(index, owners, input.shape[dim], target.inner, n):
        return Mixed(f"{name_of(func)} of chosen rows to places of other samples")
    return target


def _scattered(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], owners: Owners, n: int) -> Verdict | Owners:
    """scatter, scatter_add, scatter_reduce of (input, dim, index, source): rows back to whole samples."""
    input, dim, index = args[0], args[1] % args[0].dim(), args[2]
    if type(track_of(input)) is Rows:
        return owners
    source, rows = args[3] if len(args) > 3 else kwargs.get("src", kwargs.get("value")), Rows(Track(dim), owners)
    target = _target(input, dim, owners, n)
    whose = not isinstance(source, Tensor) or track_of(source) in (None, rows)
    if target is None or not whose or track_of(index) != rows:
        return Mixed(f"{name_of(func)} of chosen rows")
    if not _belongs(index.movedim(dim, 0), owners, input.shape[dim], target.inner, n):
        return Mixed(f"{name_of(func)} of chosen rows to places of other samples")
    return target


def _first(value: Tensor, owners: Owners) -> bool:
    """Whether `value` is the same for all rows, or has them along its first dimension; one row lies anywhere."""
    held = track_of(value)
    return held in (None, Rows(Track(0), owners)) or (
        type(held) is Rows and held.owners is owners and len(owners.samples) == 1
    )


def _written(input: Tensor, index: Any, value: Any, owners: Owners, n: int) -> Verdict:
    """input[mask] = rows, input[rows] = rows."""
    if isinstance(value, Tensor) and not _first(value, owners):
        return Mixed("chosen rows written elsewhere")
    if _is_mask(index):
        held = track_of(index)
        if type(held) is not Track or chosen_by(index, n) is not owners or track_of(input) not in (None, held):
            return Mixed("rows written where another mask says")
        return held
    how = read_index(input.dim(), index)
    positions = all(_rows_of(p.index, owners) or (track_of(p.index) is None and p.index.dim() < 2) for p in how.picked)
    for place in how.picked if positions and not how.start else ():
        target = _target(input, place.dimension, owners, n) if _rows_of(place.index, owners) else None
        if target is not None and _belongs(place.index, owners, input.shape[target.axis], target.inner, n):
            return target
    for place in how.kept if owners.known is not None and not how.picked else ():
        target = _target(input, place.dimension, owners, n)
        places = range(input.shape[place.dimension])[place.index]
        if target is not None and owners.known == tuple(at // target.inner % n for at in places):
            return target
    return Mixed("chosen rows written to places of other samples")


def _dealt(input: Tensor, mask: Tensor, source: Any, owners: Owners, n: int) -> Verdict:
    """input.masked_scatter(mask, rows): entries of the rows one after another, where the mask is true."""
    track = track_of(input)
    right = type(track) is Track and track == track_of(mask) and mask.shape == input.shape
    if right and isinstance(source, Tensor) and track_of(source) == Rows(Track(0), owners) and len(source):
        assert type(track) is Track
        places = mask.detach().nonzero()[:, track.axis].div(track.inner, rounding_mode="floor") % n
        if len(places) == source.numel() and bool((places.view(len(source), -1) == owners.samples[:, None]).all()):
            return track
    return Mixed("masked_scatter of chosen rows to places of other samples")
