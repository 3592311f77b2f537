"""The vocabulary says of operations what torch does."""

from __future__ import annotations

import pytest
import torch

from sdsd.graphs.cut import RULES as CUT
from sdsd.graphs.operations import EACH, KINDS, MOVES, OPERATIONS, ROWS, adding_to, step_of
from sdsd.theory.quotient import trace
from sdsd.theory.quotient.walk import RULES as MOVED

ATEN = torch.ops.aten
PLAIN = """
clone alias detach positive neg relu leaky_relu abs sqrt rsqrt square reciprocal hardtanh hardswish exp sigmoid tanh
"""
ARGUMENTS = {
    "_to_copy": ((), {"dtype": torch.float64}),
    "native_dropout": ((0.0, True), {}),
    "add": ((torch.Tensor,), {}),
    "sub": ((torch.Tensor,), {}),
    "rsub": ((torch.Tensor,), {}),
    "mul": ((3.0,), {}),
    "div": ((3.0,), {}),
    "_prelu_kernel": ((torch.full((2, 3, 4), 0.2, dtype=torch.float64),), {}),
    "rrelu_with_noise": ((torch.zeros(2, 3, 4, dtype=torch.float64), 0.1, 0.1), {}),
    "clamp": ((-0.5, 0.5), {}),
    "clamp_min": ((0.5,), {}),
    "clamp_max": ((0.5,), {}),
    "threshold": ((0.3, 0.1), {}),
    "log_sigmoid_forward": ((), {}),
    "mean": (([1], True), {}),
    "sum": (([1], True), {}),
    "amax": (([1],), {}),
    "amin": (([1],), {}),
    "var": (([1],), {}),
    "std": (([1],), {}),
    "linalg_vector_norm": ((2, [1]), {}),
    "max": ((1,), {}),
    "min": ((1,), {}),
    "median": ((1,), {}),
    "logsumexp": (([1],), {}),
    "_softmax": ((1, False), {}),
    "cumprod": ((1,), {}),
    "glu": ((2,), {}),
    "view": (([6, 4],), {}),
    "permute": (([2, 0, 1],), {}),
    "unsqueeze": ((1,), {}),
    "expand": (([5, 2, 3, 4],), {}),
    "repeat": (([2, 1, 1],), {}),
    "select": ((1, 2), {}),
    "slice": ((2, 1, 3), {}),
    "flip": (([1],), {}),
    "roll": (([1], [2]), {}),
    "index_select": ((1, torch.tensor([2, 0])), {}),
    "constant_pad_nd": (([1, 1], 1.0), {}),
    "unfold": ((2, 2, 1), {}),
    "diagonal": ((), {}),
    "col2im": (([1, 6], [1, 3], [1, 1], [0, 0], [1, 1]), {}),
    "max_unpool2d": ((torch.arange(12).reshape(3, 4).expand(2, 3, 4).contiguous(), [3, 4]), {}),
    "_cdist_forward": ((torch.Tensor, 2.0, None), {}),
    "avg_pool2d": (([2, 2],), {}),
    **dict.fromkeys(PLAIN.split(), ((), {})),
}
"""What a few operations take after their first tensor; `Tensor` stands for another of its shape."""


def result(name: str, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    arguments, named = ARGUMENTS[name]
    given = [other if each is torch.Tensor else each for each in arguments]
    made = getattr(ATEN, name)(one, *given, **named)
    return made if isinstance(made, torch.Tensor) else made[0]


def row(name: str):
    packet = getattr(ATEN, name)
    return step_of(getattr(packet, packet.overloads()[0]), (), {}, None).row


def measured_power(name: str) -> float | None:
    """The power to which a factor comes out, over a few inputs and factors; None where it is none."""
    generator = torch.Generator().manual_seed(0)
    found = set()
    for factor in (4.0, 0.25):
        one, other = (torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
        shift = 0.0 if name in ("sqrt", "rsqrt") else 0.6
        one, other = one - shift, other - shift
        before, after = result(name, one, other), result(name, factor * one, factor * other)
        known = before != 0
        powers = torch.log(after[known] / before[known]) / torch.log(torch.tensor(factor, dtype=torch.float64))
        zeros_stay = bool((after[~known] == 0).all())
        single = zeros_stay and bool(((powers - powers[0]).abs() < 1e-9).all())
        found.add(round(float(powers[0]), 6) if single else None)
    return found.pop() if len(found) == 1 else None


def is_linear(name: str) -> bool:
    generator = torch.Generator().manual_seed(1)
    a, b, c, d = (torch.rand(2, 3, 4, generator=generator, dtype=torch.float64) * 4 - 2 for _ in range(4))
    if name in ("sqrt", "rsqrt"):
        a, b, c, d = (each.abs() for each in (a, b, c, d))
    return torch.allclose(result(name, a + b, c + d), result(name, a, c) + result(name, b, d), atol=1e-12)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_factor_comes_out_as_the_row_says(name):
    power = row(name).power
    measured = measured_power(name)
    if name in ("mul", "div"):  # by a number here; of two tensors both factors come out
        assert (power, measured) == (None, 1)
    else:
        assert measured == power


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"native_dropout", "avg_pool2d"}))
def test_what_the_table_calls_linear_is_and_nothing_else(name):
    """Dropout is where it drops nothing, and pools share a row with those that are not."""
    assert row(name).linear == is_linear(name)


