"""weight_grad_into and conv_weight_grad_into on every backend: gradients and rows against loops over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sdsd_kernels
from sdsd_kernels import NORMS_WIDTH, available_backends, conv_weight_grad_into, weight_grad_into
from tests.helpers import assert_within, summation_error, unit_roundoff

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = available_backends(DEVICE)


@pytest.fixture(autouse=True)
def without_tf32():
    """Convolutions of float32 that round no factor."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def norms(rows: int = 4) -> Tensor:
    return torch.zeros(rows, NORMS_WIDTH, dtype=torch.float64, device=DEVICE)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def check(found, squares: Tensor, each: Tensor, biases: Tensor, magnitude: Tensor, terms: int, dtype, given) -> None:
    """`each` (N, *weight) and `biases` (N, p), float64; `magnitude`: of the products that were summed.

    The weight gradient of `given` halves may be rounded to them before it is returned in another dtype.
    """
    each, biases, magnitude = each.cpu(), biases.cpu(), magnitude.cpu()
    share = summation_error(terms * len(each)) + 8 * unit_roundoff(torch.float32)
    for gradient, row, wanted, size, coarsest in (
        (found.weight_grad, 2, each, magnitude, min(dtype, given, key=lambda t: t.itemsize)),
        (found.bias_grad, 0, biases, biases.abs() + 4 * terms**0.5, dtype),
    ):
        rounding = 0.0 if coarsest.itemsize == 4 else 2 * unit_roundoff(coarsest)  # the interpreter truncates
        assert (gradient.dtype, gradient.device, gradient.shape) == (dtype, squares.device, wanted.shape[1:])
        total = wanted.sum(0)
        assert_within(gradient, total, share * size.sum(0) + rounding * total.abs() + 1e-12)
        norm = wanted.square().sum()
        assert_within(squares[row].sum(), norm, 2 * (share * size * wanted.abs()).sum() + 1e-6 * norm + 1e-12)
    assert not squares[[1, 3]].any()


