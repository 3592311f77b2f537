"""Sums of the ranks of a process group made one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ..._progress import Report
from .layout import Plan, packed_rows, unpack
from .ranks import check_alike, gathered
from .sums import Fresh, Sums, unit_change

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def agreed(plan: Plan, samples: int, group: ProcessGroup | None) -> tuple[list[int], int]:
    """Samples of each rank of `group`, and rows of a block that all can hold; ValueError, on all ranks, if none."""
    own = (plan.n, int(plan.center), plan.dtype.itemsize, samples, plan.rows)
    sizes, centers, itemsizes, counts, rows = gathered(own, group)
    check_alike("all_reduce", "n", sizes)
    check_alike("all_reduce", "center", list(map(bool, centers)))
    check_alike("all_reduce", "dtype", [f"float{8 * itemsize}" for itemsize in itemsizes])
    if not any(counts):
        raise ValueError("all_reduce: expected at least one rank that has seen a sample, got none. Call update.")
    return list(counts), min(rows)


def reduced(
    plan: Plan,
    sums: Sums,
    counts: list[int],
    rows: int,
    *,
    group: ProcessGroup | None,
    fresh: Fresh,
    report: Report,
) -> Sums:
    """New sums over all ranks. A rank adds n_r (m_r − μ)(m_r − μ)ᵀ to its own; their sum is the merged matrix."""
    shared = torch.stack([sums.exponent, sums.nonfinite.int()])
    dist.all_reduce(shared, dist.ReduceOp.MAX, group=group)
    exponent, nonfinite = shared[0].clone(), shared[1].bool()
    unit = unit_change(sums.exponent, exponent)
    mean, step = None, None
    if sums.mean is not None:
        own = sums.mean * unit
        means = [torch.empty_like(own) for _ in counts]
        dist.all_gather(means, own, group=group)
        mean = mean_of_means(means, counts)
        step = (own - mean) * math.sqrt(sums.samples)
    out = fresh()
    blocks = list(plan.triangle.blocks(rows))
    sent: list[tuple[int, Tensor, dist.Work]] = []

    def receive() -> None:
        index, packed, work = sent.pop(0)
        work.wait()
        unpack(packed, plan.triangle.block(out, *blocks[index]))
        report(index + 1, len(blocks))

    for index, (top, bottom) in enumerate(blocks):
        block = torch.zeros((bottom - top, plan.n - top), dtype=torch.float64, device=plan.device)
        if sums.gram is not None:
            torch.mul(plan.triangle.block(sums.gram, top, bottom), unit[top:bottom, None], out=block)
            block.mul_(unit[top:])
            if step is not None:
                block.addr_(step[top:bottom], step[top:])
        packed = packed_rows(block)
        sent.append((index, packed, dist.all_reduce(packed, group=group, async_op=True)))
        if len(sent) > 1:
            receive()
    while sent:
        receive()
    return Sums(out, mean, exponent, nonfinite, sum(counts))


def mean_of_means(means: list[Tensor], counts: list[int]) -> Tensor:
    """Mean over the samples of all ranks, by merging; equal means stay what they are, to the bit."""
    mean, total = means[0], 0
    for each, count in zip(means, counts, strict=True):
        if count:
            total += count
            mean = mean + (each - mean) * (count / total)
    return mean
