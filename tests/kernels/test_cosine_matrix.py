"""cosine_matrix on every backend this machine has, against float64 written apart from reference.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels._backend import unusable
from sdsd_kernels._checks import PRECISIONS
from sdsd_kernels._rows import as_rows
from sdsd_kernels.cosine_matrix import cpu
from sdsd_kernels.cosine_matrix.op import cosine_matrix
from sdsd_kernels.cosine_matrix.reference import cosine_matrix_reference
from sdsd_kernels.pairwise import products, reading
from tests.helpers import assert_within, cosine_error, relative_error, summation_error, unit_roundoff
from tests.kernels.cosines import exact_cosines, exact_rows, flat

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
NAN, INF = float("nan"), float("inf")
TRUNCATED = 2.0
"""The interpreter converts float32 to bfloat16 by truncation, which errs twice as much as rounding."""


def oracle(x: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """The diagonal of the living is 1."""
    rows = exact_rows(x, neuron_dim, center)
    alive = (rows * rows).sum(1) > 0
    return torch.where(torch.eye(len(rows), dtype=torch.bool) & alive, 1.0, exact_cosines(rows, rows))


def rounded_way(x: Tensor, precision: str) -> Tensor:
    """Cosines from products of factors rounded as `precision` says, and float64 but for that, whatever the machine."""
    rows = flat(x.float())
    # Powers of two bring what float16 multiplies into its range.
    rows = torch.ldexp(rows, -torch.frexp(rows.abs().amax(1, keepdim=True)).exponent)
    rounded = rows.double() if precision == "float32" else rows.half().double()
    norms = rows.double().norm(dim=1)
    return rounded @ rounded.T / (norms[:, None] * norms[None, :])


def check_promises(cosine: Tensor, dead: Tensor | None = None) -> None:
    """Symmetric bit for bit, at most 1, exactly 1 on the diagonal of the living."""
    values = torch.nan_to_num(cosine.cpu(), nan=7.0)
    assert torch.equal(values, values.T)
    assert ((values.abs() <= 1) | (values == 7)).all()
    diagonal = cosine.diagonal().cpu()
    if dead is not None:
        diagonal = diagonal[~dead]
    assert (diagonal == 1).all()


def check_values(cosine: Tensor, x: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    """Every cosine is within what float32 (float64 for float64) and one rounding to its dtype may err."""
    wanted = oracle(x, neuron_dim, center)
    dtype = torch.promote_types(x.dtype, torch.float32)
    rounded = TRUNCATED * unit_roundoff(cosine.dtype) * wanted.abs() if cosine.dtype.itemsize < 4 else 0.0
    assert_within(cosine, wanted, cosine_error(flat(x, neuron_dim), center=center, dtype=dtype) + rounded)


def check(cosine: Tensor, x: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    check_promises(cosine)
    check_values(cosine, x, neuron_dim, center)


def check_precision(cosine: Tensor, x: Tensor, precision: str, center: bool = False) -> None:
    """Beyond what float32 may err, at most twice what rounding factors as `precision` says makes of it."""
    rows = flat(x)
    shifted = (rows - rows.double().mean(1, keepdim=True)).float() if center else rows.float()
    exact = oracle(x, center=center)
    rounding = relative_error(rounded_way(shifted.T, precision), oracle(shifted.T))
    allowed = 2 * rounding + (cosine_error(rows, center=center).norm() / exact.norm()).item()
    assert relative_error(cosine, exact) <= allowed


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


# The torch path, every branch of it


@pytest.mark.parametrize("leaf", [1, 7, 16, 128])
@pytest.mark.parametrize("finish", [1, 10, 128])
def test_torch_recursion_and_strips(leaf, finish, monkeypatch):
    monkeypatch.setattr(products, "STRIP", leaf)
    monkeypatch.setattr(products, "FINISH", finish)
    for neurons in (1, 2, 16, 33, 130):
        x = torch.randn(20, neurons)
        check(cosine_matrix(x, backend="torch"), x)


@pytest.mark.parametrize("shape", [(2, 33, 700), (700, 33, 2), (30, 33, 30), (1, 33, 900), (257, 33, 3)])
@pytest.mark.parametrize("center", [False, True])
def test_torch_chunks(shape, center, monkeypatch):
    monkeypatch.setattr(reading, "SCRATCH_ELEMENTS", 1)
    x = torch.randn(shape) + 0.3
    for half_or_not in (x, x.bfloat16(), x.transpose(0, 1).contiguous().transpose(0, 1)):
        chunks = list(reading.chunks(as_rows(half_or_not, 1), torch.float32, None, None, copy=True))
        assert torch.equal(torch.cat(chunks, 1), half_or_not.float().transpose(0, 1).flatten(1))
        assert max(chunk.shape[1] for chunk in chunks) <= 256
        cosine = cosine_matrix(half_or_not, neuron_dim=1, center=center, backend="torch")
        check(cosine, half_or_not, 1, center)


def test_torch_reads_plain_layouts_where_they_lie(monkeypatch):
    def no_copies(*args):
        raise AssertionError("copied the input")

    x = torch.randn(50, 40)
    monkeypatch.setattr(reading, "converted", no_copies)
    for rows in (x, x.T.contiguous().T, x[:, :30], x.T[:, 5:].T, x.view(5, 10, 40)):
        check_promises(cosine_matrix(rows, backend="torch"))


def test_torch_ignores_a_lowered_matmul_precision(monkeypatch):
    seen = []
    multiply = cpu.upper_products

    def record(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        multiply(*args, **kwargs)

    monkeypatch.setattr(cpu, "upper_products", record)
    torch.set_float32_matmul_precision("medium")
    try:
        cosine_matrix(torch.randn(300, 64), backend="torch")
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_same_numbers_twice(backend, device):
    x = torch.randn(70, 40, device=device)
    assert torch.equal(cosine_matrix(x, backend=backend), cosine_matrix(x, backend=backend))


# Gradient, torch.library, torch.compile


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("zero", ["zero", "nan"])
def test_gradcheck(center, zero, device):
    x = torch.randn(3, 5, 2, device=device, dtype=torch.float64)
    alive = [0, 1, 3, 4]
    x[:, 2] = 0

    def living(x: Tensor) -> Tensor:
        return cosine_matrix(x, neuron_dim=1, center=center, zero=zero)[alive][:, alive]

    x.requires_grad_()
    # Where a neuron is zero the cosine jumps, so finite differences hold only for the others.
    living(x).pow(3).sum().backward()
    assert (x.grad[:, 2] == 0).all()
    rest = x.detach()[:, alive].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cosine_matrix(x, neuron_dim=1, center=center), rest)
    assert torch.autograd.gradgradcheck(lambda x: cosine_matrix(x, neuron_dim=1, center=center), rest)


@pytest.mark.parametrize("center", [False, True])
def test_forward_mode(center, device):
    x = (torch.randn(6, 5, device=device, dtype=torch.float64) + 0.5).requires_grad_()

    def cosine(x: Tensor) -> Tensor:
        return cosine_matrix(x, center=center)

    assert torch.autograd.gradcheck(
        cosine, x, check_forward_ad=True, check_backward_ad=False, check_undefined_grad=False
    )


@pytest.mark.parametrize("center", [False, True])
def test_torch_func(center, backend, device):
    """Gradients and directional derivatives of torch.func, beside those of float64."""
    x = torch.randn(40, 12, device=device) + 0.5
    direction = torch.randn_like(x)

    def loss(x: Tensor, **options) -> Tensor:
        return cosine_matrix(x, center=center, **options).triu(1).pow(3).sum()

    exact = torch.func.grad(loss)(x.double())
    found = torch.func.grad(lambda x: loss(x, backend=backend))(x)
    assert relative_error(found, exact) < 64 * unit_roundoff(torch.float32)
    eager = x.clone().requires_grad_()
    loss(eager, backend=backend).backward()
    assert torch.allclose(eager.grad, found, rtol=1e-5, atol=1e-7)
    _, along = torch.func.jvp(lambda x: cosine_matrix(x, center=center, backend=backend), (x,), (direction,))
    _, wanted = torch.func.jvp(lambda x: cosine_matrix(x, center=center), (x.double(),), (direction.double(),))
    assert wanted.norm() > 0.1
    assert relative_error(along, wanted) < 64 * unit_roundoff(torch.float32)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_gradient_at_every_scale(scale, backend, device):
    x = (torch.randn(60, 12, device=device) * scale).requires_grad_()
    weight = torch.randn(12, 12, device=device)
    (cosine_matrix(x, backend=backend) * weight).sum().backward()
    exact = x.detach().double().requires_grad_()
    rows = exact.T / exact.T.norm(dim=1, keepdim=True)
    ((rows @ rows.T) * weight).sum().backward()
    # (W + Wᵀ) R − r R over norms, R the unit rows, and r = Σ_j (w_ij + w_ji) c_ij.
    both, unit = (weight + weight.T).double().abs(), rows.detach().abs()
    magnitude = (both @ unit + (both * (unit @ unit.T)).sum(1, keepdim=True) * unit).T / exact.detach().norm(dim=0)
    relative = 2 * summation_error(12) + 2 * summation_error(60) + 16 * unit_roundoff(torch.float32)
    assert_within(x.grad.double() * scale, exact.grad * scale, relative * magnitude.cpu() * scale)


def test_gradient_of_half_inputs_has_their_dtype(backend, device):
    x = torch.randn(20, 6, device=device, dtype=torch.bfloat16, requires_grad=True)
    cosine_matrix(x, backend=backend).square().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, device):
    rows = torch.randn(5, 2, 6, dtype=dtype, device=device, requires_grad=True)
    backend = "triton" if device.type == "cuda" and dtype == torch.float32 else "torch"
    torch.library.opcheck(torch.ops.sdsd.cosine_matrix.default, (rows, "float32", torch.float32, "zero", True, backend))


def test_compiles_whole_and_differentiates(device):
    def loss(x: Tensor) -> Tensor:
        return cosine_matrix(x.relu(), neuron_dim=1, center=True).triu(1).square().sum()

    x = torch.randn(4, 6, 3, 3, device=device)
    eager, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    assert torch.allclose(compiled.grad, eager.grad, rtol=1e-5, atol=1e-6)


def test_meta_tensors_have_the_shape():
    assert cosine_matrix(torch.randn(4, 5, device="meta"), out_dtype=torch.float16).shape == (5, 5)


# Bad input


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: [[1.0, 2.0]], TypeError, "expected a torch.Tensor, got list"),
        (lambda: torch.tensor(1.0), ValueError, r"at least two dimensions.*got shape \(\)"),
        (lambda: torch.ones(3), ValueError, r"at least two dimensions.*got shape \(3,\)"),
        (lambda: torch.ones(3, 4, dtype=torch.int64), TypeError, "got torch.int64"),
        (lambda: torch.ones(3, 4, dtype=torch.complex64), TypeError, "expected real values"),
        (lambda: torch.eye(3).to_sparse(), TypeError, "expected a dense tensor"),
        (lambda: torch.ones(3, 4).to(torch.float8_e4m3fn), TypeError, "got torch.float8_e4m3fn"),
        (lambda: torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8), TypeError, "quantised"),
        (lambda: torch.ones(0, 4), ValueError, "which has no samples"),
        (lambda: torch.ones(4, 0), ValueError, "which has no neurons"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning:torch")
def test_bad_activations(make, error, match):
    with pytest.raises(error, match=match):
        cosine_matrix(make())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"neuron_dim": 2}, ValueError, "expected -2 to 1"),
        ({"neuron_dim": -3}, ValueError, "expected -2 to 1"),
        ({"neuron_dim": 1.0}, TypeError, "expected an int, got float"),
        ({"neuron_dim": True}, TypeError, "expected an int, got bool"),
        ({"precision": "fp8"}, ValueError, "expected one of 'float32', 'fp16', got 'fp8'"),
        ({"zero": "ignore"}, ValueError, "expected one of 'zero', 'nan', 'raise', got 'ignore'"),
        ({"out_dtype": torch.int32}, TypeError, "out_dtype: expected one of"),
        ({"out_dtype": "float32"}, TypeError, "out_dtype: expected one of"),
        ({"backend": "cuda"}, ValueError, "expected one of 'triton', 'torch', got 'cuda'"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        cosine_matrix(torch.ones(3, 4), **options)


def test_triton_where_there_is_none(monkeypatch):
    with pytest.raises(ValueError, match=r"the kernel has no float64.*Use backend='torch'"):
        cosine_matrix(
            torch.ones(3, 4, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu"),
            backend="triton",
        )
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="Triton was asked for, but the tensor is on the CPU"):
        cosine_matrix(torch.ones(3, 4), backend="triton")


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("zero", ["zero", "nan"])
def test_reference_is_the_definition(center, zero):
    x = torch.randn(3, 9, 8) + 0.5
    x[:, 2] = 0
    x[:, 3] *= 1e-30
    x[0, 4, 0] = NAN
    wanted = oracle(x, 1, center)
    wanted[2] = wanted[:, 2] = 0.0 if zero == "zero" else NAN
    wanted[4] = wanted[:, 4] = NAN
    got = cosine_matrix_reference(x, neuron_dim=1, center=center, zero=zero)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12, equal_nan=True)
    with pytest.raises(ValueError, match="1 neurons are zero"):
        cosine_matrix_reference(x, neuron_dim=1, center=center, zero="raise")
