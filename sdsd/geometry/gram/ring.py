"""Who computes which block of neurons on different ranks, and how neurons and results travel: half a ring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..._progress import Report
from .layout import MOST_SAMPLES
from .shards import Agreement, Shard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FINISH_ROWS = 64
"""Rows of a block scaled together."""
FEW_PRODUCTS = 2**14
"""To so few products BLAS would add one sample at a time: they are added when they are whole."""

OnBlock = Callable[[slice, slice, Tensor], Any]


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


class Ring:
    """One rank's part in the exchange."""

    def __init__(
        self,
        rows: Tensor,
        shards: list[Shard],
        agreement: Agreement,
        out_dtype: torch.dtype,
        on_block: OnBlock,
        group: ProcessGroup | None,
    ) -> None:
        self.rows, self.shards, self.agreement, self.group = rows, shards, agreement, group
        self.out_dtype, self.on_block = out_dtype, on_block
        self.jobs = ring_jobs(agreement.sizes, agreement.piece)

    def run(self, report: Report) -> None:
        own = range(0, len(self.rows), self.agreement.piece)
        total = len(own) + sum(1 for step in self.jobs if step[self.agreement.rank] is not None)
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
                    self._own_block(slice(first, min(first + self.agreement.piece, len(self.rows))))
                    done += 1
                    report(done, total)
            job = self._job(step, self.agreement.rank)
            if job is not None:
                assert here is not None
                mirror = self._block(job, here)
                done += 1
                report(done, total)
            for work in works:
                work.wait()
            if reflected is not None:
                asked = self._asked_by(step - 1)
                assert asked is not None
                self._emit(self.agreement.rank, asked[1].piece, asked[0], asked[1].left, reflected)
            here = coming

    def _job(self, step: int, rank: int) -> Job | None:
        return self.jobs[step][rank] if 0 <= step < len(self.jobs) else None

    def _asked_by(self, step: int) -> tuple[int, Job] | None:
        """Which rank computes with this rank's neurons at a step, and what."""
        for rank in range(len(self.agreement.sizes)):
            job = self._job(step, rank)
            if job is not None and job.source == self.agreement.rank:
                return rank, job
        return None

    def _neurons_of(self, step: int) -> tuple[Tensor | None, list[dist.P2POp]]:
        """Memory for the neurons that this rank needs at a step, and the transfers that bring all there."""
        transfers, coming = [], None
        asked, job = self._asked_by(step), self._job(step, self.agreement.rank)
        if asked is not None:
            transfers.append(self._transfer(dist.isend, self.rows[asked[1].piece].contiguous(), asked[0], 2 * step))
        if job is not None:
            coming = self.rows.new_empty((job.piece.stop - job.piece.start, self.rows.shape[1]))
            transfers.append(self._transfer(dist.irecv, coming, job.source, 2 * step))
        return coming, transfers

    def _results_of(self, step: int, mirror: Tensor | None) -> tuple[Tensor | None, list[dist.P2POp]]:
        """Memory for what another rank computed of this rank's rows at a step, and the transfers that bring all."""
        transfers, coming = [], None
        asked, job = self._asked_by(step), self._job(step, self.agreement.rank)
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
        left = self.shards[self.agreement.rank].of_some(job.left)
        right = self.shards[job.source].of_some(job.piece)
        block = self._cosines(self.rows[job.left], left, there, right).to(self.out_dtype)
        mirror = block.T.contiguous()
        self._emit(self.agreement.rank, job.left, job.source, job.piece, block)
        return mirror

    def _own_block(self, piece: slice) -> None:
        """Compute and emit the columns `piece` of this rank's own block from the diagonal down, and their mirror."""
        rank = self.agreement.rank
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
        first, left = self.agreement.offset(rank), self.agreement.offset(other)
        self.on_block(
            slice(first + rows.start, first + rows.stop), slice(left + columns.start, left + columns.stop), block
        )

    def _cosines(self, rows: Tensor, left: Shard, columns: Tensor, right: Shard) -> Tensor:
        """Cosines of neurons with values `rows` (n, samples) and `columns` (m, samples).  # shape: (n, m)"""
        dtype = self.agreement.dtype
        block = torch.empty((len(rows), len(columns)), dtype=dtype, device=rows.device)
        plain = rows.dtype == dtype and left.plain() and right.plain()
        samples = MOST_SAMPLES if plain else self.agreement.part
        for number, (part, other) in enumerate(zip(rows.split(samples, 1), columns.split(samples, 1), strict=True)):
            a, b = (part, other) if plain else (left.values(part, dtype), right.values(other, dtype))
            if number == 0:
                torch.mm(a, b.T, out=block)
            elif block.numel() <= FEW_PRODUCTS:
                block.add_(torch.mm(a, b.T))
            else:
                block.addmm_(a, b.T)
        row_inverse, column_inverse = left.inverse_norm.to(dtype), right.inverse_norm.to(dtype)
        for top in range(0, len(rows), FINISH_ROWS):
            lines = slice(top, top + FINISH_ROWS)
            # r_i r_j first, so that an entry does not depend on the order of its neurons.
            block[lines].mul_(row_inverse[lines, None] * column_inverse).clamp_(-1, 1)
        return block
