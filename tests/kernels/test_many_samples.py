"""Every operation on pairs of neurons over a million samples, against float64: errors that do not grow with samples.

The torch path adds up products of blocks of at most 16,384 samples, the kernels those of fewer, so that a sum errs as
one of a block's samples and of as many blocks, whatever BLAS does inside a block. Kernels take part on a GPU alone:
interpreted ones would take hours.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdsd import GramAccumulator
from sdsd_kernels import (
    cosine_between,
    cosine_histogram,
    cosine_matrix,
    cosine_pairs,
    cosine_row_sums,
    cosine_topk,
    gram_accumulate,
)
from sdsd_kernels._backend import unusable
from tests.helpers import assert_within, cosine_error, summation_error, unit_roundoff

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
SAMPLES = 1_000_000
NEURONS = 6
TERMS = 16_384 + SAMPLES // 64
"""No sum takes more roundings: blocks have at most 16,384 samples, and at least 64."""
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["torch", *["triton"] * torch.cuda.is_available()])
def backend(request, device) -> str:
    problem = unusable(request.param, device)
    if problem:
        pytest.skip(problem)
    return request.param


def neurons(dtype: torch.dtype, device: torch.device, count: int = NEURONS) -> Tensor:
    """Unlike neurons, like ones and opposite ones, most of them far from zero mean.  # shape: (SAMPLES, count)"""
    own = torch.randn(SAMPLES, count, device=device)
    shared = torch.randn(SAMPLES, 1, device=device)
    weight = torch.linspace(-1.5, 2.0, count, device=device)
    return (own + weight * shared + torch.linspace(0.0, 3.0, count, device=device)).to(dtype)


def oracle(x: Tensor, y: Tensor | None = None, *, center: bool = False) -> Tensor:
    """float64, a plain loop over blocks; products by block are exact enough: its own bound is far below float32's."""
    left, right = (part.cpu().double().T for part in (x, x if y is None else y))
    if center:
        left, right = (part - part.mean(1, keepdim=True) for part in (left, right))
    products = sum(a @ b.T for a, b in zip(left.split(8192, 1), right.split(8192, 1), strict=True))
    return products / (left.square().sum(1).sqrt()[:, None] * right.square().sum(1).sqrt()[None, :])


def cosines(x: Tensor, y: Tensor | None = None, *, center: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines in float64 and how far each may be from them."""
    error = cosine_error(x.T, None if y is None else y.T, center=center, terms=TERMS)
    assert error.max() < 1e-4, "a bound that would let errors grow with samples"
    return oracle(x, y, center=center), error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [False, True])
def test_cosine_matrix(dtype, center, backend, device):
    for x in (neurons(dtype, device), neurons(dtype, device).T.contiguous().T):
        assert_within(cosine_matrix(x, center=center, backend=backend), *cosines(x, center=center))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [False, True])
def test_cosine_between(dtype, center, device):
    x, y = neurons(dtype, device), neurons(dtype, device, 4)
    assert_within(cosine_between(x, y, center=center), *cosines(x, y, center=center))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine_topk(dtype, backend, device):
    x = neurons(dtype, device)
    exact, error = cosines(x)
    values, indices = cosine_topk(x, 3, backend=backend)
    values, indices = values.cpu(), indices.cpu()
    assert_within(values, exact.gather(1, indices), error.gather(1, indices))
    best = exact.clone().fill_diagonal_(-torch.inf).topk(3, dim=1).values
    assert_within(values, best, error.amax(1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine_pairs(dtype, backend, device):
    x = neurons(dtype, device)
    exact, error = cosines(x)
    first, second, cosine = (each.cpu() for each in cosine_pairs(x, above=0.5, backend=backend))
    assert_within(cosine, exact[first, second], error[first, second])
    found = torch.zeros_like(exact, dtype=torch.bool)
    found[first, second] = True
    assert 2 < found.sum() < NEURONS * (NEURONS - 1) // 2
    assert (exact + error)[found].ge(0.5).all()
    assert (exact - error)[~found & torch.ones_like(found).triu(1)].lt(0.5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_cosine_histogram(dtype, backend, device):
    """Bins are as narrow as the bound, and as many cosines lie below each edge as may do."""
    x = neurons(dtype, device)
    exact, error = (each[torch.triu_indices(NEURONS, NEURONS, 1).unbind()] for each in cosines(x))
    counts, edges, *_ = cosine_histogram(x, 2**15, backend=backend)
    below, edges = counts.cpu().cumsum(0), edges.cpu()[1:, None]
    assert (below >= (exact + error < edges).sum(1)).all()
    assert (below <= (exact - error <= edges).sum(1)).all()
    assert below[-1] == len(exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cosine", "absolute", "distance"])
def test_cosine_row_sums(dtype, kind, backend, device):
    x = neurons(dtype, device)
    exact, error = cosines(x)
    made = {"cosine": lambda c: c, "absolute": lambda c: c.abs(), "distance": lambda c: (2 - 2 * c.clamp(-1, 1)).sqrt()}
    exact, near, far = (made[kind](each).fill_diagonal_(0) for each in (exact, exact - error, exact + error))
    allowed = torch.maximum((exact - near).abs(), (exact - far).abs()).sum(1)
    allowed += (summation_error(NEURONS) + 4 * unit_roundoff(torch.float32)) * exact.abs().sum(1)
    assert_within(cosine_row_sums(x, kind, backend=backend), exact.sum(1), allowed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
def test_gram_accumulate(dtype, sum_dtype, backend, device):
    x = neurons(dtype, device)
    shift, scale = torch.linspace(-1, 1, NEURONS, device=device), torch.linspace(0.5, 2, NEURONS, device=device)
    for options in ({}, {"shift": shift, "scale": scale}):
        a = x.cpu().double()
        if options:
            # Shifted and scaled values are rounded to float32 before they are multiplied.
            a = ((x.cpu().float() - shift.cpu()) * scale.cpu()).double()
        gram = torch.zeros(NEURONS, NEURONS, dtype=sum_dtype, device=device)
        gram_accumulate(gram, x, backend=backend, **options)
        relative = summation_error(TERMS) + 8 * unit_roundoff(torch.float32) + summation_error(SAMPLES, torch.float64)
        assert_within(gram.triu(), (a.T @ a).triu(), relative * (a.abs().T @ a.abs()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("center", [False, True])
def test_gram_accumulator(dtype, center, backend, device):
    x = neurons(dtype, device)
    gram = GramAccumulator(NEURONS, center=center, device=device, backend=backend)
    for batch in x.tensor_split(3):
        gram.update(batch)
    assert_within(gram.cosine_matrix(), *cosines(x, center=center))
