"""GammaMonitor over real processes (gloo): what one process finds with the whole batch, 2 and 4 ranks find together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gamma.distributed_worker import POPULATION, SAMPLES, data, make, measure
from tests.gamma.models import token_loss

ROOT = Path(__file__).resolve().parents[2]
CLOSE = {"rel": 1e-6}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", params=[2, 4])
def found(request) -> tuple[int, dict]:
    """One launch for each number of ranks: starting processes is what takes the time."""
    world, port = request.param, free_port()
    ranks = []
    for rank in range(world):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "tests.gamma.distributed_worker"]
        ranks.append(
            subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    outputs = [process.communicate(timeout=300) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), "\n".join(errors[-3000:] for _, errors in outputs)
    line = next(line for line in outputs[0][0].splitlines() if line.startswith("RESULT"))
    return world, json.loads(line.removeprefix("RESULT"))


def assert_same(one: dict, two: dict) -> None:
    assert one["n"] == two["n"]
    total = two["noise"]
    for name, (signal, noise) in two["parameters"].items():
        assert one["parameters"][name] == pytest.approx([signal, noise], rel=1e-5, abs=1e-6 * total), name
    assert (one["signal"], one["noise"]) == pytest.approx((two["signal"], two["noise"]), **CLOSE)


@pytest.mark.parametrize("case", ["ddp exact", "attached, then wrapped"])
def test_data_parallel(found, case):
    x, y = data()
    model = make()
    assert_same(found[1][case], measure(model, model, x, y, mode="exact"))


def test_fully_sharded(found):
    x, y = data()
    model = make(tied=False)
    assert isinstance(found[1]["fsdp2"], dict), found[1]["fsdp2"]
    assert_same(found[1]["fsdp2"], measure(model, model, x, y, mode="exact"))


def test_ranks_as_samples(found):
    world, results = found
    x, y = data()
    model = make()
    rows = []
    for part_x, part_y in zip(x.chunk(world), y.chunk(world), strict=True):
        gradients = torch.autograd.grad(token_loss(model(part_x), part_y), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    G = torch.stack(rows)
    stats = results["ddp ranks as samples"]
    assert (stats["n"], stats["samples_per_gradient"]) == (world, SAMPLES // world)
    assert stats["noise"] == pytest.approx(G.var(0).sum().item(), rel=1e-5)
    assert stats["signal"] == pytest.approx(G.mean(0).square().sum().item(), rel=1e-5)


def test_a_population_is_of_all_ranks(found):
    world, results = found
    x, y = data()
    model = make()
    one = measure(model, model, x, y, mode="exact", population=POPULATION)
    exact, ranks = (results[f"ddp{kind}, part of a population"] for kind in ("", " ranks"))
    assert exact["unbiased"] == pytest.approx(one["unbiased"], rel=1e-5)
    assert ranks["unbiased"][0] == pytest.approx(
        ranks["signal"] - ranks["noise"] * (1 / world - SAMPLES / world / POPULATION), rel=1e-9
    )
    assert f"at least the {SAMPLES} samples seen ({SAMPLES} gradients of 1)" in results["ddp, small population"]


def test_one_rank_alone(found):
    world, results = found
    x, y = (each.chunk(world)[0] for each in data())
    model = make()
    assert_same(results["this rank alone"], measure(model, model, x, y, mode="exact"))


def test_ranks_without_a_word_are_refused(found):
    world, results = found
    assert f"{world} ranks run, but it is neither wrapped in DistributedDataParallel" in results["without a word"]
