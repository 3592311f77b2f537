"""Histogram, row sums and threshold pairs on every backend this machine has, against float64 written apart."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import cosine_histogram, cosine_pairs, cosine_row_sums
from sdsd_kernels._aot import compiled_ahead
from sdsd_kernels._backend import unusable
from sdsd_kernels.cosine_pairs import config, cpu
from sdsd_kernels.cosine_pairs.config import most_pairs
from sdsd_kernels.cosine_pairs.op import ROW_SUMS
from sdsd_kernels.cosine_pairs.reference import (
    cosine_histogram_reference,
    cosine_pairs_reference,
    cosine_row_sums_reference,
)
from sdsd_kernels.pairwise import config as pairwise_config
from sdsd_kernels.pairwise.config import Tile
from tests.helpers import assert_within, cosine_error, summation_error
from tests.kernels.cosines import exact_cosines, exact_rows, flat

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
ROOT = Path(__file__).resolve().parents[2]
NAN, INF = float("nan"), float("inf")

CALLS = {
    "histogram": cosine_histogram,
    "row sums": cosine_row_sums,
    "pairs": lambda x, **options: cosine_pairs(x, above=0.5, **options),
}


def oracle(x: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """NaN where there is no pair i < j."""
    rows = exact_rows(x, neuron_dim, center)
    cosine = exact_cosines(rows, rows)
    cosine[~torch.ones_like(cosine, dtype=torch.bool).triu(1)] = NAN
    return cosine


def without_direction(x: Tensor, neuron_dim: int = -1, center: bool = False) -> tuple[Tensor, Tensor]:
    """Neurons that are zero on every sample, and neurons with a NaN or an infinity."""
    rows = exact_rows(x, neuron_dim)
    bad = ~rows.isfinite().all(1)
    zero = (rows == rows[:, :1]).all(1) if center else (rows == 0).all(1)
    return zero & ~bad, bad


def near(x: Tensor, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """How far a computed cosine may be from the oracle's, and so from an edge or a threshold on its other side."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return cosine_error(flat(x, neuron_dim), center=center, dtype=dtype)


def check_histogram(found, x: Tensor, neuron_dim: int = -1, center: bool = False) -> None:
    """Every inner edge has the right number of pairs below it, but for those within rounding of it."""
    cosine = oracle(x, neuron_dim, center)
    zero, bad = without_direction(x, neuron_dim, center)
    cosine[zero | bad] = NAN
    cosine[:, zero | bad] = NAN
    values, error = cosine[~cosine.isnan()], near(x, neuron_dim, center)[~cosine.isnan()]
    bins = len(found.counts)
    assert found.counts.dtype == torch.int64
    assert found.edges.tolist() == pytest.approx([2 * k / bins - 1 for k in range(bins + 1)], abs=1e-15)
    assert int(found.counts.sum()) == len(values)
    below = found.counts.cpu().cumsum(0)[:-1]
    for edge, count in zip(found.edges.tolist()[1:-1], below.tolist(), strict=True):
        assert int((values + error < edge).sum()) <= count <= int((values - error < edge).sum())
    n, clean, live = len(cosine), int((~bad).sum()), int((~bad & ~zero).sum())
    assert int(found.nan_pairs) == math.comb(n, 2) - math.comb(clean, 2)
    assert int(found.zero_pairs) == math.comb(clean, 2) - math.comb(live, 2)


def check_pairs(found, x: Tensor, threshold: float, above: bool, neuron_dim: int = -1, center: bool = False) -> None:
    """All pairs clearly past the threshold, none clearly short of it, in order, with their cosines."""
    sign = 1 if above else -1
    cosine, error = oracle(x, neuron_dim, center), near(x, neuron_dim, center)
    zero, bad = without_direction(x, neuron_dim, center)
    cosine[zero | bad] = NAN
    cosine[:, zero | bad] = NAN
    first, second = found.first.cpu(), found.second.cpu()
    assert first.dtype == second.dtype == torch.int64
    assert found.cosine.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    places = first * len(cosine) + second
    assert (places.diff() > 0).all()
    wanted = cosine[first, second]
    assert (sign * wanted >= sign * threshold - error[first, second]).all()
    past = torch.zeros_like(cosine, dtype=torch.bool)
    past[first, second] = True
    assert past[sign * cosine >= sign * threshold + error].all()
    assert_within(found.cosine, wanted, error[first, second])
    assert (sign * found.cosine >= sign * torch.tensor(threshold, dtype=found.cosine.dtype)).all()