def test_every_operation_has_one_row():
    names = [name for row in ROWS for name in row.names.split()]
    assert len(names) == len(set(names)) > 200
    assert EACH in KINDS


def test_every_kind_is_followed_by_a_walk():
    assert trace.RULE_MODULES
    unread = [kind for kind in KINDS if kind not in CUT and kind not in MOVED]
    assert unread == []
    assert set(CUT) | set(MOVED) <= set(KINDS)
    assert set(MOVES) <= set(CUT)


ONE_BY_ONE = {
    "index_select": (1, torch.tensor([2, 0])),
    "gather": (2, torch.zeros(2, 3, 4, dtype=torch.long)),
    "flip": ([0, -1],),
    "roll": ([1, 1], [2, 0]),
    "unfold": (2, 2, 1),
    "diagonal": (0, 0, 2),
}
DIMS = {"index_select": [1], "gather": [2], "flip": [0, 2], "roll": [2, 0], "unfold": [2], "diagonal": [0, 2]}
REDUCED = {"sum": ([1], True), "amax": ([0, 2], True), "var": ([-1], True, True), "linalg_vector_norm": (2, [1], True)}


def step(name: str, overload: str, *args, **named):
    func = getattr(getattr(ATEN, name), overload)
    return step_of(func, args, named, func(*args, **named))


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_dimensions_that_an_operation_takes_place_by_place(name):
    x = torch.rand(2, 3, 4)
    overload = "default" if "default" in getattr(ATEN, name).overloads() else ""
    assert step(name, overload, x, *ONE_BY_ONE[name]).by_place == DIMS[name]
    assert step("view", "default", x, [6, 4]).by_place == []


def test_a_mask_takes_as_many_dimensions_as_it_has():
    x, mask, places = torch.rand(2, 3, 4), torch.ones(3, 4, dtype=torch.bool), torch.tensor([1, 0])
    assert step("index", "Tensor", x, [None, mask]).by_place == [1, 2]
    assert step("index", "Tensor", x, [places, None, places]).by_place == [0, 2]


@pytest.mark.parametrize("name", REDUCED)
def test_dimensions_that_an_operation_takes_together_are_those_that_vanish(name):
    overloads = {"sum": "dim_IntList", "var": "dim"}
    made = step(name, overloads.get(name, "default"), torch.rand(2, 3, 4), *REDUCED[name])
    assert made.over == [dim for dim in range(3) if made.out.shape[dim] == 1]
    assert step("sum", "default", torch.rand(2, 3)).over == [0, 1]


def test_what_an_operation_writes_into():
    x, y = torch.rand(3), torch.rand(3)
    assert [each is x for each in step("add_", "Tensor", x, y).written] == [True]
    assert step("add", "Tensor", x, y).written == ()
    assert [each is x for each in step("add", "Tensor", x, y).given] == [True, False]


def test_an_operation_without_a_row_is_pointwise_or_unknown():
    assert row("exp").kind == EACH
    assert step_of(ATEN.linalg_inv_ex.default, (), {}, None).row.kind == ""
    assert step_of(ATEN.relu_.default, (), {}, None).row is OPERATIONS["relu"]


def test_a_rule_for_what_no_row_has_is_refused():
    with pytest.raises(KeyError, match="no operation is of the kind 'relu'"):
        adding_to({})("relu")
