"""GramAccumulator against float64 written apart from it: any cut, any order, any scale, and nothing half done."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import importlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd.geometry import neuron_cosine_matrix
from sdsd.geometry.gram import accumulator, checkpoints, layout, results, sums
from sdsd.geometry.gram.accumulator import GramAccumulator
from sdsd_kernels._backend import unusable
from tests.helpers import assert_within, cosine_error, summation_error, unit_roundoff

NAN, INF = float("nan"), float("inf")


def products(x: Tensor, center: bool = False) -> Tensor:
    """Σ_s x_si x_sj of samples × neurons in float64, values taken from their mean in float64 if centred."""
    rows = x.detach().double().T
    if center:
        rows = rows - rows[:, :1]
        rows = rows - rows.sum(1, keepdim=True) / rows.shape[1]
    return torch.einsum("is,js->ij", rows, rows)


def oracle(x: Tensor, center: bool = False) -> Tensor:
    gram = products(x, center)
    square = gram.diagonal()
    cosine = gram / torch.sqrt(square[:, None] * square[None, :])
    return torch.where(torch.eye(len(gram), dtype=torch.bool) & (square > 0), 1.0, cosine)


def check_values(cosine: Tensor, x: Tensor, center: bool = False) -> None:
    """Within what one float32 (float64 for float64) product of all samples may err, and a rounding to a half."""
    wanted, dtype = oracle(x, center), torch.promote_types(x.dtype, torch.float32)
    rounded = unit_roundoff(cosine.dtype) * wanted.abs() if cosine.dtype.itemsize < 4 else 0.0
    assert_within(cosine, wanted, cosine_error(x.T, center=center, dtype=dtype) + rounded)


def check_promises(cosine: Tensor, dead: Tensor | None = None) -> None:
    """Symmetric bit for bit, at most 1, exactly 1 on the diagonal of the living."""
    values = torch.nan_to_num(cosine, nan=7.0)
    assert torch.equal(values, values.T)
    assert ((values.abs() <= 1) | (values == 7)).all()
    diagonal = cosine.diagonal() if dead is None else cosine.diagonal()[~dead]
    assert (diagonal == 1).all()


def streamed(x: Tensor, sizes: int | list[int], **options) -> GramAccumulator:
    gram = GramAccumulator(x.shape[1], **options)
    for batch in x.split(sizes):
        gram.update(batch)
    return gram


def bits(gram: GramAccumulator) -> dict:
    """What state_dict returns, in a form that == compares by bits."""
    return {
        name: value.view(torch.uint8).tolist() if isinstance(value, Tensor) else value
        for name, value in gram.state_dict().items()
    }


def least_bytes(n: int) -> int:
    return 32 * n


# What it computes


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


# Kernels, which take batches whole


@pytest.fixture
def kernels(device) -> dict:
    """Options of an accumulator that kernels serve."""
    if unusable("triton", device):
        pytest.skip(unusable("triton", device))
    return {"backend": "triton", "device": device}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_the_kernel(center, dtype, kernels, device):
    x = (torch.randn(90, 40) + 0.5).to(dtype)
    x[:, 3] *= 1e-25
    x[50:, 4] *= 1e25
    x[:, 5] = 0
    gram = GramAccumulator(40, center=center, max_bytes=32 * least_bytes(40), **kernels)
    for batch in x.to(device).split(40):
        gram.update(batch)
    gram.update(x.to(device).view(9, 10, 40)[:, ::2])
    seen = torch.cat([x, x.view(9, 10, 40)[:, ::2].flatten(0, 1)])
    cosine = gram.cosine_matrix().cpu()
    dead = torch.arange(40) == 5
    check_promises(cosine, dead)
    check_values(cosine[~dead][:, ~dead], seen[:, ~dead], center)


@pytest.mark.parametrize("center", [False, True])
def test_kernels_on_several_strips(center, kernels, device):
    """Batches where they lie and rewritten, small ones that wait; with others merged, saved, loaded and read back."""
    x = torch.randn(50, 300) + torch.linspace(0, 3, 300)
    x[:, 7] = 0.25
    x[30:, 8] *= 1e20
    options = {"center": center, "max_bytes": 16 * least_bytes(300)}
    gram = GramAccumulator(300, **options, **kernels)
    for batch in x[:40].to(device).split([12, 1, 20, 2, 5]):
        gram.update(batch)
    other = GramAccumulator(300, **options, device=device, backend="torch")
    other.update(x[40:].to(device))
    gram.merge(other)
    again = GramAccumulator(300, **options, **kernels)
    again.load_state_dict(gram.state_dict())
    again.update(x[:5].to(device))
    for found, seen in ((gram, x), (again, torch.cat([x, x[:5]]))):
        cosine = found.cosine_matrix().cpu()
        dead = (seen == seen[0]).all(0) & torch.tensor(center)
        check_promises(cosine, dead)
        check_values(cosine[~dead][:, ~dead], seen[:, ~dead], center)
        rows = seen.double() - (seen.double().mean(0) if center else 0)
        # A float32 factor is two float16: 8u a product. What cancels is as large as the mean.
        relative = summation_error(len(seen)) + 12 * unit_roundoff(torch.float32)
        whole = seen.double().abs()
        assert found.samples == len(seen)
        if found is again:
            continue
        assert_within(found.gram(), rows.T @ rows, relative * (rows.T.abs() @ rows.abs()) + 1e-12 * whole.T @ whole)
    if center:
        # The mean of a batch on the torch path is a float32.
        allowed = 2 * unit_roundoff(torch.float32) * x.abs().double().mean(0)
        assert_within(gram.means(), x.double().mean(0), allowed)
        plain = gram.cosine_matrix(center=False).cpu()
        check_promises(plain)
        check_values(plain, x, False)


def test_kernels_warn_with_the_next_result(kernels, device):
    x = torch.randn(30, 40, device=device)
    x[3, 4] = NAN
    gram = GramAccumulator(40, max_bytes=20 * least_bytes(40), **kernels)
    gram.update(x)
    with pytest.warns(RuntimeWarning, match=r"1 neurons \(first: \[4\]\) of 40 have a NaN"):
        cosine = gram.cosine_matrix().cpu()
    assert cosine[4].isnan().all()
    assert cosine.isnan().sum() == 2 * 40 - 1
    assert gram.nonfinite.nonzero().flatten().tolist() == [4]
    x[5, 6] = INF
    before = bits(gram)
    careful = GramAccumulator(40, max_bytes=20 * least_bytes(40), nonfinite="raise", **kernels)
    for batch in (x, x[:8]):
        with pytest.raises(ValueError, match="expected finite values"):
            careful.update(batch)
    assert careful.samples == 0
    assert bits(gram) == before


def test_kernels_add_a_batch_by_one_launch(kernels, device, monkeypatch):
    """Halves that lie well are multiplied in one launch, after one for norms; others are measured and written first."""
    launch = importlib.import_module("sdsd_kernels._launch")
    log = []
    call = launch.Launch.__call__

    def recorded(self, *tensors, **options):
        log.append(self.kernel.__name__)
        call(self, *tensors, **options)

    monkeypatch.setattr(launch.Launch, "__call__", recorded)
    x = torch.randn(4096, 32, device=device).T.contiguous().T
    for dtype, center, wanted in (
        (torch.float16, False, ["triangle_kernel"]),
        (torch.bfloat16, False, ["measure_kernel", "triangle_kernel"]),
        (torch.float32, True, ["measure_kernel", "write_kernel", "mean_kernel", "triangle_kernel"]),
    ):
        gram = GramAccumulator(32, center=center, max_bytes=10**6, **kernels)
        half = x[:208].to(dtype)  # strides that the interpreter of Triton 3.5 reads, too
        gram._plan = dataclasses.replace(gram._plan, part=104)
        gram.update(half)
        log.clear()
        gram.update(half)
        assert [name for name in log if name not in ("directions_kernel", "reduce_kernel")] == wanted


# Order, number of batches, means, scales


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_of_batches_changes_nothing_beyond_rounding(center, dtype):
    n, batches = 40, [12, 1, 30, 7, 25, 3, 40]
    x = torch.randn(sum(batches), n, dtype=dtype) + torch.linspace(0, 5, n, dtype=dtype)
    x = x * 10.0 ** torch.linspace(-20, 20, n, dtype=dtype)
    parts = x.split(batches)
    generator = torch.Generator().manual_seed(1)
    results = []
    for _ in range(12):
        gram = GramAccumulator(n, center=center, dtype=dtype, max_bytes=8 * least_bytes(n))
        for index in torch.randperm(len(parts), generator=generator).tolist():
            gram.update(parts[index])
        results.append(gram.cosine_matrix(out_dtype=torch.float64))
    for result in results:
        check_values(result, x, center)


@pytest.mark.parametrize("center", [False, True])
def test_many_batches_err_no_more_than_one(center):
    """The sums grow, batch after batch; in a float32 sum the later batches would lose their digits.

    Each batch errs as a sum of its three samples does, and these errors add up no faster than the magnitudes.
    """
    x = torch.rand(1800, 24) + 1
    gram = streamed(x, 3, center=center, max_bytes=3 * least_bytes(24))
    lost = torch.zeros(24, 24)
    for batch in x.split(3):
        lost += batch.T @ batch
    lost /= torch.sqrt(lost.diagonal()[:, None] * lost.diagonal()[None, :])
    wanted = oracle(x, center)
    cosine = gram.cosine_matrix(out_dtype=torch.float64)
    assert_within(cosine, wanted, cosine_error(x.T, center=center, terms=3))
    if not center:
        assert (cosine - wanted).abs().max() < (lost - wanted).abs().max() / 5


@pytest.mark.parametrize("offset", [10.0, 100.0, 1e4])
@pytest.mark.parametrize("max_bytes", [None, 20 * least_bytes(33)])
def test_centring_does_not_cancel(offset, max_bytes):
    x = torch.randn(400, 33) + offset
    cosine = streamed(x, 90, center=True, max_bytes=max_bytes).cosine_matrix()
    check_values(cosine, x, True)
    if offset == 100:
        raw = x.T @ x - len(x) * torch.outer(x.mean(0), x.mean(0))
        raw /= torch.sqrt(raw.diagonal()[:, None] * raw.diagonal()[None, :])
        assert (cosine - oracle(x, True)).abs().max() < (raw - oracle(x, True)).abs().max() / 100


def test_means_that_drift_from_batch_to_batch():
    x = torch.randn(300, 33) + torch.arange(300)[:, None] * torch.randn(33)
    check_values(streamed(x, 17, center=True, max_bytes=17 * least_bytes(33)).cosine_matrix(), x, True)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("cut", [None, 10])
def test_every_scale_in_one_matrix(center, cut):
    x = torch.randn(70, 40)
    scaled = x.clone()
    for neuron, scale in enumerate([1e-30, 1e30, 1e-25, 1e25, 1e-38, 3e37, 1e-13, 1e-45]):
        scaled[:, 5 * neuron] *= scale
    cosine = streamed(scaled, 25, center=center, max_bytes=cut and cut * least_bytes(40)).cosine_matrix()
    check_promises(cosine)
    check_values(cosine, scaled, center)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("scales", [(1e-25, 1e25), (1e25, 1e-25), (0, 1e-30), (0, 1e30), (1, 1e-30, 1e30), (1e-38, 1)])
def test_neurons_that_grow_and_shrink_between_batches(center, scales):
    parts = [torch.randn(20, 12) for _ in scales]
    for part, scale in zip(parts, scales, strict=True):
        part[:, :6] *= scale
    x = torch.cat(parts)
    cosine = streamed(x, 20, center=center, max_bytes=20 * least_bytes(12)).cosine_matrix()
    check_promises(cosine)
    check_values(cosine, x, center)


# Neurons without direction


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("max_bytes", [None, 20 * least_bytes(40)])
def test_bad_values_stay_in_their_row_and_column_and_are_named(bad, center, max_bytes):
    x = torch.randn(80, 40)
    clean = streamed(x, 20, center=center, max_bytes=max_bytes).cosine_matrix()
    x[25, 35] = x[70, 35] = x[70, 8] = bad
    gram = GramAccumulator(40, center=center, max_bytes=max_bytes)
    gram.update(x[:20])
    with pytest.warns(RuntimeWarning, match=r"1 neurons \(first: \[35\]\) of 40 have a NaN or an infinity") as record:
        gram.update(x[20:40])
    assert record[0].filename == __file__
    gram.update(x[40:60])
    with pytest.warns(RuntimeWarning, match=r"1 neurons \(first: \[8\]\) of 40"):
        gram.update(x[60:])
    assert gram.nonfinite.nonzero().flatten().tolist() == [8, 35]
    cosine = gram.cosine_matrix()
    others = [neuron for neuron in range(40) if neuron not in (8, 35)]
    for matrix in (cosine, gram.gram()):
        assert matrix[[8, 35]].isnan().all()
        assert matrix[:, [8, 35]].isnan().all()
        assert matrix[others][:, others].isfinite().all()
    assert torch.equal(cosine[others][:, others], clean[others][:, others])
    assert gram.norms().isnan().nonzero().flatten().tolist() == [8, 35]


@pytest.mark.parametrize("max_bytes", [None, 20 * least_bytes(6), 3 * least_bytes(6)])
def test_batches_with_nan_can_be_refused(max_bytes):
    gram = GramAccumulator(6, nonfinite="raise", max_bytes=max_bytes)
    gram.update(torch.randn(20, 6))
    before = bits(gram)
    bad = torch.randn(20, 6)
    bad[19, 2] = NAN
    with pytest.raises(ValueError, match=r"infinity in 1 neurons \(first: \[2\]\) of 6. Nothing of this batch"):
        gram.update(bad)
    assert bits(gram) == before
    gram.update(bad[:19])
    assert gram.samples == 39
    assert not gram.nonfinite.any()


@pytest.mark.parametrize("center", [False, True])
def test_dead_neurons(center):
    x = torch.randn(60, 40)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[0, 33]] = True
    alive = ~dead
    clean = streamed(x, 20, center=center, max_bytes=20 * least_bytes(40)).cosine_matrix()
    x[:, dead] = 0.1 if center else 0.0
    gram = streamed(x, 20, center=center, max_bytes=20 * least_bytes(40))
    zeros, nans = gram.cosine_matrix(zero="zero"), gram.cosine_matrix(zero="nan")
    check_promises(zeros, dead)
    assert (zeros[dead] == 0).all()
    assert nans[dead].isnan().all()
    assert nans[:, dead].isnan().all()
    for matrix in (zeros, nans):
        assert torch.equal(matrix[alive][:, alive], clean[alive][:, alive])
    says = "the same on every sample" if center else "zero on every sample"
    with pytest.raises(ValueError, match=rf"got 2 that are {says}.*\(first: \[0, 33\]\)"):
        gram.cosine_matrix(zero="raise")
    assert streamed(x[:, 1:33], 20, center=center).cosine_matrix(zero="raise").shape == (32, 32)
    assert (gram.norms()[dead] == 0).all()


# Merging, keeping, restoring


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("sizes", [(50, 50), (1, 99), (99, 1), (0, 100), (100, 0)])
def test_merge_is_seeing_both(center, sizes):
    x = torch.randn(100, 300) + torch.linspace(0, 20, 100)[:, None]
    x[: sizes[0], 5] *= 1e-25
    x[sizes[0] :, 6] *= 1e25
    x[:, 7] = 0.1
    parts = x.split(list(sizes))
    one, two = (streamed(part, 30, center=center, max_bytes=40 * least_bytes(300)) for part in parts)
    before = bits(two)
    one.merge(two)
    assert one.samples == 100
    assert bits(two) == before
    cosine = one.cosine_matrix()
    dead = (x == x[0]).all(0) & torch.tensor(center)
    check_promises(cosine, dead)
    assert (cosine[dead] == 0).all()
    alive = ~dead
    check_values(cosine[alive][:, alive], x[:, alive], center)


def test_merge_with_itself_counts_twice():
    x = torch.randn(40, 12)
    gram = streamed(x, 15, center=True)
    wanted = 2 * gram.gram()
    gram.merge(gram)
    assert gram.samples == 80
    assert torch.equal(gram.gram(), wanted)


def test_merge_keeps_nan():
    x = torch.randn(40, 12)
    one, two = GramAccumulator(12), GramAccumulator(12)
    one.update(x)
    x[3, 4] = NAN
    with pytest.warns(RuntimeWarning):
        two.update(x)
    one.merge(two)
    assert one.cosine_matrix().isnan().any(1).nonzero().flatten().tolist() != []
    assert one.cosine_matrix()[4].isnan().all()
    assert one.nonfinite.nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [1, 30, 300])
def test_state_goes_through_a_file(center, n):
    x = torch.randn(60, n) + 1
    x[:, 0] *= 1e25
    gram = streamed(x[:40], 15, center=center)
    file = io.BytesIO()
    torch.save(gram.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["gram"].shape == (n * (n + 1) // 2,)
    other = GramAccumulator(n, center=center, max_bytes=3 * least_bytes(n))
    other.update(torch.full((5, n), NAN).nan_to_num(4.0))
    other.load_state_dict(state)
    assert bits(other) == bits(gram)
    assert torch.equal(other.cosine_matrix(), gram.cosine_matrix())
    state["gram"].zero_()
    state["exponent"].zero_()
    other.update(x[40:])
    assert other.samples == 60
    check_values(other.cosine_matrix(), x, center)


def test_gram_in_the_state_is_the_upper_triangle_row_by_row():
    x = torch.randn(20, 300)
    state = streamed(x, 20).state_dict()
    assert (state["exponent"] == 0).all()
    rows, columns = torch.triu_indices(300, 300)
    magnitude = products(x.abs())[rows, columns]
    assert_within(state["gram"], products(x)[rows, columns], summation_error(20) * magnitude)
    kept = state["gram"].clone()
    gram = GramAccumulator(300)
    gram.load_state_dict(state)
    gram.update(x)
    gram.cosine_matrix()
    gram.update(x)
    gram.cosine_matrix()
    assert torch.equal(state["gram"], kept)


def test_state_of_an_empty_one():
    gram, other = GramAccumulator(3, center=True), streamed(torch.randn(5, 3), 5, center=True)
    other.load_state_dict(gram.state_dict())
    assert bits(other) == bits(gram)
    assert other.samples == 0


def test_copies_part_ways():
    x = torch.randn(40, 9)
    gram = streamed(x[:20], 7, max_bytes=7 * least_bytes(9))
    other = copy.deepcopy(gram)
    other.update(x[20:])
    assert torch.equal(gram.cosine_matrix(), streamed(x[:20], 7, max_bytes=7 * least_bytes(9)).cosine_matrix())
    gram.update(x[20:])
    assert bits(gram) == bits(other)


def test_reset_forgets():
    x = torch.randn(40, 9)
    gram = streamed(x * 1e20 + 3, 40, center=True)
    gram.update(x[:5])
    gram.reset()
    assert gram.samples == 0
    gram.update(x)
    assert bits(gram) == bits(streamed(x, 40, center=True))


# Where it is called from


@pytest.mark.parametrize("center", [False, True])
def test_hooks_under_inference_mode_autocast_and_other_defaults(center):
    x = torch.randn(90, 40)
    wanted = streamed(x, 30, center=center, max_bytes=30 * least_bytes(40)).cosine_matrix()
    gram = GramAccumulator(40, center=center, max_bytes=30 * least_bytes(40))
    with torch.inference_mode():
        gram.update(x[:30].clone())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gram.update(x[30:60])
            gram.update(x[60:].clone().requires_grad_())
        with torch.inference_mode():
            inside = gram.cosine_matrix()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(before)
        torch.set_float32_matmul_precision("highest")
    outside = gram.cosine_matrix()
    assert torch.equal(inside, wanted)
    assert torch.equal(outside, wanted)
    assert not outside.requires_grad
    outside.mul_(2)


def test_a_forward_hook_streams_a_data_set():
    layer = torch.nn.Linear(7, 12)
    gram = GramAccumulator(12, center=True)
    handle = layer.register_forward_hook(lambda module, inputs, output: gram.update(output))
    data = torch.randn(50, 7)
    for batch in data.split(8):
        layer(batch)
    handle.remove()
    # The layer's own outputs may be rounded otherwise in batches of another size: samples of eight products.
    seen = layer(data).detach()
    moved = 2 * summation_error(8) * (data.abs() @ layer.weight.abs().T + layer.bias.abs()).norm(dim=0).double()
    moved = moved / (seen.double() - seen.double().mean(0)).norm(dim=0)
    allowed = 2 * cosine_error(seen.T, center=True) + moved[:, None] + moved
    assert_within(gram.cosine_matrix(), neuron_cosine_matrix(seen, center=True), allowed.detach())


def test_the_batch_is_not_written():
    for center in (False, True):
        x = torch.randn(40, 9) * 1e25
        kept = x.clone()
        streamed(x, 20, center=center, max_bytes=20 * least_bytes(9)).cosine_matrix()
        assert torch.equal(x, kept)


def test_a_batch_may_be_overwritten_afterwards():
    x = torch.randn(3, 5, 9)
    gram, buffer = GramAccumulator(9), torch.empty(5, 9)
    for batch in x:
        gram.update(buffer.copy_(batch))
    check_values(gram.cosine_matrix(), x.flatten(0, 1))


def test_empty_batches_change_nothing():
    gram = GramAccumulator(4)
    gram.update(torch.ones(0, 4))
    gram.update(torch.ones(2, 0, 4))
    assert gram.samples == 0
    gram.update(torch.ones(2, 4))
    assert gram.samples == 2


def test_same_numbers_twice():
    x = torch.randn(90, 40)
    assert bits(streamed(x, 13)) == bits(streamed(x, 13))


# Interrupted


FITS = 4
"""Samples that wait or are converted together."""


def prepared(more: int = 5, center: bool = True) -> tuple[GramAccumulator, Tensor]:
    """One that has seen two samples and has three waiting, and the next batch, which changes the scale of a neuron."""
    x = torch.randn(5 + more, 4, generator=torch.Generator().manual_seed(3))
    x[5:, 2] *= 1e30
    gram = GramAccumulator(4, center=center, max_bytes=FITS * least_bytes(4))
    gram.update(x[:2])
    gram.update(x[2:5])
    assert (gram._sums.samples, gram._sums.waiting) == (2, 3)
    return gram, x[5:]


FILES = {module.__file__ for module in (accumulator, checkpoints, layout, results, sums)}


def interrupt_at(line: int, call) -> bool:
    """Run `call` and raise KeyboardInterrupt before the given line event of `FILES`; False if it ended before."""
    seen = 0

    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("samples", [5, 3])
def test_an_interrupted_update_is_none_or_whole(center, samples):
    """Every line of these files that an update runs is interrupted once. Five samples are two parts; three wait."""
    gram, more = prepared(samples, center)
    before = bits(copy.deepcopy(gram))
    gram.update(more)
    after = bits(gram)
    line, seen = 1, set()
    while True:
        gram, more = prepared(samples, center)
        if not interrupt_at(line, lambda gram=gram, more=more: gram.update(more)):
            break
        whole = gram.samples == 5 + samples
        seen.add(whole)
        assert bits(copy.deepcopy(gram)) == (after if whole else before), f"line event {line}"
        if not whole:
            gram.update(more)
            assert bits(gram) == after, f"line event {line}"
        line += 1
    assert line > 100
    assert seen == {False, True}


@pytest.mark.parametrize("call", ["merge", "load", "cosine"])
def test_other_calls_are_none_or_whole(call):
    other = streamed(torch.ones(3, 4), 3, center=True)

    def run(gram: GramAccumulator) -> None:
        if call == "merge":
            gram.merge(other)
        elif call == "load":
            gram.load_state_dict(other.state_dict())
        else:
            gram.cosine_matrix()

    gram, _ = prepared()
    before = bits(copy.deepcopy(gram))
    run(gram)
    after = bits(gram)
    line = 1
    while True:
        gram, _ = prepared()
        if not interrupt_at(line, lambda gram=gram: run(gram)):
            break
        assert bits(gram) in (before, after), f"line event {line}"
        line += 1
    assert line > 50


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_progress_may_stop_an_update(error):
    gram = GramAccumulator(1100, max_bytes=64 * least_bytes(1100))
    x = torch.randn(80, 1100)
    gram.update(x[:30])
    before = gram.cosine_matrix()

    def stop(done: int, total: int) -> None:
        if done == total - 1:
            raise error

    with pytest.raises(error):
        gram.update(x, progress=stop)
    assert gram.samples == 30
    assert torch.equal(gram.cosine_matrix(), before)


def test_progress_counts_up_to_the_end(capsys):
    gram = GramAccumulator(600, max_bytes=50 * least_bytes(600))
    for call in (
        lambda progress: gram.update(torch.randn(120, 600), progress=progress),
        lambda progress: gram.update(torch.randn(1, 600), progress=progress),
        lambda progress: gram.cosine_matrix(progress=progress),
    ):
        steps: list[tuple[int, int]] = []
        call(lambda done, total, steps=steps: steps.append((done, total)))
        assert steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})
        assert len({total for _, total in steps}) == 1
    gram.cosine_matrix(progress=True)
    assert capsys.readouterr().err.endswith("GramAccumulator.cosine_matrix: 600/600\n")
    for progress in (None, 3, "yes"):
        with pytest.raises(TypeError, match="progress: expected True, False or a function"):
            gram.update(torch.randn(2, 600), progress=progress)


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_stays_within_two_triangles_and_max_bytes():
    """12 MB of halves would be 24 MB in float32, and a square of float64 sums 18 MB."""
    script = """
