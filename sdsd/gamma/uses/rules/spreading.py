"""A parameter expanded to the shape of samples: from there on every sample has a copy of its own.

So a policy's learned spread has samples (`log_std.expand_as(mean)`, and what torch.distributions does with it), though
nothing has joined it with them yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...following import Track, set_track, stated, track_of
from ..operand import SAMPLES, unexpanded_of
from ..pieces import Piece
from ..use import watch
from .broadcasting import apart

if TYPE_CHECKING:
    from ..measuring import Measuring


def spreads(args: Sequence[Any]) -> bool:
    """Whether `expand_as` of these gives every sample of the second its copy of the first, which trains."""
    if len(args) != 2 or not all(isinstance(each, Tensor) for each in args) or not torch.is_grad_enabled():
        return False
    tensor, samples = args
    track = track_of(samples)
    if not isinstance(track, Track) or track_of(tensor) is not None or not tensor.requires_grad:
        return False
    if tensor.grad_fn is not None and not stated(tensor):
        return False
    axis = track.axis - samples.dim() + unexpanded_of(tensor).dim()
    return axis < 0 or unexpanded_of(tensor).shape[axis] == 1


def spread_to_samples(mode: Measuring, tensor: Tensor, samples: Tensor) -> Tensor:
    """`tensor.expand_as(samples)`, where it `spreads`."""
    out = tensor.expand_as(samples)
    track, n, shape = track_of(samples), mode.ledger.n, unexpanded_of(tensor).shape
    set_track(out, track)

    def measure(b: Tensor) -> Iterator[tuple[int, Piece]]:
        assert isinstance(track, Track)
        yield 0, apart(b, track, n, shape)

    watch(mode, "expansion", out, [tensor], (), measure, unexpanded=True)
    # Not in the history of `tensor`, whose view this is: it is as free of samples as before.
    out.grad_fn.metadata[SAMPLES] = True  # type: ignore[index, union-attr]
    return out


def spread_together(mode: Measuring, args: Any) -> tuple[Tensor, ...]:
    """torch.broadcast_tensors, by expand and expand_as."""
    tensors = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    shape = torch.broadcast_shapes(*(each.shape for each in tensors))
    with mode:
        wide = [each.expand(shape) if isinstance(track_of(each), Track) else None for each in tensors]
        samples = next((each for each in wide if each is not None), None)
        return tuple(
            given if given is not None else each.expand(shape) if samples is None else each.expand_as(samples)
            for given, each in zip(wide, tensors, strict=True)
        )
