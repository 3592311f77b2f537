"""The checks on arguments: what passes, what does not, and what the message says."""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import sdsd_kernels
from sdsd_kernels import checks

ROOT = Path(__file__).resolve().parent.parent
INTEGERS = [3, np.int64(3), np.int8(3), np.uint16(3)]
NO_INTEGERS = [True, np.True_, 3.0, np.float32(3), "3", torch.tensor(3), np.array(3), Fraction(3), [3]]
X = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_whole_numbers_of_python_and_numpy_become_ints(value):
    for found in (checks.check_integer(value, "k", least=3, most=3), checks.check_count(value, "k", least=3)):
        assert type(found) is int
        assert found == 3


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(TypeError, match=f"^k: expected an int, got {type(value).__name__}.$"):
        checks.check_integer(value, "k")
    with pytest.raises(ValueError, match="^k: expected a whole number of steps, at least 1, or None, got ") as error:
        checks.check_count(value, "k", of="steps", optional=True)
    assert str(error.value).endswith(f", got {value!r}.")


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (0, {"least": 1}, "k: expected at least 1, got 0."),
        (8, {"most": 7}, "k: expected at most 7, got 8."),
        (np.int64(8), {"least": 1, "most": 7}, "k: expected 1 to 7, got 8."),
        (-1, {"least": 0, "most": 7, "why": "for 8", "do": "Use 7."}, "k: expected 0 to 7 for 8, got -1. Use 7."),
    ],
)
def test_integers_out_of_range(value, options, message):
    with pytest.raises(ValueError) as error:
        checks.check_integer(value, "k", **options)
    assert str(error.value) == message


def test_counts_below_the_least():
    with pytest.raises(ValueError, match="^k: expected a whole number, at least 2, got 1.$"):
        checks.check_count(1, "k", least=2)


def test_none_passes_only_where_it_is_optional():
    assert checks.check_integer(None, "k", optional=True) is None
    assert checks.check_count(None, "k", optional=True) is None
    assert checks.check_max_bytes(None) is None
    with pytest.raises(TypeError, match="k: expected an int, got NoneType"):
        checks.check_integer(None, "k")
    with pytest.raises(TypeError, match="k: expected an int or None, got str"):
        checks.check_integer("1", "k", optional=True)
    with pytest.raises(ValueError, match="at least 1, got None"):
        checks.check_count(None, "k")
    with pytest.raises(TypeError, match="max_bytes: expected an int, got NoneType"):
        checks.check_max_bytes(None, optional=False)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)], ids=repr)
def test_numbers_become_floats(value):
    found = checks.check_number(value, "q", "half", least=0.5, most=0.5)
    assert type(found) is float
    assert found == 0.5


@pytest.mark.parametrize("value", [True, "0.5", None, 1j, torch.tensor(0.5)], ids=repr)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=f"^q: expected a number, got {type(value).__name__}.$"):
        checks.check_number(value, "q", "a number")


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (1.0, {"below": 1}),
        (1.5, {"most": 1}),
        (0.0, {"above": 0}),
        (-0.5, {"least": 0}),
        (math.nan, {}),
        (math.inf, {}),
        (-math.inf, {}),
    ],
)
def test_numbers_out_of_range(value, bounds):
    with pytest.raises(ValueError) as error:
        checks.check_number(value, "q", "a fair number", do="Take another.", **bounds)
    assert str(error.value) == f"q: expected a fair number, got {value!r}. Take another."


def test_choices_are_listed():
    assert checks.check_choice("b", "how", ("a", "b")) == "b"
    with pytest.raises(ValueError, match=r"^how: expected one of 'a', 'b', got 'c'.$"):
        checks.check_choice("c", "how", ("a", "b"))


def test_dtypes_of_results():
    for dtype in (None, *checks.FLOAT_DTYPES):
        checks.check_dtype(dtype, "out")
    with pytest.raises(TypeError, match="^out: expected one of torch.float64, .*or None, got torch.int32.$"):
        checks.check_dtype(torch.int32, "out")


@pytest.mark.parametrize(("dim", "counted"), [(0, 0), (2, 2), (-1, 2), (-3, 0), (np.int64(1), 1)])
def test_the_dimension_of_neurons_is_counted_from_the_front(dim, counted):
    found = checks.check_neurons(torch.ones(2, 3, 4), dim)
    assert type(found) is int
    assert found == counted


