"""Where what a layer answers is put: sums of products, or the values themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arrays import room
from ..gram import GramAccumulator

CHUNK = 2**24
"""Bytes of values that lie together until all have come."""


class Store:
    """The activations of one layer so far; `sums` is None where values are kept."""

    def __init__(self, neurons: int, sums: GramAccumulator | None) -> None:
        self.neurons, self.sums, self.samples = neurons, sums, 0
        self.chunks: list[Tensor] = []
        self.free = 0  # rows of the last chunk

    def add(self, value: Tensor, dim: int) -> None:
        """Take the samples of an output whose dimension `dim` counts neurons."""
        self.samples += value.numel() // self.neurons
        if self.sums is not None:
            self.sums.update(value, neuron_dim=dim)
            return
        rows = value.detach().movedim(dim, -1).flatten(0, -2)  # shape: (samples, neurons)
        while len(rows):
            if not self.free or self.chunks[-1].dtype != rows.dtype or self.chunks[-1].device != rows.device:
                self._cut()
                self.free = max(1, CHUNK // (self.neurons * rows.element_size()))
                self.chunks.append(room(self.free, self.neurons, rows.dtype, rows.device))
            taken, chunk = rows[: self.free], self.chunks[-1]
            start = len(chunk) - self.free
            chunk[start : start + len(taken)] = taken
            self.free -= len(taken)
            rows = rows[len(taken) :]

    def _cut(self) -> None:
        """Leave out what of the last chunk is free."""
        if self.free:
            self.chunks[-1], self.free = self.chunks[-1][: len(self.chunks[-1]) - self.free], 0

    def joined(self) -> Tensor | None:
        """All values, in the widest of their dtypes; chunks are given back one by one.  # shape: (samples, neurons)"""
        if self.sums is not None:
            return None
        self._cut()
        dtype = self.chunks[0].dtype
        for chunk in self.chunks:
            dtype = torch.promote_types(dtype, chunk.dtype)
        values = room(self.samples, self.neurons, dtype, self.chunks[0].device)
        start = 0
        self.chunks.reverse()
        while self.chunks:
            chunk = self.chunks.pop()
            values[start : start + len(chunk)] = chunk
            start += len(chunk)
        return values
