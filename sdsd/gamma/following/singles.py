"""Samples one by one, as `x[i]`, `for row in x`, a list of samples, or one of several outputs gives them.

A tensor of one sample alone stays one, whatever is done to it and to others of the same sample. `cat`, `stack` and
`pad_sequence` put samples together again, writes at their own places do, and sums of them are sums over samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import indexing
from .indexing import read_index
from .places import joined, single_at, stacked
from .sums import PRODUCTS, linear_in
from .table import called, in_place, name_of
from .tracks import (
    Mixed,
    Single,
    Summed,
    Track,
    Verdict,
    memory_of,
    note_written,
    set_track,
    set_written,
    stated,
    tensors_in,
    track_of,
)

_PAD = torch._C._nn.pad_sequence
ADDED = -1
"""The axis of constants that a sample was written into as a whole, and others may be added to."""


def met(
    rule: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, n: int, *, inputs: Sequence[Tensor]
) -> Any:
    """The verdict of a call with a tensor of one sample among its inputs."""
    verdicts = [track_of(x) for x in inputs]
    mixed = next((v for v in verdicts if type(v) is Mixed), None)
    if mixed is not None:
        return mixed
    if rule is indexing.setitem:
        return _set(args[0], args[1], args[2])
    if rule is indexing.index_write and len(args) > 3:
        return _set(args[0], (*[slice(None)] * (args[1] % args[0].dim()), args[2]), args[3])
    singles = [v for v in verdicts if type(v) is Single]
    others = {type(v) for v in verdicts} - {Single, type(None)}
    alone = not others and len({v.sample for v in singles}) == 1
    if alone and (n > 1 or len(inputs) > 1):  # else a list of all samples, which are one, may be put together
        return _looked_at(rule, args, out, inputs, singles[0])
    if rule is indexing.getitem and (verdict := _read(args[0], args[1], n)) is not None:
        return verdict
    together = _together(func, args, kwargs, n)
    if together is not None:
        return together
    if alone:
        return _looked_at(rule, args, out, inputs, singles[0])
    over = Mixed(f"{name_of(func)} of samples that were taken one by one, and of others")
    into = track_of(args[0]) if in_place(func) else None
    if not others <= {Summed} or not (into is None or type(into) is Summed or _only_added(into)):
        return over
    summed = [x for x, v in zip(inputs, verdicts, strict=True) if v is not None]
    joins = called(func) in PRODUCTS and any(x.requires_grad for x in summed)
    return Summed(over.reason) if linear_in(func, args, summed) and not joins else over


def _read(x: Tensor, index: Any, n: int) -> Verdict:
    """x[i, places], samples of which only the i-th is read, at places that itself says; None of any other call."""
    track, own = track_of(x), {v.sample for each in tensors_in((index,)) if type(v := track_of(each)) is Single}
    places = _places(x, index, track.axis) if type(track) is Track else None
    one = single_at(x, places, n) if places else None
    others = any(type(track_of(each)) not in (type(None), Single) for each in tensors_in((index,)))
    return one if one is not None and own == {one.sample} and not others else None


def _looked_at(rule: Any, args: Sequence[Any], out: Any, inputs: Sequence[Tensor], one: Single) -> Verdict:
    """The verdict of what is computed of one sample. A view of a tensor that others may be written into is noted."""
    for x in inputs:
        verdict = track_of(x)
        if type(verdict) is not Single or verdict.axis is None:
            continue
        shared = [y for y in tensors_in(out) if memory_of(y) == memory_of(x)]
        if not shared or (verdict.axis == ADDED and shared[0] is x):
            continue
        places = _places(x, args[1], verdict.axis) if rule is indexing.getitem and x is args[0] else None
        owners = {verdict.at(place) for place in places} if places else set()
        if len(owners) == 1:
            set_track(x, verdict._replace(viewed=True))
            return Single(owners.pop(), *verdict[1:4])
        set_track(x, verdict._replace(axis=None))
    goes_on = out is inputs[0] and _only_added(track_of(out))
    return one._replace(axis=ADDED if goes_on else None, viewed=False)


def _together(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], n: int) -> Verdict:
    """cat, stack and their kin, and pad_sequence, of single samples; None of another call."""
    tensors = args[0] if args else kwargs.get("tensors", kwargs.get("sequences"))
    if not isinstance(tensors, (tuple, list)) or not tensors:
        return None
    name, rest = called(func), args[1:]
    dim = rest[0] if rest else kwargs.get("dim", kwargs.get("axis", 0))
    if name in ("cat", "concat", "concatenate"):
        return joined(tensors, dim, n)
    if name == "stack":
        return stacked(tensors, dim, n)
    if func is _PAD:
        return stacked(tensors, 0 if (rest[0] if rest else kwargs.get("batch_first", False)) else 1, n)
    if name in ("vstack", "row_stack"):
        return stacked(tensors, 0, n) if max(x.dim() for x in tensors) < 2 else joined(tensors, 0, n)
    if name == "column_stack":
        return stacked(tensors, 1, n) if max(x.dim() for x in tensors) < 2 else joined(tensors, 1, n)
    if name == "hstack":
        return joined(tensors, 0 if tensors[0].dim() < 2 else 1, n)
    return None


def _places(x: Tensor, index: Any, axis: int) -> Sequence[int] | None:
    """The places along `axis` that a constant index says; None where they cannot be read."""
    how = read_index(x.dim(), index)
    if axis in how.dropped:
        return [how.dropped[axis]]
    for place in how.kept:
        if place.dimension == axis:
            return range(x.shape[axis])[place.index]
    for place in how.picked:
        at = place.index
        unread = track_of(at) is not None or (at.is_cuda and torch.cuda.is_current_stream_capturing())
        if place.dimension == axis and not unread and at.dtype not in (torch.bool, torch.uint8):
            places: list[int] = at.flatten().tolist()
            return places
    return None


def _set(input: Tensor, index: Any, value: Any) -> Verdict:
    """input[index] = value, one of which is of a single sample."""
    own = track_of(input)
    held = [v for x in (*tensors_in((index,)), *tensors_in((value,))) if (v := track_of(x)) is not None]
    elsewhere = Mixed("a sample written among others, or elsewhere than in its own place")
    if not all(type(v) is Single for v in held):
        return elsewhere
    samples = {v.sample for v in held if type(v) is Single} or {own.sample if type(own) is Single else -1}
    if len(samples) != 1:
        return elsewhere
    (sample,) = samples
    if type(own) is Track:
        places, n = _places(input, index, own.axis), input.shape[own.axis] // (own.outer * own.inner)
        whole = Single(0, input.shape[own.axis], own.outer, own.inner)
        return own if places and n and all(whole.at(place) == sample for place in places) else elsewhere
    if own is None:
        one = next(v for v in held if type(v) is Single)
        for axis in range(input.dim()):
            if one.size and input.shape[axis] == one.size and _own(input, index, axis, one):
                return _first(one, axis)
        return one._replace(axis=None, viewed=False)
    if type(own) is not Single:
        return elsewhere
    there = own.axis is not None and _own(input, index, own.axis, own._replace(sample=sample))
    return _written(own, sample, there) or elsewhere


def _own(input: Tensor, index: Any, axis: int, one: Single) -> bool:
    places = _places(input, index, axis)
    return bool(places) and all(one.at(place) == one.sample for place in places or ())


def _only_added(verdict: Verdict) -> bool:
    return type(verdict) is Single and verdict.axis == ADDED


def _first(one: Single, axis: int) -> Verdict:
    """What constants hold after a first sample was written at its own place along `axis`."""
    if one.size == one.outer * one.inner:  # there is no other
        return Track(axis, one.outer, one.inner)
    return one._replace(axis=axis, viewed=False)


def _written(own: Single, sample: int, there: bool) -> Verdict:
    """What holds sample `own`, after `sample` was written, at its own place (`there`) or not; None: it mixes."""
    if own.sample != sample:
        return Track(own.axis, own.outer, own.inner) if there and own.axis is not None else None
    if there or own.axis is None:
        return own
    return None if own.viewed else own._replace(axis=None)


def write(x: Tensor, after: Verdict) -> Mixed | None:
    """Record that `x`, which is of a single sample or will be, was written to; why all of its memory mixes, if so."""
    before = track_of(x)
    if after is None:
        return None
    elsewhere = Mixed("a sample written over others, or elsewhere than in its own place")
    kept = type(before) is Single and type(after) is Single and before.sample == after.sample
    if type(after) is Summed and x._base is None and _only_added(before):
        set_track(x, after)
        return None
    if before is None and type(after) is Single and after.axis is None and x._base is None:
        after = after._replace(axis=ADDED)
    filled = type(before) is Single and type(after) is Track and before.axis == after.axis
    if type(after) is Mixed or not (before is None or kept or filled):
        return set_written(x, before, after if type(after) is Mixed else elsewhere)
    base = x._base
    if base is not None and (before is None or stated(base)):  # else torch's own, and this view all that there is
        whole = _of_base(x, base, after) if type(after) is Single else None
        if whole is None:
            return set_written(x, before, elsewhere)
        set_track(base, whole)
    note_written(x)
    set_track(x, after)
    return None


def _of_base(view: Tensor, base: Tensor, one: Single) -> Verdict:
    """What a tensor holds after one sample was written into a view of it; None where that mixes."""
    own = track_of(base)
    if type(own) is Single:
        there = own.axis is not None and _lies(view, base, own.axis, own._replace(sample=one.sample))
        return _written(own, one.sample, there)
    if type(own) is Track:
        whole = Single(one.sample, base.shape[own.axis], own.outer, own.inner)
        return own if _lies(view, base, own.axis, whole) else None
    if own is not None:
        return None
    for axis in range(base.dim()):
        if one.size and base.shape[axis] == one.size and _lies(view, base, axis, one):
            return _first(one, axis)
    return None


def _lies(view: Tensor, base: Tensor, axis: int, one: Single) -> bool:
    """Whether all of a view lies at one place along `axis` of the contiguous base, and that is the sample's."""
    if not base.is_contiguous() or not view.numel():
        return False
    stride, size = base.stride(axis), base.shape[axis]
    start = view.storage_offset() - base.storage_offset()
    within = start % stride
    for length, step in zip(view.shape, view.stride(), strict=True):
        if step < stride:
            within += step * (length - 1)
        elif length > 1 and step % (stride * size):
            return False
    return within < stride and one.at(start // stride % size) == one.sample
