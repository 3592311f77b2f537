"""The bounds of helpers.py: sums in any order keep them, and sums with fewer digits do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import interpreter_problem
from tests.helpers import assert_within, cosine_error, summation_error, unit_roundoff


def one_after_another(terms: Tensor) -> Tensor:
    """Row sums in the dtype of `terms`, the order that errs most."""
    total = torch.zeros_like(terms[:, 0])
    for column in terms.unbind(1):
        total = total + column
    return total


def by_halves(terms: Tensor) -> Tensor:
    while terms.shape[1] > 1:
        if terms.shape[1] % 2:
            terms = torch.nn.functional.pad(terms, (0, 1))
        terms = terms[:, ::2] + terms[:, 1::2]
    return terms[:, 0]


def in_lanes(lanes: int, terms: Tensor) -> Tensor:
    """What a vector unit of that width makes of a row."""
    terms = torch.nn.functional.pad(terms, (0, -terms.shape[1] % lanes)).unflatten(1, (-1, lanes))
    return one_after_another(one_after_another(terms.flatten(2)))


ORDERS = {
    "one after another": one_after_another,
    "from the end": lambda terms: one_after_another(terms.flip(1)),
    "by halves": by_halves,
    "8 lanes": lambda terms: in_lanes(8, terms),
    "16 lanes": lambda terms: in_lanes(16, terms),
}


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("terms", [1, 2, 5, 40, 1000])
@pytest.mark.parametrize("order", ORDERS)
def test_float32_sums_keep_the_bound_in_any_order_and_halves_do_not(order, terms, offset):
    a, b = (torch.randn(2000, terms) + offset for _ in range(2))
    exact, magnitude = (a.double() * b.double()).sum(1), (a.double() * b.double()).abs().sum(1)
    allowed = (summation_error(terms) + summation_error(terms, torch.float64)) * magnitude
    assert_within(ORDERS[order](a * b), exact, allowed)
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_within(ORDERS[order]((a * b).half().float() if terms == 1 else (a * b).half()), exact, allowed)


def as_tf32(x: Tensor) -> Tensor:
    """Factors of 10 bits, as a tensor core takes them."""
    return ((x.contiguous().view(torch.int32) + 4096) & -8192).view(torch.float32)


def cosines(x: Tensor, y: Tensor, product=torch.matmul) -> Tensor:
    return product(torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(y, dim=1).T)


@pytest.mark.parametrize("samples", [5, 60, 700])
def test_cosines_in_float32_keep_the_bound_and_worse_ones_do_not(samples):
    x, y = torch.randn(50, samples) + 0.3, torch.randn(40, samples)
    exact, allowed = cosines(x.double(), y.double()), cosine_error(x, y)
    assert_within(cosines(x, y), exact, allowed)
    for worse in (
        lambda a, b: as_tf32(a) @ as_tf32(b),
        lambda a, b: a.bfloat16().float() @ b.bfloat16().float(),
        lambda a, b: (a @ b).half(),
        lambda a, b: a[:, 1:] @ b[1:],
        lambda a, b: one_after_another((a[:, None] * b.T).half().flatten(0, 1)).view(50, 40),
    ):
        with pytest.raises(AssertionError, match="out of bounds"):
            assert_within(cosines(x, y, worse), exact, allowed)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_centred_cosines_keep_the_bound_and_uncentred_ones_do_not(offset):
    x = torch.randn(30, 80) + offset
    centred = x.double() - x.double().mean(1, keepdim=True)
    exact, allowed = cosines(centred, centred), cosine_error(x, center=True)
    from_a_rounded_mean = x - x.double().mean(1, keepdim=True).float()
    assert_within(cosines(from_a_rounded_mean, from_a_rounded_mean), exact, allowed)
    for wrong in (x, x - x.mean(1, keepdim=True) * (1 - 1e-3) + 1e-2):
        with pytest.raises(AssertionError, match="out of bounds"):
            assert_within(cosines(wrong, wrong), exact, allowed)


def test_a_sum_that_float64_takes_over_has_a_smaller_bound():
    x = torch.randn(4, 900)
    assert cosine_error(x, terms=3).max() < cosine_error(x).max() / 5


def test_within_means_every_element_and_no_nan():
    assert_within(torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]), 0.0)
    for got in ([1.0, 2.5], [1.0, math.nan], [math.nan, 2.0]):
        with pytest.raises(AssertionError, match="1 of 2 elements are out of bounds"):
            assert_within(torch.tensor(got), torch.tensor([1.0, 2.0]), 0.1)
    with pytest.raises(AssertionError, match=r"at \(1,\) got 2.5, expected nan"):
        assert_within(torch.tensor([1.0, 2.5]), torch.tensor([1.0, math.nan]), 0.1)
    with pytest.raises(AssertionError, match="shape"):
        assert_within(torch.ones(2), torch.ones(1), 1.0)
    assert unit_roundoff(torch.float32) == 2.0**-24


@pytest.mark.parametrize(
    ("triton", "numpy", "fits"),
    [
        ("3.5.0", "1.26.0", True),
        ("3.6.0", "2.3.5", True),
        ("3.6.0+git1", "2.4.0", False),
        ("3.5.1", "2.10.0", False),
        ("3.7.1", "2.4.6", True),
        ("4.0.0", "3.0.0", True),
    ],
)
def test_a_triton_that_cannot_interpret_with_this_numpy_is_named(triton, numpy, fits):
    problem = interpreter_problem(triton, numpy)
    assert (problem is None) == fits
    assert fits or (triton in problem and numpy in problem and "numpy<2.4" in problem)
