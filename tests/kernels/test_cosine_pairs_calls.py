"""Histogram, row sums and pairs as calls: memory, progress, torch.library, torch.compile, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdsd_kernels import cosine_histogram, cosine_pairs, cosine_row_sums
from sdsd_kernels._backend import unusable
from sdsd_kernels.cosine_pairs import cpu
from sdsd_kernels.cosine_pairs.config import most_pairs
from tests.kernels.pairs import CALLS, NAN, check_pairs, oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
ROOT = Path(__file__).resolve().parents[2]


# Memory, progress, interruption

MEMORY = """
import json, sys, torch
from benchmarks.harness import peak_resident_growth
from sdsd_kernels import cosine_histogram, cosine_pairs, cosine_row_sums, disjoint_pairs
torch.set_num_threads(1)
x = torch.randn(64, 4000)
limit = int(sys.argv[1])

def too_many():
    try:
        cosine_pairs(x, above=-1, max_bytes=limit)
    except ValueError as error:
        return str(error)
    raise AssertionError("all pairs fitted")

calls = {
    "too many": too_many,
    "histogram": lambda: cosine_histogram(x, 100, max_bytes=limit),
    "row sums": lambda: cosine_row_sums(x, "distance", max_bytes=limit),
    "pairs": lambda: cosine_pairs(x, above=0.35, max_bytes=limit),
    "disjoint": lambda: disjoint_pairs(x, 500, max_bytes=limit),
}
print(json.dumps({name: peak_resident_growth(call) for name, call in calls.items()}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_stays_below_max_bytes():
    """The matrix would take 64 MB, all pairs 160 MB."""
    limit = 16 * 2**20
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536", PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(limit)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    # Python objects and the allocator's pages come on top.
    assert max(grown.values()) < limit + 4 * 2**20, grown
    assert grown["pairs"] > 1 * 2**20, grown


@pytest.mark.parametrize("name", CALLS)
def test_progress_and_interruption(name, backend, device, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", (32, 32))
    call = CALLS[name]
    x = torch.randn(20, 70, device=device)
    seen: list[tuple[int, int]] = []
    options = {"backend": backend}
    told = call(x, progress=lambda done, total: seen.append((done, total)), **options)
    untold = call(x, **options)
    assert all(map(torch.equal, told, untold)) if isinstance(told, tuple) else torch.equal(told, untold)
    assert len(seen) > 2
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyboardInterrupt):
            call(x, progress=interrupt, **options)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    call(x, **options)


@pytest.mark.parametrize("name", ["above", "below"])
def test_too_many_pairs_are_counted_and_a_threshold_advised(name, backend, device):
    # Beside what the pass itself takes, room for some hundreds of pairs.
    neurons, limit = (170, 1_150_000) if backend == "torch" else (60, 20_000)
    x = torch.randn(8, neurons, device=device)
    threshold = -0.5 if name == "above" else 0.5
    sign = 1 if name == "above" else -1
    count = int((sign * oracle(x) >= sign * threshold).sum())
    with pytest.raises(ValueError, match=rf"{name}: {count:,} pairs .* or use {name}=") as caught:
        cosine_pairs(x, max_bytes=limit, backend=backend, **{name: threshold})
    words = str(caught.value).replace(",", "").split()
    allowed = next(int(word[10:]) for word in words if word.startswith("max_bytes=") and int(word[10:]) != limit)
    advised = next(float(word.split("=")[1]) for word in words if word.startswith(f"{name}="))
    assert sign * advised > sign * threshold
    assert len(cosine_pairs(x, max_bytes=allowed, backend=backend, **{name: threshold}).first) == count
    with pytest.raises(ValueError, match=f"{count:,} pairs"):
        cosine_pairs(x, max_bytes=allowed - 1, backend=backend, **{name: threshold})
    found = cosine_pairs(x, max_bytes=limit, backend=backend, **{name: advised})
    check_pairs(found, x, advised, name == "above")
    assert 0 < len(found.first) <= int(words[-3])


def test_no_threshold_fits_duplicates(device):
    limit = 2_000_000 if device.type == "cpu" else 100_000
    x = torch.randn(8, 1, device=device).expand(-1, 400)
    with pytest.raises(ValueError, match=r"79,800 pairs .* no threshold on a grid of .* leaves as few"):
        cosine_pairs(x, above=0.5, max_bytes=limit)
    opposite = x * torch.tensor([1.0, -1.0], device=device).repeat(200)
    with pytest.raises(ValueError, match=r"40,000 pairs .* no threshold on a grid of .* leaves as few"):
        cosine_pairs(opposite, below=-0.5, max_bytes=limit // 2 + limit // 8)


def test_what_fits():
    assert most_pairs(4, 100, 100 + 20 * 7) == 7
    assert most_pairs(8, 100, 100 + 24 * 7 - 1) == 6
    assert most_pairs(4, 100, 50) == 0


# torch.library, torch.compile


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, device):
    rows = torch.randn(5, 2, 6, dtype=dtype, device=device)
    backend = "triton" if device.type == "cuda" and dtype == torch.float32 else "torch"
    torch.library.opcheck(torch.ops.sdsd.cosine_totals.default, (rows, "histogram", 7, True, None, backend))
    torch.library.opcheck(torch.ops.sdsd.cosine_totals.default, (rows, "absolute", 0, False, None, backend))


def test_compiles_whole(device):
    x = torch.randn(4, 6, 3, 3, device=device, requires_grad=True)

    def spread(x: Tensor) -> Tensor:
        counts = cosine_histogram(x.relu(), 8, neuron_dim=1, center=True).counts
        return counts.double().std() + cosine_row_sums(x, neuron_dim=1).sum()

    assert torch.equal(torch.compile(spread, fullgraph=True, backend="aot_eager")(x), spread(x))
    assert not spread(x).requires_grad


def test_meta_tensors_have_the_shape():
    x = torch.randn(4, 5, device="meta")
    assert cosine_histogram(x, 3).counts.shape == (3,)
    assert cosine_row_sums(x).shape == (5,)


# Bad input


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (lambda: [[1.0, 2.0]], {}, TypeError, "expected a torch.Tensor, got list"),
        (lambda: torch.ones(3), {}, ValueError, r"at least two dimensions.*got shape \(3,\)"),
        (lambda: torch.ones(3, 4, dtype=torch.int64), {}, TypeError, "got torch.int64"),
        (lambda: torch.ones(0, 4), {}, ValueError, "which has no samples"),
        (lambda: torch.ones(4, 0), {}, ValueError, "which has no neurons"),
        (lambda: torch.ones(3, 4), {"neuron_dim": 2}, ValueError, "expected -2 to 1"),
        (lambda: torch.ones(3, 4), {"backend": "cuda"}, ValueError, "expected one of 'triton', 'torch', got 'cuda'"),
        (lambda: torch.ones(3, 4), {"max_bytes": 0}, ValueError, "max_bytes: expected at least 1, got 0"),
        (lambda: torch.ones(3, 4), {"max_bytes": 1e9}, TypeError, "max_bytes: expected an int or None, got float"),
        (lambda: torch.ones(3, 4), {"max_bytes": 1, "backend": "torch"}, ValueError, "expected at least .* one block"),
    ],
)
def test_bad_activations_and_options(name, make, options, error, match):
    with pytest.raises(error, match=match):
        CALLS[name](make(), **options)


