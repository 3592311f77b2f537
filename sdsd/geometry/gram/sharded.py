"""Cosine matrix of neurons that are spread over several ranks, each pair computed on one of them only.

Rank r holds all samples of its own neurons. Blocks between two ranks go round half a ring: r computes its block with
r + 1, …, r + ⌊(W−1)/2⌋ of W ranks, and sends the mirror image back to its owner. For even W the pair r, r + W/2 would
come up twice, so each of the two computes half of it. Of its own block a rank computes the upper triangle. For n
neurons and S samples in equal shards that is n² S / W multiplications and additions a rank, half of a full ring's.

Neurons travel in pieces. While one piece is multiplied the next is on its way, and so are the results of the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..._progress import Progress, reporter
from ..arithmetic import blas_reads, plain_arithmetic
from .ranks import check_group
from .ring import OnBlock, Ring
from .shards import Shard, agreed, checked, exchanged

if TYPE_CHECKING:
    import numpy as np
    from torch.distributed import ProcessGroup


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
        rows = checked(activations, neuron_dim, zero, out_dtype, max_bytes)
    except (TypeError, ValueError) as error:
        problem = error
    agreement = agreed(problem, rows, bool(center), zero, max_bytes, group)
    assert rows is not None
    out_dtype = out_dtype or agreement.dtype
    with plain_arithmetic(rows.device):
        rows = rows.flatten(1)
        rows = rows if blas_reads(rows) else rows.contiguous()
        shards = exchanged(Shard.of(rows, agreement), agreement, zero, group)
        matrix = None
        if on_block is None:
            matrix = torch.empty(
                (agreement.sizes[agreement.rank], sum(agreement.sizes)), dtype=out_dtype, device=rows.device
            )
            on_block = _filler(matrix, agreement.offset(agreement.rank))
        Ring(rows, shards, agreement, out_dtype, on_block, group).run(report)
    return matrix


def _filler(matrix: Tensor, first: int) -> OnBlock:
    """An `on_block` that copies blocks into `matrix`, whose first row is neuron `first`."""

    def fill(rows: slice, columns: slice, block: Tensor) -> None:
        matrix[rows.start - first : rows.stop - first, columns] = block

    return fill