import torch
from benchmarks.harness import peak_resident_growth
from sdsd.geometry import GramAccumulator
torch.set_num_threads(1)
x = torch.randn(4000, 1500).half()
def run():
    gram = GramAccumulator(1500, center=True, max_bytes=2**22)
    gram.update(x)
    gram.update(x[:300])
    return gram
print(peak_resident_growth(run))
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    triangle = 8 * (1500 * 1500 / 2 + 1500 * 128)
    assert int(done.stdout.splitlines()[-1]) <= 2 * triangle + 2**22 + 2**21


@pytest.mark.parametrize("n", [1, 7, 300])
def test_tiles_cover_the_triangle_once(n):
    for side in (1, 5, 64, 100, 128, 1024):
        if n // side > 60:
            continue
        count = torch.zeros(n, n, dtype=torch.int)
        for rows, columns in layout.Triangle(n).tiles(side):
            assert rows.stop - rows.start <= side
            assert columns.stop - columns.start <= side
            count[rows, columns] += 1
        assert (count.triu() == torch.ones(n, n, dtype=torch.int).triu()).all()


@pytest.mark.parametrize("n", [1024, 4096, 5000, 10_000])
def test_products_are_half_of_a_full_product_and_little_more(n):
    computed = sum(
        (rows.stop - rows.start) * (columns.stop - columns.start)
        for rows, columns in layout.Triangle(n).tiles(layout.TILE)
    )
    assert computed <= n * n * (0.5 + 64 / n)


