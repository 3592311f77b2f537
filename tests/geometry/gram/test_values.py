"""What an accumulator computes: against the definition, in any layout, dtype and cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd.geometry.gram.accumulator import GramAccumulator
from tests.helpers import assert_within, cosine_error, summation_error

from .streams import check_promises, check_values, least_bytes, products, streamed

SIZES = [(n, fits) for n in (1, 2, 37, 130) for fits in (None, 11, 1)] + [(300, 11), (600, None), (600, 40)]


@pytest.mark.parametrize(("n", "fits"), SIZES)
@pytest.mark.parametrize("center", [False, True])
def test_matches_the_definition(n, fits, center):
    """600 neurons are cut in halves; fresh memory is NaN here, so a sum that nobody wrote shows."""
    max_bytes = fits and fits * least_bytes(n)
    x = torch.randn(70 if n < 600 else 24, n) + 0.3
    gram = streamed(x, [1, 5, 11, len(x) - 17], center=center, max_bytes=max_bytes)
    assert gram.samples == len(x)
    cosine = gram.cosine_matrix()
    assert cosine.dtype == torch.float32
    check_promises(cosine)
    check_values(cosine, x, center)


@pytest.mark.parametrize(
    ("shape", "neuron_dim"),
    [((9, 35), None), ((35, 9), 0), ((4, 3, 35), None), ((4, 35, 3), 1), ((4, 35, 2, 3), None), ((35, 2, 3, 2, 2), 0)],
)
@pytest.mark.parametrize("max_bytes", [None, 5 * least_bytes(35)])
def test_layouts(shape, neuron_dim, max_bytes):
    gram = GramAccumulator(35, max_bytes=max_bytes)
    seen = []
    for _ in range(3):
        x = torch.randn(shape)
        gram.update(x, neuron_dim=neuron_dim)
        seen.append(x.movedim((1 if len(shape) >= 4 else -1) if neuron_dim is None else neuron_dim, 0).flatten(1).T)
    check_values(gram.cosine_matrix(), torch.cat(seen))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x[::3, 1:36],
        lambda x: x.T.contiguous().T[:, :35],
        lambda x: x[:1].expand(8, -1)[:, :35],
        lambda x: x[:, :1].expand(-1, 35),
        lambda x: x.view(6, 10, 70)[:, ::2, :35],
        lambda x: x.view(4, 3, 5, 70)[:, :2, ::2, :35].movedim(3, 1),
        lambda x: x.view(4, 3, 5, 70).movedim(3, 1)[:, ::2],
    ],
)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("max_bytes", [None, 4 * least_bytes(35)])
def test_any_strides(view, center, max_bytes):
    x = view(torch.randn(60, 70))
    gram = GramAccumulator(35, center=center, max_bytes=max_bytes)
    gram.update(x)
    gram.update(x + 1)
    flat = x if x.dim() == 2 else x.movedim(1 if x.dim() == 4 else -1, 0).flatten(1).T
    both = torch.cat([flat, flat + 1])
    check_values(gram.cosine_matrix(), both, center)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("center", [False, True])
def test_halves_have_float32_products(dtype, center):
    x = (torch.randn(90, 40) + 0.5).to(dtype)
    check_values(streamed(x, 40, center=center).cosine_matrix(), x, center)


def test_dtypes_may_change_from_batch_to_batch():
    x = torch.randn(60, 20).half()
    gram = GramAccumulator(20)
    for batch in (x[:20], x[20:40].float(), x[40:].numpy()):
        gram.update(batch)
    check_values(gram.cosine_matrix(), x)


@pytest.mark.parametrize("center", [False, True])
def test_float64(center):
    x = torch.randn(90, 40, dtype=torch.float64)
    gram = streamed(x, 25, dtype=torch.float64, center=center)
    assert gram.cosine_matrix().dtype == torch.float64
    check_values(gram.cosine_matrix(), x, center)
    # Powers of two change no digit, and squares of these leave the range of float64.
    scaled = x * 2.0 ** torch.linspace(-960, 960, 40, dtype=torch.float64).round()
    gram = streamed(scaled, 25, dtype=torch.float64, center=center)
    check_promises(gram.cosine_matrix())
    check_values(gram.cosine_matrix(), x, center)


@pytest.mark.parametrize("out_dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_out_dtype_is_one_rounding(out_dtype):
    x = torch.randn(50, 40)
    gram = streamed(x, 20)
    cosine = gram.cosine_matrix(out_dtype=out_dtype)
    assert cosine.dtype == out_dtype
    check_promises(cosine)
    assert torch.equal(cosine, gram.cosine_matrix(out_dtype=torch.float64).to(out_dtype))


@pytest.mark.parametrize("center", [False, True])
def test_gram_norms_and_covariance(center):
    x = torch.randn(70, 30) * 3 + 1
    x[:, 3] *= 1e-25
    x[:, 4] *= 1e25
    x[:, 5] = 0
    gram = streamed(x, 30, center=center)
    exact = products(x, center)
    square = exact.diagonal().sqrt()
    # Σ|a b| ≤ ‖a‖ ‖b‖; samples in float32, and as many roundings as in a cosine.
    allowed = cosine_error(x.T, center=center) * (square[:, None] * square)
    got = gram.gram()
    assert got.dtype == torch.float64
    assert torch.equal(got, got.T)
    assert_within(got, exact, allowed)
    assert_within(gram.norms(), square, cosine_error(x.T, center=center).diagonal() * square)
    if center:
        assert torch.equal(gram.covariance(), got / 69)
        assert torch.equal(gram.covariance(correction=0), got / 70)
        assert_within(gram.covariance(), torch.cov(x.double().T), allowed / 69)
        assert_within(gram.means(), x.double().mean(0), summation_error(70) * x.double().abs().mean(0))
    else:
        with pytest.raises(ValueError, match="covariance: expected an accumulator that centres"):
            gram.covariance()
        with pytest.raises(ValueError, match="means: expected an accumulator that centres"):
            gram.means()
        for call in (gram.gram, gram.norms, gram.cosine_matrix):
            assert torch.equal(call(center=False), call())
            with pytest.raises(ValueError, match="center=True: expected an accumulator that centres"):
                call(center=True)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
def test_one_that_centres_gives_both(offset):
    x = torch.randn(70, 300) + offset * torch.rand(300)
    x[:, 3] *= 1e-25
    x[:, 4] *= 1e25
    x[:, 5] = 0
    x[:, 6] = 0.1
    gram, plain = (streamed(x, 30, center=center, max_bytes=30 * least_bytes(300)) for center in (True, False))
    cosine = gram.cosine_matrix(center=False)
    dead = torch.arange(300) == 5
    check_promises(cosine, dead)
    alive = ~dead
    check_values(cosine[alive][:, alive], x[:, alive])
    norm = x.double().norm(dim=0)
    assert_within(gram.norms(center=False), plain.norms(), 2 * cosine_error(x.T).diagonal() * norm)
    assert_within(gram.gram(center=False), products(x), cosine_error(x.T) * (norm[:, None] * norm))
    assert torch.equal(gram.gram(center=False), gram.gram(center=False).T)
    assert torch.equal(gram.cosine_matrix(center=True), gram.cosine_matrix())
    with pytest.raises(ValueError, match=r"got 1 that are zero on every sample \(first: \[5\]\)"):
        gram.cosine_matrix(center=False, zero="raise")
    with pytest.raises(ValueError, match=r"got 2 that are the same on every sample.*\(first: \[5, 6\]\)"):
        gram.cosine_matrix(zero="raise")


@st.composite
def cuts(draw) -> tuple[Tensor, list[int], int | None, bool]:
    n, samples = draw(st.integers(1, 45)), draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(samples, n, generator=generator)
    exponents = torch.randint(-30, 31, (n,), generator=generator) * draw(st.integers(0, 1))
    x = x * 10.0**exponents
    x[:, torch.rand(n, generator=generator) < draw(st.sampled_from([0, 0.3]))] = 0
    bounds = sorted(draw(st.lists(st.integers(0, samples), max_size=6)))
    sizes = [last - first for first, last in zip([0, *bounds], [*bounds, samples], strict=True)]
    x = x.T.contiguous().T if draw(st.booleans()) else x
    return x, sizes, draw(st.sampled_from([None, least_bytes(n), 7 * least_bytes(n)])), draw(st.booleans())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cuts())
def test_any_cut_of_any_activations(case):
    x, sizes, max_bytes, center = case
    cosine = streamed(x, sizes, max_bytes=max_bytes, center=center).cosine_matrix()
    dead = (x == x[0]).all(0) if center else (x == 0).all(0)
    check_promises(cosine, dead)
    assert (cosine[dead] == 0).all()
    assert (cosine[:, dead] == 0).all()
    if not dead.all():
        check_values(cosine[~dead][:, ~dead], x[:, ~dead], center)
