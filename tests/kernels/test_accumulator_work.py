"""What sixteen updates of an accumulator take on an H100 against one call for the same samples, counted, not timed.

Operations and bytes follow from the plans that launches are made of, so they can be counted without a GPU.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sdsd_kernels import available_backends
from sdsd_kernels._device import SM_90

if "triton" not in available_backends("cpu"):
    pytest.skip("plans are made where Triton is", allow_module_level=True)

from sdsd_kernels.pairwise.launch import Triangle
from sdsd_kernels.pairwise.sums import EXPANDED, STRIP, expand_launch

NEURONS, SAMPLES, BATCH = 4096, 65_536, 4096
OPERATIONS_A_SECOND, BYTES_A_SECOND = 989e12, 3.35e12
"""Of an H100 SXM by its data sheet: products of halves in the matrix units, and memory."""
GOAL = 1.6


@dataclasses.dataclass
class Work:
    """Of some launches."""

    operations: float = 0
    bytes: float = 0
    longest: int = 0
    """Steps of the program with most to do, over all launches: a step is one panel of samples of a tile."""

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    @property
    def seconds(self) -> float:
        """At best, if nothing overlaps."""
        return self.operations / OPERATIONS_A_SECOND + self.bytes / BYTES_A_SECOND


def settled(launch) -> dict[str, object]:
    """What is settled comes after the tensors."""
    names = launch.kernel.arg_names[-len(launch.settled) :]
    return dict(zip(names, launch.settled, strict=True))


def planned(samples: int, dtype: torch.dtype, store: str, *, center: bool) -> Triangle:
    rows = torch.empty(samples, NEURONS, dtype=dtype).T[:, None]  # samples × neurons, as layers give them
    return Triangle(rows, SM_90, store, strips=STRIP if store == "add" else 0, precision="float32", center=center)


def work_of(triangle: Triangle, itemsize: int, stored: float) -> Work:
    """Rows are read for norms, and again to be written as halves; operands are read once, `stored` bytes are moved."""
    plan, prepare = settled(triangle.product), triangle.prepare
    how = plan["HOW"]
    steps = plan["range_samples"] // how.samples
    pieces = plan["tiles"] * triangle.ranges
    assert (plan["neurons"], plan["samples"]) == (NEURONS, prepare.samples)
    rows = NEURONS * prepare.samples * itemsize
    operands = prepare.scratch or rows
    moved = rows + (rows + operands if prepare.scratch else 0) + operands + stored
    operations = 2.0 * pieces * how.rows * how.columns * plan["range_samples"] * (3 if how.three else 1)
    return Work(operations, moved, -(-pieces // triangle.product.grid[0]) * steps)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_take_little_more_than_one_call(dtype, center):
    itemsize = torch.empty(0, dtype=dtype).element_size()
    matrix = 4.0 * NEURONS**2
    whole = work_of(planned(SAMPLES, dtype, "matrix", center=center), itemsize, matrix)

    sums = 8.0 * sum(min(STRIP, NEURONS - start) * (NEURONS - start) for start in range(0, NEURONS, STRIP))
    plan = planned(BATCH, dtype, "add", center=center)
    assert plan.reduce is None  # one launch adds to the triangle
    updates = work_of(plan, itemsize, sums)  # the first finds nothing to add to
    for _ in range(SAMPLES // BATCH - 1):
        updates += work_of(plan, itemsize, 2 * sums)
    expand = expand_launch(torch.empty(NEURONS, NEURONS, device="meta"), None, SM_90, True)
    across = NEURONS // EXPANDED
    assert expand.grid == (across * (across + 1) // 2, 1, 1)  # reads each tile of the triangle once
    updates += Work(bytes=sums + matrix)

    assert updates.operations == whole.operations
    assert updates.longest <= 1.05 * whole.longest
    assert 1 < updates.seconds / whole.seconds <= GOAL
