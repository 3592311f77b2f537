"""Order and number of batches, means, scales; neurons without direction."""

from __future__ import annotations

import pytest
import torch

from sdsd.geometry.arithmetic import peaks
from sdsd.geometry.gram.accumulator import GramAccumulator
from tests.helpers import assert_within, cosine_error

from .streams import INF, NAN, bits, check_promises, check_values, least_bytes, oracle, streamed


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


@pytest.mark.parametrize("layout", ["rows", "columns", "a part of rows", "every second column"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_in_given_memory_have_the_same_bits(layout, dtype):
    """Under `max_bytes` they lie where the C heap gets no holes; they are summed in the order of their layout."""
    n, samples = 700, 900
    rows = {
        "rows": lambda: torch.randn(n, samples),
        "columns": lambda: torch.randn(samples, n).T,
        "a part of rows": lambda: torch.randn(n, samples + 1)[:, :samples],
        "every second column": lambda: torch.randn(2 * samples, n)[::2].T,
    }[layout]()
    asked = []

    def memory(height, width):
        asked.append(torch.full((height, width), torch.nan, dtype=dtype))
        return asked[-1]

    assert torch.equal(peaks(rows, dtype, memory), peaks(rows, dtype))
    assert [each.numel() for each in asked] == [2**18 // n * n]
    assert not asked[0].isnan().any()
