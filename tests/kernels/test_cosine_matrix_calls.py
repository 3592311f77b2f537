"""The torch path of cosine_matrix, its gradient, torch.library and torch.compile, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdsd_kernels._rows import as_rows
from sdsd_kernels.cosine_matrix import cpu
from sdsd_kernels.cosine_matrix.op import cosine_matrix
from sdsd_kernels.cosine_matrix.reference import cosine_matrix_reference
from sdsd_kernels.pairwise import products, reading
from tests.helpers import assert_within, relative_error, summation_error, unit_roundoff

from .matrices import NAN, check, check_promises, oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


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
        chunks = list(reading.Values(as_rows(half_or_not, 1), torch.float32).chunks(copy=True))
        assert torch.equal(torch.cat(chunks, 1), half_or_not.float().transpose(0, 1).flatten(1))
        assert max(chunk.shape[1] for chunk in chunks) <= 256
        cosine = cosine_matrix(half_or_not, neuron_dim=1, center=center, backend="torch")
        check(cosine, half_or_not, 1, center)


def test_torch_reads_plain_layouts_where_they_lie(monkeypatch):
    def no_copies(*args):
        raise AssertionError("copied the input")

    x = torch.randn(50, 40)
    monkeypatch.setattr(reading.Values, "copy", no_copies)
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
