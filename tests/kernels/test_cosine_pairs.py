"""Histogram, row sums and threshold pairs on every backend this machine has, against float64 written apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import cosine_histogram, cosine_pairs, cosine_row_sums
from sdsd_kernels._backend import unusable
from sdsd_kernels.cosine_pairs.op import ROW_SUMS
from sdsd_kernels.cosine_pairs.reference import (
    cosine_histogram_reference,
    cosine_pairs_reference,
    cosine_row_sums_reference,
)
from tests.kernels.pairs import (
    INF,
    NAN,
    SHAPES,
    check_all,
    check_calls,
    check_histogram,
    check_pairs,
    check_row_sums,
    oracle,
    sign_vectors,
    sums_of,
    without_direction,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.mark.parametrize(("shape", "neuron_dim"), SHAPES)
def test_matches_the_definition(shape, neuron_dim, backend, device):
    check_calls(torch.randn(shape, device=device) + 0.2, neuron_dim, backend=backend)


def test_every_kind_and_both_thresholds(backend, device):
    check_all(torch.randn(40, 70, device=device) + 0.2, backend=backend)


@pytest.mark.parametrize(
    ("dtype", "center"),
    [(torch.float32, True), (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_dtypes_and_centring(dtype, center, backend, device):
    x = (torch.randn(50, 45, device=device) + 2).to(dtype)
    x[:, 7] = 0.5
    check_calls(x, center=center, backend=backend)


@pytest.mark.parametrize("center", [False, True])
def test_float64(center, device):
    x = torch.randn(50, 45, device=device, dtype=torch.float64) + 2
    x[:, 7] = 0.5
    check_all(x, center=center)


@pytest.mark.parametrize("layout", ["neurons adjacent", "samples adjacent"])
def test_edges_belong_to_the_right_and_thresholds_are_included(layout, backend, device):
    x = sign_vectors(45, seed=3)
    x[:, 40] = x[:, 2]
    x[:, 41] = -x[:, 2]
    eighths = torch.einsum("si,sj->ij", x.long(), x.long()) // 2
    place = eighths[torch.ones(45, 45, dtype=torch.bool).triu(1)] + 8
    x = (x if layout == "neurons adjacent" else x.T.contiguous().T).to(device)
    counts = cosine_histogram(x, 16, backend=backend).counts.cpu()
    assert counts.tolist() == torch.bincount(place.clamp(max=15), minlength=16).tolist()
    for name, threshold in (("above", -4), ("above", 0), ("above", 8), ("below", -8), ("below", 2)):
        past = eighths >= threshold if name == "above" else eighths <= threshold
        found = cosine_pairs(x, backend=backend, **{name: threshold / 8})
        first, second = past.triu(1).nonzero(as_tuple=True)
        assert len(first) > 0
        assert torch.equal(found.first.cpu(), first)
        assert torch.equal(found.second.cpu(), second)
        assert torch.equal(found.cosine.cpu(), eighths[first, second] / 8)
    assert torch.equal(cosine_row_sums(x, backend=backend).cpu(), eighths.double().sum(1) / 8 - 1)
    assert torch.equal(cosine_row_sums(x, "absolute", backend=backend).cpu(), eighths.abs().double().sum(1) / 8 - 1)


def test_neurons_without_direction_are_apart(backend, device):
    x = torch.randn(30, 70, device=device)
    x[:, [0, 35]] = 0
    x[3, [5, 69]] = torch.tensor([NAN, INF], device=device)
    check_histogram(cosine_histogram(x, 64, backend=backend), x)
    for kind in ROW_SUMS:
        sums = cosine_row_sums(x, kind, backend=backend)
        assert (sums[[0, 35]] == 0).all()
        check_row_sums(sums, x, kind)
    everything = cosine_pairs(x, above=-1, backend=backend)
    assert len(everything.first) == math.comb(66, 2)
    check_pairs(everything, x, -1.0, True)
    assert torch.equal(cosine_pairs(x, below=1, backend=backend).second, everything.second)
    nobody = torch.zeros(4, 5, device=device)
    assert cosine_histogram(nobody, 3, backend=backend).counts.tolist() == [0, 0, 0]
    assert int(cosine_histogram(nobody, 3, backend=backend).zero_pairs) == 10
    assert len(cosine_pairs(nobody, below=0, backend=backend).first) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_scale_at_once(dtype, backend, device):
    x = torch.randn(30, 50, device=device)
    for neuron, scale in enumerate([1e-30, 1e30, 1e-20, 1e20, 1e-35, 3e37]):
        x[:, 9 * neuron] *= scale
    x = x.to(dtype)
    check_histogram(cosine_histogram(x, 50, backend=backend), x)
    check_pairs(cosine_pairs(x, above=0.2, backend=backend), x, 0.2, True)
    zero, bad = without_direction(x)
    assert not zero.any()
    assert not bad.any()
    check_row_sums(cosine_row_sums(x, "absolute", backend=backend), x, "absolute")


def test_duplicates(backend, device):
    x = torch.randn(30, 40, device=device)
    x[:, 20:] = x[:, :20] * 3
    found = cosine_pairs(x, above=0.9999, backend=backend)
    assert found.first.tolist() == list(range(20))
    assert found.second.tolist() == list(range(20, 40))
    assert (found.cosine <= 1).all()
    assert int(cosine_histogram(x, 8, backend=backend).counts[-1]) == 20
    check_row_sums(cosine_row_sums(x, "distance", backend=backend), x, "distance")
    # √(2 − 2c) magnifies rounding where c is 1: of one duplicate, to what the docstring says.
    pair = torch.stack([x[:, 0], x[:, 20]], 1)
    assert (cosine_row_sums(pair, "distance", backend=backend).cpu() <= 5e-4).all()


@pytest.mark.parametrize("view", [lambda x: x[:, ::2], lambda x: x.T[5:40].T, lambda x: x.view(6, 10, 70)[:, ::2]])
def test_any_strides(view, backend, device):
    x = view(torch.randn(60, 70, device=device))
    check_histogram(cosine_histogram(x, 10, backend=backend), x)
    check_row_sums(cosine_row_sums(x, backend=backend), x, "cosine")
    check_pairs(cosine_pairs(x, above=0.1, backend=backend), x, 0.1, True)


def test_same_numbers_twice(backend, device):
    x = torch.randn(70, 40, device=device)
    for call in (
        lambda: cosine_histogram(x, backend=backend).counts,
        lambda: cosine_row_sums(x, backend=backend),
        lambda: torch.stack([t.double() for t in cosine_pairs(x, above=0.1, backend=backend)]),
    ):
        assert torch.equal(call(), call())


@st.composite
def activations(draw) -> Tensor:
    neurons, samples = draw(st.integers(1, 45)), draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(samples, neurons, generator=generator)
    x = x * 10.0 ** (torch.randint(-30, 31, (neurons,), generator=generator) * draw(st.integers(0, 1)))
    x[:, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.3]))] = 0
    x[0, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.1]))] = NAN
    return x.T.contiguous().T if draw(st.booleans()) else x


@settings(max_examples=8, deadline=None, derandomize=True)
@given(activations(), st.integers(1, 70), st.floats(-1, 1, width=32), st.booleans())
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_any_activations(name, x, bins, threshold, above):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if unusable(name, device):
        pytest.skip(unusable(name, device))
    x = x.to(device)
    check_histogram(cosine_histogram(x, bins, backend=name), x)
    found = cosine_pairs(x, backend=name, **{"above" if above else "below": threshold})
    check_pairs(found, x, threshold, above)


@pytest.mark.parametrize("center", [False, True])
def test_reference_is_the_definition(center):
    x = torch.randn(3, 9, 8) + 0.5
    x[:, 2] = 0
    x[:, 3] *= 1e-30
    x[0, 4, 0] = NAN
    options = {"neuron_dim": 1, "center": center}
    cosine = oracle(x, 1, center)
    for neuron in (2, 4):
        cosine[neuron] = cosine[:, neuron] = NAN
    values = cosine[~cosine.isnan()]
    counts = [int(((values >= low) & (values < low + 0.5)).sum()) for low in (-1, -0.5, 0, 0.5)]
    assert cosine_histogram_reference(x, 4, **options).tolist() == counts
    for kind in ROW_SUMS:
        wanted = sums_of(cosine, kind)
        wanted[4] = NAN
        assert torch.allclose(cosine_row_sums_reference(x, kind, **options), wanted, atol=1e-12, equal_nan=True)
    for bound in ({"above": 0.2}, {"below": 0.2}):
        past = cosine >= 0.2 if "above" in bound else cosine <= 0.2
        first, second, found = cosine_pairs_reference(x, **bound, **options)
        assert torch.equal(torch.stack((first, second), 1), past.nonzero())
        assert torch.allclose(found, cosine[past], atol=1e-12)
