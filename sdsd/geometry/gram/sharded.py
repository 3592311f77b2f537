"""Cosine matrix of neurons that are spread over several ranks, each pair computed on one of them only.

Rank r holds all samples of its own neurons. Blocks between two ranks go round half a ring: r computes its block with
r + 1, …, r + ⌊(W−1)/2⌋ of W ranks, and sends the mirror image back to its owner. For even W the pair r, r + W/2 would
come up twice, so each of the two computes half of it. Of its own block a rank computes the upper triangle. For n
neurons and S samples in equal shards that is n² S / W multiplications and additions a rank, half of a full ring's.

Neurons travel in pieces. While one piece is multiplied the next is on its way, and so are the results of the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ..arithmetic import UNSEEN, blas_reads, exponents_after, peaks, plain_arithmetic, power_of_two
from ..arrays import neurons_first
from .ranks import check_alike, check_group, gathered

if TYPE_CHECKING:
    import numpy as np
    from torch.distributed import ProcessGroup

PIECE = 1024
"""Neurons that travel, and are multiplied, together."""
PART = 1024
"""Samples converted together, where neurons cannot be multiplied as they lie."""
FINISH_ROWS = 64
"""Rows of a block scaled together."""

OnBlock = Callable[[slice, slice, Tensor], Any]


def sharded_cosine(
    activations: Tensor | np.ndarray,
    *,
    neuron_dim: int | None = None,
    center: bool = False,
    zero: str = "zero",
    out_dtype: torch.dtype | None = None,
    on_block: OnBlock | None = None,
    group: ProcessGroup | None = None,
    max_bytes: int | None = None,
    progress: Progress = False,
) -> Tensor | None:
    """This rank's rows of the cosine matrix of all neurons, where every rank holds some neurons' activations.

    Every rank of the group has to call it, with the same samples in the same order. The neurons of rank 0 come first,
    then those of rank 1, and so on; shards may differ in size, and be empty. The matrix of all ranks together has the
    promises of `neuron_cosine_matrix`: two ranks hold the same bits of a pair they share.

    Products are float32 (float64 for float64), in torch. Each rank computes half of what it would without symmetry.

    Args:
        activations: this rank's neurons, any layout as in `neuron_cosine_matrix`, on a device that the group can send
            from. Copied once unless neurons or samples are adjacent in memory.
        neuron_dim: the dimension that counts neurons; None: the last of two or three dimensions, 1 from four up.
        center: subtract each neuron's mean first: Pearson's correlation.
        zero: row and column of a neuron that is zero on every sample: "zero" | "nan" | "raise".
        out_dtype: dtype of the result; None gives float64 for float64 and float32 for all others.
        on_block: called with (rows, columns, block) instead of returning a matrix: two slices into all neurons, and
            their cosines, which it may keep. All calls on one rank together cover its rows once.
        group: None: the default group.
        max_bytes: bound on what the call allocates beside the result and that one copy: travelling neurons, blocks,
            converted samples. None allows what pieces of 1,024 neurons take.
        progress: True for a line on standard error, or a function called with (blocks done, blocks this rank computes).

    Returns:
        (neurons of this rank, neurons of all ranks), on the device of `activations`; None with `on_block`.

    Raises:
        RuntimeError: torch.distributed is not initialised, or this rank is not in `group`.
        TypeError, ValueError: as `neuron_cosine_matrix`, and for a max_bytes that no block fits in. On all ranks alike
            where they differ in samples, dtype, center or zero, or where one of them was given bad input.

    Ctrl-C, or an exception from `on_block`, on one rank leaves the others waiting for it: end them too.
    """
    check_group(group)
    rows, problem = None, None
    try:
        report = reporter(progress, "sharded_cosine")
        rows = _checked(activations, neuron_dim, zero, out_dtype, max_bytes)
    except (TypeError, ValueError) as error:
        problem = error
    plan = _agreed(problem, rows, bool(center), zero, max_bytes, group)
    assert rows is not None
    out_dtype = out_dtype or plan.dtype
    with plain_arithmetic(rows.device):
        rows = rows.flatten(1)
        rows = rows if blas_reads(rows) else rows.contiguous()
        shards = _exchanged(Shard.of(rows, plan), plan, zero, group)
        matrix = None
        if on_block is None:
            matrix = torch.empty((plan.sizes[plan.rank], sum(plan.sizes)), dtype=out_dtype, device=rows.device)
            on_block = _filler(matrix, plan.offset(plan.rank))
        _Ring(rows, shards, plan, out_dtype, on_block, group).run(report)
    return matrix


def _filler(matrix: Tensor, first: int) -> OnBlock:
    """An `on_block` that copies blocks into `matrix`, whose first row is neuron `first`."""

    def fill(rows: slice, columns: slice, block: Tensor) -> None:
        matrix[rows.start - first : rows.stop - first, columns] = block

    return fill


# What all ranks know of each other


@dataclass(frozen=True)
class Plan:
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


def _checked(
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


def _agreed(
    problem: Exception | None,
    rows: Tensor | None,
    center: bool,
    zero: str,
    max_bytes: int | None,
    group: ProcessGroup | None,
) -> Plan:
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
    return Plan(rank, list(sizes), samples[0], dtype, center, piece, bounded[rank][1])


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
    def of(rows: Tensor, plan: Plan) -> Shard:
        """Read `rows` (n, samples) for their scales, means and norms."""
        exponent = torch.full((rows.shape[0],), UNSEEN, dtype=torch.int32, device=rows.device)
        for part in rows.split(plan.part, 1):
            exponent = exponents_after(exponent, peaks(part, plan.dtype), plan.dtype)
        exponent = torch.where(exponent == UNSEEN, 0, exponent)
        mean = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
        shard = Shard(exponent, mean, mean)
        if plan.center:
            # Sums of x − x_0 are as small as the spread, and a constant neuron's mean is exactly x_0.
            first = shard.values(rows[:, :1], plan.dtype)
            for part in rows.split(plan.part, 1):
                mean = mean + shard.values(part, plan.dtype).sub_(first).sum(1)
            mean = first[:, 0].double() + mean / plan.samples
            shard = Shard(exponent, mean, mean)
        square = torch.zeros_like(mean)
        for part in rows.split(plan.part, 1):
            square += shard.values(part, plan.dtype).square_().sum(1)
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


def _exchanged(own: Shard, plan: Plan, zero: str, group: ProcessGroup | None) -> list[Shard]:
    """The shards of all ranks; ValueError on all of them with zero="raise" and a neuron without direction."""
    device = own.mean.device
    mine = torch.zeros((3, max(plan.sizes)), dtype=torch.float64, device=device)
    for row, vector in zip(mine, (own.exponent, own.mean, own.inverse_norm), strict=True):
        row[: len(vector)] = vector
    all_of_them = [torch.empty_like(mine) for _ in plan.sizes]
    dist.all_gather(all_of_them, mine, group=group)
    shards = [
        Shard(found[0, :size].int(), found[1, :size], found[2, :size])
        for found, size in zip(all_of_them, plan.sizes, strict=True)
    ]
    dead = torch.cat([shard.inverse_norm == 0 for shard in shards]).nonzero().flatten().tolist()
    if zero == "raise" and dead:
        what = "the same on every sample, so zero after centring" if plan.center else "zero on every sample"
        raise ValueError(
            f"activations: expected every neuron to have a direction, got {len(dead)} that are {what} (first, counted "
            f"over all ranks: {dead[:5]}). Remove them, or use zero='zero' or zero='nan'."
        )
    if zero == "nan":
        for shard in shards:
            shard.inverse_norm[shard.inverse_norm == 0] = math.nan
    return shards


# Who computes what


@dataclass(frozen=True)
class Job:
    """A block that a rank computes: `left`, some of its own neurons, with `piece`, some neurons of rank `source`."""

    left: slice
    source: int
    piece: slice


def ring_jobs(sizes: list[int], most: int) -> list[list[Job | None]]:
    """What every rank computes with neurons of other ranks, step by step: jobs[step][rank]; None where it has none.

    Args:
        sizes: neurons of each rank.
        most: neurons of a piece.
    """
    world = len(sizes)
    steps: list[list[Job | None]] = []
    for distance in range(1, world // 2 + 1):
        queues = [list(_jobs_at(rank, distance, sizes, most)) for rank in range(world)]
        for index in range(max(map(len, queues))):
            steps.append([queue[index] if index < len(queue) else None for queue in queues])
    return steps


def _jobs_at(rank: int, distance: int, sizes: list[int], most: int) -> Iterator[Job]:
    source = (rank + distance) % len(sizes)
    left, wanted = slice(0, sizes[rank]), slice(0, sizes[source])
    if 2 * distance == len(sizes):
        # The lower of the two takes the first half of the other's neurons; the other takes its own second half.
        if rank < source:
            wanted = slice(0, sizes[source] // 2)
        else:
            left = slice(sizes[rank] // 2, sizes[rank])
    if left.start < left.stop:
        for start in range(wanted.start, wanted.stop, most):
            yield Job(left, source, slice(start, min(start + most, wanted.stop)))


class _Ring:
    """One rank's part in the exchange."""

    def __init__(
        self,
        rows: Tensor,
        shards: list[Shard],
        plan: Plan,
        out_dtype: torch.dtype,
        on_block: OnBlock,
        group: ProcessGroup | None,
    ) -> None:
        self.rows, self.shards, self.plan, self.group = rows, shards, plan, group
        self.out_dtype, self.on_block = out_dtype, on_block
        self.jobs = ring_jobs(plan.sizes, plan.piece)

    def run(self, report: Callable[[int, int], None]) -> None:
        own = range(0, len(self.rows), self.plan.piece)
        total = len(own) + sum(1 for step in self.jobs if step[self.plan.rank] is not None)
        done = 0
        here: Tensor | None = None
        mirror: Tensor | None = None
        # At a step its neurons are here already; those of the next and the results of the last are on their way.
        for step in range(-1, len(self.jobs) + 1):
            coming, neurons = self._neurons_of(step + 1)
            reflected, results = self._results_of(step - 1, mirror)
            transfers = neurons + results
            works = dist.batch_isend_irecv(transfers) if transfers else []
            mirror = None
            if step < 0:
                for first in own:
                    self._own_block(slice(first, min(first + self.plan.piece, len(self.rows))))
                    done += 1
                    report(done, total)
            job = self._job(step, self.plan.rank)
            if job is not None:
                assert here is not None
                mirror = self._block(job, here)
                done += 1
                report(done, total)
            for work in works:
                work.wait()
            if reflected is not None:
                asked = self._asked(step - 1)
                assert asked is not None
                self._emit(self.plan.rank, asked[1].piece, asked[0], asked[1].left, reflected)
            here = coming

    def _job(self, step: int, rank: int) -> Job | None:
        return self.jobs[step][rank] if 0 <= step < len(self.jobs) else None

    def _asked(self, step: int) -> tuple[int, Job] | None:
        """Which rank computes with this rank's neurons at a step, and what."""
        for rank in range(len(self.plan.sizes)):
            job = self._job(step, rank)
            if job is not None and job.source == self.plan.rank:
                return rank, job
        return None

    def _neurons_of(self, step: int) -> tuple[Tensor | None, list[dist.P2POp]]:
        """Memory for the neurons that this rank needs at a step, and the transfers that bring all there."""
        transfers, coming = [], None
        asked, job = self._asked(step), self._job(step, self.plan.rank)
        if asked is not None:
            transfers.append(self._transfer(dist.isend, self.rows[asked[1].piece].contiguous(), asked[0], 2 * step))
        if job is not None:
            coming = self.rows.new_empty((job.piece.stop - job.piece.start, self.rows.shape[1]))
            transfers.append(self._transfer(dist.irecv, coming, job.source, 2 * step))
        return coming, transfers

    def _results_of(self, step: int, mirror: Tensor | None) -> tuple[Tensor | None, list[dist.P2POp]]:
        """Memory for what another rank computed of this rank's rows at a step, and the transfers that bring all."""
        transfers, coming = [], None
        asked, job = self._asked(step), self._job(step, self.plan.rank)
        if job is not None:
            assert mirror is not None
            transfers.append(self._transfer(dist.isend, mirror, job.source, 2 * step + 1))
        if asked is not None:
            rank, theirs = asked
            shape = theirs.piece.stop - theirs.piece.start, theirs.left.stop - theirs.left.start
            coming = self.rows.new_empty(shape, dtype=self.out_dtype)
            transfers.append(self._transfer(dist.irecv, coming, rank, 2 * step + 1))
        return coming, transfers

    def _transfer(self, kind: Callable, tensor: Tensor, rank: int, tag: int) -> dist.P2POp:
        peer = rank if self.group is None else dist.get_global_rank(self.group, rank)
        return dist.P2POp(kind, tensor, peer, self.group, tag)

    def _block(self, job: Job, there: Tensor) -> Tensor:
        """Compute and emit a block with neurons of another rank; its mirror image, for that rank."""
        left = self.shards[self.plan.rank].of_some(job.left)
        right = self.shards[job.source].of_some(job.piece)
        block = self._cosines(self.rows[job.left], left, there, right).to(self.out_dtype)
        mirror = block.T.contiguous()
        self._emit(self.plan.rank, job.left, job.source, job.piece, block)
        return mirror

    def _own_block(self, piece: slice) -> None:
        """Compute and emit the columns `piece` of this rank's own block from the diagonal down, and their mirror."""
        rank = self.plan.rank
        below = slice(piece.start, len(self.rows))
        shard = self.shards[rank]
        block = self._cosines(self.rows[below], shard.of_some(below), self.rows[piece], shard.of_some(piece))
        width = piece.stop - piece.start
        square = block[:width]
        square.copy_(square.triu() + square.triu(1).T)
        inverse_norm = shard.inverse_norm[piece].to(block.dtype)
        # 1 for a live neuron, else what stands for the inverse norm of a neuron without direction: 0 or NaN.
        square.diagonal().copy_(torch.where(inverse_norm > 0, 1.0, inverse_norm))
        block = block.to(self.out_dtype)
        self._emit(rank, below, rank, piece, block)
        if piece.stop < below.stop:
            self._emit(rank, piece, rank, slice(piece.stop, below.stop), block[width:].T.contiguous())

    def _emit(self, rank: int, rows: slice, other: int, columns: slice, block: Tensor) -> None:
        first, left = self.plan.offset(rank), self.plan.offset(other)
        self.on_block(
            slice(first + rows.start, first + rows.stop), slice(left + columns.start, left + columns.stop), block
        )

    def _cosines(self, rows: Tensor, left: Shard, columns: Tensor, right: Shard) -> Tensor:
        """Cosines of neurons with values `rows` (n, samples) and `columns` (m, samples).  # shape: (n, m)"""
        dtype = self.plan.dtype
        block = torch.empty((len(rows), len(columns)), dtype=dtype, device=rows.device)
        if rows.dtype == dtype and left.plain() and right.plain():
            torch.mm(rows, columns.T, out=block)
        else:
            block.zero_()
            for part, other in zip(rows.split(self.plan.part, 1), columns.split(self.plan.part, 1), strict=True):
                block.addmm_(left.values(part, dtype), right.values(other, dtype).T)
        row_inverse, column_inverse = left.inverse_norm.to(dtype), right.inverse_norm.to(dtype)
        for top in range(0, len(rows), FINISH_ROWS):
            lines = slice(top, top + FINISH_ROWS)
            # r_i r_j first, so that an entry does not depend on the order of its neurons.
            block[lines].mul_(row_inverse[lines, None] * column_inverse).clamp_(-1, 1)
        return block