# Bad input


@pytest.mark.parametrize(
    ("batch", "options", "error", "match"),
    [
        (
            torch.ones(3, 5),
            {},
            ValueError,
            r"expected 6 neurons, as many.*got 5 \(shape \(3, 5\)",
        ),
        (torch.ones(6, 5), {}, ValueError, "Check that neuron_dim"),
        (torch.ones(6), {}, ValueError, r"at least two dimensions.*got shape \(6,\)"),
        (torch.ones(3, 6, dtype=torch.int64), {}, TypeError, "got torch.int64"),
        (torch.ones(3, 6, dtype=torch.complex64), {}, TypeError, "got torch.complex64"),
        (torch.ones(3, 6, dtype=torch.float64), {}, TypeError, "got torch.float64.*dtype=torch.float64"),
        (torch.eye(6).to_sparse(), {}, TypeError, "expected a dense tensor"),
        (torch.ones(3, 6, device="meta"), {}, ValueError, "expected device cpu like the accumulator, got meta"),
        ([[1.0] * 6], {}, TypeError, "expected a torch.Tensor or a NumPy array, got list"),
        (np.ones((2, 6), dtype=np.int32), {}, TypeError, "got torch.int32"),
        (torch.ones(3, 6), {"neuron_dim": 2}, ValueError, "neuron_dim: expected -2 to 1"),
        (torch.ones(3, 6), {"neuron_dim": 1.0}, TypeError, "neuron_dim: expected an int or None, got float"),
        (torch.ones(3, 6), {"neuron_dim": True}, TypeError, "neuron_dim: expected an int or None, got bool"),
        (torch.ones(3, 6), {"progress": 1}, TypeError, "progress"),
    ],
)
def test_bad_batches_leave_it_unharmed(batch, options, error, match):
    gram = streamed(torch.randn(20, 6), 6, max_bytes=8 * least_bytes(6))
    before, waiting = bits(copy.deepcopy(gram)), gram._sums.waiting
    with pytest.raises(error, match=match):
        gram.update(batch, **options)
    assert gram._sums.waiting == waiting > 0
    assert bits(gram) == before


