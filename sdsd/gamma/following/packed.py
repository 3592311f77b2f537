"""Sequences of different length: put in order by their length, packed into one tensor, run, padded and put back.

A packed tensor holds what all sequences have first, then what those have second that are that long, and so on: rows,
each of one sequence, and so of one sample.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import indexing
from .places import samples_along
from .table import name_of
from .tracks import Mixed, Owners, Rows, Track, Verdict, here, track_of

RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}

SIZES = Mixed("how many of all samples' sequences have a row at each time (batch_sizes)")
"""The verdict of the sizes of a packed sequence, which only what runs and pads it may read."""


def is_packed_call(func: Any, args: Sequence[Any]) -> bool:
    """Whether a recurrent layer is called as (data, sizes, state, parameters, …), with a packed sequence."""
    return func in RECURRENT and len(args) == 9 and isinstance(args[3], (list, tuple))


def sequences(rule: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, n: int) -> Any:
    """The verdict of a call that packs, runs or pads sequences, or changes the order of samples; None where it is none.

    A list has one for each output.
    """
    if func is torch._pack_padded_sequence:
        return _packed(*args, sizes=out[1], n=n)
    if func is torch._pad_packed_sequence:
        return _padded(args[0], args[2])
    if is_packed_call(func, args):
        return _run(args[0], args[2], has_cells=func is torch.lstm)
    if rule is indexing.getitem and len(args) == 2:
        before = args[1] if isinstance(args[1], tuple) else (args[1],)
        if not all(type(each) is slice and each == slice(None) for each in before[:-1]):
            return None
        return _reordered(args[0], len(before) - 1, before[-1], n) if before else None
    if rule is indexing.index_select:
        x, dim, index = (*args, *(kwargs[name] for name in ("dim", "index") if name in kwargs))
        return _reordered(x, dim % x.dim(), index, n)
    return None


def of_batch(owners: Owners, axis: int) -> Verdict:
    """The verdict of a tensor whose dimension `axis` is that of the sequences which `owners`' rows were packed from."""
    if isinstance(owners.batch, Owners):
        return Rows(Track(axis), owners.batch)
    assert owners.batch is not None
    return owners.batch._replace(axis=axis)


def by_length(sizes: Tensor, batch: Tensor, verdict: Track | Owners) -> Owners:
    """Whose the rows of packed data are; batch: the sample of each sequence, as they were packed."""
    rows = torch.cat([torch.arange(size) for size in sizes.tolist()])
    owners = Owners(batch[rows.to(batch.device)], -1, 1)
    owners.batch = verdict
    return owners


def _packed(input: Tensor, lengths: Tensor, batch_first: bool, *, sizes: Tensor, n: int) -> Any:
    axis, own = 0 if batch_first else 1, track_of(input)
    if not isinstance(own, (Track, Rows)) or (own.track if isinstance(own, Rows) else own).axis != axis:
        return None
    batch = own.owners if isinstance(own, Rows) else own._replace(axis=0)
    of_lengths = track_of(lengths)
    if of_lengths is not None and of_lengths != (Rows(Track(0), batch) if isinstance(batch, Owners) else batch):
        return Mixed(f"{name_of(torch._pack_padded_sequence)} with lengths of other samples")
    owners = by_length(sizes, samples_along(own, input.shape[axis], n, input.device), batch)
    return [Rows(Track(0), owners), SIZES]


def _padded(data: Tensor, batch_first: bool) -> Any:
    verdict = track_of(data)
    if type(verdict) is not Rows or verdict.owners.batch is None or verdict.track != Track(0):
        return None
    return [of_batch(verdict.owners, 0 if batch_first else 1), of_batch(verdict.owners, 0)]


def _run(data: Tensor, states: Any, *, has_cells: bool) -> Any:
    verdict = track_of(data)
    if type(verdict) is not Rows or verdict.owners.batch is None or verdict.track != Track(0):
        return None
    state = of_batch(verdict.owners, 1)
    given = [track_of(each) for each in (states if isinstance(states, (list, tuple)) else [states])]
    if any(each is not None and each != state for each in given):
        return Mixed("a packed sequence with states that carry the samples elsewhere")
    return [verdict, *[state] * (1 + has_cells)]


def _reordered(x: Tensor, dim: int, index: Any, n: int) -> Verdict:
    """x[index] along `dim`: rows put back where they came from, or samples in another order."""
    own = track_of(x)
    if here.through is not None:  # other rows of chosen ones
        return None
    if not isinstance(index, Tensor) or index.dim() != 1 or index.dtype in (torch.bool, torch.uint8):
        return None
    if index.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    if type(own) is Rows and own.track.axis == dim and own.owners.places is not None:
        owners, places = own.owners, own.owners.places
        positions = torch.arange(owners.size, device=places.device)
        if len(index) == owners.size and torch.equal(places[index.to(places.device)], positions):
            return Track(dim, owners.size // (n * owners.inner), owners.inner)
    if type(own) is Track and own.axis == dim and track_of(index) is None and len(index) == x.shape[dim]:
        places = index.detach() % max(1, len(index))
        positions = torch.arange(len(index), device=index.device)
        if torch.equal(places.sort().values, positions) and not torch.equal(places, positions):
            samples = places.div(own.inner, rounding_mode="floor") % n
            if not torch.equal(samples, positions.div(own.inner, rounding_mode="floor") % n):
                return Rows(Track(dim), _order(index, places, Owners(samples, len(index), own.inner)))
    return None


def _order(index: Tensor, places: Tensor, owners: Owners) -> Owners:
    """`owners` of rows in this order; those of the same order, where it was taken before."""
    for _, _, other in here.now.chosen.values():
        same = other.places is not None and (other.size, other.inner) == (owners.size, owners.inner)
        if same and torch.equal(other.places, places):  # type: ignore[arg-type]
            return other
    owners.places = places
    here.now.chosen[id(index)] = (weakref.ref(index), index._version, owners)
    return owners
