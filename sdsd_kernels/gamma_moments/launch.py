"""From tensors to launches: one matrix by its arguments, a list by a table of who has which columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._device import DeviceRecord, device_record
from .._launch import Launch, kept, on_device
from . import config
from .kernel import ELEMENTS, finish_kernel, samples_kernel, stream_kernel, two_walks_kernel
from .layout import as_matrices, is_one_matrix, row_width

_DTYPES = tuple(ELEMENTS)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_ORDERS = ("columns", "rows", "any")
_ANY_GRID = (0, 0, 0)
"""Of a launch whose calls say what grid they want."""


def moments_launch(
    dtype: torch.dtype,
    n: int,
    per_sample: bool,
    record: DeviceRecord,
    *,
    count: int = 0,
    row_stride: int = 0,
    column_stride: int = 0,
    order: str,
    aligned: bool = False,
    programs: tuple[int, int, int] = _ANY_GRID,
) -> Launch:
    """The launch for matrices of `dtype`; `count`, strides and `programs` are settled for one matrix.

    A table has the count and the strides, which are 0 here, and every call with one says how many programs it wants.
    `aligned` is for a table: addresses, row strides and numbers of columns are multiples of 16.
    """
    element = ELEMENTS[dtype]
    settled: dict[str, Any] = {"n": n, "count": count, "row_stride": row_stride, "column_stride": column_stride}
    settled |= {"width": row_width(n, per_sample), "ELEMENT": element, "ORDER": order, "ALIGNED": aligned}
    if not per_sample:
        chosen = config.stream_config(dtype, n, record, count)
        acc = ELEMENTS[torch.float64 if chosen.wide else torch.float32]
        settled |= {"ACC": acc, "R": chosen.rows, "C": chosen.columns, "SPREAD": chosen.spread}
        return Launch(stream_kernel, programs, settled, num_warps=chosen.num_warps)
    tile = config.samples_config(dtype, n)
    acc = ELEMENTS[torch.float64 if config.samples_wide(dtype, n, record) else torch.float32]
    settled |= {"ACC": acc, "R": tile.rows, "C": tile.columns, "V": 16 // dtype.itemsize, "EXACT": n == tile.rows}
    settled |= {"STAGES": tile.stages}
    kernel = two_walks_kernel if n > config.RESIDENT_ROWS else samples_kernel
    return Launch(kernel, programs, settled, num_warps=tile.num_warps)


def finish_launch(rows: int, width: int) -> Launch:
    """The launch that adds partial rows: `rows` of them for one matrix, for which its grid is; 0 where bounds say."""
    tall, wide, num_warps = config.FINISH_TWO if width == 2 else config.FINISH_SAMPLES
    settled = {"rows": rows, "width": width, "R": tall, "C": wide}
    return Launch(finish_kernel, (-(-width // wide), 1, 1), settled, num_warps=num_warps)


def _columns_and_programs(
    dtype: torch.dtype, n: int, per_sample: bool, record: DeviceRecord, count: int = 0
) -> tuple[int, int]:
    """Columns of a block, and the most programs a launch should have; `count` as in `moments_launch`."""
    if not per_sample:
        return config.stream_config(dtype, n, record, count).columns, config.STREAM_PROGRAMS * record.multiprocessors
    tile = config.samples_config(dtype, n)
    bound = max(1, config.MAX_PARTIAL_ELEMENTS // row_width(n, True))
    return tile.columns, min(record.multiprocessors * tile.resident, bound)


class _OneMatrix(NamedTuple):
    """Everything about a call with one matrix but the tensors."""

    start: Launch
    finish: Launch
    partials: tuple[int, int]
    table: tuple[int, int]


def _plan_one(matrix: Tensor, per_sample: bool) -> _OneMatrix:
    n, count = matrix.shape
    row_stride, column_stride = matrix.stride()
    record = device_record(matrix.device)
    columns, most = _columns_and_programs(matrix.dtype, n, per_sample, record, count)
    programs = min(-(-count // columns), most)
    width = row_width(n, per_sample)
    start = moments_launch(
        matrix.dtype,
        n,
        per_sample,
        record,
        count=count,
        row_stride=row_stride,
        column_stride=column_stride,
        order=_ORDERS[0 if column_stride == 1 else 1 if row_stride == 1 else 2],
        programs=(programs, 1, 1),
    )
    return _OneMatrix(start, finish_launch(programs, width), (programs, width), (1, width))


_one: dict[tuple[Any, ...], _OneMatrix] = {}
_many: dict[tuple[Any, ...], Launch] = {}
_finish: dict[tuple[Any, ...], Launch] = {}


def launch_gamma_moments(grads: list[Tensor], per_sample: bool) -> Tensor:
    """Result rows for `grads` (N, *shape) each; shape: (L, row_width), float64.

    One matrix: one launch and one to finish, with nothing copied to the device. A list: one launch for each combination
    of dtype, memory order and alignment present, one to finish, and one copy of the table.
    """
    return on_device(grads[0], _launch, grads, per_sample)


def _launch(grads: list[Tensor], per_sample: bool) -> Tensor:
    if len(grads) > 1:
        return _launch_many(grads, per_sample)
    only = grads[0]
    # The kernel is compiled for an address that is, or is not, a multiple of 16 bytes.
    key = (only.shape, only.stride(), only.dtype, only.device, per_sample, only.data_ptr() % 16)
    plan = _one.get(key)
    if plan is None:
        if not is_one_matrix(only):
            return _launch_many(grads, per_sample)
        plan = kept(_one, key, _plan_one(as_matrices(only)[0], per_sample))
    partials = torch.empty(plan.partials, dtype=torch.float64, device=only.device)
    table = torch.empty(plan.table, dtype=torch.float64, device=only.device)
    plan.start(only, None, None, partials)
    plan.finish(partials, None, table)
    return table


def _facts(grads: list[Tensor]) -> tuple[np.ndarray, list[Tensor]]:
    """One row a matrix: its tensor, address, strides, columns, dtype; and what must outlive the launch."""
    rows, views = [], []
    for index, entry in enumerate(grads):
        if entry.is_contiguous():
            n = entry.shape[0]
            columns = entry.numel() // n
            rows.append((index, entry.data_ptr(), columns, 1, columns, _CODES[entry.dtype]))
            continue
        for matrix in as_matrices(entry):
            views.append(matrix)
            row_stride, column_stride = matrix.stride()
            rows.append((index, matrix.data_ptr(), row_stride, column_stride, matrix.shape[1], _CODES[entry.dtype]))
    return np.array(rows, dtype=np.int64), views


def _capturing(where: Tensor) -> bool:
    return where.is_cuda and torch.cuda.is_current_stream_capturing()


def _launch_many(grads: list[Tensor], per_sample: bool) -> Tensor:
    if _capturing(grads[0]):
        raise RuntimeError(
            f"gamma_moments: expected one tensor of one piece inside a CUDA graph, got {len(grads)} of shapes "
            f"{[tuple(entry.shape) for entry in grads[:3]]}, whose addresses are copied from the host. Call it for "
            "each of them, contiguous, and once outside before."
        )
    device, n = grads[0].device, grads[0].shape[0]
    record, width = device_record(device), row_width(n, per_sample)
    facts, views = _facts(grads)
    owner, address, row_stride, column_stride, count, code = facts.T

    present = np.unique(code)
    settings = {int(c): _columns_and_programs(_DTYPES[c], n, per_sample, record) for c in present}
    columns = np.array([settings.get(c, (1, 1))[0] for c in range(len(_DTYPES))])[code]
    blocks = -(-count // columns)
    each = -(-int(blocks.sum()) // min(most for _, most in settings.values()))
    programs = -(-blocks // each)
    first_row = np.cumsum(programs) - programs
    bounds = np.zeros(len(grads) + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, weights=programs, minlength=len(grads)).astype(np.int64), out=bounds[1:])

    order = np.where(column_stride == 1, 0, np.where(row_stride == 1, 1, 2))
    aligned = (address % 16 == 0) & (row_stride % 16 == 0) & (count % 16 == 0)
    group = (code * 3 + order) * 2 + aligned
    parts, jobs, size = [bounds], [], bounds.size
    for key in np.unique(group):
        chosen = np.flatnonzero(group == key)
        share = programs[chosen]
        before = np.cumsum(share) - share
        pieces = np.stack(
            (
                address[chosen],
                row_stride[chosen],
                column_stride[chosen],
                count[chosen],
                before,
                share,
                first_row[chosen],
                np.zeros_like(share),
            ),
            axis=1,
        )
        owners = np.repeat(np.arange(chosen.size, dtype=np.int32), share)
        # Triton compiles for addresses that are multiples of 16 bytes, so every part of the table starts at one.
        gap = size % 2
        owners = np.pad(owners, (0, -owners.size % 4))
        parts += [np.zeros(gap, dtype=np.int64), pieces.reshape(-1), owners.view(np.int64)]
        start = size + gap
        middle = start + pieces.size
        size = middle + owners.size // 2
        jobs.append((int(key), int(share.sum()), start, middle, size))
    host = torch.from_numpy(np.concatenate(parts)).to(device)

    partials = torch.empty((int(programs.sum()), width), dtype=torch.float64, device=device)
    table = torch.empty((len(grads), width), dtype=torch.float64, device=device)
    for key, total, start, middle, end in jobs:
        _launch_of_group(key, n, per_sample, device)(
            None, host[start:middle], host[middle:end].view(torch.int32), partials, grid=(total, 1, 1)
        )
    finish = _finish.get((width, device)) or kept(_finish, (width, device), finish_launch(0, width))
    finish(partials, host[: bounds.size], table, grid=(finish.grid[0], len(grads), 1))
    del views
    return table


def _launch_of_group(key: int, n: int, per_sample: bool, device: torch.device) -> Launch:
    launch = _many.get((key, n, per_sample, device))
    if launch is None:
        code, order, aligned = key // 6, key // 2 % 3, bool(key % 2)
        launch = moments_launch(
            _DTYPES[code], n, per_sample, device_record(device), order=_ORDERS[order], aligned=aligned
        )
        kept(_many, (key, n, per_sample, device), launch)
    return launch
