"""gamma_moments on every backend against NumPy in float64: shapes, dtypes, ranges, strides."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch

from sdsd_kernels import gamma_moments
from sdsd_kernels.gamma_moments import config
from sdsd_kernels.gamma_moments.layout import as_matrices, is_one_matrix

from .moments import BACKENDS, TRITON, U32, U64, assert_moments, assert_within, bounds, oracle, rounding, row_of

if "triton" in BACKENDS:
    from sdsd_kernels.gamma_moments import launch


# On each side of the tiles' numbers of rows and of a column block's ends; 1100 rows are walked twice.
SHAPES = [
    (2, 1),
    (2, 5),
    (3, 1),
    (5, 1030),
    (8, 257),
    (9, 30),
    (16, 128),
    (31, 129),
    (32, 300),
    (33, 64),
    (64, 300),
    (130, 70),
    (256, 40),
    (500, 70),
    (513, 37),
    (1024, 9),
    (1100, 70),
]

SHAPES_AND_DTYPES = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, dtype)
    for shape in ((5, 1200), (32, 300), (33, 64), (513, 21), (1030, 70))
    for dtype in (torch.float64, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES, ids=str)
def test_shapes_and_dtypes(shape, dtype, backend, device):
    assert_moments((torch.randn(shape) + 0.2).to(device, dtype), backend)


@TRITON
@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES, ids=str)
def test_where_there_are_many_columns_for_every_multiprocessor(shape, dtype, device, monkeypatch, fresh_plans):
    monkeypatch.setattr(config, "FEW_BLOCKS", 0)
    grads = (torch.randn(shape) + 0.2).to(device, dtype)
    assert not config.stream_config(dtype, shape[0], launch.device_record(device), shape[1]).spread
    assert_within(gamma_moments(grads, backend="triton"), grads, rounding("triton", grads, False))


@TRITON
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, torch.float32) for shape in ((2, 1), (5, 1030), (32, 300), (33, 200), (130, 70), (513, 37), (1100, 21))]
    + [((33, 64), dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)],
    ids=str,
)
def test_where_float64_is_slow(shape, dtype, device, slow_float64):
    assert_moments((torch.randn(shape) + 0.2).to(device, dtype), "triton")


@TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_of_many_rows(dtype, device, monkeypatch, fresh_plans):
    monkeypatch.setattr(config, "CHUNKED_FROM", 70)
    monkeypatch.setattr(config, "FEW_BLOCKS", 0)
    grads = (torch.randn(75, 1100) + 0.3).to(device, dtype)
    promise = rounding("triton", grads, False)
    assert promise.unit == (U32 if dtype == torch.float32 else U64)
    assert_within(gamma_moments(grads, backend="triton"), grads, promise)


@TRITON
def test_whole_numbers_are_summed_exactly(device):
    """All sums of small whole numbers are exact, so an element too many or too few shows, whatever its size."""
    grads = torch.randint(-8, 9, (64, 1100), device=device).float()
    grads[0] -= grads.sum(0) % 64  # the mean is whole as well
    moments = gamma_moments(grads, per_sample=True, backend="triton")
    G = [[int(value) for value in row] for row in grads.tolist()]
    mean = [Fraction(sum(column), 64) for column in zip(*G, strict=True)]
    d = [[x - m for x, m in zip(row, mean, strict=True)] for row in G]
    assert moments.signal.item() == sum(m * m for m in mean)
    assert moments.squares.item() == sum(x * x for row in d for x in row)
    assert moments.deviations[0].tolist() == [sum(x * x for x in row) for row in d]
    assert moments.projections[0].tolist() == [sum(x * m for x, m in zip(row, mean, strict=True)) for row in d]
    brief = gamma_moments(grads, backend="triton")
    assert (brief.signal, brief.squares) == (moments.signal, moments.squares)


@pytest.mark.parametrize("shape", [(32, 500), (500, 40), (600, 40), (1100, 30)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mean_ten_thousand_times_the_deviation(shape, dtype, backend, device):
    grads = (torch.randn(shape, dtype=torch.float64) + 1e4).to(device, dtype)
    promise = rounding(backend, grads, True)
    if promise.unit == U32:  # float64 has the digits to spare
        promise = dataclasses.replace(promise, shifted=True)
    moments = gamma_moments(grads, per_sample=True, backend=backend)
    assert_within(moments, grads, promise, "squares", "deviations")
    naive = (grads.float().square().sum() - shape[0] * grads.float().mean(0).square().sum()).item()
    lost = abs(naive - float(oracle(grads)["squares"]))
    assert lost > 10 * bounds(grads, promise)["squares"], "the uncentred formula should fail here"


@TRITON
@pytest.mark.parametrize("shape", [(32, 500), (600, 40), (1100, 30)], ids=str)
@pytest.mark.parametrize("outlier", [0, 1e3])
def test_large_mean_where_float64_is_slow(shape, outlier, device, slow_float64):
    """With an outlier in the first row, which shifts all others, and without."""
    grads = torch.randn(shape, dtype=torch.float64) + 1e5
    grads[0] += outlier
    assert_moments(grads.to(device, torch.float32), "triton")


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e-18, 1e18, 1e30], ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((8, 60), torch.float32), ((600, 16), torch.float32), ((1100, 9), torch.float32), ((33, 60), torch.bfloat16)],
    ids=str,
)
def test_extreme_scales(shape, dtype, scale, backend, device):
    assert_moments((torch.randn(shape) * scale).to(device, dtype), backend)


@TRITON
@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e18, 1e30], ids=str)
@pytest.mark.parametrize("shape", [(8, 60), (33, 60), (1100, 9)], ids=str)
def test_extreme_scales_where_float64_is_slow(shape, scale, device, slow_float64):
    assert_moments((torch.randn(shape) * scale).to(device), "triton")


@TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_huge_mean_over_a_small_spread(dtype, device, slow_float64):
    """d·ḡ overflows float32, though Σ‖d‖² does not."""
    grads = (torch.randn(8, 40) * 1e15).to(dtype)
    grads += torch.tensor(1e25, dtype=dtype) * (torch.arange(40) == 3)
    assert_moments(grads.to(device), "triton")


@pytest.mark.parametrize("powers", [(-12, 3), (-30, 0), (-30, 30)], ids=str)
def test_columns_of_very_different_scale(powers, backend, device):
    grads = torch.randn(9, 1200) * torch.logspace(*powers, 1200)[torch.randperm(1200)]
    assert_moments(grads.to(device), backend)


@TRITON
@pytest.mark.parametrize("powers", [(-12, 3), (-30, 30)], ids=str)
def test_columns_of_very_different_scale_where_float64_is_slow(powers, device, slow_float64):
    assert_moments((torch.randn(9, 1200) * torch.logspace(*powers, 1200)).to(device), "triton")


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:, ::2],
        lambda x: x[::3],
        lambda x: x.t(),
        lambda x: x[1:, 1:],
        lambda x: x.view(24, 10, 40).transpose(1, 2),
        lambda x: x.view(24, 10, 40)[:, ::2, ::3],
        lambda x: x.view(24, 10, 40).permute(1, 0, 2)[:, :, 5:],
        lambda x: x[:, :1].expand(24, 50),
        lambda x: x.view(24, 5, 2, 5, 8)[:, ::2, :, ::2, ::3],
    ],
)
def test_strides(make, backend, device):
    view, other = make(torch.randn(24, 400, device=device)), make(torch.randn(24, 400, device=device))
    assert_moments(view, backend)
    together = gamma_moments([other, view], per_sample=True, backend=backend)
    assert_within(row_of(together, 1), view, rounding(backend, view, True))


def test_views_cover_every_element_once():
    tensor = torch.arange(7 * 6 * 5 * 4).float().view(7, 6, 5, 4)
    for view in (tensor, tensor.transpose(1, 3), tensor[:, ::2], tensor[:, :, ::2, 1:], tensor.permute(3, 0, 2, 1)):
        pieces = as_matrices(view)
        assert all(piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for piece in pieces)
        for row in range(view.shape[0]):
            held = torch.cat([piece[row] for piece in pieces])
            assert torch.equal(held.sort().values, view[row].flatten().sort().values)
        assert is_one_matrix(view) == (len(pieces) == 1)
    assert len(as_matrices(tensor.transpose(1, 3))) == 1


@TRITON
@pytest.mark.parametrize("strides", [(2**30, 1), (1, 2**26), (5, 2**26)], ids=str)
def test_elements_beyond_two_to_the_31(strides, device):
    """On the CPU memory is mapped and, but for a few pages, not used."""
    size = 3 * 2**30 + 2**27
    if device.type == "cuda":
        storage = torch.zeros(size, dtype=torch.float16, device=device)
    else:
        storage = torch.from_numpy(np.zeros(size, dtype=np.float16))
    grads = storage.as_strided((4, 40), strides)
    grads.copy_(torch.randn(4, 40))
    for entries in ([grads], [grads, grads]):
        for per_sample in (False, True):
            moments = gamma_moments(entries, per_sample=per_sample, backend="triton")
            assert_within(moments, grads, rounding("triton", grads, per_sample))


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_list_has_the_moments_of_each(per_sample, backend, device):
    entries = [
        torch.randn(6, 4, 3),
        torch.randn(6, 1),
        torch.randn(6, 700).to(torch.bfloat16),
        torch.randn(6, 10, 20).transpose(1, 2),
        torch.randn(6, 33, dtype=torch.float64),
        torch.randn(6, 21)[:, 1::2],
        torch.randn(6, 2064),
        torch.randn(6, 8, 40)[:, ::2, 5:],
        torch.randn(700, 6).t(),
    ]
    entries = [entry.to(device) for entry in entries]
    together = gamma_moments(entries, per_sample=per_sample, backend=backend)
    for row, entry in enumerate(entries):
        assert_within(row_of(together, row), entry, rounding(backend, entry, per_sample))
    named = {str(k): entry for k, entry in enumerate(entries)}
    again = gamma_moments(named, per_sample=per_sample, backend=backend)
    assert all(one is None or torch.equal(one, two) for one, two in zip(together, again, strict=True))
