"""Gradients of chosen rows as gradients of the samples that they belong to: those of one sample are added."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .pieces import Dense, Lookup, OfSamples, Piece, Product, chunks, wide


def of_samples(piece: Piece, owners: Tensor, n: int, shape: torch.Size, max_bytes: int) -> Piece:
    """A piece of rows, of an operand of `shape`, as one of `n` samples; owners: (rows,), whose each row is.

    Products and lookups stay what they are: the rows of a sample become its positions, with zeros where it has fewer
    than others.
    """
    if not len(owners):
        return OfSamples(0, torch.zeros(shape, device=owners.device), n)
    if isinstance(piece, Product):
        a, b = _side_by_side([piece.a, piece.b], owners, n)
        return Product(a, b, piece.transposed)
    if isinstance(piece, Lookup):
        tokens, gradients = _side_by_side([piece.tokens, piece.gradients], owners, n)
        return Lookup(tokens, gradients, piece.rows, None)
    if isinstance(piece, ByGroup):
        return SamplesByGroup(piece, owners, n, shape)
    total: Tensor | None = None
    for start, stop in chunks(piece.n, piece.bytes_each, max_bytes):
        each = piece.each(start, stop)
        if total is None:
            total = each.new_zeros(n, *shape)
        total.index_add_(0, owners[start:stop], each)
    assert total is not None
    return Dense(total)


class ByGroup(Piece):
    """Rows a (R, d), b (R, p) in order of their group: row r's gradient is b_r a_rᵀ in matrix `group` of (G, p, d)."""

    def __init__(self, a: Tensor, b: Tensor, ends: Tensor) -> None:
        self.a, self.b, self.n = a, b, len(a)
        bounds = [0, *ends.tolist()]
        self.parts = list(itertools.pairwise(bounds))
        self.bytes_each = 8 * len(self.parts) * a.shape[1] * b.shape[1]

    def each(self, start: int, stop: int) -> Tensor:
        a, b = wide(self.a[start:stop]), wide(self.b[start:stop])
        rows = a.new_zeros(stop - start, len(self.parts), b.shape[1], a.shape[1])
        for group, (first, last) in enumerate(self.parts):
            here = slice(max(first - start, 0), max(last - start, 0))
            rows[here, group] = b[here].unsqueeze(2) * a[here].unsqueeze(1)
        return rows


class SamplesByGroup(Piece):
    """The same of samples: a `Product` a group, of the rows that each sample sent there."""

    def __init__(self, rows: ByGroup, owners: Tensor, n: int, shape: torch.Size) -> None:
        self.n, self.shape, self.bytes_each = n, shape, rows.bytes_each
        self.products: dict[int, Product] = {}
        for group, (first, last) in enumerate(rows.parts):
            if last > first:
                a, b = (x[first:last].unsqueeze(1) for x in (rows.a, rows.b))
                a, b = _side_by_side([a, b], owners[first:last], n)
                self.products[group] = Product(a, b)

    def each(self, start: int, stop: int) -> Tensor:
        formed = {group: product.each(start, stop) for group, product in self.products.items()}
        total = next(iter(formed.values())).new_zeros(stop - start, *self.shape)
        for group, part in formed.items():
            total[:, group] = part
        return total

    def squares(self, scale: Tensor | None, max_bytes: int) -> Tensor:
        squares = (
            product.squares(None if scale is None else scale[group], max_bytes)
            for group, product in self.products.items()
        )
        return torch.stack([torch.as_tensor(each, dtype=torch.float64) for each in squares]).sum()

    def projection(self, direction: tuple[Tensor, Tensor], max_bytes: int) -> Tensor:
        u, v = direction
        parts = []
        for group, product in self.products.items():
            matrix = v.view(self.shape[1:]).to(wide(product.a).dtype)
            dots = ((wide(product.b) @ matrix) * wide(product.a)).sum(dtype=torch.float64)
            parts.append(dots * u[group].double())
        return torch.stack(parts).sum()


def _side_by_side(tensors: list[Tensor], owners: Tensor, n: int) -> list[Tensor]:
    """Rows (R, T, …) as (n, K·T, …): the rows of a sample one after another, K the most that a sample has."""
    order = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=n)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(owners)
    place[order] = torch.arange(len(owners), device=owners.device) - first[owners[order]]
    most = max(1, int(counts.max())) if len(owners) else 1
    rooms = []
    for x in tensors:
        room = x.new_zeros(n, most, *x.shape[1:])
        room[owners, place] = x
        rooms.append(room.flatten(1, 2))
    return rooms
