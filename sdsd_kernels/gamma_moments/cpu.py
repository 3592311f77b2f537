"""The torch path: blocks that stay in cache, with float64 sums across blocks.

A block is read from memory once, by the matrix–vector product that gives its mean; what follows finds it in cache.
Σ‖g_i − ḡ‖² is Σ‖g_i‖² − N‖ḡ‖² where the second is no larger than the difference, so that rounding errors at most
treble; else, and for what is asked of every sample, the block is centred first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import as_matrices, row_width

BLOCK_BYTES = 4 * 2**20
"""1, 2, 4 and 8 MB took 88, 75, 72, 65 ms for 128 × 1M values with two threads, 86, 77, 90, 82 with one; for the
per-sample moments 279, 270, 192, 243 and 261, 239, 229, 307."""
MAX_RESIDENT_ROWS = 1024
"""Above this many rows a block of all rows is too narrow to stream; the mean is then formed first, in its own read."""
OFFSET_LIMIT = 100.0
"""N‖mean‖² above this multiple of the centred squares: the float32 mean is refined, lest its rounding show."""
SAFE_SQUARES = (1e-20, 1e30)
"""Sums of squares outside this range may have lost terms to float32 underflow or overflow: redone in float64."""


def gamma_moments(grads: list[Tensor], per_sample: bool) -> Tensor:
    """Result rows for `grads`; shape: (L, row_width), float64. On any device torch serves."""
    n = grads[0].shape[0]
    table = torch.zeros(len(grads), row_width(n, per_sample), dtype=torch.float64, device=grads[0].device)
    for row, entry in zip(table, grads, strict=True):
        for matrix in as_matrices(entry):
            if n <= MAX_RESIDENT_ROWS:
                _add_by_columns(row, matrix, per_sample)
            else:
                _add_by_rows(row, matrix, per_sample)
    return table


def _working_dtype(matrix: Tensor) -> torch.dtype:
    return torch.float64 if matrix.dtype == torch.float64 else torch.float32


def _add_by_columns(row: Tensor, matrix: Tensor, per_sample: bool) -> None:
    """Add the moments of `matrix` (N, P) to `row`, a block of columns at a time."""
    n, columns = matrix.shape
    dtype = _working_dtype(matrix)
    width = min(columns, max(1, BLOCK_BYTES // (n * dtype.itemsize)))
    weights = torch.full((n,), 1 / n, dtype=dtype, device=matrix.device)
    # The scratch has the matrix's own order in memory, so that centring streams through both.
    scratch = torch.empty(width * n, dtype=dtype, device=matrix.device)
    signal = squares = 0.0
    for start in range(0, columns, width):
        block = matrix[:, start : start + width]
        if block.dtype != dtype:
            block = block.to(dtype)
        found = None if per_sample else _uncentred(block, weights)
        if found is None:
            flat = scratch[: block.numel()]
            adjacent = matrix.stride(0) < matrix.stride(1)
            centred = flat.view(block.shape[1], n).t() if adjacent else flat.view(block.shape)
            found = _centred(row, block, weights, centred, flat, per_sample)
        if found is None:
            wide = block.double()
            centred = torch.empty_like(wide, memory_format=torch.contiguous_format)
            found = _centred(row, wide, weights.double().fill_(1 / n), centred, centred.view(-1), per_sample)
            assert found is not None
        signal, squares = signal + found[0], squares + found[1]
    row[0] += signal
    row[1] += squares


def _trusted(squares: float, dtype: torch.dtype) -> bool:
    return dtype == torch.float64 or SAFE_SQUARES[0] < squares < SAFE_SQUARES[1]


def _uncentred(block: Tensor, weights: Tensor) -> tuple[float, float] | None:
    """‖mean‖² and Σ‖g_i − mean‖² of a block from Σ‖g_i‖²; None where digits could be lost."""
    mean = torch.mv(block.t(), weights)
    norms = torch.linalg.vector_norm(block, dim=1)
    signal, together = torch.dot(mean, mean).item(), torch.dot(norms, norms).item()
    shared = block.shape[0] * signal
    if shared <= together / 2 and _trusted(together, block.dtype):
        return signal, together - shared
    return None


def _centred(
    row: Tensor, block: Tensor, weights: Tensor, centred: Tensor, flat: Tensor, per_sample: bool
) -> tuple[float, float] | None:
    """‖mean‖² and Σ‖g_i − mean‖² of a block; per-sample moments are added to `row`.

    None, with nothing added, where float32 cannot be trusted with them. `flat` is all of `centred`, in one dimension.
    """
    n = block.shape[0]
    mean = torch.mv(block.t(), weights)
    torch.sub(block, mean, out=centred)
    signal, squares = torch.dot(mean, mean).item(), torch.dot(flat, flat).item()
    if n * signal > OFFSET_LIMIT * squares:
        correction = torch.mv(centred.t(), weights)
        centred.sub_(correction)
        mean += correction
        signal, squares = torch.dot(mean, mean).item(), torch.dot(flat, flat).item()
    if not _trusted(squares, block.dtype):
        return None
    if per_sample:
        _add_samples(row, centred, mean, n, 0)
    return signal, squares


def _add_samples(row: Tensor, centred: Tensor, mean: Tensor, n: int, first: int) -> None:
    """Add a_i, q_i and c_j of the rows `first`, `first` + 1, … of one centred block to `row`."""
    rows = centred.shape[0]
    row[2 + first : 2 + first + rows] += torch.linalg.vector_norm(centred, dim=1).double().square()
    row[2 + n + first : 2 + n + first + rows] += torch.mv(centred, mean)
    quads = rows // 4
    if quads:
        one, two, three, four = (centred[k : 4 * quads : 4] for k in range(4))
        column = 2 + 2 * n + first // 4
        row[column : column + quads] += torch.linalg.vecdot(one - two, three - four).double() / 2


def _add_by_rows(row: Tensor, matrix: Tensor, per_sample: bool) -> None:
    """Add the moments of a tall `matrix` (N, P) to `row`: its mean in one read, the rest in a second."""
    n, columns = matrix.shape
    dtype = _working_dtype(matrix)
    rows = max(4, min(1024, BLOCK_BYTES // (columns * dtype.itemsize)) // 4 * 4)
    shift = matrix[0].to(dtype)
    mean = shift.to(torch.float64, copy=True)
    for start in range(0, n, rows):
        chunk = matrix[start : start + rows].to(dtype) - shift
        mean += torch.mv(chunk.t(), torch.full((chunk.shape[0],), 1 / n, dtype=dtype, device=chunk.device))
    row[0] += torch.dot(mean, mean)
    # The mean's rounding error would be common to all rows; its low half takes it out.
    high = mean.to(dtype)
    low = (mean - high).to(dtype)
    for start in range(0, n, rows):
        centred = (matrix[start : start + rows].to(dtype) - high).sub_(low)
        squares = torch.dot(centred.view(-1), centred.view(-1)).item()
        if not _trusted(squares, dtype):
            centred = matrix[start : start + rows].double() - mean
            squares = torch.dot(centred.view(-1), centred.view(-1)).item()
        row[1] += squares
        if per_sample:
            _add_samples(row, centred, mean.to(centred.dtype), n, start)