@pytest.mark.parametrize(
    ("shape", "dim", "error", "match"),
    [
        ((3,), 0, ValueError, r"^x: expected at least two dimensions, .*got shape \(3,\)\. Collect"),
        ((2, 3), 2, ValueError, r"^neuron_dim: expected -2 to 1 for x of shape \(2, 3\), got 2\. It names"),
        ((2, 3), -3, ValueError, "got -3"),
        ((2, 3), 1.0, TypeError, "^neuron_dim: expected an int, got float"),
        ((0, 3), 1, ValueError, "^x: expected at least one neuron and one sample.*has no samples. Check"),
        ((2, 0), 1, ValueError, "has no neurons"),
    ],
)
def test_activations_without_neurons(shape, dim, error, match):
    with pytest.raises(error, match=match):
        checks.check_neurons(torch.ones(shape), dim, "x")


def test_there_may_be_no_samples_where_that_is_said():
    assert checks.check_neurons(torch.ones(0, 3), -1, samples=False) == 1


def test_shapes_devices_and_directions():
    checks.check_shape(X, "x", (9, 6), "", "")
    with pytest.raises(ValueError, match=r"^x: expected shape \(6, 9\) of old, got \(9, 6\)\. Turn it\.$"):
        checks.check_shape(X, "x", (6, 9), " of old", "Turn it.")
    checks.check_device(X, "x", X, "y")
    with pytest.raises(ValueError, match="^x: expected device cpu like y, got meta. Move it there.$"):
        checks.check_device(X.to("meta"), "x", X, "y")
    checks.check_directions(torch.tensor([1.0, math.nan]), "x", center=False)
    for center, what in ((False, "zero on every sample"), (True, "the same on every sample, so zero after centring")):
        with pytest.raises(ValueError, match=rf"^x: expected every.*got 2 that are {what} \(first: \[0, 2\]\)\."):
            checks.check_directions(torch.tensor([0.0, 1.0, 0.0]), "x", center=center)


@pytest.mark.parametrize(
    "call",
    [
        lambda whole: sdsd_kernels.cosine_between(X, X, neuron_dim=whole(1), max_bytes=whole(2**20)),
        lambda whole: sdsd_kernels.cosine_histogram(X, whole(8), max_bytes=whole(2**20)),
        lambda whole: sdsd_kernels.cosine_matrix(X, neuron_dim=whole(-2)),
        lambda whole: sdsd_kernels.cosine_pairs(X, above=0, max_bytes=whole(2**20)),
        lambda whole: sdsd_kernels.cosine_row_sums(X, max_bytes=whole(2**20)),
        lambda whole: sdsd_kernels.cosine_topk(X, whole(2), max_bytes=whole(2**20)),
        lambda whole: sdsd_kernels.disjoint_pairs(X, whole(2), seed=whole(1), max_bytes=whole(2**26)),
        lambda whole: sdsd_kernels.gram_accumulate(torch.zeros(9, 9), X, neuron_dim=whole(0)),
        lambda whole: sdsd_kernels.weight_grad_stats(X, X, max_bytes=whole(2**20)),
    ],
)
def test_kernels_take_whole_numbers_of_numpy(call):
    wanted, found = call(int), call(np.int64)
    for one, other in zip(
        *([each] if isinstance(each, torch.Tensor) else each for each in (wanted, found)), strict=True
    ):
        assert torch.equal(one, other)


ELSEWHERE = {
    "sdsd/gamma/following/indexing.py",
    "sdsd/gamma/following/reductions.py",
    "sdsd/geometry/collect/padding.py",
    "sdsd/graphs/calls.py",
    "sdsd/graphs/operations.py",
    "sdsd/geometry/merging/sensitivity.py",
}
"""Files that ask for themselves whether a value is a bool; they look at what a user's code passed to torch
or gave back."""


def test_checks_are_not_repeated():
    """No other file tells bools from numbers, nor defines a check that is here."""
    here = {name for name in vars(checks) if name.startswith("check_")}
    for path in [*(ROOT / "sdsd").rglob("*.py"), *(ROOT / "sdsd_kernels").rglob("*.py")]:
        if path.name == "_checks.py":
            continue
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        defined = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
        assert not here & {function.removeprefix("_") for function in defined}, name
        assert name in ELSEWHERE or ", bool)" not in text, name
