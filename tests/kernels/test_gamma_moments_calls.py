"""gamma_moments of lists, in many programs, twice, of bad values; configurations; what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdsd_kernels import gamma_moments
from sdsd_kernels._device import SM_89, SM_90
from sdsd_kernels.gamma_moments import config, cpu

from .moments import BACKENDS, TRITON, U32, assert_moments, assert_within, growth, rounding, row_of

if "triton" in BACKENDS:
    from sdsd_kernels.gamma_moments import launch


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
