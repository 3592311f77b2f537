"""Squared lengths, products and distances of neurons in float64, from values or from sums of products.

Squares leave the range of float64 where values are beyond 1e150 or below 1e-150, and squares of these sooner. Values
are then divided by a power of two, which rounds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..arithmetic import power_of_two
from ..arrays import sample_parts

TOGETHER = 64
"""Pairs whose values are compared together."""
ORDINARY = (2.0**-200, 2.0**200)
"""Norms of the loudest neuron with which squares of products of activations and weights are in range."""


class Values:
    """Numbers of every neuron, `rows` (n, …), taken in float64, some for each neuron at a time.

    Attributes:
        exponent: values are divided by 2^exponent, which is 0 unless squares would leave the range of float64.
        lengths: squared, of the divided values.  # shape: (n,), float64
    """

    def __init__(self, rows: Tensor, step: int) -> None:
        self.rows, self.exponent = rows, 0
        samples = rows[0].numel() if len(rows) else 0
        self.step = min(step, samples)
        self.buffers: list[Tensor] = []  # of one size: pieces of changing size leave holes in the C heap
        self.lengths = self._squared_lengths()
        low, high = (bound * bound for bound in ORDINARY)
        if rows.dtype == torch.float64 and rows.numel() and not low < self.lengths.max() < high:
            peak = torch.stack([part.abs().amax(1) for part in self.parts()]).amax(0)
            largest = peak.nan_to_num(0, 0, 0).max()
            if largest > 0:
                self.exponent = int(torch.frexp(largest).exponent.clamp(-1022, 1022))
                self.lengths = self._squared_lengths()

    def parts(self) -> Iterator[Tensor]:
        """The values, at most `step` of each neuron at a time, divided; the next overwrites the last.

        # shape: (n, values)
        """
        for part in sample_parts(self.rows, self.step) if self.step else ():
            values = self._buffer(0, part)
            values.unflatten(1, part.shape[1:]).copy_(part)
            yield values.mul_(power(-self.exponent)) if self.exponent else values

    def _buffer(self, number: int, part: Tensor) -> Tensor:
        """Room for the values of a part, neurons or values adjacent as they are there.  # shape: (n, values)"""
        count, values = len(part), part[0].numel()
        while len(self.buffers) <= number:
            self.buffers.append(torch.empty(count * self.step, dtype=torch.float64, device=part.device))
        room = self.buffers[number][: count * values]
        return room.view(values, count).T if part.stride(0) < part.stride(-1) else room.view(count, values)

    def _squared_lengths(self) -> Tensor:
        total = torch.zeros(len(self.rows), dtype=torch.float64, device=self.rows.device)
        for part in self.parts():
            total += torch.mul(part, part, out=self._buffer(1, part)).sum(1)
        del self.buffers[1:]
        return total

    def products(self, some: slice | Tensor) -> Tensor:
        """Products of some neurons with all.  # shape: (some, n), float64"""
        total = torch.zeros(len(self.lengths[some]), len(self.rows), dtype=torch.float64, device=self.rows.device)
        for part in self.parts():
            total.addmm_(part[some], part.T)
        return total

    def products_of_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Products of the neurons of pairs.  # shape: (pairs,), float64"""
        total = torch.zeros(len(first), dtype=torch.float64, device=self.rows.device)
        for part in self.parts():
            for some in torch.arange(len(first)).split(TOGETHER):
                total[some] += (part[first[some]] * part[second[some]]).sum(1)
        return total

    def apart(self, first: Tensor, second: Tensor, share: Tensor | None = None) -> Tensor:
        """‖second − share · first‖² of pairs, from differences.  # shape: (pairs,), float64"""
        total = torch.zeros(len(first), dtype=torch.float64, device=self.rows.device)
        for part in self.parts():
            for some in torch.arange(len(first)).split(TOGETHER):
                kept = part[first[some]]
                kept = kept if share is None else kept.mul_(share[some, None])
                total[some] += kept.sub_(part[second[some]]).square_().sum(1)
        return total


class Products:
    """As `Values`, from products of all pairs of neurons that were summed before, `gram` (n, n)."""

    def __init__(self, gram: Tensor) -> None:
        self.gram, self.exponent = gram, 0
        lengths = gram.diagonal().double()
        low, high = (bound * bound for bound in ORDINARY)
        largest = lengths.nan_to_num(0, 0, 0).max()
        if largest > 0 and not low < largest < high:
            self.exponent = int(torch.frexp(largest).exponent) // 2
        self.lengths = self._divided(lengths)

    def _divided(self, products: Tensor) -> Tensor:
        divided = products.to(torch.float64, copy=True)
        return divided.mul_(power(-self.exponent)).mul_(power(-self.exponent)) if self.exponent else divided

    def products(self, some: slice | Tensor) -> Tensor:
        """Products of some neurons with all.  # shape: (some, n), float64"""
        return self._divided(self.gram[some])

    def products_of_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Products of the neurons of pairs.  # shape: (pairs,), float64"""
        return self._divided(self.gram[first, second])

    def apart(self, first: Tensor, second: Tensor, share: Tensor | None = None) -> Tensor:
        """‖second − share · first‖² of pairs, which cancels where they are near.  # shape: (pairs,), float64"""
        products = self.products_of_pairs(first, second)
        if share is None:
            return (self.lengths[first] + self.lengths[second] - 2 * products).clamp_min_(0)
        return (self.lengths[second] - share * products).clamp_min_(0)


def power(exponent: int) -> float:
    """2^exponent, as `power_of_two` bounds it."""
    return power_of_two(torch.tensor(exponent)).item()
