"""Ranks of which one uses what another does not, or that step apart. Real processes (gloo)."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import sdsd
from tests.gamma.test_monitor_distributed import free_port
from tests.zoo.parts import Net, classes, numbers
from tests.zoo.verdict import compare, float64_default, per_sample

RANKS, EACH, STEPS = 2, 4, 5
X, Y = numbers(RANKS * EACH, 8), classes(RANKS * EACH)


def heads(m: Any, x: Tensor, which: str) -> Tensor:
    h = torch.tanh(m.body(x))
    return sum(m.get_submodule(name)(h) for name in which.split())


def made() -> nn.Module:
    torch.manual_seed(0)
    return Net(heads, body=nn.Linear(8, 5), one=nn.Linear(5, 3), other=nn.Linear(5, 3)).double()


USED = {
    "each its own head": lambda rank, k: ("one", "other")[rank],
    "heads by turns": lambda rank, k: ("one", "other")[(rank + k) % 2],
    "one rank both heads": lambda rank, k: ("one", "one other")[rank],
    "the same head": lambda rank, k: ("one", "other")[k % 2],
}


def _rank(rank: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=20)
    )
    with float64_default():
        for name, used in USED.items():
            answers[name, rank] = _said(rank, used)
        answers["compiled", rank] = _said(rank, lambda rank, k: "one other", compiled=True)
        answers["apart", rank] = _said(rank, lambda rank, k: "one other", apart=True)
        answers["alone", rank] = _said(rank, lambda rank, k: "one other", apart=True, process_group=None)
    dist.destroy_process_group()


def _said(rank: int, used: Any, *, compiled: bool = False, apart: bool = False, **options: Any) -> list[str]:
    own = slice(EACH * rank, EACH * rank + EACH)
    model: Any = DistributedDataParallel(made(), find_unused_parameters=not compiled)
    called = torch.compile(model, backend="eager") if compiled else model
    monitor, said = sdsd.GammaMonitor(called, **options), []
    for k in range(STEPS):
        with model.no_sync() if apart else contextlib.nullcontext():
            F.cross_entropy(called(X[own], used(rank, k)), Y[own]).backward()

        samples = range(EACH * RANKS)[own] if options else range(EACH * RANKS)

        def loss(m: nn.Module, i: int, k: int = k, samples: range = samples) -> Tensor:
            j = samples[i]
            return F.cross_entropy(m(X[j : j + 1], used(j // EACH, k)), Y[j : j + 1]) / len(samples)

        try:
            verdict = compare(monitor.step(), per_sample(made(), loss, len(samples)))
            said.append(verdict.kind if verdict.kind == "right" else verdict.why)
        except (ValueError, RuntimeError) as error:
            said.append(str(error))
        model.zero_grad(set_to_none=k % 2 == 0)
    monitor.detach()
    return said


@pytest.fixture(scope="module")
def answers() -> dict:
    with mp.get_context("spawn").Manager() as manager:
        found = manager.dict()
        context = mp.spawn(_rank, (free_port(), found), RANKS, join=False)
        deadline = time.monotonic() + 240
        while not context.join(timeout=2) and time.monotonic() < deadline:
            pass
        for process in context.processes:
            process.kill()
        return dict(found)


@pytest.mark.parametrize("name", [*USED, "compiled", "alone"])
@pytest.mark.parametrize("rank", range(RANKS))
def test_measured_on_every_rank(answers, name, rank):
    assert answers[name, rank] == ["right"] * STEPS


@pytest.mark.parametrize("rank", range(RANKS))
def test_ranks_that_step_apart_are_told_how(answers, rank):
    for said in answers["apart", rank]:
        assert "does not prove itself" in said
        assert "process_group=None" in said
