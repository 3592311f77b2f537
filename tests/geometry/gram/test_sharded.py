"""Neurons and samples spread over 2, 3 and 4 real processes (gloo): together they find what one would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import sdsd
from sdsd.geometry.gram.ring import ring_jobs
from tests.geometry.gram.distributed_worker import EQUAL, NEURONS, PIECE, RINGS, SAMPLES, N, neurons, streams
from tests.geometry.gram.streams import check_promises, check_values

ROOT = Path(__file__).resolve().parents[3]


class Found(NamedTuple):
    world: int
    ranks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One launch for all numbers of ranks: starting processes is what takes the time."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.geometry.gram.distributed_worker", str(folder)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module", params=[2, 3, 4])
def found(request, folder) -> Found:
    world = request.param
    # Saved by our own processes a moment ago; slices are not among what weights_only loads.
    return Found(world, [torch.load(folder / f"{rank} of {world}.pt", weights_only=False) for rank in range(world)])


# Samples over ranks


@pytest.mark.parametrize("case", ["plain", "centred"])
def test_all_reduce_is_seeing_all_samples(found, case):
    x = torch.cat(streams(found.world))
    dead = (x == x[0]).all(0) if case == "centred" else (x == 0).all(0)
    results = [rank["accumulators"][case] for rank in found.ranks]
    cosine = results[0]["cosine"]
    check_promises(cosine, dead)
    assert (cosine[dead] == 0).all()
    alive = ~dead
    check_values(cosine[alive][:, alive], x[:, alive], case == "centred")
    for result in results:
        assert torch.equal(result["cosine"], cosine)
        assert torch.equal(result["norms"], results[0]["norms"])
        assert result["samples"] == len(x)
        assert result["sent"] == N * (N + 1) // 2 * 1
        assert result["steps"][-1] == (len(result["steps"]), len(result["steps"]))
    assert [result["more"] for result in results] == [len(x) + len(part) for part in streams(found.world)]


def test_all_reduce_where_only_one_rank_has_samples(found):
    x = streams(found.world)[1]
    alone = sdsd.GramAccumulator(N, center=True)
    for batch in x.split(9):
        alone.update(batch)
    for rank in found.ranks:
        assert rank["accumulators"]["only rank 1"]["samples"] == len(x)
        assert torch.equal(rank["accumulators"]["only rank 1"]["cosine"], alone.cosine_matrix())


def test_all_reduce_keeps_nan_in_its_row_and_column(found):
    for rank in found.ranks:
        cosine = rank["accumulators"]["nan"]["cosine"]
        assert rank["accumulators"]["nan"]["nonfinite"].nonzero().flatten().tolist() == [8]
        assert cosine[8].isnan().all()
        assert cosine[:, 8].isnan().all()
        assert cosine[9:, 9:].isfinite().all()


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("other n", "ValueError: all_reduce: expected the same n on all ranks, got rank 0: 5, rank 1: 6"),
        ("other center", "expected the same center on all ranks, got rank 0: True, rank 1: False"),
        ("other dtype", "expected the same dtype on all ranks, got rank 0: float32, rank 1: float64"),
        ("nothing", "expected at least one rank that has seen a sample, got none"),
    ],
)
def test_all_reduce_refuses_on_every_rank_alike_and_changes_nothing(found, case, says):
    for rank in found.ranks:
        assert says in rank["accumulators"][case]["says"]
        assert rank["accumulators"][case]["same"]


# Neurons over ranks


def matrix(found: Found, case: str) -> Tensor:
    return torch.cat([rank["rings"][case] for rank in found.ranks])


def all_neurons(case: str, world: int) -> Tensor:
    parts = neurons(case, NEURONS[world])
    if case == "images":
        parts = [part.transpose(0, 1).flatten(1).T for part in parts]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("case", RINGS)
def test_ring_finds_the_matrix_of_all_neurons(found, case):
    options = RINGS[case]
    x, center = all_neurons(case, found.world), options.get("center", False)
    cosine = matrix(found, case)
    assert cosine.dtype == options.get("out_dtype", torch.float64 if case == "double" else torch.float32)
    dead, bad = (x == 0).all(0), ~x.isfinite().all(0)
    check_promises(cosine, dead | bad)
    assert (cosine[dead][:, ~bad] == 0).all()
    assert cosine[bad].isnan().all()
    assert bad.any() == (case == "without direction")
    alive = ~(dead | bad)
    check_values(cosine[alive][:, alive], x[:, alive], center)


@pytest.mark.parametrize("case", RINGS)
def test_blocks_cover_a_rank_s_rows_once(found, case):
    first = 0
    for rank, size in zip(found.ranks, NEURONS[found.world], strict=True):
        streamed = rank["rings"][case + ", streamed"]
        assert streamed["nothing"] is None
        rows = torch.full((size, sum(NEURONS[found.world])), 5.0, dtype=rank["rings"][case].dtype)
        covered = torch.zeros(rows.shape, dtype=torch.int)
        for lines, columns, block in streamed["blocks"]:
            covered[lines.start - first : lines.stop - first, columns] += 1
            rows[lines.start - first : lines.stop - first, columns] = block
        assert (covered == 1).all()
        assert torch.equal(rows.nan_to_num(7), rank["rings"][case].nan_to_num(7))
        assert [done for done, _ in streamed["steps"]] == list(range(1, len(streamed["steps"]) + 1))
        assert {total for _, total in streamed["steps"]} == ({len(streamed["steps"])} if size else set())
        first += size


def test_each_rank_computes_half_and_its_diagonal_s_share(found):
    """Of n_r n products in full; the diagonal's share is half a piece more for every neuron."""
    for rank in found.ranks:
        half = EQUAL * EQUAL * found.world // 2
        assert rank["shares"]["multiplications"] == (half + EQUAL * PIECE // 2) * SAMPLES


def test_transfers_start_before_the_products_that_hide_them(found):
    for rank in found.ranks:
        events = rank["shares"]["events"]
        own = EQUAL // PIECE
        assert events[: own + 1] == ["transfers"] + ["products"] * own
        assert events[own + 1 : own + 5] == ["transfers", "products", "transfers", "products"]


def test_zero_policies_and_ranks_that_differ(found):
    x = all_neurons("without direction", found.world)
    dead = (x == 0).all(0)
    nans = matrix(found, "zero is nan")
    assert nans[dead].isnan().all()
    assert nans[:, dead].isnan().all()
    zeros = matrix(found, "without direction")
    assert torch.equal(nans[~dead][:, ~dead].nan_to_num(7), zeros[~dead][:, ~dead].nan_to_num(7))
    for number, rank in enumerate(found.ranks):
        rings = rank["rings"]
        assert "got 1 that are zero on every sample (first, counted over all ranks: [2])" in rings["zero raises"]
        assert "same number of samples on all ranks, got rank 0: 5, rank 1: 6" in rings["other samples"]
        assert "same dtype on all ranks, got rank 0: torch.float32, rank 1: torch.float16" in rings["other dtype"]
        assert "same center on all ranks, got rank 0: False, rank 1: True" in rings["other center"]
        assert "same zero on all ranks, got rank 0: zero, rank 1: nan" in rings["other zero"]
        wanted = (
            "TypeError: activations: expected float64, float32, float16 or bfloat16, got torch.int32"
            if number
            else f"ValueError: sharded_cosine: ranks {list(range(1, found.world))} were"
        )
        assert rings["one is bad"].startswith(wanted)
        assert "max_bytes: expected at least" in rings["too little memory"]


def test_some_ranks_alone(found):
    members = [found.world - 2, found.world - 1]
    x = torch.cat([neurons("plain", NEURONS[found.world])[rank] for rank in members], 1)
    rows = torch.cat([found.ranks[rank]["in part"][0] for rank in members])
    check_promises(rows)
    check_values(rows, x)
    seen = torch.cat([streams(found.world)[rank] for rank in members])
    alive = ~(seen == 0).all(0)
    cosine = found.ranks[members[0]]["in part"][1]
    check_values(cosine[alive][:, alive], seen[:, alive])
    for rank in range(found.world - 2):
        for message in found.ranks[rank]["in part"]:
            assert message.startswith("RuntimeError: group: expected a process group that this rank is in")


# Who computes what, without processes


@pytest.mark.parametrize(
    "sizes", [[5], [4, 7], [6, 6, 6], [3, 0, 8], [5, 1, 2, 9], [4] * 5, [3, 8, 1, 1, 6, 2], [2] * 8]
)
@pytest.mark.parametrize("most", [1, 3, 100])
def test_every_pair_of_ranks_meets_once(sizes, most):
    world, n = len(sizes), sum(sizes)
    first = [sum(sizes[:rank]) for rank in range(world)]
    count = torch.zeros(n, n, dtype=torch.int)
    for step in ring_jobs(sizes, most):
        assert len(step) == world
        sources = [job.source for job in step if job is not None]
        assert len(set(sources)) == len(sources), "a rank would have to send two pieces in one step"
        for rank, job in enumerate(step):
            if job is None:
                continue
            assert 0 < job.piece.stop - job.piece.start <= most
            left = slice(first[rank] + job.left.start, first[rank] + job.left.stop)
            piece = slice(first[job.source] + job.piece.start, first[job.source] + job.piece.stop)
            count[left, piece] += 1
            count[piece, left] += 1
    for rank in range(world):
        own = slice(first[rank], first[rank] + sizes[rank])
        assert (count[own, own] == 0).all()
        count[own, own] = 1
    assert (count == 1).all()


@pytest.mark.parametrize("world", range(2, 9))
def test_equal_shards_have_equal_work(world):
    size = 12
    work = [0] * world
    for step in ring_jobs([size] * world, 5):
        for rank, job in enumerate(step):
            if job is not None:
                work[rank] += (job.left.stop - job.left.start) * (job.piece.stop - job.piece.start)
    assert set(work) == {size * size * (world - 1) // 2}


def test_ring_needs_a_process_group():
    with pytest.raises(RuntimeError, match="expected an initialised process group"):
        sdsd.sharded_cosine(torch.ones(3, 4))


@pytest.fixture
def alone(tmp_path):
    """A process group of this process only."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_one_rank(alone):
    x = torch.randn(30, 40)
    check_values(sdsd.sharded_cosine(x), x)
    gram = sdsd.GramAccumulator(40)
    gram.update(x)
    before = gram.cosine_matrix()
    gram.all_reduce()
    assert torch.equal(gram.cosine_matrix(), before)


@pytest.mark.parametrize("neurons", [7, 140])
def test_products_of_many_samples_are_added_in_parts(alone, neurons):
    """More samples than are multiplied together: few products are added when they are whole, many in place."""
    x = torch.randn(40_000, neurons) + 0.5
    for center in (False, True):
        check_values(sdsd.sharded_cosine(x, center=center), x, center)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"zero": "ignore"}, ValueError, "zero: expected one of"),
        ({"out_dtype": torch.int32}, TypeError, "out_dtype: expected one of"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes: expected an int or None, got float"),
        ({"max_bytes": 3}, ValueError, "max_bytes: expected at least"),
        ({"neuron_dim": 3}, ValueError, "neuron_dim: expected -2 to 1"),
        ({"progress": 3}, TypeError, "progress: expected"),
        ({"activations": torch.ones(0, 4)}, ValueError, "expected at least one sample"),
        ({"activations": torch.ones(4)}, ValueError, "at least two dimensions"),
        ({"activations": torch.ones(4, 4, dtype=torch.complex64)}, TypeError, "got torch.complex64"),
        ({"activations": [[1.0]]}, TypeError, "got list"),
    ],
)
def test_bad_input(alone, options, error, match):
    with pytest.raises(error, match=match):
        sdsd.sharded_cosine(**{"activations": torch.ones(5, 4), **options})


def test_what_on_block_raises_comes_out(alone):
    def stop(rows, columns, block):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sdsd.sharded_cosine(torch.ones(5, 4), on_block=stop)
