"""gamma_moments on every backend against sums in extended precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import available_backends, gamma_moments
from sdsd_kernels.gamma_moments import cpu
from sdsd_kernels.gamma_moments.config import CHUNKED, RESIDENT, RESIDENT_ROWS, choose_config
from sdsd_kernels.gamma_moments.layout import as_matrices

BACKENDS = available_backends("cuda" if torch.cuda.is_available() else "cpu")


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


def scales(grads: Tensor) -> dict[str, float]:
    """What an error in each moment is measured against: a sum without cancellation, not the value itself."""
    wanted = oracle(grads)
    norm = float(np.sqrt(wanted["signal"]))
    largest = float(np.sqrt(wanted["deviations"].max()))
    return {
        "signal": norm**2,
        "squares": float(wanted["squares"]),
        "deviations": largest**2,
        "projections": largest * max(norm, largest / 10),
        "products": largest**2,
    }


def assert_moments(grads: Tensor, backend: str, tolerance: float) -> None:
    before = grads.clone()
    got, wanted, scale = gamma_moments(grads, per_sample=True, backend=backend), oracle(grads), scales(grads)
    assert torch.equal(grads, before), "the input was changed"
    for name, value in got._asdict().items():
        found = value[0].cpu().numpy()
        assert found.shape == np.shape(wanted[name])
        error = np.abs(found - wanted[name]).max(initial=0)
        assert error <= tolerance * scale[name], f"{name}: error {error:.3e}, scale {scale[name]:.3e}"
    brief = gamma_moments(grads, backend=backend)
    assert brief.deviations is None
    assert brief.signal.item() == pytest.approx(got.signal.item(), rel=tolerance)
    assert brief.squares.item() == pytest.approx(got.squares.item(), rel=tolerance)


SHAPES = [
    (2, 1),
    (2, 5),
    (3, 1),
    (5, 1030),
    (31, 129),
    (33, 64),
    (64, 300),
    (130, 200),
    (500, 70),
    (513, 37),
    (1100, 21),
]
# Dtypes differ in how a tile is loaded and summed: a flat tile, a tall one and chunks of rows meet all of them.
SHAPES_AND_DTYPES = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, dtype)
    for shape in ((5, 300), (33, 64), (513, 21))
    for dtype in (torch.float64, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES, ids=str)
def test_shapes_and_dtypes(shape, dtype, backend, device):
    grads = (torch.randn(shape) + 0.2).to(device, dtype)
    assert_moments(grads, backend, 1e-13 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(32, 500), (500, 40), (600, 40)], ids=str)
def test_mean_ten_thousand_times_the_deviation(shape, backend, device):
    grads = (torch.randn(shape, dtype=torch.float64) + 1e4).float().to(device)
    moments, wanted = gamma_moments(grads, per_sample=True, backend=backend), oracle(grads)
    noise = moments.squares.item()
    assert noise == pytest.approx(float(wanted["squares"]), rel=2e-6)
    assert moments.deviations[0].tolist() == pytest.approx(wanted["deviations"].astype(float).tolist(), rel=1e-4)
    naive = (grads.square().sum() - shape[0] * grads.mean(0).square().sum()).item()
    assert naive != pytest.approx(noise, rel=1e-2), "the uncentred formula should fail here, or the test is too easy"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "scale"),
    [((8, 60), 1e-30), ((8, 60), 1e-18), ((8, 60), 1e18), ((8, 60), 1e30), ((600, 16), 1e-30), ((600, 16), 1e30)],
    ids=str,
)
def test_extreme_scales(shape, scale, backend, device):
    assert_moments((torch.randn(shape) * scale).to(device), backend, 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_of_very_different_scale(backend, device):
    grads = torch.randn(9, 1200) * torch.logspace(-12, 3, 1200)
    assert_moments(grads.to(device), backend, 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
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
    assert_moments(make(torch.randn(24, 400, device=device)), backend, 2e-6)


def test_views_cover_every_element_once():
    tensor = torch.arange(7 * 6 * 5 * 4).float().view(7, 6, 5, 4)
    for view in (tensor, tensor.transpose(1, 3), tensor[:, ::2], tensor[:, :, ::2, 1:], tensor.permute(3, 0, 2, 1)):
        pieces = as_matrices(view)
        assert all(piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for piece in pieces)
        for row in range(view.shape[0]):
            held = torch.cat([piece[row] for piece in pieces])
            assert torch.equal(held.sort().values, view[row].flatten().sort().values)
    assert len(as_matrices(tensor.transpose(1, 3))) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_list_equals_single_calls(backend, device):
    entries = [
        torch.randn(6, 4, 3), torch.randn(6, 1), torch.randn(6, 700).to(torch.bfloat16),
        torch.randn(6, 10, 20).transpose(1, 2), torch.randn(6, 33, dtype=torch.float64), torch.randn(6, 21)[:, 1::2],
    ]  # fmt: skip
    entries = [entry.to(device) for entry in entries]
    together = gamma_moments(entries, per_sample=True, backend=backend)
    named = gamma_moments({str(k): entry for k, entry in enumerate(entries)}, per_sample=True, backend=backend)
    for row, entry in enumerate(entries):
        alone = gamma_moments(entry, per_sample=True, backend=backend)
        for field in alone._fields:
            torch.testing.assert_close(getattr(together, field)[row], getattr(alone, field)[0], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(one, two) for one, two in zip(together, named, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_deterministic(backend, device):
    grads = torch.randn(40, 600, device=device)
    first, second = (gamma_moments(grads, per_sample=True, backend=backend) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_value_spoils_its_own_tensor_only(bad, backend, device):
    spoilt = torch.randn(5, 300, device=device)
    spoilt[3, 77] = bad
    moments = gamma_moments([torch.randn(5, 20, device=device), spoilt], backend=backend)
    assert moments.squares.isfinite().tolist() == [True, False]
    assert moments.squares[1].isnan()
    assert not moments.signal[1].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_gradients_give_zero(backend, device):
    moments = gamma_moments(torch.zeros(4, 50, device=device), per_sample=True, backend=backend)
    assert all((field == 0).all() for field in moments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_gradients_have_no_noise(backend, device):
    row = torch.randn(1, 90, device=device)
    moments = gamma_moments(row.repeat(5, 1), backend=backend)
    assert moments.squares.item() <= 1e-13 * moments.signal.item()
    assert moments.signal.item() == pytest.approx(row.double().square().sum().item(), rel=1e-6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(2, 40), columns=st.integers(1, 90), offset=st.sampled_from([0.0, 1.0, -30.0]),
    scale=st.sampled_from([1e-20, 1.0, 1e10]), seed=st.integers(0, 2**31),
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_inputs(backend, device, n, columns, offset, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    grads = (torch.randn(n, columns, generator=generator) + offset) * scale
    assert_moments(grads.to(device), backend, 1e-5)


def test_blocks_of_columns_and_of_rows_agree(monkeypatch):
    grads = torch.randn(70, 900) + 0.5
    whole = gamma_moments(grads, per_sample=True, backend="torch")
    monkeypatch.setattr(cpu, "BLOCK_BYTES", 70 * 4 * 64)
    blocks = gamma_moments(grads, per_sample=True, backend="torch")
    monkeypatch.setattr(cpu, "MAX_RESIDENT_ROWS", 8)
    rows = gamma_moments(grads, per_sample=True, backend="torch")
    for field in whole._fields:
        torch.testing.assert_close(getattr(blocks, field), getattr(whole, field), rtol=1e-6, atol=1e-3)
        torch.testing.assert_close(getattr(rows, field), getattr(whole, field), rtol=1e-6, atol=1e-3)


def test_configurations():
    assert [choose_config(n) for n in (2, 4, 5, 32, 33, 512)] == [RESIDENT[k] for k in (0, 0, 1, 2, 3, -1)]
    assert choose_config(RESIDENT_ROWS + 1) is CHUNKED
    assert all(config.rows % 4 == 0 for config in (*RESIDENT, CHUNKED))


def test_operator_registration(device):
    op = torch.ops.sdsd.gamma_moments.default
    backend = BACKENDS[-1]
    for per_sample in (False, True):
        torch.library.opcheck(
            op, ([torch.randn(5, 9, device=device), torch.randn(5, 2, device=device)], per_sample, backend)
        )


@pytest.mark.parametrize("backend", BACKENDS)
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
