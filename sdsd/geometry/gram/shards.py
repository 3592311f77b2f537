"""What ranks with different neurons know of each other: how many there are, their scales, means and norms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from sdsd_kernels import checks

from ..arithmetic import UNSEEN, exponents_after, peaks, power_of_two
from ..arrays import neurons_first
from .ranks import check_alike, gathered

if TYPE_CHECKING:
    import numpy as np
    from torch.distributed import ProcessGroup

PIECE = 1024
"""Neurons that travel, and are multiplied, together."""
PART = 1024
"""Samples converted together, where neurons cannot be multiplied as they lie."""


@dataclass(frozen=True)
class Agreement:
    """What all ranks agree on, but for `rank` and `part`.

    Attributes:
        rank: this one.
        sizes: neurons of each rank.
        samples: how many all have.
        dtype: of products.
        center: whether means are subtracted.
        piece: most neurons that travel together.
        part: most samples this rank converts together.
    """

    rank: int
    sizes: list[int]
    samples: int
    dtype: torch.dtype
    center: bool
    piece: int
    part: int

    def offset(self, rank: int) -> int:
        """The first neuron of a rank among all neurons."""
        return sum(self.sizes[:rank])


def checked(
    activations: Tensor | np.ndarray,
    neuron_dim: int | None,
    zero: str,
    out_dtype: torch.dtype | None,
    max_bytes: int | None,
) -> Tensor:
    """This rank's neurons (n, …); TypeError or ValueError for what only this rank can know to be wrong."""
    checks.check_choice(zero, "zero", checks.ZERO_POLICIES)
    checks.check_dtype(out_dtype, "out_dtype")
    checks.check_integer(max_bytes, "max_bytes", optional=True)
    rows = neurons_first(activations, neuron_dim)
    if 0 in rows.shape[1:]:
        raise ValueError(f"activations: expected at least one sample, got shape {tuple(activations.shape)}.")
    return rows


def agreed(
    problem: Exception | None,
    rows: Tensor | None,
    center: bool,
    zero: str,
    max_bytes: int | None,
    group: ProcessGroup | None,
) -> Agreement:
    """Tell all ranks what this one has, and hear what they have; an error on all of them where that does not fit."""
    own = [1, 0, 0, 0, 0, 0, 0]
    if rows is not None:
        budget = -1 if max_bytes is None else max_bytes
        settings = checks.FLOAT_DTYPES.index(rows.dtype), int(center), checks.ZERO_POLICIES.index(zero)
        own = [0, rows.shape[0], math.prod(rows.shape[1:]), *settings, budget]
    wrong, sizes, samples, dtypes, centers, zeros, budgets = gathered(own, group)
    if problem is not None:
        raise problem
    if any(wrong):
        ranks = [rank for rank, failed in enumerate(wrong) if failed]
        raise ValueError(f"sharded_cosine: ranks {ranks} were given bad input and raise what is wrong with it.")
    check_alike("sharded_cosine", "number of samples", samples)
    check_alike("sharded_cosine", "dtype", [checks.FLOAT_DTYPES[index] for index in dtypes])
    check_alike("sharded_cosine", "center", list(map(bool, centers)))
    check_alike("sharded_cosine", "zero", [checks.ZERO_POLICIES[index] for index in zeros])
    rank, values = dist.get_rank(group), checks.FLOAT_DTYPES[dtypes[0]]
    dtype = torch.float64 if values == torch.float64 else torch.float32
    bytes_each = samples[0] * values.itemsize
    bounded = [
        _within(budget, size, max(sizes), bytes_each, dtype.itemsize)
        for budget, size in zip(budgets, sizes, strict=True)
    ]
    piece = min(piece for piece, _ in bounded)
    return Agreement(rank, list(sizes), samples[0], dtype, center, piece, bounded[rank][1])


