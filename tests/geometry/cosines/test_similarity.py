"""neuron_cosine_matrix: what it takes, and that it says no well. The numbers are tested with the kernel."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from sdsd.geometry import neuron_cosine_matrix
from sdsd.geometry.cosines import similarity
from tests.helpers import assert_within, cosine_error


@pytest.mark.parametrize(
    ("shape", "neuron_dim"), [((6, 4), 1), ((2, 3, 4), 2), ((2, 4, 3, 3), 1), ((2, 4, 3, 3, 2), 1)]
)
def test_default_neuron_dim(shape, neuron_dim):
    x = torch.randn(shape)
    assert neuron_cosine_matrix(x).shape == (4, 4)
    assert torch.equal(neuron_cosine_matrix(x), neuron_cosine_matrix(x, neuron_dim=neuron_dim))


def test_conv1d_needs_its_neuron_dim():
    assert neuron_cosine_matrix(torch.randn(2, 5, 7), neuron_dim=1).shape == (5, 5)


def test_is_correlation_when_centred():
    x = torch.randn(50, 6, dtype=torch.float64) + 3
    assert np.allclose(neuron_cosine_matrix(x, center=True).numpy(), np.corrcoef(x.numpy().T), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_arrays(dtype):
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(dtype)
    wanted = neuron_cosine_matrix(torch.from_numpy(x))
    assert wanted.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    assert torch.equal(neuron_cosine_matrix(x), wanted)
    # The same samples in another order, on both sides.
    allowed = 2 * cosine_error(torch.from_numpy(x).T, dtype=wanted.dtype)
    assert_within(neuron_cosine_matrix(x[::-1]), wanted, allowed)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_read_without_complaint():
    x = np.ones((3, 2), dtype=np.float32)
    x.flags.writeable = False
    assert torch.allclose(neuron_cosine_matrix(x), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([[1.0, 2.0]], "expected a torch.Tensor or a NumPy array, got list"),
        (None, "got NoneType"),
        (np.ones((2, 3), dtype=np.int32), "got torch.int32"),
        (np.ones((2, 3), dtype=complex), "expected real values"),
        (np.array([["a", "b"]]), "expected an array of floating-point numbers"),
        (np.array([[None, 1.0]]), "expected an array of floating-point numbers"),
    ],
)
def test_wrong_types(value, match):
    with pytest.raises(TypeError, match=match):
        neuron_cosine_matrix(value)


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((3,), {}, "at least two dimensions"),
        ((0, 3), {}, "no samples"),
        ((3, 0), {}, "no neurons"),
        ((3, 4), {"neuron_dim": 5}, "neuron_dim: expected -2 to 1"),
        ((3, 4), {"precision": "double"}, "precision: expected one of"),
        ((3, 4), {"zero": "one"}, "zero: expected one of"),
        ((3, 4), {"backend": "numpy"}, "backend: expected one of"),
    ],
)
def test_wrong_values(shape, options, match):
    with pytest.raises(ValueError, match=match):
        neuron_cosine_matrix(torch.ones(shape), **options)


def test_example_in_the_docstring():
    assert doctest.testmod(similarity).failed == 0