# positions that take "fused", "gram" and "rank1" on one device or another
@pytest.mark.parametrize(
    ("samples", "positions", "d", "p"), [(3, 16, 8, 12), (4, 5, 40, 33), (2, 2, 70, 64), (9, 1, 20, 7), (1, 3, 1, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("returned", [torch.float32, torch.bfloat16])
def test_linear_layers(backend, samples, positions, d, p, dtype, returned):
    a, b = batch(samples, positions, d, dtype=dtype), batch(samples, positions, p, dtype=dtype)
    squares = norms()
    found = weight_grad_into(a, b, squares, 2, bias_row=0, dtype=returned, backend=backend)
    wide_a, wide_b = a.double(), b.double()
    check(found, squares, wide_b.mT @ wide_a, wide_b.sum(1), wide_b.abs().mT @ wide_a.abs(), positions, returned, dtype)


CONVOLUTIONS = {
    "3 × 3": ((2, 8, 6, 5), 8, 3, {"padding": 1}),
    "stride": ((2, 8, 7, 7), 16, 3, {"padding": 1, "stride": 2}),
    "groups": ((3, 8, 5, 5), 8, 3, {"groups": 4}),
    "depthwise": ((3, 6, 5, 5), 6, 3, {"groups": 6, "padding": 1}),
    "three channels": ((2, 3, 6, 6), 8, 3, {"padding": 1}),
    "one dimension": ((2, 8, 9), 8, 3, {"padding": 1}),
}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(backend, name, channels_last):
    shape, outputs, kernel, options = CONVOLUTIONS[name]
    if channels_last and len(shape) == 3:
        pytest.skip("a memory format of two dimensions of space")
    convolve = torch.nn.functional.conv1d if len(shape) == 3 else torch.nn.functional.conv2d
    size = (outputs, shape[1] // options.get("groups", 1), *[kernel] * (len(shape) - 2))
    a = batch(*shape)
    with torch.no_grad():
        out = convolve(a.double(), torch.zeros(size, dtype=torch.float64, device=DEVICE), **options)
    b = batch(*out.shape)
    if channels_last:
        a, b = (t.to(memory_format=torch.channels_last) for t in (a, b))
    squares = norms()
    found = conv_weight_grad_into(
        a, b, squares, 2, kernel, bias_row=0, channels_last=channels_last, backend=backend, **options
    )

    def each(a: Tensor, b: Tensor) -> Tensor:
        weight = torch.zeros(size, dtype=torch.float64, device=DEVICE, requires_grad=True)
        rows = [
            torch.autograd.grad(convolve(a[n : n + 1].double(), weight, **options), weight, b[n : n + 1].double())[0]
            for n in range(len(a))
        ]
        return torch.stack(rows)

    positions = out[0, 0].numel()
    check(
        found,
        squares,
        each(a, b),
        b.double().flatten(2).sum(2),
        each(a.abs(), b.abs()),
        positions,
        torch.float32,
        torch.float32,
    )
    if channels_last:
        assert found.weight_grad.is_contiguous(memory_format=torch.channels_last)


def test_output_gradients_whose_rows_lie_apart(backend):
    a, wide = batch(2, 8, 5, 5), batch(2, 8, 5, 9)
    b, squares, others = wide[..., 1:6], norms(), norms()
    found = conv_weight_grad_into(a, b, squares, 2, 1, bias_row=0, backend=backend)
    wanted = conv_weight_grad_into(a, b.contiguous(), others, 2, 1, bias_row=0, backend=backend)
    torch.testing.assert_close(found.weight_grad, wanted.weight_grad)
    torch.testing.assert_close(found.bias_grad, b.sum((0, 2, 3)))
    torch.testing.assert_close(squares.sum(1), others.sum(1))


def test_without_a_bias(backend):
    a, b, squares = batch(3, 4, 5), batch(3, 4, 6), norms()
    found = weight_grad_into(a, b, squares, 1, backend=backend)
    assert found.bias_grad is None
    assert not squares[[0, 2, 3]].any()
    torch.testing.assert_close(squares[1].sum(), (b.mT @ a).double().square().sum(), rtol=1e-5, atol=0)


def test_operator_registration(backend):
    a, b = batch(3, 4, 5), batch(3, 4, 6)
    op = torch.ops.sdsd.weight_grad_into.default
    torch.library.opcheck(op, (a, b, norms(), 1, 0, torch.float32, 2**20, backend))
    torch.library.opcheck(op, (a, b, norms(), 1, -1, torch.bfloat16, 2**20, backend))
    op = torch.ops.sdsd.conv_weight_grad_into.default
    x, g = batch(2, 4, 5, 5), batch(2, 8, 5, 5)
    rest = ([3, 3], [1, 1], [1, 1], [1, 1], 1, torch.float32)
    torch.library.opcheck(op, (x, g, norms(), 1, 0, *rest, False, 2**20, backend))
    torch.library.opcheck(op, (x, g, norms(), 1, -1, *rest, True, 2**20, backend))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"output_grads": torch.ones(2, 4, 6)}, ValueError, "expected 3 samples like inputs"),
        ({"square_norms": torch.zeros(2, 64)}, ValueError, "expected float64 of shape"),
        ({"row": 2}, ValueError, "row: expected one of square_norms, below 2, got 2"),
        ({"row": -1}, ValueError, "row"),
        ({"bias_row": 2}, ValueError, "bias_row: expected one of square_norms, below 2, got 2"),
        ({"bias_row": 0}, ValueError, "another row than the weight's, got 0 for both"),
        ({"bias_row": True}, TypeError, "bias_row"),
        ({"max_bytes": 0}, ValueError, "max_bytes"),
        ({"backend": "cuda"}, ValueError, "backend"),
    ],
)
def test_bad_input(change, error, message):
    given = {
        "inputs": torch.ones(3, 4, 5),
        "output_grads": torch.ones(3, 4, 6),
        "square_norms": torch.zeros(2, 64, dtype=torch.float64),
        "row": 0,
        "bias_row": 1,
    } | change
    for _ in range(2):  # what passed once is not looked at again; what did not pass is
        with pytest.raises(error, match=message):
            sdsd_kernels.weight_grad_into(**given)


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton here")
def test_sums_in_memory_do_not_take_the_default_dtype():
    """Many samples, so that they are split into ranges; the torch path does not have them."""
    a, b = batch(30, 2, 5), batch(30, 2, 6)
    wanted = weight_grad_into(a, b, squares := norms(), 1, bias_row=0, backend="triton")
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = weight_grad_into(a, b, others := norms(), 1, bias_row=0, backend="triton")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.weight_grad, wanted.weight_grad)
    assert torch.equal(found.bias_grad, wanted.bias_grad)
    assert torch.equal(squares, others)
