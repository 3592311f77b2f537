"""Of which samples places are, and rows at constant ones: chunks of a batch, slices, a permutation, picked features.

`x[2:]`, `x.split(4)`, `x[places]` give rows that are followed as those which a mask chose are; `cat` puts them together
again, and is a batch where the rows then lie as its samples do. `x[i]` and the rows of one sample are a `Single`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .tracks import Owners, Rows, Single, Track, Verdict, here, track_of


def sequence(samples: Any, n: int) -> tuple[int, int] | None:
    """(outer, inner) if position j of `samples` is sample (j // inner) % n for all j, and each of n occurs; else None.

    With one sample, every sequence is one block: (1, length).
    """
    length = len(samples)
    if length == 0 or length % n:
        return None
    if n == 1:
        return 1, length
    inner = next((j for j, s in enumerate(samples) if s != 0), length)
    if inner == 0 or length % (inner * n):
        return None
    fits = all(s == (j // inner) % n for j, s in enumerate(samples))
    return (length // (inner * n), inner) if fits else None


def piece(track: Track, start: int, length: int, n: int) -> Track | None:
    """Positions start … start + length along the samples: whole runs through the batch, or None."""
    run = n * track.inner
    if run == 0 or start % run or length % run or length == 0:
        return None
    return Track(track.axis, length // run, track.inner)


def samples_along(verdict: Track | Rows, size: int, n: int, device: torch.device) -> Tensor:
    """The sample of each position along a dimension with samples, or with rows; shape: (size,)."""
    if isinstance(verdict, Rows):
        return verdict.owners.samples
    return torch.arange(size, device=device).div(verdict.inner, rounding_mode="floor") % n


def rows_at(x: Tensor, places: Sequence[int], axis: int, n: int) -> Rows | Single | None:
    """What `x` has at these places of its samples; they lie along dimension `axis` of what takes it."""
    track = track_of(x)
    if type(track) is not Track or n == 1 or not len(places):
        return None
    one = single_at(x, places, n)
    if one is not None:
        return one
    if not _readable(x):
        return None
    size, through = x.shape[track.axis], here.through
    samples: Sequence[int] = [(place % size) // track.inner % n for place in places]
    if through is None:
        owners = owners_of(samples, x, size, track.inner)
        return None if sequence(owners.known, n) is not None else Rows(Track(axis), owners)
    if through.known is None:
        return None
    return Rows(Track(axis), owners_of([through.known[row] for row in samples], x, through.size, through.inner))


def _readable(x: Tensor) -> bool:
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return plain and not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def single_at(x: Tensor, places: Sequence[int], n: int) -> Single | None:
    """`x` at places of one sample; None where they are of several."""
    track = track_of(x)
    assert type(track) is Track
    size, owners = int(x.shape[track.axis]), here.through
    samples = {int(place) % size // track.inner % int(n) for place in places}
    if owners is None:
        return Single(samples.pop(), size, int(track.outer), int(track.inner)) if len(samples) == 1 else None
    if owners.known is None and not _readable(x):
        return None
    whose = {int(owners.samples[row]) if owners.known is None else owners.known[row] for row in samples}
    return Single(whose.pop()) if len(whose) == 1 else None


def names_its_own(index: Tensor, held: Verdict, track: Track, size: int, n: int) -> bool:
    """Whether an index names, at every position, places of that position's own sample.

    So does one into several sets of points side by side, to whose numbers each set's offset was added; its values tell,
    and a size never does. held: of the positions, along a dimension of the index; track: of the places, `size` of them.
    Where both have one for each sample, an index with samples that names its own is one that did so by chance.
    """
    if not isinstance(held, Track) or not 0 <= held.axis < index.dim() or index.dtype in (torch.bool, torch.uint8):
        return False
    if track.outer * track.inner * held.outer * held.inner == 1 and track_of(index) is not None:
        return False
    if index.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    shape = [-1 if d == held.axis else 1 for d in range(index.dim())]
    positions = torch.arange(index.shape[held.axis], device=index.device).view(shape)
    named = (index.detach() % size).div(track.inner, rounding_mode="floor") % n
    return bool((named == positions.div(held.inner, rounding_mode="floor") % n).all())


def rows_written(x: Tensor, dim: int, index: Tensor, held: Verdict, n: int) -> Track | None:
    """Where samples lie along `dim` of `x` once an index has put rows there, each to places of its own sample.

    held: of the rows, along a dimension of the index. Where no samples were, they lie as the rows do, or one after the
    other: whatever is not written to is constant. None where they do not.
    """
    own, size = track_of(x), x.shape[dim]
    if not isinstance(held, Track) or not (own is None or isinstance(own, Track)):
        return None
    for each in [Track(dim, held.outer, held.inner), Track(dim, 1, size // n)] if own is None else [own]:
        if each.axis == dim and each.outer * n * each.inner == size and names_its_own(index, held, each, size, n):
            return each
    return None


def owners_of(samples: Sequence[int], x: Tensor, size: int, inner: int) -> Owners:
    """The owners of rows that belong to these samples: the same ones each time, so that such rows can meet."""
    key = (*samples, size, inner)
    owners = here.now.placed.get(key)
    if owners is None or owners.samples.device != x.device:
        owners = here.now.placed[key] = Owners(torch.tensor(samples, device=x.device), size, inner)
        owners.known = tuple(samples)
    return owners


def joined(tensors: Iterable[Any], dim: int, n: int) -> Verdict:
    """cat, along `dim`, of single samples and of rows at constant places; None where it is another call."""
    pieces = list(tensors)
    dim %= max(1, pieces[0].dim())
    samples: list[int] = []
    size, inner = -1, 1
    for x in pieces:
        verdict = track_of(x)
        if type(verdict) is Single:
            samples += [verdict.sample] * (x.shape[dim] if x.dim() else 1)
        elif type(verdict) is Rows and verdict.track == Track(dim) and verdict.owners.known is not None:
            samples += verdict.owners.known
            size, inner = verdict.owners.size, verdict.owners.inner
        else:
            return None
    return _placed(samples, pieces[0], dim, n, size, inner)


def stacked(tensors: Iterable[Any], dim: int, n: int) -> Verdict:
    """Single samples side by side along a new dimension; None where it is another call."""
    pieces = list(tensors)
    held = [track_of(x) for x in pieces]
    if not all(type(verdict) is Single for verdict in held):
        return None
    samples = [verdict.sample for verdict in held if type(verdict) is Single]
    return _placed(samples, pieces[0], dim % (pieces[0].dim() + 1), n, -1, 1)


def _placed(samples: list[int], x: Tensor, dim: int, n: int, size: int, inner: int) -> Verdict:
    order = sequence(samples, n)
    if order is not None:
        return Track(dim, *order)
    if len(set(samples)) == 1:
        return Single(samples[0])
    return Rows(Track(dim), owners_of(samples, x, size, inner)) if samples and _readable(x) else None
