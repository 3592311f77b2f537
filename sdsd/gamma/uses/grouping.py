"""Gradients of chosen rows as gradients of the samples that they belong to: those of one sample are added."""

from __future__ import annotations

import torch
from torch import Tensor

from .pieces import Dense, Lookup, Piece, Product, chunks


def of_samples(piece: Piece, owners: Tensor, n: int, shape: torch.Size, max_bytes: int) -> Piece:
    """A piece of rows, of an operand of `shape`, as one of `n` samples; owners: (rows,), whose each row is.

    Products and lookups stay what they are: the rows of a sample become its positions, with zeros where it has fewer
    than others.
    """
    if isinstance(piece, Product):
        a, b = _side_by_side([piece.a, piece.b], owners, n)
        return Product(a, b, piece.transposed)
    if isinstance(piece, Lookup):
        tokens, gradients = _side_by_side([piece.tokens, piece.gradients], owners, n)
        return Lookup(tokens, gradients, piece.rows, None)
    total: Tensor | None = None
    for start, stop in chunks(piece.n, piece.bytes_each, max_bytes):
        each = piece.each(start, stop)
        if total is None:
            total = each.new_zeros(n, *shape)
        total.index_add_(0, owners[start:stop], each)
    return Dense(torch.zeros(n, *shape, device=owners.device) if total is None else total)


def _side_by_side(tensors: list[Tensor], owners: Tensor, n: int) -> list[Tensor]:
    """Rows (R, T, …) as (n, K·T, …): the rows of a sample one after another, K the most that a sample has."""
    order = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=n)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(owners)
    place[order] = torch.arange(len(owners), device=owners.device) - first[owners[order]]
    most = max(1, int(counts.max())) if len(owners) else 1
    found = []
    for x in tensors:
        room = x.new_zeros(n, most, *x.shape[1:])
        room[owners, place] = x
        found.append(room.flatten(1, 2))
    return found