@pytest.mark.parametrize("name", CALLS)
def test_where_the_halves_do_not_fit_torch_serves(name, device):
    if unusable("triton", device):
        pytest.skip(unusable("triton", device))
    x = torch.randn(5, 40, device=device)
    call = CALLS[name]
    with pytest.raises(ValueError, match="max_bytes=1,000 is less than the .* that its halves take") as error:
        call(x, max_bytes=1000, backend="triton")
    needed = int(str(error.value).split("less than the ")[1].split(" ")[0].replace(",", ""))
    with pytest.raises(ValueError, match=f"max_bytes={needed - 1:,} is less than the {needed:,}"):
        call(x, max_bytes=needed - 1, backend="triton")
    beside = 20 * 780 if name == "pairs" else 0
    bounded, free = call(x, max_bytes=needed + beside, backend="triton"), call(x, backend="triton")
    assert all(map(torch.equal, bounded, free)) if isinstance(free, tuple) else torch.equal(bounded, free)


@pytest.mark.parametrize(
    ("bins", "error", "match"),
    [
        (0, ValueError, "bins: expected 1 to 1073741823, got 0"),
        (2**70, ValueError, "bins: expected 1 to 1073741823, got 1180591620717411303424"),
        (2.0, TypeError, "bins: expected an int, got float"),
        (True, TypeError, "bins: expected an int, got bool"),
    ],
)
def test_bad_bins(bins, error, match):
    with pytest.raises(error, match=match):
        cosine_histogram(torch.ones(3, 4), bins)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, ValueError, "exactly one of them, got neither"),
        ({"above": 0.5, "below": 0.1}, ValueError, "exactly one of them, got both"),
        ({"above": 1.5}, ValueError, r"above: expected a cosine from -1 to 1, got 1.5"),
        ({"below": -1.01}, ValueError, r"below: expected a cosine from -1 to 1, got -1.01"),
        ({"above": NAN}, ValueError, "expected a cosine from -1 to 1, got nan"),
        ({"above": "0.5"}, TypeError, "above: expected a number, got str"),
        ({"below": True}, TypeError, "below: expected a number, got bool"),
    ],
)
def test_bad_thresholds(options, error, match):
    with pytest.raises(error, match=match):
        cosine_pairs(torch.ones(3, 4), **options)


def test_bad_kind():
    with pytest.raises(ValueError, match="kind: expected one of 'cosine', 'absolute', 'distance', got 'l2'"):
        cosine_row_sums(torch.ones(3, 4), "l2")


def test_triton_where_there_is_none(device):
    x = torch.ones(3, 4, dtype=torch.float64, device=device)
    for call in CALLS.values():
        with pytest.raises(ValueError, match=r"the kernel has no float64.*Use backend='torch'"):
            call(x, backend="triton")
    if not unusable("triton", device):
        with pytest.raises(ValueError, match=r"the kernel has at most 512 bins.*Use backend='torch'"):
            cosine_histogram(x.float(), 513, backend="triton")
    assert int(cosine_histogram(x.float(), 513).counts[-1]) == 6
