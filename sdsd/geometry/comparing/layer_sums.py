"""What two layers are compared by, from sums over samples.

With X (S × n) and Y (S × m) the centred activations of both layers on the same S samples, K = XXᵀ and L = YYᵀ their
S × S products, which are never made, and k, l the diagonals of these, the squared lengths of samples:

    Σ_st K_st L_st = ‖XᵀY‖_F²                a block of T = [X Y]ᵀ[X Y], which a `GramAccumulator` of n + m neurons sums
    Σ_s k_s l_s,  Σ_s k_s²,  Σ_s l_s²        what is to be left out where the diagonals of K and L do not count

Means are known at the end only. Squared lengths are therefore summed about the mean of the first batch, together with
the vectors Σ_s k_s z_s and Σ_s l_s z_s, z = (x, y), that carry them over to the mean of all; in float64.

Measures have fourth powers of activations in them and do not see a factor of a whole layer, so each layer is divided by
a power of two near its largest value, which rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..arithmetic import UNSEEN, power_of_two
from ..arrays import room

GROWTH = 100
"""Powers of two by which a layer may outgrow what it is divided by, before that is chosen anew."""
SUMMED = 2**20
"""Values of both layers that are converted to float64 together (8 MiB), unless one sample has more."""
PAIRS = ("xx", "yy", "xy")
DOUBLE = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Lengths:
    """Sums over samples of squared lengths k (of x) and l (of y), about a point near the mean; float64.

    Attributes:
        exponent: x and y are divided by 2^exponent; UNSEEN for a layer that has been zero so far.  # shape: (2,), int32
        point: what values are taken about.  # shape: (n + m,)
        count: samples.
        total: Σ z.  # shape: (n + m,)
        first: Σ k and Σ l.  # shape: (2,)
        second: Σ k k, Σ k l and Σ l l as a matrix.  # shape: (2, 2)
        weighted: Σ k z and Σ l z.  # shape: (2, n + m)
    """

    exponent: Tensor
    point: Tensor
    count: int
    total: Tensor
    first: Tensor
    second: Tensor
    weighted: Tensor

    @staticmethod
    def about(rows: Tensor, n: int, peak: Tensor) -> Lengths:
        """Nothing summed yet, about the mean of `rows` (n + m, samples), whose largest values are `peak` (2,)."""
        exponent = exponents_of(peak)
        scale = _scale(exponent, n, len(rows))[:, None]
        point = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for z, _ in _pieces(rows, scale):
            point += z.sum(1)
        point /= rows.shape[1]
        zeros = point.new_zeros
        return Lengths(exponent, point, 0, zeros(len(point)), zeros(2), zeros(2, 2), zeros(2, len(point)))

    def with_samples(self, rows: Tensor, n: int, peak: Tensor) -> Lengths:
        """Sums with `rows` (n + m, samples), whose largest values are `peak` (2,)."""
        own = exponents_of(peak)
        new = self.in_units(torch.where(own > self.exponent + GROWTH, own, self.exponent), n)
        scale = _scale(new.exponent, n, len(rows))[:, None]
        for z, squares in _pieces(rows, scale):
            z.sub_(new.point[:, None])
            torch.mul(z, z, out=squares)
            lengths = torch.stack([squares[:n].sum(0), squares[n:].sum(0)])
            new = replace(
                new,
                count=new.count + z.shape[1],
                total=new.total + z.sum(1),
                first=new.first + lengths.sum(1),
                second=new.second + lengths @ lengths.T,
                weighted=new.weighted + lengths @ z.T,
            )
        return new

    def in_units(self, exponent: Tensor, n: int) -> Lengths:
        """The same sums of layers divided by 2^exponent."""
        if torch.equal(exponent, self.exponent):
            return self
        factor = power_of_two(self.exponent - exponent)
        each, square = _of_neurons(factor, n, len(self.point)), factor.square()
        return Lengths(
            exponent,
            self.point * each,
            self.count,
            self.total * each,
            self.first * square,
            self.second * square[:, None] * square,
            self.weighted * square[:, None] * each,
        )

    def exponents(self, n: int) -> Tensor:
        """What each neuron is divided by.  # shape: (n + m,), int32"""
        return _of_neurons(torch.where(self.exponent == UNSEEN, 0, self.exponent), n, len(self.point))


