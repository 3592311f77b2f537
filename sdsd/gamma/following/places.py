"""Rows at constant places of the samples: chunks of a batch, slices, a permutation, features picked by image.

`x[2:]`, `x.split(4)`, `x[places]` give rows that are followed as those which a mask chose are; `cat` puts them together
again, and is a batch where the rows then lie as its samples do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .tracks import Owners, Rows, Track, Verdict, here, sequence, track_of


def rows_at(x: Tensor, places: Sequence[int], axis: int, n: int) -> Rows | None:
    """The rows of `x` at these places of its samples, along dimension `axis` of what takes them."""
    track = track_of(x)
    plain = type(x) in (Tensor, torch.nn.Parameter) and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
    if type(track) is not Track or not plain or not len(places) or here.through is not None:
        return None
    size = x.shape[track.axis]
    owners = owners_of([(place % size) // track.inner % n for place in places], x, size, track.inner)
    return None if sequence(owners.known, n) is not None else Rows(Track(axis), owners)


def owners_of(samples: Sequence[int], x: Tensor, size: int, inner: int) -> Owners:
    """The owners of rows that belong to these samples: the same ones each time, so that such rows can meet."""
    key = (*samples, size, inner)
    owners = here.now.placed.get(key)
    if owners is None or owners.samples.device != x.device:
        owners = here.now.placed[key] = Owners(torch.tensor(samples, device=x.device), size, inner)
        owners.known = tuple(samples)
    return owners


def joined(tensors: Iterable[Any], dim: int, n: int) -> Verdict:
    """cat of rows at constant places along their own dimension; None where it is another call."""
    rows = list(tensors)
    held = [track_of(x) for x in rows]
    samples: list[int] = []
    for x, verdict in zip(rows, held, strict=True):
        if type(verdict) is not Rows or verdict.track != Track(dim % x.dim()) or verdict.owners.known is None:
            return None
        samples += verdict.owners.known
    order = sequence(samples, n)
    if order is not None:
        return Track(dim % rows[0].dim(), *order)
    first = held[0]
    assert type(first) is Rows
    return Rows(first.track, owners_of(samples, rows[0], first.owners.size, first.owners.inner))
