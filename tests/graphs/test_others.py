"""Sizes from the other side of a comparison, and how large they may become."""

from __future__ import annotations

import pytest
import torch

from sdsd.graphs.calls import Call
from sdsd.graphs.others import NUMBERS, Decisions, others


def tried(x: torch.Tensor, size: int, beyond: int, most: int = 2**40) -> list[tuple[int, ...]]:
    """Shapes of what is tried because `size` was compared, without those that are tried for any comparison."""
    decisions = Decisions()
    decisions.by_sizes = True
    usual = sum(map(len, others(Call((x,), {}), decisions, most)))
    decisions.compared(size, beyond)
    calls = [call for each in others(Call((x,), {}), decisions, most) for call in each]
    return [tuple(call.args[0].shape) for call in calls[usual:]]


@pytest.mark.parametrize(
    ("shape", "size", "beyond", "expected"),
    [
        ((2, 8, 4), 8, 513, [(2, 513, 4)]),
        ((2, 8, 4), 8, 5, [(2, 5, 4)]),
        ((1, 3, 8, 8), 8, 65, [(1, 3, 65, 65), (1, 3, 65, 8), (1, 3, 65, 65), (1, 3, 8, 65)]),
        ((2, 8, 4), 64, 1000, [(2, 128, 4), (32, 8, 4), (2, 8, 64)]),  # a size that was computed
    ],
)
def test_what_is_tried(shape, size, beyond, expected):
    assert tried(torch.ones(shape), size, beyond) == expected


@pytest.mark.parametrize(
    ("shape", "size", "beyond"),
    [
        ((2, 8, 4), 64, 2**28),  # if x.numel() > 2**28
        ((2, 2**10), 2**10, 2**26),
        ((2, 8, 4), 8, 2**16),  # attention would keep 2 ** 32 numbers a head and sample
        ((4, 8), 8, 2**15),
    ],
)
def test_nothing_is_made_that_no_memory_holds(shape, size, beyond):
    assert tried(torch.ones(shape), size, beyond) == []


def test_all_inputs_count():
    decisions = Decisions()
    decisions.compared(8, 2**12)
    tokens, states = torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, 2**14)
    for calls in others(Call((tokens, states), {}), decisions, 2**40):
        for call in calls:
            assert max(each.numel() for each in call.args) <= NUMBERS


def test_what_a_model_has_room_for():
    assert tried(torch.ones(2, 8, 4), 8, 513, most=2 * 512 * 4) == []