def _pieces(rows: Tensor, scale: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Samples of `rows` in float64, multiplied by `scale`, and as much memory; the next pieces overwrite them."""
    step = min(rows.shape[1], max(1, SUMMED // len(rows)))
    both = [room(1, len(rows) * step, torch.float64, rows.device)[0] for _ in range(2)]
    for part in rows.split(step, 1):
        turned = part.stride(0) < part.stride(1)
        shape = part.T.shape if turned else part.shape
        values, squares = (each[: part.numel()].view(shape) for each in both)
        values, squares = (values.T, squares.T) if turned else (values, squares)
        yield values.copy_(part).mul_(scale), squares


def exponents_of(peak: Tensor) -> Tensor:
    """The powers of two above largest values, or UNSEEN for 0."""
    return torch.where(peak > 0, torch.frexp(peak.double()).exponent.clamp(-1022, 1022), UNSEEN)


def _of_neurons(pair: Tensor, n: int, count: int) -> Tensor:
    """An entry of `pair` for each of the first layer's n neurons, and one for each of the second's."""
    return torch.cat((pair[:1].expand(n), pair[1:].expand(count - n)))


def _scale(exponent: Tensor, n: int, count: int) -> Tensor:
    return _of_neurons(power_of_two(-torch.where(exponent == UNSEEN, 0, exponent)), n, count)


@dataclass(frozen=True)
class Facts:
    """What measures are made of, about the mean of all samples, by layer ("x", "y") or pair of layers ("xy").

    Attributes:
        cross: XᵀY.  # shape: (n, m)
        trace: Σ k = ‖X‖_F² and Σ l.
        square: ‖XᵀY‖_F², ‖XᵀX‖_F², ‖YᵀY‖_F².
        lengths: Σ k l, Σ k², Σ l².
        product_error: what an entry (i, j) of XᵀY may be off by, as a share of ‖x_i‖‖y_j‖.
        square_error, length_error: what `square` and `lengths` may be off by.
    """

    cross: Tensor
    trace: dict[str, float]
    square: dict[str, float]
    lengths: dict[str, float]
    product_error: float
    square_error: dict[str, float]
    length_error: dict[str, float]

    @staticmethod
    def of(gram: Tensor, sums: Lengths, n: int, product_error: float) -> Facts:
        parts = {"x": slice(0, n), "y": slice(n, len(gram))}
        number = {"x": 0, "y": 1}
        shift = sums.total / sums.count
        moved = {name: shift[part].square().sum().item() for name, part in parts.items()}
        about = {name: sums.first[number[name]].item() for name in parts}
        trace = {name: about[name] - sums.count * moved[name] for name in parts}
        square, lengths, square_error, length_error = {}, {}, {}, {}
        for one, other in (("x", "x"), ("y", "y"), ("x", "y")):
            block = gram[parts[one], parts[other]]
            size = product_error * math.sqrt(trace[one] * trace[other])
            square[one + other] = block.square().sum().item()
            square_error[one + other] = 2 * math.sqrt(square[one + other]) * size + size * size
            weighted = [
                2 * (shift[parts[b]] @ sums.weighted[number[a], parts[b]]).item()
                for a, b in ((one, other), (other, one))
            ]
            crossed = (shift[parts[one]] @ block @ shift[parts[other]]).item()
            # Σ (k − 2 x·d + ‖d‖²)(l − 2 y·e + ‖e‖²) with (d, e) = shift, Σ x = S d and Σ x yᵀ = XᵀY + S d eᵀ.
            raw = sums.second[number[one], number[other]].item()
            further = moved[other] * about[one] + moved[one] * about[other] + 4 * crossed
            lengths[one + other] = raw - sum(weighted) + further + sums.count * moved[one] * moved[other]
            length_error[one + other] = 4 * size * math.sqrt(moved[one] * moved[other]) + 64 * DOUBLE * (
                raw + abs(further)
            )
        return Facts(gram[parts["x"], parts["y"]], trace, square, lengths, product_error, square_error, length_error)
