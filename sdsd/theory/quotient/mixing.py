"""Mixing by matrices: what is linear between two layers has no basis of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .point import Point
from .segments import Slice


@dataclass(frozen=True)
class Mixing:
    """Neurons that any invertible matrix M may mix: V W = (V M⁻¹)(M W).

    Attributes:
        layers: the layers that write them.
        readers: the layers that read them.
        sets: neurons, a row each set that mixes within itself: a head, or a whole layer.  # shape: (sets, d), int64
        incoming, outgoing: all entries that write and read them.
        width: how many neurons.
    """

    layers: tuple[str, ...]
    readers: tuple[str, ...]
    sets: Tensor
    incoming: tuple[Slice, ...]
    outgoing: tuple[Slice, ...]
    width: int

    def has_tangent(self, model: nn.Module) -> bool:
        """Parameters alone move along it."""
        return True

    def shape(self, values: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Shape of the coefficients: a matrix each set."""
        count, size = self.sets.shape
        return count, size, size

    def matrices(self, parts: tuple[Slice, ...], values: Mapping[str, Tensor]) -> Tensor:
        """All entries of each neuron in some parts.  # shape: (sets, d, entries)"""
        return torch.cat([self._rows(part, values[part.name]).flatten(2) for part in parts], dim=2)

    def _rows(self, part: Slice, value: Tensor) -> Tensor:
        return value.movedim(part.axis, 0)[self._entries(part, value)]

    def _entries(self, part: Slice, value: Tensor) -> Tensor:
        return part.entries(self.width)[self.sets].to(value.device)

    def add(self, parts: tuple[Slice, ...], rows: Tensor, into: Mapping[str, Tensor], *, replace: bool = False) -> None:
        """Add the entries of each neuron, laid out as by `matrices`, to tensors, or put them in their place."""
        start = 0
        for part in parts:
            target = into[part.name]
            places = self._entries(part, target)
            shape = (*places.shape, *target.movedim(part.axis, 0).shape[1:])
            size = math.prod(shape[2:])
            piece = rows[..., start : start + size].reshape(shape)
            start += size
            moved = target.movedim(part.axis, 0)
            moved[places.flatten()] = (0 if replace else moved[places.flatten()]) + piece.flatten(0, 2)

    def project(self, vectors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensor:
        """Inner products with the tangents (X A, −B X), A incoming and B outgoing; shape: (sets, d, d)."""
        taken = self.matrices(self.incoming, vectors) @ self.matrices(self.incoming, values).mT
        given = self.matrices(self.outgoing, values) @ self.matrices(self.outgoing, vectors).mT
        return taken - given

    def lift(self, coefficients: Tensor, values: Mapping[str, Tensor], into: dict[str, Tensor]) -> None:
        """Add Σ coefficient × tangent to `into`."""
        self.add(self.incoming, coefficients @ self.matrices(self.incoming, values), into)
        self.add(self.outgoing, -coefficients.mT @ self.matrices(self.outgoing, values), into)

    def diagonal(self, values: Mapping[str, Tensor]) -> Tensor:
        """Squared lengths of the tangents: of row j of A, and of row i of Bᵀ.  # shape: (sets, d, d)"""
        taken = self.matrices(self.incoming, values).square().sum(2)
        given = self.matrices(self.outgoing, values).square().sum(2)
        return taken[:, None, :] + given[:, :, None]

    def mix(self, point: Point, matrices: Tensor) -> None:
        """Move the point by invertible matrices.  # shape: (sets, d, d)"""
        taken = matrices @ self.matrices(self.incoming, point.values)
        given = torch.linalg.solve(matrices.mT, self.matrices(self.outgoing, point.values))
        self.add(self.incoming, taken, point.values, replace=True)
        self.add(self.outgoing, given, point.values, replace=True)

    def balance(self, point: Point) -> None:
        """Go to the least norm: with B A = U S Wᵀ, A becomes √S Wᵀ and B becomes U √S.

        The largest entry of each row of A is made positive, so that the point is one even where signs are free.
        """
        taken, given = (self.matrices(parts, point.values) for parts in (self.incoming, self.outgoing))
        left, inner_left = torch.linalg.qr(given.mT)  # B = left · inner_left
        right, inner_right = torch.linalg.qr(taken.mT)
        u, s, wh = torch.linalg.svd(inner_left @ inner_right.mT, full_matrices=False)
        root = s.sqrt()
        new_taken, new_given = (wh @ right.mT) * root[..., None], (left @ u).mT * root[..., None]
        lead = new_taken.gather(2, new_taken.abs().argmax(2, keepdim=True))
        sign = torch.where(lead < 0, -1.0, 1.0)
        self.add(self.incoming, _padded(sign * new_taken, taken), point.values, replace=True)
        self.add(self.outgoing, _padded(sign * new_given, given), point.values, replace=True)


def _padded(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of zeros below, where there are fewer singular values than neurons."""
    return nn.functional.pad(rows, (0, 0, 0, like.shape[1] - rows.shape[1]))
