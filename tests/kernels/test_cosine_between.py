"""cosine_between against float64 written apart from reference.py."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from sdsd_kernels.cosine_between import op
from sdsd_kernels.cosine_between.op import cosine_between
from sdsd_kernels.cosine_between.reference import cosine_between_reference
from sdsd_kernels.pairwise import blocks
from tests.helpers import assert_within, cosine_error
from tests.kernels.cosines import exact_cosines, exact_rows

NAN, INF = float("nan"), float("inf")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")


@pytest.fixture(autouse=True)
def served(backend, monkeypatch) -> None:
    """Everything by blocks of torch, and by the kernels where they serve."""
    monkeypatch.setenv("SDSD_BACKEND", backend)


def oracle(x: Tensor, y: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    return exact_cosines(exact_rows(x, neuron_dim, center), exact_rows(y, neuron_dim, center))


def check(cosine: Tensor, x: Tensor, y: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    assert cosine.abs().max() <= 1
    allowed = cosine_error(*(exact_rows(part, neuron_dim) for part in (x, y)), center=center)
    assert_within(cosine, oracle(x, y, neuron_dim, center), allowed)


def check_call(x: Tensor, y: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    check(cosine_between(x, y, neuron_dim=neuron_dim, center=center), x, y, neuron_dim, center)


@pytest.mark.parametrize(
    ("one", "two", "neuron_dim"),
    [
        ((40, 70), (40, 33), -1),
        ((2, 33), (2, 5), 1),
        ((33, 1), (33, 1), 1),
        ((97, 130), (10, 130), 0),
        ((3, 7, 35), (3, 7, 4), -1),
        ((3, 34, 4, 5), (3, 20, 4, 5), 1),
        ((3, 34, 4, 5), (3, 20, 20), 1),
        ((3, 20, 20), (3, 34, 4, 5), 1),
        ((3, 34, 4, 5), (4, 20, 3, 5), 1),  # cut into samples differently, so `y` is copied
    ],
)
@pytest.mark.parametrize("center", [False, True])
def test_matches_the_definition(one, two, neuron_dim, center, device):
    check_call(torch.randn(one, device=device) + 0.2, torch.randn(two, device=device) - 0.2, neuron_dim, center)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_have_float32_norms_and_sums(dtype, device):
    x, y = (torch.randn(70, n, device=device).to(dtype) for n in (40, 20))
    assert cosine_between(x, y).dtype == torch.float32
    check_call(x, y)


def test_float64(device):
    x, y = (torch.randn(50, n, device=device, dtype=torch.float64) for n in (40, 20))
    wanted, allowed = oracle(x, y), cosine_error(x.T, y.T, dtype=torch.float64)
    x[:, 3] *= 2.0**-700
    y[:, 4] *= 2.0**700
    cosine = cosine_between(x, y)
    assert cosine.dtype == torch.float64
    assert_within(cosine, wanted, allowed)


@pytest.mark.parametrize("center", [False, True])
def test_any_scale(center, device):
    x, y = (torch.randn(50, n, device=device) + 0.3 for n in (40, 20))
    up, down = 10.0 ** torch.linspace(-30, 30, 40, device=device), 10.0 ** torch.linspace(30, -30, 20, device=device)
    check_call(x * up, y * down, center=center)
    check_call(x, y * 1e25, center=center)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_values_stay_in_their_row_or_column(bad, device):
    x, y = (torch.randn(50, n, device=device) for n in (12, 9))
    clean = cosine_between(x, y)
    x[3, 5], y[4, 2] = bad, bad
    cosine = cosine_between(x, y)
    wanted = torch.zeros(12, 9, dtype=torch.bool, device=device)
    wanted[5], wanted[:, 2] = True, True
    assert torch.equal(cosine.isnan(), wanted)
    assert torch.equal(cosine[~wanted], clean[~wanted])


def test_zero_neurons(device):
    x, y = (torch.randn(50, n, device=device) for n in (12, 9))
    x[:, 5], y[:, 2] = 0, 0
    zeros = cosine_between(x, y)
    assert (zeros[5] == 0).all()
    assert (zeros[:, 2] == 0).all()
    nans = cosine_between(x, y, zero="nan")
    assert nans[5].isnan().all()
    assert nans[:, 2].isnan().all()
    alive = ~nans.isnan()
    assert alive.sum() == 11 * 8
    assert torch.equal(nans[alive], zeros[alive])
    with pytest.raises(ValueError, match=r"x: expected every neuron to have a direction, got 1 .*\(first: \[5\]\)"):
        cosine_between(x, y, zero="raise")
    with pytest.raises(ValueError, match=r"y: expected every neuron to have a direction.*\(first: \[2\]\)"):
        cosine_between(y[:, :2], y, zero="raise")
    with pytest.raises(ValueError, match="the same on every sample"):
        cosine_between(y, torch.ones_like(y), zero="raise", center=True)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("max_bytes", [None, 2**20])
def test_blocks_fit_together(center, max_bytes, monkeypatch, device):
    monkeypatch.setattr(op, "BLOCK", {"cpu": (7, 10), "cuda": (7, 10)})
    monkeypatch.setattr(blocks, "SAMPLES_AT_ONCE", 16)
    x, y = (torch.randn(50, n, device=device) + 1 for n in (30, 31))
    steps: list[tuple[int, int]] = []
    found = cosine_between(
        x, y, center=center, max_bytes=max_bytes, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, 20) for done in range(1, 21)]
    check(found, x, y, -1, center)


@pytest.mark.parametrize("zero", ["zero", "nan"])
def test_reference_is_the_definition(zero):
    x, y = torch.randn(3, 9, 8) + 0.5, torch.randn(3, 7, 8)
    x[:, 2], x[0, 4, 0], y[:, 3] = 0, NAN, y[:, 3] * 1e-30
    wanted = oracle(x, y, 1, True)
    wanted[2] = 0.0 if zero == "zero" else NAN
    got = cosine_between_reference(x, y, neuron_dim=1, center=True, zero=zero)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12, equal_nan=True)
    with pytest.raises(ValueError, match="x: 1 neurons are zero"):
        cosine_between_reference(x, y, neuron_dim=1, zero="raise")


def test_opcheck_compile_and_meta(device):
    x, y = torch.randn(5, 2, 6, device=device), torch.randn(4, 2, 6, device=device)
    torch.library.opcheck(torch.ops.sdsd.cosine_between.default, (x, y, "zero", True, None))
    compiled = torch.compile(lambda x, y: cosine_between(x.relu(), y), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x[0].T, y[0].T), cosine_between(x[0].T.relu(), y[0].T))
    assert cosine_between(torch.randn(4, 9, device="meta"), torch.randn(4, 5, device="meta")).shape == (9, 5)


X = torch.ones(3, 6)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: cosine_between([[1.0]], X), TypeError, "x: expected a torch.Tensor, got list"),
        (lambda: cosine_between(X, [[1.0]]), TypeError, "y: expected a torch.Tensor, got list"),
        (lambda: cosine_between(X, None), TypeError, "y: expected a torch.Tensor, got NoneType"),
        (lambda: cosine_between(X, X.long()), TypeError, "y: expected float64, float32, .* got torch.int64"),
        (lambda: cosine_between(X, torch.ones(3)), ValueError, "at least two dimensions"),
        (lambda: cosine_between(X, torch.ones(4, 6)), ValueError, "y: expected the number of samples of x, 3, got 4"),
        (lambda: cosine_between(X, X.double()), ValueError, "y: expected the dtype of x"),
        (lambda: cosine_between(X, X.to("meta")), ValueError, "y: expected the device of x"),
        (lambda: cosine_between(X, X, neuron_dim=2), ValueError, "expected -2 to 1"),
        (lambda: cosine_between(X, X, zero="ignore"), ValueError, "zero: expected one of"),
        (lambda: cosine_between(X, X, max_bytes=-3), ValueError, "max_bytes: expected at least 1, got -3"),
        (lambda: cosine_between(X.half(), X.half(), max_bytes=3), ValueError, "max_bytes: expected at least"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_wide_tiles_are_stored_in_strips(backend, device, monkeypatch):
    if backend == "torch" or device.type == "cuda":
        pytest.skip("the interpreter's tiles are narrow, those of a GPU as wide as they are")
    launch = importlib.import_module("sdsd_kernels.pairwise.launch")
    monkeypatch.setattr(launch.config, "strip", lambda *_: 8)
    monkeypatch.setattr(launch, "_plans", {})
    check_call(torch.randn(40, 70), torch.randn(40, 75))
