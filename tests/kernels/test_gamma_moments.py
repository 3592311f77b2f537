"""gamma_moments on every backend against exact or extended-precision sums, within bounds that follow from rounding."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import GammaMoments, available_backends, gamma_moments
from sdsd_kernels._device import SM_89, SM_90
from sdsd_kernels.gamma_moments import config, cpu
from sdsd_kernels.gamma_moments.layout import as_matrices, is_one_matrix

BACKENDS = available_backends("cuda" if torch.cuda.is_available() else "cpu")
TRITON = pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton that runs here")
if "triton" in BACKENDS:
    from sdsd_kernels.gamma_moments import launch
U32, U64 = 2.0**-24, 2.0**-53
"""Unit roundoff: the relative error of one operation."""


def oracle(grads: Tensor) -> dict[str, np.ndarray]:
    """The definition in NumPy's extended precision, one matrix."""
    G = grads.detach().cpu().double().numpy().astype(np.longdouble).reshape(grads.shape[0], -1)
    mean = G.sum(0) / G.shape[0]
    d = G - mean
    return {
        "signal": (mean**2).sum(),
        "squares": (d**2).sum(),
        "deviations": (d**2).sum(1),
        "projections": (d * mean).sum(1),
        "products": np.array([(G[j] - G[j + 1]) @ (G[j + 2] - G[j + 3]) / 2 for j in range(0, len(G) - 3, 4)]),
    }


@dataclasses.dataclass(frozen=True)
class Rounding:
    """What an implementation promises of its sums."""

    unit: float
    """Unit roundoff of its arithmetic; what is added across tiles or blocks is float64 whatever this is."""
    rows: int
    """Most terms that are added in `unit` for a mean."""
    terms: tuple[int, ...]
    """Most products that are added in `unit`, and most of such sums that are added in it, and so on."""
    shifted: bool
    """Whether values are shifted before they are added, so that errors go with their spread, not with their size."""


def growth(terms: int) -> float:
    """By how many units of Σ|terms| a sum in any order may err.

    Certainly by `terms`; by 8 √terms in all but one of 10^13 cases of independent roundings (Higham & Mary 2019, SIAM
    J. Sci. Comput. 41, theorem 2.4).
    """
    return min(terms, 8 * math.sqrt(terms))


