"""The Triton path without a GPU, torch.library and torch.compile, what is refused."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from torch import Tensor

from sdsd_kernels._aot import compiled_ahead
from sdsd_kernels._backend import unusable
from sdsd_kernels._device import INTERPRETED
from sdsd_kernels.cosine_topk import config
from sdsd_kernels.cosine_topk.op import cosine_topk
from sdsd_kernels.pairwise.config import Tile

from .nearest import check, check_call, exact_scores, near, signs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")


@pytest.mark.parametrize(("multiprocessors", "splits"), [(1, None), (3, None), (40, None), (8, 2)])
def test_any_number_of_splits(multiprocessors, splits, device, monkeypatch):
    problem = unusable("triton", device)
    if problem or device.type == "cuda":
        pytest.skip(problem or "the number of multiprocessors is the GPU's own")
    launch = importlib.import_module("sdsd_kernels.pairwise.launch")
    record = dataclasses.replace(INTERPRETED, multiprocessors=multiprocessors)
    monkeypatch.setattr(launch, "device_record", lambda device: record)
    monkeypatch.setattr(launch, "_plans", {})
    if splits is not None:  # 3 tiles of columns in 2 parts
        monkeypatch.setattr(config, "splits", lambda *_: splits)
    monkeypatch.setattr(config, "topk_tile", lambda *_: Tile(16, 16, 16, num_warps=4, num_stages=1, resident=1))
    x = signs(45, 9, seed=1)
    check(cosine_topk(x, 5, backend="triton"), exact_scores(x), 5, False, 0)


def test_splits_fill_the_machine():
    assert config.splits(157, 157, 132) == 3
    assert config.splits(64, 32, 132) == 2
    assert config.splits(1000, 1000, 132) == 1
    for tiles in (1, 2, 7, 64, 500):
        assert 1 <= config.splits(tiles, tiles, 132) <= min(tiles, config.MOST_SPLITS)


def test_lists_in_pieces(device, monkeypatch):
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    monkeypatch.setattr(config, "MERGED_ROWS", 7)
    x = signs(20, 9, seed=1).to(device)
    check(cosine_topk(x, 3, backend="triton"), exact_scores(x), 3, False, 0)
    with pytest.raises(ValueError, match=r"max_bytes=1,000 is less than the 3,\d{3} that its halves take"):
        cosine_topk(x, 3, max_bytes=1000, backend="triton")
    check(cosine_topk(x, 3, max_bytes=5000, backend="triton"), exact_scores(x), 3, False, 0)


def test_wide_tiles_are_offered_in_strips(device, monkeypatch):
    problem = unusable("triton", device)
    if problem or device.type == "cuda":
        pytest.skip(problem or "tiles of a GPU are as wide as they are")
    kernel = importlib.import_module("sdsd_kernels.cosine_topk.kernel")
    monkeypatch.setattr(kernel, "STRIP", kernel.tl.constexpr(8))
    x = signs(45, 9, seed=1)
    check(cosine_topk(x, 5, backend="triton"), exact_scores(x), 5, False, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("others", [None, "alike", "neurons adjacent"])
def test_operands_of_every_kind(dtype, others, device):
    """Halves where they lie, or rewritten; two sets of neurons whose layouts differ."""
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    x = torch.randn(32, 48, device=device).to(dtype).T.contiguous().T
    other = None if others is None else torch.randn(32, 40, device=device).to(dtype)
    if others == "alike":
        other = other.T.contiguous().T
    found = cosine_topk(x, 4, other=other, backend="triton")
    check(found, exact_scores(x, other), 4, False, near(x, other))


@pytest.mark.parametrize(("k", "lanes"), [(1, 4), (4, 4), (5, 8), (17, 32), (32, 32)])
def test_lanes(k, lanes):
    assert config.lanes(k) == lanes


def test_torch_serves_what_the_kernel_lacks(device):
    x = torch.randn(8, 60, device=device)
    check_call(x, config.MOST_NEIGHBORS + 1, None)
    with pytest.raises(ValueError, match="the kernel keeps at most 32 neighbours and k is 33"):
        cosine_topk(x, 33, backend="triton")
    with pytest.raises(ValueError, match="the kernel has no float64"):
        cosine_topk(x.double(), 3, backend="triton")


def test_aot_cases_cover_every_configuration():
    if unusable("torch", torch.device("cpu")) is None and importlib.util.find_spec("triton") is None:
        pytest.skip("no Triton")
    cases = list(importlib.import_module("sdsd_kernels.cosine_topk.aot").aot_cases())
    assert len({(case.name, case.target) for case in cases}) == len(cases)
    for record in compiled_ahead():
        for three, table in ((False, config.ONE_TERM), (True, config.THREE_TERMS)):
            assert table[record.family][-1][0] == config.MOST_NEIGHBORS
            for places, tile in table[record.family]:
                assert any(
                    case.target == record.target
                    and (how := case.constexprs["HOW"])
                    and (how.three, case.constexprs["LANES"]) == (three, places)
                    and (how.rows, how.columns, how.samples) == (tile.rows, tile.columns, tile.samples)
                    for case in cases
                )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("among_others", [False, True])
def test_opcheck(dtype, among_others, device):
    rows = torch.randn(5, 2, 6, dtype=dtype, device=device)
    others = torch.randn(4, 2, 6, dtype=dtype, device=device) if among_others else None
    backend = "triton" if device.type == "cuda" and dtype == torch.float32 else "torch"
    torch.library.opcheck(torch.ops.sdsd.cosine_topk.default, (rows, others, 2, False, "float32", True, None, backend))


def test_compiles_whole(device):
    def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
        return cosine_topk(x.relu(), 3, neuron_dim=1)

    x = torch.randn(4, 6, 3, 3, device=device, requires_grad=True)
    values, indices = torch.compile(nearest, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(indices, nearest(x)[1])
    assert torch.equal(values, nearest(x)[0])


def test_no_gradient_and_inference_mode(backend, device):
    x = torch.randn(8, 20, device=device, requires_grad=True)
    values, indices = cosine_topk(x, 3, backend=backend)
    assert not values.requires_grad
    with torch.inference_mode():
        again = cosine_topk(x, 3, backend=backend)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], indices)


def test_meta_tensors_have_the_shape():
    values, indices = cosine_topk(torch.randn(4, 9, device="meta"), 5)
    assert values.shape == indices.shape == (9, 5)
    assert (values.dtype, indices.dtype) == (torch.float32, torch.int64)


X = torch.ones(3, 6)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: cosine_topk([[1.0]], 1), TypeError, "activations: expected a torch.Tensor, got list"),
        (lambda: cosine_topk(torch.ones(3), 1), ValueError, r"at least two dimensions.*got shape \(3,\)"),
        (lambda: cosine_topk(X.long(), 1), TypeError, "got torch.int64"),
        (lambda: cosine_topk(X.to_sparse(), 1), TypeError, "expected a dense tensor"),
        (lambda: cosine_topk(torch.ones(0, 4), 1), ValueError, "which has no samples"),
        (lambda: cosine_topk(torch.ones(4, 1), 1), ValueError, "expected at least two neurons, got 1"),
        (lambda: cosine_topk(X, 0), ValueError, "k: expected 1 to 5 for 6 neurons, got 0"),
        (lambda: cosine_topk(X, -1), ValueError, "got -1"),
        (lambda: cosine_topk(X, 6), ValueError, "k: expected 1 to 5 for 6 neurons, got 6"),
        (lambda: cosine_topk(X, 7, other=X), ValueError, "k: expected 1 to 6 for 6 neurons in other, got 7"),
        (lambda: cosine_topk(X, 2.0), TypeError, "k: expected an int, got float"),
        (lambda: cosine_topk(X, True), TypeError, "k: expected an int, got bool"),
        (lambda: cosine_topk(X, 1, neuron_dim=2), ValueError, "expected -2 to 1"),
        (lambda: cosine_topk(X, 1, precision="fp8"), ValueError, "expected one of 'float32', 'fp16'"),
        (lambda: cosine_topk(X, 1, backend="cuda"), ValueError, "expected one of 'triton', 'torch', got 'cuda'"),
        (lambda: cosine_topk(X, 1, max_bytes=0), ValueError, "max_bytes: expected at least 1, got 0"),
        (lambda: cosine_topk(X, 1, max_bytes=1e6), TypeError, "max_bytes: expected an int or None, got float"),
        (lambda: cosine_topk(X, 1, other=[1.0]), TypeError, "other: expected a torch.Tensor, got list"),
        (lambda: cosine_topk(X, 1, other=torch.ones(4, 6)), ValueError, "other: expected the number of samples of"),
        (lambda: cosine_topk(X, 1, other=X.double()), ValueError, "the dtype of activations, torch.float32, got"),
        (lambda: cosine_topk(X, 1, other=X.to("meta")), ValueError, "the device of activations, cpu, got meta"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
