"""lookup_squares_into on every backend against tables formed in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sdsd_kernels import NORMS_WIDTH, available_backends, lookup_squares_into
from sdsd_kernels.lookup_squares_into.reference import lookup_squares_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = available_backends(DEVICE)


def norms() -> Tensor:
    return torch.zeros(3, NORMS_WIDTH, dtype=torch.float64, device=DEVICE)


def oracle(b: Tensor, tokens: Tensor, padding: int | None = None) -> float:
    """Every sample's table, formed; a dictionary of rows."""
    total = 0.0
    for each, read in zip(b.detach().cpu().double().numpy(), tokens.cpu().tolist(), strict=True):
        rows: dict[int, np.ndarray] = {}
        for gradient, token in zip(each, read, strict=True):
            if token != padding:
                rows[token] = rows.get(token, 0.0) + gradient
        total += sum(float((row**2).sum()) for row in rows.values())
    return total


def check(b: Tensor, tokens: Tensor, padding: int | None = None, backend: str | None = None) -> None:
    squares = norms()
    assert lookup_squares_into(b, tokens, squares, 1, padding=padding, backend=backend) is squares
    # Products of two rows err by √d roundings of their size, and are added up with either sign.
    size = oracle(b.abs(), tokens, padding)
    assert abs(squares[1].sum().item() - oracle(b, tokens, padding)) <= 2e-6 * size + 1e-30
    assert not squares[[0, 2]].any()


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def words(rows: int, *shape: int) -> Tensor:
    return torch.randint(0, rows, shape).to(DEVICE)


@pytest.mark.parametrize(("n", "t", "d"), [(1, 1, 1), (3, 9, 5), (2, 30, 20), (4, 16, 16), (2, 7, 70)])
@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_matches_the_definition_where_tokens_repeat(backend, n, t, d, rows):
    check(batch(n, t, d), words(rows, n, t), backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    check(batch(3, 20, 6, dtype=dtype), words(4, 3, 20))


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton here")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_in_the_kernel(dtype):
    check(batch(3, 20, 6, dtype=dtype), words(4, 3, 20), backend="triton")
    with pytest.raises(ValueError, match="the kernel has no float64"):
        lookup_squares_into(batch(1, 2, 3, dtype=torch.float64), words(2, 1, 2), norms(), 0, backend="triton")


@pytest.mark.parametrize("padding", [0, 3, 7])
def test_padding(backend, padding):
    b, tokens = batch(3, 20, 6), words(5, 3, 20)
    check(b, tokens, padding, backend)
    squares = norms()
    lookup_squares_into(b, torch.full_like(tokens, 3), squares, 0, padding=3, backend=backend)
    assert not squares.any()


def test_strides_and_small_integers(backend):
    tokens = words(4, 20)
    check(batch(20, 3, 12).transpose(0, 1)[..., ::2], tokens.expand(3, 20), backend=backend)
    check(batch(6).expand(3, 20, 6), words(4, 20, 3).t().int(), backend=backend)


def test_nothing_is_hidden(backend):
    b, tokens, squares = batch(2, 9, 3), words(4, 2, 9), norms()
    b[1, 4, 0] = float("nan")
    assert lookup_squares_into(b, tokens, squares, 0, backend=backend)[0].sum().isnan()


def test_samples_do_not_meet(backend):
    """The same token at the end of one sample and the beginning of the next."""
    check(batch(3, 4, 5), torch.full((3, 4), 2, device=DEVICE), backend=backend)


def test_the_reference_agrees():
    b, tokens = batch(3, 9, 5), words(3, 3, 9)
    for padding in (None, 1, 8):
        assert lookup_squares_reference(b, tokens, padding=padding).item() == pytest.approx(oracle(b, tokens, padding))


def test_operator_registration(backend):
    op = torch.ops.sdsd.lookup_squares_into.default
    torch.library.opcheck(op, (batch(3, 9, 5), words(3, 3, 9), norms(), 1, -1, backend))
    torch.library.opcheck(op, (batch(3, 9, 5), words(3, 3, 9), norms(), 1, 2, backend))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"output_grads": torch.ones(3, 5)}, ValueError, r"expected shape \(N, T, d\)"),
        (
            {"tokens": torch.zeros(3, 4)},
            TypeError,
            "tokens: expected a dense tensor of int64 or int32, got torch.float32",
        ),
        ({"tokens": torch.zeros(3, 4).long().to_sparse()}, TypeError, "tokens: expected a dense .* got .*sparse"),
        ({"tokens": torch.nested.nested_tensor([torch.zeros(4).long()] * 3)}, TypeError, "tokens: .* got a nested one"),
        ({"tokens": [[0]]}, TypeError, "got list"),
        ({"tokens": torch.zeros(3, 5).long()}, ValueError, "that of output_grads"),
        ({"square_norms": torch.zeros(2, 64)}, ValueError, "expected float64 of shape"),
        ({"row": 2}, ValueError, "below 2, got 2"),
        ({"padding": -1}, ValueError, "padding"),
        ({"backend": "cuda"}, ValueError, "backend"),
    ],
)
def test_bad_input(change, error, message):
    given = {
        "output_grads": torch.ones(3, 4, 5),
        "tokens": torch.zeros(3, 4).long(),
        "square_norms": torch.zeros(2, 64, dtype=torch.float64),
        "row": 0,
    } | change
    with pytest.raises(error, match=message):
        lookup_squares_into(**given)