def _within(budget: int, neurons: int, most: int, bytes_each: int, itemsize: int) -> tuple[int, int]:
    """Neurons of a piece and samples of a part that stay within `budget` bytes, which -1 leaves open.

    Args:
        budget: max_bytes of a rank.
        neurons: how many it has.
        most: how many the largest rank has.
        bytes_each: what one neuron's values take.
        itemsize: of products.
    """
    if budget < 0:
        return PIECE, PART
    # Half for pieces. A neuron of one is received while the last is there, and sent; of its column of a block there
    # may be five: before and after rounding, as it is sent, as the last is, and as another rank's comes in.
    neuron = 3 * bytes_each + 5 * 8 * most
    # Half for converted samples, of this rank's neurons and of one piece, each in two copies.
    sample = 2 * itemsize * (neurons + 1)
    if budget < 2 * max(neuron, sample):
        raise ValueError(
            f"max_bytes: expected at least {2 * max(neuron, sample):,} on a rank with {neurons} neurons, what a block "
            f"of one neuron and one sample takes, got {budget:,}. Allow more, or leave max_bytes out."
        )
    piece = min(PIECE, budget // 2 // neuron)
    return piece, max(1, min(PART, budget // 2 // (2 * itemsize * (neurons + piece))))


@dataclass(frozen=True)
class Shard:
    """What makes values x of neurons into a = 2^−e x − mean, whose products stay in range, and their norms.

    Attributes:
        exponent: e.  # shape: (n,), int32
        mean: of 2^−e x; zeros without centring.  # shape: (n,), float64
        inverse_norm: 1/‖a‖; 0 for a neuron without direction, NaN for one with a NaN or infinity.
            # shape: (n,), float64
    """

    exponent: Tensor
    mean: Tensor
    inverse_norm: Tensor

    @staticmethod
    def of(rows: Tensor, agreement: Agreement) -> Shard:
        """Read `rows` (n, samples) for their scales, means and norms."""
        exponent = torch.full((rows.shape[0],), UNSEEN, dtype=torch.int32, device=rows.device)
        for part in rows.split(agreement.part, 1):
            exponent = exponents_after(exponent, peaks(part, agreement.dtype), agreement.dtype)
        exponent = torch.where(exponent == UNSEEN, 0, exponent)
        mean = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
        shard = Shard(exponent, mean, mean)
        if agreement.center:
            # Sums of x − x_0 are as small as the spread, and a constant neuron's mean is exactly x_0.
            first = shard.values(rows[:, :1], agreement.dtype)
            for part in rows.split(agreement.part, 1):
                mean = mean + shard.values(part, agreement.dtype).sub_(first).sum(1)
            mean = first[:, 0].double() + mean / agreement.samples
            shard = Shard(exponent, mean, mean)
        square = torch.zeros_like(mean)
        for part in rows.split(agreement.part, 1):
            square += shard.values(part, agreement.dtype).square_().sum(1)
        inverse_norm = torch.where(square == 0, 0.0, square.rsqrt())
        return Shard(exponent, mean, torch.where(square.isfinite(), inverse_norm, math.nan))

    def of_some(self, which: slice) -> Shard:
        return Shard(self.exponent[which], self.mean[which], self.inverse_norm[which])

    def plain(self) -> bool:
        """Whether a is x."""
        return not bool((self.exponent != 0).any() | (self.mean != 0).any())

    def values(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of `rows` (n, samples) as a."""
        a = rows.to(dtype, copy=True)
        a.mul_(power_of_two(-self.exponent).to(dtype)[:, None])
        # In two steps, so that no digit of the mean is lost.
        rounded = self.mean.to(dtype)
        return a.sub_(rounded[:, None]).sub_((self.mean - rounded).to(dtype)[:, None])


def exchanged(own: Shard, agreement: Agreement, zero: str, group: ProcessGroup | None) -> list[Shard]:
    """The shards of all ranks; ValueError on all of them with zero="raise" and a neuron without direction."""
    device = own.mean.device
    mine = torch.zeros((3, max(agreement.sizes)), dtype=torch.float64, device=device)
    for row, vector in zip(mine, (own.exponent, own.mean, own.inverse_norm), strict=True):
        row[: len(vector)] = vector
    all_of_them = [torch.empty_like(mine) for _ in agreement.sizes]
    dist.all_gather(all_of_them, mine, group=group)
    shards = [
        Shard(sent[0, :size].int(), sent[1, :size], sent[2, :size])
        for sent, size in zip(all_of_them, agreement.sizes, strict=True)
    ]
    dead = torch.cat([shard.inverse_norm == 0 for shard in shards]).nonzero().flatten().tolist()
    if zero == "raise" and dead:
        what = "the same on every sample, so zero after centring" if agreement.center else "zero on every sample"
        raise ValueError(
            f"activations: expected every neuron to have a direction, got {len(dead)} that are {what} (first, counted "
            f"over all ranks: {dead[:5]}). Remove them, or use zero='zero' or zero='nan'."
        )
    if zero == "nan":
        for shard in shards:
            shard.inverse_norm[shard.inverse_norm == 0] = math.nan
    return shards
