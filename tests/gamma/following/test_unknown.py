"""Functions without a rule are tried; what cannot be tried, and what a trial finds to mix, is mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sdsd.gamma.following import Mixed, Track

from .oracle import check, run

pytestmark = pytest.mark.usefixtures("double")

LIBRARY = "sdsd_following_tests"
calls: list[str] = []


def operation(f: Callable[..., Any], schema: str) -> Any:
    name = f.__name__
    torch.library.define(f"{LIBRARY}::{name}", schema)
    torch.library.impl(f"{LIBRARY}::{name}", "default", f)
    return getattr(getattr(torch.ops, LIBRARY), name)


ONE = "(Tensor x) -> Tensor"


def rows(x: Tensor) -> Tensor:
    calls.append("rows")
    return torch.softmax(x, -1) + x.cumsum(-1)


def moved(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous() * 2


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def clipped(x: Tensor) -> Tensor:
    """Only the largest sample reaches the others."""
    return x.clamp(max=x.abs().max() * 2)


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def overwriting(x: Tensor) -> Tensor:
    x.mul_(2)
    return x + 1


def shifted(x: Tensor) -> Tensor:
    return x.roll(1, 0)


def picked(x: Tensor, index: Tensor) -> Tensor:
    return x[index]


def paired(x: Tensor) -> Tensor:
    return x * x.T


def two(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * 2, x.sum(0)


def as_long_as_its_values(x: Tensor) -> Tensor:
    return x[x > 0]


def failing(x: Tensor) -> Tensor:
    if x.isnan().any():
        raise ValueError("not a number")
    return x * 1


ROWS, MOVED, CENTRED, CLIPPED, NOISY, SHIFTED, PAIRED, SELECTED, FAILING = (
    operation(f, ONE) for f in (rows, moved, centred, clipped, noisy, shifted, paired, as_long_as_its_values, failing)
)
OVERWRITING = operation(overwriting, "(Tensor(a!) x) -> Tensor")
PICKED = operation(picked, "(Tensor x, Tensor index) -> Tensor")
TWO = operation(two, "(Tensor x) -> (Tensor, Tensor)")
SHAPES = [(3, 5), (4, 4), (2, 2), (6, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_independent_samples_are_followed(shape: tuple[int, int]) -> None:
    n = shape[0]
    assert check(ROWS, [torch.randn(shape)], [Track(0)], n) == [Track(0)]
    assert check(MOVED, [torch.randn(shape)], [Track(0)], n) == [Track(1)]
    assert check(ROWS, [torch.randn(2 * n, 4)], [Track(0, 1, 2)], n) == [Track(0, 1, 2)]
    assert check(ROWS, [torch.randn(2 * n, 4)], [Track(0, 2, 1)], n) == [Track(0, 2, 1)]
    assert check(ROWS, [torch.randn(shape[1], n, 4)], [Track(1)], n) == [Track(1)]


@pytest.mark.parametrize("f", [CENTRED, CLIPPED, SHIFTED, NOISY, SELECTED, FAILING], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_meets_or_cannot_be_tried_is_mixed(f: Any, shape: tuple[int, int]) -> None:
    _, _, found = run(f, [torch.randn(shape)], [Track(0)], shape[0])
    verdict = found[0]
    assert isinstance(verdict, Mixed)
    assert LIBRARY in verdict.reason


def test_a_square_of_pairs_is_mixed() -> None:
    _, _, found = run(PAIRED, [torch.randn(4, 4)], [Track(0)], 4)
    assert isinstance(found[0], Mixed)


def test_each_output_has_its_own_verdict() -> None:
    _, _, found = run(TWO, [torch.randn(4, 4)], [Track(0)], 4)
    assert found[0] == Track(0)
    assert isinstance(found[1], Mixed)


def test_one_sample_whole_numbers_and_writes_are_not_tried() -> None:
    assert isinstance(run(ROWS, [torch.randn(1, 4)], [Track(0)], 1)[2][0], Mixed)
    assert isinstance(run(MOVED, [torch.ones(4, 4, dtype=torch.int64)], [Track(0)], 4)[2][0], Mixed)

    def program(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 1
        return OVERWRITING(y), y

    _, _, found = run(program, [torch.randn(4, 3)], [Track(0)], 4)
    assert all(isinstance(v, Mixed) for v in found)


def test_positions_are_tried_at_every_call() -> None:
    """The same shapes with another index may give another verdict."""
    x = torch.randn(4, 3)
    for order, wanted in (([0, 1, 2, 3], Track), ([1, 0, 2, 3], Mixed), ([0, 1, 2, 3], Track)):
        _, _, found = run(PICKED, [x, torch.tensor(order)], [Track(0), None], 4)
        assert isinstance(found[0], wanted)


def test_a_trial_is_made_once_and_draws_nothing() -> None:
    x = torch.randn(4, 7)
    calls.clear()
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    run_state = torch.get_rng_state()
    run(ROWS, [x], [Track(0)], 4)
    torch.set_rng_state(run_state)
    first = len(calls)
    run(ROWS, [x], [Track(0)], 4)
    assert first > 2
    assert len(calls) == first + 1
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), wanted)


def test_random_streams_are_left_as_the_plain_call_leaves_them() -> None:
    for f in (ROWS, NOISY):
        x = torch.randn(5, 7)
        torch.manual_seed(5)
        f(x)
        wanted = torch.rand(3)
        run(f, [x], [Track(0)], 5)  # Seeds with 5.
        assert torch.equal(torch.rand(3), wanted)


def test_functions_of_torch_without_a_rule() -> None:
    def triplet(x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.triplet_margin_loss(x, y, x + y, reduction="none")

    assert check(triplet, [torch.randn(4, 4), torch.randn(4, 4)], [Track(0), Track(0)], 4) == [Track(0)]
