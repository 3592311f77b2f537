"""Histogram, row sums and pairs: blocks of the torch path, tiles and chunks of the Triton path."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch

from sdsd_kernels import cosine_histogram, cosine_pairs
from sdsd_kernels._aot import compiled_ahead
from sdsd_kernels._backend import unusable
from sdsd_kernels.cosine_pairs import config, cpu
from sdsd_kernels.pairwise import config as pairwise_config
from sdsd_kernels.pairwise.config import Tile
from tests.kernels.pairs import check_all, check_calls, check_pairs, near, oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


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
    cases = list(importlib.import_module("sdsd_kernels.cosine_pairs.aot").aot_cases())
    assert len({(case.name, case.target) for case in cases}) == len(cases)
    shipped = {
        (case.constexprs.get("KIND", "pairs"), case.target, case.constexprs["HOW"].three, case.constexprs["HOW"].rows)
        for case in cases
    }
    for record, kind, three in itertools.product(compiled_ahead(), ("histogram", "distance", "pairs"), (False, True)):
        tile = config.tile(record.family, kind, three)
        assert (kind, record.target, three, tile.rows) in shipped
        assert tile.rows == tile.columns >= config.SMALLEST
