"""What occurs in a batch: which experts some token was sent to, found by nonzero and looped over.

A loop over experts asks first which of them to run. The answer is of all samples together, yet one position of it, on
its turn, is no more than the name of an expert: as an index it is a constant. What it reads off parameters may meet the
rows that were sent there. Everything else that is done with it mixes samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import elementwise, indexing, reductions, shapes
from .table import name_of
from .tracks import Mixed, Named, Occurring, Track, Verdict, set_track, tensors_in, track_of

_FORMS = (shapes.view, shapes.expand, elementwise.elementwise, elementwise.copied)
"""Rules of functions that say the same in another form, or compare it with a number."""


def occurrences(rule: Any, args: Sequence[Any], verdicts: Sequence[Verdict]) -> Occurring | None:
    """The verdict of nonzero, argwhere or torch.where(x), where x tells of all samples together; else None."""
    alone = rule is reductions.chosen or (rule is elementwise.where and len(args) == 1)
    if alone and args and len(verdicts) == 1 and type(verdicts[0]) is Mixed and not args[0].is_floating_point():
        return Occurring(verdicts[0].reason)
    return None


def used(rule: Any, func: Any, args: Sequence[Any], inputs: Sequence[Tensor], out: Any) -> Verdict:
    """The verdict of a call on such positions; None where they are its index."""
    if indexes(func, args):
        return None
    these = [v for x in inputs if type(v := track_of(x)) is Occurring]
    alone = all(type(track_of(x)) in (type(None), Occurring) for x in inputs)
    if alone and not any(x.is_floating_point() for x in tensors_in(out)):
        if rule is shapes.unbind:
            return these[0]._replace(one=True)
        if rule in _FORMS or (rule is indexing.getitem and these[0].one):
            return these[0]
    return Mixed(f"{these[0].reason}, and {name_of(func)} of where that is so")


def indexes(func: Any, args: Sequence[Any]) -> bool:
    """Whether a call is x[i] or x.index_select(dim, i), positions on their turn within i, and x no value of samples."""
    if func is torch.Tensor.__getitem__:
        index = args[1]
    elif getattr(func, "__name__", "") == "index_select" and len(args) == 3:
        index = args[2]
    else:
        return False
    these = [(x, v) for x in tensors_in(index) if type(v := track_of(x)) is Occurring]
    read = track_of(args[0])
    return (
        bool(these)
        and all(v.one and x.numel() == 1 and x.dtype != torch.bool for x, v in these)
        and (read is None or type(read) is Named or (type(read) is Track and not args[0].is_floating_point()))
    )


def name_outputs(out: Any, reason: str) -> None:
    """What was read at such a position, or computed from that, and of no sample."""
    for x in tensors_in(out):
        if track_of(x) is None:
            set_track(x, Named(reason))