TERMS = {
    "cosine": lambda cosine: cosine,
    "absolute": lambda cosine: cosine.abs(),
    "distance": lambda cosine: (2 - 2 * cosine).clamp(min=0).sqrt(),
}


def sums_of(cosine: Tensor, kind: str) -> Tensor:
    term = TERMS[kind](cosine).nan_to_num(0)
    return term.sum(1) + term.sum(0)


def check_row_sums(found: Tensor, x: Tensor, kind: str, neuron_dim: int = -1, center: bool = False) -> None:
    cosine = oracle(x, neuron_dim, center)
    zero, bad = without_direction(x, neuron_dim, center)
    cosine[zero | bad] = NAN
    cosine[:, zero | bad] = NAN
    assert found.dtype == torch.float64
    assert found[bad.to(found.device)].isnan().all()
    error, magnitude = near(x, neuron_dim, center), TERMS[kind](cosine).abs().nan_to_num(0)
    if kind == "distance":
        # √ magnifies rounding where c is near 1: |√(d² + 2ε) − d| ≤ min(2ε / d, √(2ε)).
        error = torch.minimum(2 * error / magnitude, (2 * error).sqrt())
    # Every neuron's own errors add up, and then those of a sum of N − 1 numbers.
    error = error.masked_fill(cosine.isnan(), 0.0) + summation_error(len(cosine), torch.float32) * magnitude
    assert_within(found.cpu()[~bad], sums_of(cosine, kind)[~bad], (error.sum(1) + error.sum(0))[~bad])


SHAPES = [
    ((40, 70), -1),  # tiles of two groups, ragged in both dimensions
    ((1, 33), 1),  # one sample: every cosine is ±1
    ((33, 1), 1),  # one neuron, no pair
    ((5, 2), 1),
    ((41, 60), 0),  # samples adjacent
    ((32, 64), 0),  # nothing overruns
    ((3, 7, 35), -1),  # (batch, tokens, neurons)
    ((3, 34, 4, 5), 1),  # Conv2d
]


def check_calls(x: Tensor, neuron_dim: int = -1, center: bool = False, backend: str | None = None) -> None:
    options = {"neuron_dim": neuron_dim, "center": center, "backend": backend}
    check_histogram(cosine_histogram(x, 37, **options), x, neuron_dim, center)
    check_row_sums(cosine_row_sums(x, **options), x, "cosine", neuron_dim, center)
    check_pairs(cosine_pairs(x, above=0.1, **options), x, 0.1, True, neuron_dim, center)


def check_all(x: Tensor, neuron_dim: int = -1, center: bool = False, backend: str | None = None) -> None:
    """What differs from `check_calls` is done to a cosine after it is computed, whatever the shape of activations."""
    check_calls(x, neuron_dim, center, backend)
    options = {"neuron_dim": neuron_dim, "center": center, "backend": backend}
    for kind in ("absolute", "distance"):
        check_row_sums(cosine_row_sums(x, kind, **options), x, kind, neuron_dim, center)
    check_pairs(cosine_pairs(x, below=0.05, **options), x, 0.05, False, neuron_dim, center)


@pytest.mark.parametrize(("shape", "neuron_dim"), SHAPES)
def test_matches_the_definition(shape, neuron_dim, backend, device):
    check_calls(torch.randn(shape, device=device) + 0.2, neuron_dim, backend=backend)


def test_every_kind_and_both_thresholds(backend, device):
    check_all(torch.randn(40, 70, device=device) + 0.2, backend=backend)


