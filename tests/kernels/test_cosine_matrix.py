"""cosine_matrix on every backend against float64: layouts, dtypes, precisions, ranges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels._backend import unusable
from sdsd_kernels._checks import PRECISIONS
from sdsd_kernels._rows import as_rows
from sdsd_kernels.cosine_matrix.op import cosine_matrix
from tests.helpers import assert_within, cosine_error

from .matrices import INF, NAN, check, check_precision, check_promises, check_values, oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.mark.parametrize(
    ("shape", "neuron_dim"),
    [
        ((40, 70), -1),  # tiles of several groups, ragged in both dimensions
        ((1, 33), 1),  # one sample: every cosine is ±1
        ((33, 1), 1),  # one neuron
        ((1, 1), 0),
        ((97, 130), 0),  # samples adjacent
        ((64, 64), 0),  # nothing overruns
        ((3, 7, 35), -1),  # (batch, tokens, neurons)
        ((3, 35, 7), 1),  # Conv1d
        ((3, 34, 4, 5), 1),  # Conv2d
        ((2, 33, 2, 3, 3), 1),
    ],
)
def test_matches_the_definition(shape, neuron_dim, backend, device):
    x = torch.randn(shape, device=device) + 0.2
    cosine = cosine_matrix(x, neuron_dim=neuron_dim, backend=backend)
    assert cosine.dtype == torch.float32
    check(cosine, x, neuron_dim)


@pytest.mark.parametrize(
    ("view", "neuron_dim", "copied"),
    [
        (lambda x: x[:, ::2], 1, False),
        (lambda x: x[::3, 1:40], 1, False),
        (lambda x: x.T[5:40], 0, False),
        (lambda x: x[:, :1].expand(-1, 35), 1, False),
        (lambda x: x.view(6, 10, 70)[:, ::2], 2, False),  # two sample strides
        (lambda x: x.view(4, 3, 5, 70).movedim(3, 1), 1, False),  # channels last
        (lambda x: x.view(4, 3, 5, 70)[:, :2, ::2], 3, True),  # three sample strides
    ],
)
def test_any_strides(view, neuron_dim, copied, backend, device):
    x = view(torch.randn(60, 70, device=device))
    rows = as_rows(x, neuron_dim)
    assert (
        rows.data_ptr() != x.data_ptr() or rows.untyped_storage().nbytes() != x.untyped_storage().nbytes()
    ) == copied
    check(cosine_matrix(x, neuron_dim=neuron_dim, backend=backend), x, neuron_dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("center", [False, True])
def test_halves_have_float32_norms_and_sums(dtype, center, backend, device):
    x = (torch.randn(70, 40, device=device) + 0.5).to(dtype)
    cosine = cosine_matrix(x, center=center, backend=backend)
    check(cosine, x, center=center)


@pytest.mark.parametrize("out_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_out_dtype_is_one_rounding(out_dtype, backend, device):
    x = torch.randn(50, 40, device=device)
    cosine = cosine_matrix(x, out_dtype=out_dtype, backend=backend)
    assert cosine.dtype == out_dtype
    check(cosine, x)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision, backend, device):
    x = torch.randn(100, 40, device=device)
    cosine = cosine_matrix(x, precision=precision, backend=backend)
    check_promises(cosine)
    check_precision(cosine, x, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("center", [False, True])
def test_precisions_at_every_scale(precision, center, backend, device):
    x = torch.randn(70, 35, device=device) + 0.5
    scale = 10.0 ** torch.linspace(-30, 30, 35, device=device)
    cosine = cosine_matrix(x * scale, precision=precision, center=center, backend=backend)
    check_promises(cosine)
    check_precision(cosine, x * scale, precision, center)


def test_float64(device):
    x = torch.randn(50, 40, device=device, dtype=torch.float64)
    cosine = cosine_matrix(x)
    assert cosine.dtype == torch.float64
    wanted, allowed = oracle(x), cosine_error(x.T, dtype=torch.float64)
    # Powers of two change no digit, and squares of these leave the range of float64.
    x[:, 3] *= 2.0**-700
    x[:, 4] *= 2.0**700
    for found in (cosine, cosine_matrix(x)):
        check_promises(found)
        assert_within(found, wanted, allowed)


@pytest.mark.parametrize("layout", ["neurons adjacent", "samples adjacent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_scale_in_one_matrix(layout, dtype, backend, device):
    x = torch.randn(70, 40, device=device)
    scaled = x.clone()
    # The interpreter misreads subnormal bfloat16.
    tiny = 1e-38 if dtype == torch.float32 else 1e-35
    for neuron, scale in enumerate([1e-30, 1e30, 1e-20, 1e20, tiny, 3e37, 1e-13]):
        scaled[:, 5 * neuron] *= scale
    scaled = scaled.to(dtype)
    if layout == "samples adjacent":
        scaled = scaled.T.contiguous().T
    cosine = cosine_matrix(scaled, backend=backend)
    check(cosine, scaled)


def test_a_wide_range_inside_one_neuron(backend, device):
    x = torch.randn(64, 33, device=device)
    x[::2] *= 1e-25
    x[1::2] *= 1e25
    check(cosine_matrix(x, backend=backend), x)


@pytest.mark.parametrize("offset", [10.0, 1e4])
def test_centring_does_not_cancel(offset, backend, device):
    x = torch.randn(150, 33, device=device) + offset
    check(cosine_matrix(x, center=True, backend=backend), x, center=True)


def test_centring_at_extreme_scales_and_of_constants(backend, device):
    x = torch.randn(60, 36, device=device) + 1
    x[:, 1] *= 1e-30
    x[:, 2] *= 1e30
    x[:, 3] = 0.1
    cosine = cosine_matrix(x, center=True, backend=backend)
    wanted = oracle(x, center=True)
    assert (cosine[3] == 0).all()
    assert (cosine[:, 3] == 0).all()
    alive = torch.arange(36) != 3
    assert_within(cosine[alive][:, alive], wanted[alive][:, alive], cosine_error(x.T[alive.to(x.device)], center=True))


def test_near_parallel_neurons(backend, device):
    x = torch.randn(256, 1, device=device) + 1e-4 * torch.randn(256, 40, device=device)
    check(cosine_matrix(x, backend=backend), x)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("center", [False, True])
def test_bad_values_stay_in_their_row_and_column(bad, center, backend, device):
    x = torch.randn(50, 40, device=device)
    clean = cosine_matrix(x, center=center, backend=backend)
    x[7, 35] = bad
    x[:, 4] = 0
    cosine = cosine_matrix(x, center=center, backend=backend)
    assert cosine[35].isnan().all()
    assert cosine[:, 35].isnan().all()
    others = [neuron for neuron in range(40) if neuron not in (4, 35)]
    assert torch.equal(cosine[others][:, others], clean[others][:, others])
    assert (cosine[4, others] == 0).all()


def test_zero_neurons(backend, device):
    x = torch.randn(50, 40, device=device)
    clean = cosine_matrix(x, backend=backend)
    x[:, [0, 33]] = 0
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[0, 33]] = True
    alive = ~dead
    zeros = cosine_matrix(x, zero="zero", backend=backend).cpu()
    check_promises(zeros, dead)
    assert (zeros[dead] == 0).all()
    assert torch.equal(zeros[alive][:, alive], clean.cpu()[alive][:, alive])
    nans = cosine_matrix(x, zero="nan", backend=backend).cpu()
    assert nans[dead].isnan().all()
    assert nans[:, dead].isnan().all()
    assert torch.equal(nans[alive][:, alive], zeros[alive][:, alive])
    with pytest.raises(ValueError, match=r"got 2 that are zero on every sample \(first: \[0, 33\]\)"):
        cosine_matrix(x, zero="raise", backend=backend)
    with pytest.raises(ValueError, match="the same on every sample"):
        cosine_matrix(torch.ones(5, 3, device=device), zero="raise", center=True, backend=backend)
    assert cosine_matrix(x[:, 1:33], zero="raise", backend=backend).shape == (32, 32)
    assert (cosine_matrix(torch.zeros(3, 4, device=device), backend=backend) == 0).all()


@st.composite
def activations(draw) -> Tensor:
    neurons, samples = draw(st.integers(1, 45)), draw(st.integers(1, 90))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(samples, neurons, generator=generator)
    exponents = torch.randint(-30, 31, (neurons,), generator=generator) * draw(st.integers(0, 1))
    x = x * 10.0**exponents
    x[:, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.3]))] = 0
    return x.T.contiguous().T if draw(st.booleans()) else x


@settings(max_examples=20, deadline=None, derandomize=True)
@given(activations())
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_any_activations(name, x):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if unusable(name, device):
        pytest.skip(unusable(name, device))
    cosine = cosine_matrix(x.to(device), backend=name).cpu()
    dead = (x == 0).all(0)
    check_promises(cosine, dead)
    assert (cosine[dead] == 0).all()
    alive = x[:, ~dead]
    if alive.numel():
        check_values(cosine[~dead][:, ~dead], alive)
