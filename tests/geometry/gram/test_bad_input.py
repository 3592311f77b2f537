"""What an accumulator refuses, and that it is unharmed."""

from __future__ import annotations

import copy
import doctest

import numpy as np
import pytest
import torch

from sdsd.geometry.gram import accumulator
from sdsd.geometry.gram.accumulator import GramAccumulator

from .streams import bits, least_bytes, streamed


@pytest.mark.parametrize(
    ("batch", "options", "error", "match"),
    [
        (
            torch.ones(3, 5),
            {},
            ValueError,
            r"expected 6 neurons, as many.*got 5 \(shape \(3, 5\)",
        ),
        (torch.ones(6, 5), {}, ValueError, "Check that neuron_dim"),
        (torch.ones(6), {}, ValueError, r"at least two dimensions.*got shape \(6,\)"),
        (torch.ones(3, 6, dtype=torch.int64), {}, TypeError, "got torch.int64"),
        (torch.ones(3, 6, dtype=torch.complex64), {}, TypeError, "got torch.complex64"),
        (torch.ones(3, 6, dtype=torch.float64), {}, TypeError, "got torch.float64.*dtype=torch.float64"),
        (torch.eye(6).to_sparse(), {}, TypeError, "expected a dense tensor"),
        (torch.ones(3, 6, device="meta"), {}, ValueError, "expected device cpu like the accumulator, got meta"),
        ([[1.0] * 6], {}, TypeError, "expected a torch.Tensor or a NumPy array, got list"),
        (np.ones((2, 6), dtype=np.int32), {}, TypeError, "got torch.int32"),
        (torch.ones(3, 6), {"neuron_dim": 2}, ValueError, "neuron_dim: expected -2 to 1"),
        (torch.ones(3, 6), {"neuron_dim": 1.0}, TypeError, "neuron_dim: expected an int or None, got float"),
        (torch.ones(3, 6), {"neuron_dim": True}, TypeError, "neuron_dim: expected an int or None, got bool"),
        (torch.ones(3, 6), {"progress": 1}, TypeError, "progress"),
    ],
)
def test_bad_batches_leave_it_unharmed(batch, options, error, match):
    gram = streamed(torch.randn(20, 6), 6, max_bytes=8 * least_bytes(6))
    before, waiting = bits(copy.deepcopy(gram)), gram._sums.waiting
    with pytest.raises(error, match=match):
        gram.update(batch, **options)
    assert gram._sums.waiting == waiting > 0
    assert bits(gram) == before


@pytest.mark.parametrize(
    ("other", "error", "match"),
    [
        (GramAccumulator(5, center=True), ValueError, "expected the same n, 6, got 5"),
        (GramAccumulator(6), ValueError, "expected the same center, True, got False"),
        (GramAccumulator(6, center=True, dtype=torch.float64), ValueError, "expected the same dtype, torch.float32"),
        (torch.eye(6), TypeError, "expected a GramAccumulator, got Tensor"),
    ],
)
def test_merging_what_does_not_fit(other, error, match):
    gram = streamed(torch.randn(20, 6), 6, center=True)
    before = bits(gram)
    with pytest.raises(error, match=match):
        gram.merge(other)
    assert bits(gram) == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n": 5}, "expected n=6 like this accumulator, got 5"),
        ({"center": False}, "expected center=True"),
        ({"dtype": torch.float64}, "expected dtype=torch.float32"),
        ({"gram": torch.zeros(20, dtype=torch.float64)}, r"expected gram to be torch.float64 of shape \(21,\)"),
        ({"gram": torch.zeros(21)}, "expected gram to be torch.float64.*got torch.float32"),
        ({"gram": None}, "expected gram to be torch.float64.*got None"),
        ({"mean": None}, "expected mean to be"),
        ({"exponent": torch.zeros(6)}, "expected exponent to be torch.int32"),
        ({"nonfinite": 3}, "expected nonfinite to be torch.bool.*got 3"),
        ({"samples": -1}, "expected samples to be"),
        ({"samples": 1.5}, "expected samples to be"),
    ],
)
def test_loading_what_does_not_fit(change, match):
    gram = streamed(torch.randn(20, 6), 6, center=True)
    before = bits(gram)
    with pytest.raises(ValueError, match=match):
        gram.load_state_dict({**gram.state_dict(), **change})
    assert bits(gram) == before
    for state in ({}, {"n": 6}, None, [1]):
        with pytest.raises(ValueError, match=r"expected what state_dict\(\) returned"):
            gram.load_state_dict(state)
    assert bits(gram) == before


def test_nothing_can_be_made_of_nothing():
    gram = GramAccumulator(3, center=True)
    for call in (gram.cosine_matrix, gram.gram, gram.norms, gram.means):
        with pytest.raises(ValueError, match="expected at least one sample before a result, got none"):
            call()
    gram.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"correction: expected more than 1 samples.*got 1"):
        gram.covariance()
    assert gram.covariance(correction=0).shape == (3, 3)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"zero": "ignore"}, ValueError, "zero: expected one of 'zero', 'nan', 'raise', got 'ignore'"),
        ({"out_dtype": torch.int32}, TypeError, "out_dtype: expected one of"),
        ({"out_dtype": "float32"}, TypeError, "out_dtype: expected one of"),
        ({"progress": "yes"}, TypeError, "progress"),
    ],
)
def test_bad_options_of_a_result(options, error, match):
    with pytest.raises(error, match=match):
        streamed(torch.randn(5, 3), 5).cosine_matrix(**options)


@pytest.mark.parametrize(
    ("n", "options", "error", "match"),
    [
        (0, {}, ValueError, "n: expected at least 1 neuron, got 0"),
        (3.0, {}, TypeError, "n: expected an int, got float"),
        (True, {}, TypeError, "got bool"),
        (3, {"dtype": torch.bfloat16}, TypeError, "dtype: expected torch.float32 or torch.float64"),
        (3, {"precision": "fp8"}, ValueError, "precision: expected one of"),
        (3, {"backend": "cuda"}, ValueError, "backend: expected one of 'triton', 'torch'"),
        (3, {"backend": "triton", "dtype": torch.float64}, ValueError, "Triton was asked for.*no float64"),
        (3, {"nonfinite": "ignore"}, ValueError, "nonfinite: expected one of 'warn', 'raise'"),
        (3, {"max_bytes": 95}, ValueError, "max_bytes: expected at least 96.*for 3 neurons, got 95"),
        (3, {"max_bytes": 1e9}, TypeError, "max_bytes: expected an int or None, got float"),
    ],
)
def test_bad_settings(n, options, error, match):
    with pytest.raises(error, match=match):
        GramAccumulator(n, **options)


def test_all_reduce_needs_a_process_group():
    gram = streamed(torch.randn(20, 6), 6, center=True)
    before = bits(gram)
    with pytest.raises(RuntimeError, match="expected an initialised process group.*init_process_group"):
        gram.all_reduce()
    assert bits(gram) == before


def test_examples_in_docstrings():
    assert doctest.testmod(accumulator).failed == 0
