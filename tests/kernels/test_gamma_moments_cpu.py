"""The torch path of gamma_moments on the CPU, in blocks."""

from __future__ import annotations

import pytest
import torch

from sdsd_kernels import gamma_moments
from sdsd_kernels.gamma_moments import cpu

from .moments_cpu import assert_right, moments, torch_threads

# One block in the calling thread; one in a worker; several; many, and a last one narrower than the others; rows beyond
# what is held at once, in one block of columns and in several.
SIZES = [(7, 311), (32, 2000), (33, 30_011), (130, 20_003), (1024, 700), (1500, 60), (2050, 1500)]


@pytest.mark.parametrize("offset", [0.1, 3.0, 3e3])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_size_is_right_and_the_same_with_any_number_of_threads(shape, offset):
    grads = torch.randn(shape) + offset * torch.randn(shape[1])
    for per_sample in (False, True):
        with torch_threads(2):
            assert_right(grads, per_sample)
            two = moments(grads, per_sample)
        for threads in (1, 3):
            with torch_threads(threads):
                assert torch.equal(moments(grads, per_sample), two)


@pytest.mark.parametrize("columns", [300, 10_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_in_both_orders_of_memory(dtype, columns):
    grads = (torch.randn(120, columns) + 0.3).to(dtype)
    # Squares of numbers of so few bits are rounded alike when they are added to a large sum: errors add up, up to half
    # a unit in the last place an addition.
    tolerance = 1e-13 if dtype == torch.float64 else max(2e-6, columns * 2**-24)
    with torch_threads(2):
        assert_right(grads, tolerance=tolerance)
        assert_right(grads.t().contiguous().t(), tolerance=tolerance)
        assert_right(grads[:, ::2], tolerance=tolerance)


def test_both_orders_of_memory_where_the_mean_is_large():
    grads = torch.randn(40, 30_000) + 50
    with torch_threads(2):
        assert_right(grads)
        assert_right(grads.t().contiguous().t())


def test_each_column_weighs_once():
    """A column of its own scale in every block: dropping or doubling any shows."""
    grads = torch.zeros(32, 400_000)
    for column in range(0, 400_000, 977):
        grads[:, column] = torch.randn(32)
        grads[:, column] *= 1 + column % 13
    with torch_threads(2):
        assert_right(grads)


def test_pieces_hold_every_column_once():
    for shape in [(2, 1), (2, 3_000_000), (32, 4_000_000), (100, 70_001), (1024, 5000), (65_536, 300)]:
        matrix = torch.empty(shape, device="meta")
        pieces = list(cpu._pieces_of(matrix, 0))
        assert len(pieces) <= cpu.PIECES_AT_MOST
        assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
        assert pieces[-1].stop == shape[1]
        held = min(shape[0], cpu.MAX_RESIDENT_ROWS) * pieces[0].width * 4
        assert held <= cpu.BLOCK_BYTES
        tasks = cpu._tasks_of(pieces)
        assert [piece for task in tasks for piece in task] == pieces
        assert all(sum(piece.elements for piece in task) >= cpu.TASK_ELEMENTS for task in tasks[:-1])


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-18, 1e18, 1e30])
def test_blocks_outside_the_safe_range_are_redone_in_float64(scale):
    grads = torch.randn(32, 50_000)
    grads[:, 20_000:30_000] *= scale
    with torch_threads(2):
        assert_right(grads)
        assert_right(grads[:, 20_000:30_000].contiguous())


def test_list_is_shared_out_as_single_tensors_are():
    entries = [torch.randn(9, *shape) + 0.2 for shape in [(3,), (40, 50), (100_000,), (7,), (300, 300), (2, 2)]]
    entries[3][2, 5] = float("nan")
    with torch_threads(2):
        together = moments(entries)
        for row, entry in zip(together, entries, strict=True):
            assert torch.equal(row.nan_to_num(-1), moments(entry)[0].nan_to_num(-1))
    assert together[:, 1].isnan().tolist() == [False, False, False, True, False, False]


def test_gradients_that_nearly_agree_have_no_negative_deviation():
    grads = torch.randn(32, 3000)
    grads[5] = grads[torch.arange(32) != 5].sum(0) / 31  # the mean itself
    found = gamma_moments(grads, per_sample=True, backend="torch")
    assert (found.deviations >= 0).all()