@pytest.mark.parametrize(
    ("other", "error", "match"),
    [
        (GramAccumulator(5, center=True), ValueError, "expected the same n, 6, got 5"),
        (GramAccumulator(6), ValueError, "expected the same center, True, got False"),
        (GramAccumulator(6, center=True, dtype=torch.float64), ValueError, "expected the same dtype, torch.float32"),
        (torch.eye(6), TypeError, "expected a GramAccumulator, got Tensor"),
    ],
)
def test_merging_what_does_not_fit(other, error, match):
    gram = streamed(torch.randn(20, 6), 6, center=True)
    before = bits(gram)
    with pytest.raises(error, match=match):
        gram.merge(other)
    assert bits(gram) == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n": 5}, "expected n=6 like this accumulator, got 5"),
        ({"center": False}, "expected center=True"),
        ({"dtype": torch.float64}, "expected dtype=torch.float32"),
        ({"gram": torch.zeros(20, dtype=torch.float64)}, r"expected gram to be torch.float64 of shape \(21,\)"),
        ({"gram": torch.zeros(21)}, "expected gram to be torch.float64.*got torch.float32"),
        ({"gram": None}, "expected gram to be torch.float64.*got None"),
        ({"mean": None}, "expected mean to be"),
        ({"exponent": torch.zeros(6)}, "expected exponent to be torch.int32"),
        ({"nonfinite": 3}, "expected nonfinite to be torch.bool.*got 3"),
        ({"samples": -1}, "expected samples to be"),
        ({"samples": 1.5}, "expected samples to be"),
    ],
)
def test_loading_what_does_not_fit(change, match):
    gram = streamed(torch.randn(20, 6), 6, center=True)
    before = bits(gram)
    with pytest.raises(ValueError, match=match):
        gram.load_state_dict({**gram.state_dict(), **change})
    assert bits(gram) == before
    for state in ({}, {"n": 6}, None, [1]):
        with pytest.raises(ValueError, match=r"expected what state_dict\(\) returned"):
            gram.load_state_dict(state)
    assert bits(gram) == before


