"""Cosines between two sets of neurons as a tensor operation: checks, torch.library registration, blocks of products."""

from __future__ import annotations

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import ZERO_POLICIES, check_choice, check_directions, check_max_bytes
from .._progress import Progress
from .._register import register
from .._rows import rows_of_both
from ..pairwise.blocks import block_places, block_sides, fill_cosines, prepare
from ..pairwise.config import lacks
from ..pairwise.reading import summed_in

BLOCK = {"cpu": (1024, 4096), "cuda": (8192, 8192)}
"""Cosines filled at a time. Products are written where they stay: blocks only bound what is converted beside them."""


def cosine_between(
    x: Tensor,
    y: Tensor,
    *,
    neuron_dim: int = -1,
    zero: str = "zero",
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Cosine similarity of every neuron of `x` with every neuron of `y`, over the samples they share.

        a, b = (part.movedim(neuron_dim, 0).flatten(1) for part in (x, y))      # (N, SAMPLES), (M, SAMPLES)
        a, b = (part - part.mean(1, keepdim=True) for part in (a, b))           # only with center=True
        C = normalize(a, dim=1) @ normalize(b, dim=1).T                         # (N, M)

    Entries are at most 1 in size. Norms and sums are float32 for half inputs, and neurons may be anywhere from 1e-30
    to 1e30 in size, in one matrix too. A neuron with a NaN or an infinity has NaN in its row or column and nowhere
    else. The same call gives the same bits. Not differentiable.

    Args:
        x: two or more dimensions; float64, float32, float16 or bfloat16; any strides.
        y: the same samples in the same order, in the same dtype and on the same device; any number of neurons.
        neuron_dim: the dimension that counts neurons, in both; all others are samples.
        zero: what a neuron that is zero on every sample gets in its row or column: "zero" | "nan" | "raise".
            A neuron with NaN keeps NaN where it meets one of zeros.
        center: subtract the mean of each neuron first, which makes the result Pearson's correlation.
        max_bytes: bound on the memory beyond input and result; None takes what is fastest: on a GPU kernels that write
            as much as both inputs, which blocks of torch do without.
        progress: called with (done, total) from time to time, in blocks, last with done == total; blocks of torch then.

    Returns:
        (N, M), float64 for float64 and float32 for all others.

    Raises:
        TypeError: not a dense tensor of a supported floating-point dtype; neuron_dim or max_bytes no int.
        ValueError: fewer than two dimensions, no neuron, no sample, neuron_dim out of range, other samples, dtype or
            device in `y`, an unknown choice, zero="raise" and a neuron that is zero on every sample, max_bytes too
            small for one block.

    Source:
        README.md in this folder.
    """
    left, right = rows_of_both(x, y, neuron_dim, ("x", "y"))
    check_choice(zero, "zero", ZERO_POLICIES)
    max_bytes = check_max_bytes(max_bytes)
    if progress is not None:
        return _compute(left, right, zero, bool(center), max_bytes, progress)
    return _operator(left, right, zero, bool(center), max_bytes)


def _compute(
    x: Tensor, y: Tensor, zero: str, center: bool, max_bytes: int | None, progress: Progress | None = None
) -> Tensor:
    served = progress is None and lacks(x, y, center=center, max_bytes=max_bytes) is None
    if served and choose_backend(None, x.device) == "triton":
        from ..pairwise.launch import launch_cosine_between

        cosine, *inverses = launch_cosine_between(x, y, center=center, zero=zero)
        if zero == "raise":
            for inverse_norm, name in zip(inverses, "xy", strict=True):
                check_directions(inverse_norm, name, center=center)
        return cosine
    left, right = prepare(x, center=center), prepare(y, center=center)
    if zero == "raise":
        check_directions(left.inverse_norm, "x", center=center)
        check_directions(right.inverse_norm, "y", center=center)
    out = left.inverse_norm.new_empty((x.shape[0], y.shape[0]))
    # The scale of a block exists beside it on a GPU; on a CPU it is made a piece at a time.
    preferred = BLOCK["cpu" if out.device.type == "cpu" else "cuda"]
    pair_bytes = 0 if out.device.type == "cpu" else out.dtype.itemsize
    sides = block_sides(left, right, preferred, pair_bytes=pair_bytes, max_bytes=max_bytes)
    blocks = block_places(left, right, sides, triangle=False)
    for done, (row, column) in enumerate(blocks, 1):
        fill_cosines(out[row : row + sides[0], column : column + sides[1]], left, row, right, column)
        if progress is not None:
            progress(done, len(blocks))
    if zero == "nan":
        out[left.inverse_norm == 0] = torch.nan
        out[:, right.inverse_norm == 0] = torch.nan
    return out


_operator = register(
    "cosine_between(Tensor x, Tensor y, str zero, bool center, int? max_bytes) -> Tensor",
    _compute,
    fake=lambda x, y, *_: x.new_empty((x.shape[0], y.shape[0]), dtype=summed_in(x.dtype)),
)