def rounding(backend: str, grads: Tensor, per_sample: bool) -> Rounding:
    """As README.md promises it for this input."""
    n, size = grads.shape[0], (grads.numel(),)
    if backend == "torch":
        unit, itemsize = (U64, 8) if grads.dtype == torch.float64 else (U32, 4)
        rows = min(n, 1024)
        columns = min(grads[0].numel(), 2**16, max(1, 2**21 // (itemsize * rows)))
        return Rounding(unit, rows, (columns, rows), shifted=False)
    if grads.dtype == torch.float64:
        return Rounding(U64, n, size, shifted=True)
    record = launch.device_record(grads.device)
    if per_sample and n <= config.RESIDENT_ROWS:
        if config.samples_wide(grads.dtype, n, record):
            return Rounding(U64, n, size, shifted=False)
        return Rounding(U32, n, (16 // grads.element_size(),), shifted=True)
    stream = config.stream_config(grads.dtype, n, record, grads[0].numel() if is_one_matrix(grads) else 0)
    wide, rows = stream.wide, stream.rows
    if per_sample:
        wide, rows = config.samples_wide(grads.dtype, n, record), config.TWO_WALKS[grads.dtype].rows
    return Rounding(U64, n, size, shifted=True) if wide else Rounding(U32, rows, (rows,), shifted=True)


def bounds(grads: Tensor, promise: Rounding) -> dict[str, np.ndarray | float]:
    """How far each moment may be from the truth.

    A mean of values of size s errs by e = (growth(rows) + 3) u s; s is the distance from the first row where values are
    shifted by one of their own. A deviation errs by that and two roundings of its own, a product of factors x, y that
    err by e, f by |x| f + |y| e + e f, and sums of products by growth(terms) units more. Sums in float64 come on top,
    and Σ(g − g_0)² − (Σ(g − g_0))² / N, of terms that are at most N + 1 times Σd².
    """
    G = grads.detach().cpu().double().numpy().reshape(grads.shape[0], -1)
    n, columns = G.shape
    u = promise.unit
    mean, d = np.abs(G.mean(0)), np.abs(G - G.mean(0))
    spread, largest = 2 * np.abs(G - G[0]).max(0), np.abs(G).max(0)
    size = spread if promise.shifted else largest
    e = (growth(promise.rows) + 3) * u * size
    if u == U32:
        e = e + (growth(n) + 3) * U64 * largest  # chunks are merged in float64
    e_d = e + 2 * u * (d + spread * promise.shifted)
    e_mean = e + 2 * u * mean
    sums = sum(growth(terms) + 2 for terms in promise.terms) * u + growth(n * columns) * U64
    wide = (n + 1) * (growth(n) + 4) * U64
    # The torch path takes N ‖mean‖² from Σ‖g‖² where it is no larger than the difference.
    lost = 1 if promise.shifted else 3
    quads = n // 4 * 4
    one, two = np.abs(G[0:quads:4] - G[1:quads:4]), np.abs(G[2:quads:4] - G[3:quads:4])
    e_pair = 2 * e + 2 * u * (one + two + 2 * spread * promise.shifted + d[0:quads:4] + d[2:quads:4])
    return {
        "signal": (2 * mean * e_mean + e_mean**2).sum() + sums * (mean**2).sum(),
        "squares": (2 * d * e_d + e_d**2).sum() + lost * (sums + wide) * (d**2).sum(),
        "deviations": (2 * d * e_d + e_d**2).sum(1) + sums * (d**2).sum(1),
        "projections": (d * e_mean + mean * e_d + e_d * e_mean).sum(1) + sums * (d * mean).sum(1),
        "products": ((one + two) * e_pair + e_pair**2).sum(1) / 2 + sums * (one * two).sum(1) / 2,
    }


def assert_within(moments: GammaMoments, grads: Tensor, promise: Rounding, *names: str) -> None:
    """The moments, or those named, of one matrix within their bounds."""
    wanted, allowed = oracle(grads), bounds(grads, promise)
    for name, value in moments._asdict().items():
        if value is None or (names and name not in names):
            continue
        found = value[0].cpu().numpy()
        assert found.shape == np.shape(wanted[name])
        beyond = float(np.max(np.abs(found - wanted[name]) - allowed[name], initial=-math.inf))
        assert beyond <= 0 or found.size == 0, f"{name}: {beyond:.3e} beyond the bound"


def assert_moments(grads: Tensor, backend: str) -> None:
    """Every moment within its bound, with and without per-sample moments, and the input untouched."""
    before = grads.clone()
    got, brief = gamma_moments(grads, per_sample=True, backend=backend), gamma_moments(grads, backend=backend)
    assert torch.equal(grads, before), "the input was changed"
    assert brief.deviations is brief.projections is brief.products is None
    assert_within(got, grads, rounding(backend, grads, True))
    assert_within(brief, grads, rounding(backend, grads, False))


def row_of(moments: GammaMoments, row: int) -> GammaMoments:
    return GammaMoments(*(None if field is None else field[row : row + 1] for field in moments))


@pytest.fixture
def fresh_plans():
    """Nothing remembered of earlier launches, and nothing left of this test's."""
    for cache in (launch._one, launch._many, launch._finish):
        cache.clear()
    yield
    for cache in (launch._one, launch._many, launch._finish):
        cache.clear()


@pytest.fixture
def slow_float64(monkeypatch, device, fresh_plans):
    """A device like this one whose float64 is slow, so that sums run in float32."""
    record = dataclasses.replace(launch.device_record(device), fast_float64=False)
    monkeypatch.setattr(launch, "device_record", lambda device: record)


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


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30], ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((8, 60), torch.float32), ((600, 16), torch.float32), ((1100, 9), torch.float32), ((33, 60), torch.bfloat16)],
    ids=str,
)
def test_extreme_scales(shape, dtype, scale, backend, device):
    assert_moments((torch.randn(shape) * scale).to(device, dtype), backend)


@TRITON
@pytest.mark.parametrize("scale", [1e-30, 1e18, 1e30], ids=str)
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


@TRITON
@pytest.mark.parametrize("shape", [(5, 2600), (1030, 140)], ids=str)
def test_programs_that_take_several_blocks(shape, monkeypatch, device, fresh_plans):
    monkeypatch.setattr(config, "STREAM_PROGRAMS", 1)
    record = dataclasses.replace(launch.device_record(device), multiprocessors=2)
    monkeypatch.setattr(launch, "device_record", lambda device: record)
    monkeypatch.setattr(config, "MAX_PARTIAL_ELEMENTS", 2)
    grads, other = torch.randn(shape, device=device), torch.randn(shape[0], shape[1] // 2, device=device)
    assert_moments(grads, "triton")
    for per_sample in (False, True):
        together = gamma_moments([other, grads], per_sample=per_sample, backend="triton")
        for row, entry in enumerate((other, grads)):
            assert_within(row_of(together, row), entry, rounding("triton", entry, per_sample))


@TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_some_programs_walk_again(dtype, monkeypatch, device, slow_float64):
    """Where products left float32 a program walks its own column blocks again, no less and no more."""
    monkeypatch.setattr(config, "MAX_PARTIAL_ELEMENTS", 60)
    grads = torch.randn(5, 5000)
    grads[:, 600:700] *= 1e25
    grads[:, 2900] *= 1e24
    assert_moments(grads.to(device, dtype), "triton")


def test_deterministic(backend, device):
    grads = torch.randn(40, 600, device=device)
    first, second = (gamma_moments(grads, per_sample=True, backend=backend) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("bad", "n", "per_sample"),
    [(bad, 5, per_sample) for bad in (math.nan, math.inf, -math.inf) for per_sample in (False, True)]
    + [(math.inf, 1030, True)],
)
def test_a_bad_value_spoils_its_own_tensor_only(bad, n, per_sample, backend, device):
    before, spoilt, after = (torch.randn(n, columns, device=device) for columns in (20, 30, 20))
    for row in (0, 3):
        spoilt[row, 17] = bad
        moments = gamma_moments([before, spoilt, after], per_sample=per_sample, backend=backend)
        assert moments.squares.isfinite().tolist() == [True, False, True]
        assert moments.squares[1].isnan()
        assert not moments.signal[1].isfinite()
        spoilt[row, 17] = 0


@TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_bad_value_where_float64_is_slow(dtype, per_sample, device, slow_float64):
    spoilt = torch.randn(5, 300, device=device).to(dtype)
    spoilt[3, 77] = math.inf
    moments = gamma_moments([spoilt, torch.ones(5, 20, device=device)], per_sample=per_sample, backend="triton")
    assert moments.squares.isnan().tolist() == [True, False]


def test_zero_gradients_give_zero(backend, device):
    moments = gamma_moments(torch.zeros(4, 50, device=device), per_sample=True, backend=backend)
    assert all((field == 0).all() for field in moments)


def test_equal_gradients_have_no_noise(backend, device):
    row = torch.randn(1, 90, device=device)
    moments = gamma_moments(row.repeat(5, 1), backend=backend)
    # Each of five deviations is at most the error of a mean of five: five roundings.
    assert 0 <= moments.squares.item() <= 5 * (5 * U32) ** 2 * moments.signal.item()
    assert moments.signal.item() == pytest.approx(row.double().square().sum().item(), rel=(growth(90) + 12) * U32)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(2, 40),
    columns=st.integers(1, 90),
    offset=st.sampled_from([0.0, 1.0, -30.0]),
    scale=st.sampled_from([1e-20, 1.0, 1e10]),
    seed=st.integers(0, 2**31),
)
def test_random_inputs(backend, device, n, columns, offset, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    assert_moments(((torch.randn(n, columns, generator=generator) + offset) * scale).to(device), backend)


def test_blocks_of_columns_and_of_rows(monkeypatch):
    grads = torch.randn(70, 900) + 0.5
    assert_moments(grads, "torch")
    monkeypatch.setattr(cpu, "BLOCK_BYTES", 70 * 4 * 64)
    assert_moments(grads, "torch")
    monkeypatch.setattr(cpu, "MAX_RESIDENT_ROWS", 8)
    assert_moments(grads, "torch")


@pytest.mark.parametrize("dtype", config.SAMPLES, ids=str)
def test_configurations(dtype):
    tiles = config.SAMPLES[dtype]
    assert [tile.rows for tile in tiles] == [8, 16, 32, 64, 128, 256, 512, config.RESIDENT_ROWS]
    assert [config.samples_config(dtype, n).rows for n in (2, 8, 9, 32, 33, 1024)] == [8, 8, 16, 32, 64, 1024]
    assert config.samples_config(dtype, config.RESIDENT_ROWS + 1) is config.TWO_WALKS[dtype]
    for tile in tiles:
        assert tile.columns % (16 // dtype.itemsize) == 0, "16 bytes are one thread's"
        # The tile at work is in registers.
        held = (tile.stages - 1) * tile.rows * tile.columns * dtype.itemsize
        assert held <= SM_89.shared_bytes
        assert tile.resident * held <= SM_90.shared_bytes


def test_float64_is_used_where_it_is_fast():
    assert config.stream_config(torch.float32, 32, SM_90).wide
    assert not config.stream_config(torch.float32, 32, SM_89).wide
    assert not config.stream_config(torch.float32, config.CHUNKED_FROM, SM_90).wide
    assert config.stream_config(torch.float64, config.CHUNKED_FROM, SM_89).wide
    assert not config.stream_config(torch.float32, 32, SM_89, 1000).spread


def test_few_columns_are_spread_over_more_programs():
    wide = config.FEW_BLOCKS * SM_90.multiprocessors * config.WIDE[torch.float32].columns
    assert config.stream_config(torch.float32, 32, SM_90, wide - 1).spread
    assert not config.stream_config(torch.float32, 32, SM_90, wide).spread
    assert config.stream_config(torch.float32, config.TALL_FROM, SM_90, 1000) is config.TALL[torch.float32]
    assert not config.stream_config(torch.float32, 32, SM_90).spread  # many matrices have programs enough


def test_products_of_samples_are_formed_in_float64_where_it_is_fast():
    assert config.samples_wide(torch.float32, 32, SM_90)
    assert not config.samples_wide(torch.float32, 32, SM_89)
    assert not config.samples_wide(torch.bfloat16, 32, SM_90)


def test_operator_registration(device):
    op = torch.ops.sdsd.gamma_moments.default
    backend = BACKENDS[-1]
    for per_sample in (False, True):
        torch.library.opcheck(
            op, ([torch.randn(5, 9, device=device), torch.randn(5, 2, device=device)], per_sample, backend)
        )


def test_under_compile(backend, device):
    grads = torch.randn(8, 30, device=device)
    compiled = torch.compile(
        lambda x: gamma_moments(x * 2, backend=backend).squares, backend="aot_eager", fullgraph=True
    )
    assert compiled(grads).item() == pytest.approx(gamma_moments(grads * 2, backend=backend).squares.item())


class TestBadInput:
    @pytest.mark.parametrize(
        ("grads", "error", "message"),
        [
            (torch.randn(1, 5), ValueError, "at least 2 gradients.*got 1"),
            (torch.randn(5), ValueError, r"expected shape \(N, ...\).*got shape \(5,\)"),
            (torch.tensor(1.0), ValueError, "one gradient a row"),
            (torch.zeros(3, 4, dtype=torch.long), TypeError, "got torch.int64.*float()"),
            (torch.zeros(3, 4, dtype=torch.complex64), TypeError, "expected real values"),
            (torch.randn(3, 4).to_sparse(), TypeError, "to_dense"),
            (torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8), TypeError, "dequantize"),
            (torch.empty(3, 0), ValueError, "at least one element"),
            ([], ValueError, "at least one tensor"),
            ({}, ValueError, "at least one tensor"),
            ([torch.randn(3, 2), torch.randn(4, 2)], ValueError, r"grads\[1\]: expected 3 gradients.*got 4"),
            ({"w": torch.randn(3, 2), "b": "x"}, TypeError, r"grads\['b'\]: expected a torch.Tensor, got str"),
            ([torch.randn(3, 2), torch.randn(3, 2, device="meta")], ValueError, "expected device cpu.*got meta"),
        ],
    )
    def test_errors(self, grads, error, message):
        with pytest.raises(error, match=message):
            gamma_moments(grads)

    def test_unknown_backend(self):
        with pytest.raises(ValueError, match="backend: expected one of 'triton', 'torch', got 'cuda'"):
            gamma_moments(torch.randn(3, 2), backend="cuda")

    def test_unknown_backend_in_the_environment(self, monkeypatch):
        monkeypatch.setenv("SDSD_BACKEND", "cpu")
        with pytest.raises(ValueError, match="SDSD_BACKEND: expected one of"):
            gamma_moments(torch.randn(3, 2))

    def test_triton_where_there_is_none(self, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(ValueError, match="Triton was asked for, but the tensor is on the CPU.*backend='torch'"):
            gamma_moments(torch.randn(3, 2), backend="triton")