def test_nothing_can_be_made_of_nothing():
    gram = GramAccumulator(3, center=True)
    for call in (gram.cosine_matrix, gram.gram, gram.norms, gram.means):
        with pytest.raises(ValueError, match="expected at least one sample before a result, got none"):
            call()
    gram.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"correction: expected more than 1 samples.*got 1"):
        gram.covariance()
    assert gram.covariance(correction=0).shape == (3, 3)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"zero": "ignore"}, ValueError, "zero: expected one of 'zero', 'nan', 'raise', got 'ignore'"),
        ({"out_dtype": torch.int32}, TypeError, "out_dtype: expected one of"),
        ({"out_dtype": "float32"}, TypeError, "out_dtype: expected one of"),
        ({"progress": "yes"}, TypeError, "progress"),
    ],
)
def test_bad_options_of_a_result(options, error, match):
    with pytest.raises(error, match=match):
        streamed(torch.randn(5, 3), 5).cosine_matrix(**options)


@pytest.mark.parametrize(
    ("n", "options", "error", "match"),
    [
        (0, {}, ValueError, "n: expected at least 1 neuron, got 0"),
        (3.0, {}, TypeError, "n: expected an int, got float"),
        (True, {}, TypeError, "got bool"),
        (3, {"dtype": torch.bfloat16}, TypeError, "dtype: expected torch.float32 or torch.float64"),
        (3, {"precision": "fp8"}, ValueError, "precision: expected one of"),
        (3, {"backend": "cuda"}, ValueError, "backend: expected one of 'triton', 'torch'"),
        (3, {"backend": "triton", "dtype": torch.float64}, ValueError, "Triton was asked for.*no float64"),
        (3, {"nonfinite": "ignore"}, ValueError, "nonfinite: expected one of 'warn', 'raise'"),
        (3, {"max_bytes": 95}, ValueError, "max_bytes: expected at least 96.*for 3 neurons, got 95"),
        (3, {"max_bytes": 1e9}, TypeError, "max_bytes: expected an int or None, got float"),
    ],
)
def test_bad_settings(n, options, error, match):
    with pytest.raises(error, match=match):
        GramAccumulator(n, **options)


def test_all_reduce_needs_a_process_group():
    gram = streamed(torch.randn(20, 6), 6, center=True)
    before = bits(gram)
    with pytest.raises(RuntimeError, match="expected an initialised process group.*init_process_group"):
        gram.all_reduce()
    assert bits(gram) == before


def test_examples_in_docstrings():
    assert doctest.testmod(accumulator).failed == 0
