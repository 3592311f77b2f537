"""Gradients of what is broadcast to an output, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ...following import Track
from ..pieces import Dense, OwnRows, Piece


def gathered(values: Tensor, track: Track, n: int, shape: torch.Size) -> Tensor | None:
    """`values`, of the shape of an output, summed to one tensor of `shape` a sample; (N, *shape).

    None where `shape` has a row for every sample, so that what it was broadcast over is not the samples.
    """
    front = values.ndim - len(shape)
    axis = track.axis
    if axis >= front and shape[axis - front] != 1:
        return None
    split = values.unflatten(axis, (track.outer, n, track.inner)).movedim(axis + 1, 0)
    # shape of split: (N, before, outer, inner, after)
    ones = [dim for dim in range(values.ndim) if dim < front or (shape[dim - front] == 1 and values.shape[dim] != 1)]
    over = sorted({1 + dim + (dim > axis) for dim in ones} | {1 + axis, 2 + axis})
    if split.dtype in (torch.float16, torch.bfloat16):
        split = split.float()
    return split.sum(over).reshape(n, *shape)


def apart(values: Tensor, track: Track, n: int, shape: torch.Size) -> Piece:
    """Gradients of an operand of `shape` that is broadcast to the output, from the output-shaped `values`."""
    rows = gathered(values, track, n, shape)
    if rows is not None:
        return Dense(rows)
    return OwnRows(values, track, n, shape)