@pytest.mark.parametrize(
    ("dtype", "center"),
    [(torch.float32, True), (torch.float16, False), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_dtypes_and_centring(dtype, center, backend, device):
    x = (torch.randn(50, 45, device=device) + 2).to(dtype)
    x[:, 7] = 0.5
    check_calls(x, center=center, backend=backend)


@pytest.mark.parametrize("center", [False, True])
def test_float64(center, device):
    x = torch.randn(50, 45, device=device, dtype=torch.float64) + 2
    x[:, 7] = 0.5
    check_all(x, center=center)


def sign_vectors(neurons: int, seed: int) -> Tensor:
    """Neurons of sixteen ±1: every cosine is a multiple of 1/8 and exact in every order of summation."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (16, neurons), generator=generator).float() * 2 - 1


@pytest.mark.parametrize("layout", ["neurons adjacent", "samples adjacent"])
def test_edges_belong_to_the_right_and_thresholds_are_included(layout, backend, device):
    x = sign_vectors(45, seed=3)
    x[:, 40] = x[:, 2]
    x[:, 41] = -x[:, 2]
    eighths = torch.einsum("si,sj->ij", x.long(), x.long()) // 2
    place = eighths[torch.ones(45, 45, dtype=torch.bool).triu(1)] + 8
    x = (x if layout == "neurons adjacent" else x.T.contiguous().T).to(device)
    counts = cosine_histogram(x, 16, backend=backend).counts.cpu()
    assert counts.tolist() == torch.bincount(place.clamp(max=15), minlength=16).tolist()
    for name, threshold in (("above", -4), ("above", 0), ("above", 8), ("below", -8), ("below", 2)):
        past = eighths >= threshold if name == "above" else eighths <= threshold
        found = cosine_pairs(x, backend=backend, **{name: threshold / 8})
        first, second = past.triu(1).nonzero(as_tuple=True)
        assert len(first) > 0
        assert torch.equal(found.first.cpu(), first)
        assert torch.equal(found.second.cpu(), second)
        assert torch.equal(found.cosine.cpu(), eighths[first, second] / 8)
    assert torch.equal(cosine_row_sums(x, backend=backend).cpu(), eighths.double().sum(1) / 8 - 1)
    assert torch.equal(cosine_row_sums(x, "absolute", backend=backend).cpu(), eighths.abs().double().sum(1) / 8 - 1)


def test_neurons_without_direction_are_apart(backend, device):
    x = torch.randn(30, 70, device=device)
    x[:, [0, 35]] = 0
    x[3, [5, 69]] = torch.tensor([NAN, INF], device=device)
    check_histogram(cosine_histogram(x, 64, backend=backend), x)
    for kind in ROW_SUMS:
        sums = cosine_row_sums(x, kind, backend=backend)
        assert (sums[[0, 35]] == 0).all()
        check_row_sums(sums, x, kind)
    everything = cosine_pairs(x, above=-1, backend=backend)
    assert len(everything.first) == math.comb(66, 2)
    check_pairs(everything, x, -1.0, True)
    assert torch.equal(cosine_pairs(x, below=1, backend=backend).second, everything.second)
    nobody = torch.zeros(4, 5, device=device)
    assert cosine_histogram(nobody, 3, backend=backend).counts.tolist() == [0, 0, 0]
    assert int(cosine_histogram(nobody, 3, backend=backend).zero_pairs) == 10
    assert len(cosine_pairs(nobody, below=0, backend=backend).first) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_scale_at_once(dtype, backend, device):
    x = torch.randn(30, 50, device=device)
    for neuron, scale in enumerate([1e-30, 1e30, 1e-20, 1e20, 1e-35, 3e37]):
        x[:, 9 * neuron] *= scale
    x = x.to(dtype)
    check_histogram(cosine_histogram(x, 50, backend=backend), x)
    check_pairs(cosine_pairs(x, above=0.2, backend=backend), x, 0.2, True)
    zero, bad = without_direction(x)
    assert not zero.any()
    assert not bad.any()
    check_row_sums(cosine_row_sums(x, "absolute", backend=backend), x, "absolute")


def test_duplicates(backend, device):
    x = torch.randn(30, 40, device=device)
    x[:, 20:] = x[:, :20] * 3
    found = cosine_pairs(x, above=0.9999, backend=backend)
    assert found.first.tolist() == list(range(20))
    assert found.second.tolist() == list(range(20, 40))
    assert (found.cosine <= 1).all()
    assert int(cosine_histogram(x, 8, backend=backend).counts[-1]) == 20
    check_row_sums(cosine_row_sums(x, "distance", backend=backend), x, "distance")
    # √(2 − 2c) magnifies rounding where c is 1: of one duplicate, to what the docstring says.
    pair = torch.stack([x[:, 0], x[:, 20]], 1)
    assert (cosine_row_sums(pair, "distance", backend=backend).cpu() <= 5e-4).all()


@pytest.mark.parametrize("view", [lambda x: x[:, ::2], lambda x: x.T[5:40].T, lambda x: x.view(6, 10, 70)[:, ::2]])
def test_any_strides(view, backend, device):
    x = view(torch.randn(60, 70, device=device))
    check_histogram(cosine_histogram(x, 10, backend=backend), x)
    check_row_sums(cosine_row_sums(x, backend=backend), x, "cosine")
    check_pairs(cosine_pairs(x, above=0.1, backend=backend), x, 0.1, True)


def test_same_numbers_twice(backend, device):
    x = torch.randn(70, 40, device=device)
    for call in (
        lambda: cosine_histogram(x, backend=backend).counts,
        lambda: cosine_row_sums(x, backend=backend),
        lambda: torch.stack([t.double() for t in cosine_pairs(x, above=0.1, backend=backend)]),
    ):
        assert torch.equal(call(), call())


@st.composite
def activations(draw) -> Tensor:
    neurons, samples = draw(st.integers(1, 45)), draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(samples, neurons, generator=generator)
    x = x * 10.0 ** (torch.randint(-30, 31, (neurons,), generator=generator) * draw(st.integers(0, 1)))
    x[:, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.3]))] = 0
    x[0, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.1]))] = NAN
    return x.T.contiguous().T if draw(st.booleans()) else x


@settings(max_examples=8, deadline=None, derandomize=True)
@given(activations(), st.integers(1, 70), st.floats(-1, 1, width=32), st.booleans())
@pytest.mark.parametrize("name", ["torch", "triton"])
def test_any_activations(name, x, bins, threshold, above):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if unusable(name, device):
        pytest.skip(unusable(name, device))
    x = x.to(device)
    check_histogram(cosine_histogram(x, bins, backend=name), x)
    found = cosine_pairs(x, backend=name, **{"above" if above else "below": threshold})
    check_pairs(found, x, threshold, above)


# The torch path


@pytest.mark.parametrize("block", [(64, 64), (7, 20), (20, 7), (200, 16)])
def test_blocks_of_any_shape(block, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", block)
    monkeypatch.setattr(cpu, "LOOKED_INTO", 50)
    x = torch.randn(20, 75)
    x[:, 30:50] = x[:, :20] + 0.01
    check_all(x, backend="torch")
    for threshold in (-1.0, 0.9):
        check_pairs(cosine_pairs(x, above=threshold, backend="torch"), x, threshold, True)


def test_many_bins(device):
    x = torch.randn(30, 40, device=device)
    for bins in (1, 513, 32_765, 32_766, 32_767, 40_000):
        check_bins = cosine_histogram(x, bins)
        assert len(check_bins.counts) == bins
        assert int(check_bins.counts.sum()) == math.comb(40, 2)
        exact = (oracle(x)[~oracle(x).isnan()] + 1) * bins / 2
        off = (torch.bincount(exact.long().clamp(max=bins - 1), minlength=bins) - check_bins.counts.cpu()).abs().sum()
        # Only a pair within rounding of an edge may be counted in the bin beside its own.
        error = near(x)[~oracle(x).isnan()] * bins / 2 + bins * torch.finfo(torch.float32).eps
        assert off <= 2 * int(((exact - exact.round()).abs() <= error).sum())


# The Triton path without a GPU


@pytest.fixture
def kernel():
    problem = unusable("triton", torch.device("cpu"))
    if problem:
        pytest.skip(problem)
    return importlib.import_module("sdsd_kernels.cosine_pairs.kernel")


def test_every_tile_belongs_to_one_program(kernel, monkeypatch):
    """Those of the triangle are told apart in test_pairwise.py; these are of rows and chunks of columns."""
    monkeypatch.setattr(kernel.tl, "minimum", min)
    where = kernel.banded_place.fn
    for down, across, band in itertools.product((1, 2, 3, 7, 16, 33), (1, 2, 5, 16), (1, 2, 8, 64)):
        for progress in (None, lambda done, total: None):
            places = [
                where(index, down, across, band)
                for first, end in kernel.shares(down * across, progress, torch.device("cpu"))
                for index in range(first, end)
            ]
            assert sorted(places) == list(itertools.product(range(down), range(across)))


@pytest.mark.parametrize(("band", "chunk"), [(1, 2), (3, 16)])
def test_bands_and_chunks(band, chunk, kernel, monkeypatch):
    monkeypatch.setattr(config, "BAND", band)
    monkeypatch.setattr(config, "chunk", lambda tiles: chunk)
    monkeypatch.setattr(pairwise_config, "MOST_PROGRAMS", 4)
    tile = Tile(16, 16, 16, num_warps=4, num_stages=1, resident=1, group=2)
    monkeypatch.setattr(config, "tile", lambda *_, **__: tile)
    monkeypatch.setattr(importlib.import_module("sdsd_kernels.pairwise.launch"), "_plans", {})
    check_calls(torch.randn(16, 75), backend="triton")


def test_a_second_pass_that_strays_is_noticed(kernel, monkeypatch):
    """Should the two passes ever disagree, nothing is written beyond the places that were counted."""
    x = torch.randn(20, 40)
    counting, beyond = torch.cumsum, []

    def one_less(counts, *args, **options):
        counts[counts.nonzero()[-1]] -= 1
        return counting(counts, *args, **options)

    def with_a_tail(count, **options):
        whole = torch.full((count + 8,), -7, dtype=options["dtype"])
        beyond.append(whole[count:])
        return whole[:count]

    allocate = torch.empty
    monkeypatch.setattr(torch, "cumsum", one_less)
    monkeypatch.setattr(
        torch, "empty", lambda *size, **options: (with_a_tail if size == (779,) else allocate)(*size, **options)
    )
    with pytest.raises(AssertionError, match="other pairs than the first"):
        cosine_pairs(x, above=-1, backend="triton")
    assert len(beyond) == 2
    assert all((tail == -7).all() for tail in beyond)


def test_chunks_keep_counters_few():
    for tiles in (1, 15, 16, 313, 1563):
        chunk = config.chunk(tiles)
        assert 1 <= chunk <= 16
        assert -(-tiles // chunk) <= max(31, tiles / 16 + 1)


def test_aot_cases_cover_every_configuration():
    cases = importlib.import_module("sdsd_kernels.cosine_pairs.aot").aot_cases()
    assert len({(case.name, case.target) for case in cases}) == len(cases)
    shipped = {
        (case.constexprs.get("KIND", "pairs"), case.target, case.constexprs["HOW"].three, case.constexprs["HOW"].rows)
        for case in cases
    }
    for record, kind, three in itertools.product(compiled_ahead(), ("histogram", "distance", "pairs"), (False, True)):
        tile = config.tile(record.family, kind, three)
        assert (kind, record.target, three, tile.rows) in shipped
        assert tile.rows == tile.columns >= config.SMALLEST


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
    torch.library.opcheck(torch.ops.sdsd.cosine_histogram.default, (rows, 7, True, None, backend))
    torch.library.opcheck(torch.ops.sdsd.cosine_row_sums.default, (rows, "absolute", False, None, backend))


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


@pytest.mark.parametrize("center", [False, True])
def test_reference_is_the_definition(center):
    x = torch.randn(3, 9, 8) + 0.5
    x[:, 2] = 0
    x[:, 3] *= 1e-30
    x[0, 4, 0] = NAN
    options = {"neuron_dim": 1, "center": center}
    cosine = oracle(x, 1, center)
    for neuron in (2, 4):
        cosine[neuron] = cosine[:, neuron] = NAN
    values = cosine[~cosine.isnan()]
    counts = [int(((values >= low) & (values < low + 0.5)).sum()) for low in (-1, -0.5, 0, 0.5)]
    assert cosine_histogram_reference(x, 4, **options).tolist() == counts
    for kind in ROW_SUMS:
        wanted = sums_of(cosine, kind)
        wanted[4] = NAN
        assert torch.allclose(cosine_row_sums_reference(x, kind, **options), wanted, atol=1e-12, equal_nan=True)
    for bound in ({"above": 0.2}, {"below": 0.2}):
        past = cosine >= 0.2 if "above" in bound else cosine <= 0.2
        first, second, found = cosine_pairs_reference(x, **bound, **options)
        assert torch.equal(torch.stack((first, second), 1), past.nonzero())
        assert torch.allclose(found, cosine[past], atol=1e-12)
