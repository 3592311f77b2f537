"""What begins on one rank alone, after the steps that prove themselves: seen by all ranks at once. Real processes."""

from __future__ import annotations

import time
import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import sdsd
from tests.gamma.test_kinds_ranks import RANKS, made
from tests.gamma.test_monitor_distributed import free_port
from tests.zoo.parts import classes, numbers
from tests.zoo.verdict import float64_default

ON, STEPS = 5, 8


def penalty(model: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    return 1e-2 * model.module[2].weight.square().sum()


def head(model: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    return 1e-2 * model.module[2](torch.ones(1, 5)).square().sum()


def slopes(model: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return 1e-2 * slope.square().sum()


def nothing(model: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    return torch.zeros(())


KINDS = {
    f"{what.__name__}, {how}": (what, none)
    for what in (penalty, head, slopes, nothing)
    for how, none in (("set to None", True), ("zeroed", False))
}


def _rank(rank: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=20)
    )
    with float64_default():
        for name, (what, none) in KINDS.items():
            answers[name, rank] = _answer(rank, what, none)
    dist.destroy_process_group()


def _answer(rank: int, what: Any, none: bool) -> list[str]:
    x, y = numbers(RANKS * 4, 8).double(), classes(RANKS * 4)
    own = slice(4 * rank, 4 * rank + 4)
    model = nn.parallel.DistributedDataParallel(made())
    monitor, said = sdsd.GammaMonitor(model), []
    for k in range(STEPS):
        model.zero_grad(set_to_none=none)
        given = x[own].clone().requires_grad_()
        out = model(given)
        loss = nn.functional.cross_entropy(out, y[own])
        (loss + what(model, given, out) if rank == 0 and k >= ON else loss).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                stats = monitor.step()
                said.append("measured" if stats is not None else str(caught[-1].message))
            except ValueError as error:
                said.append(str(error))
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


@pytest.mark.parametrize("name", KINDS)
def test_every_rank_skips_and_then_names(answers, name):
    said = [answers[name, rank] for rank in range(RANKS)]
    assert all(each[:ON] == ["measured"] * ON for each in said)
    for each in said:
        if name.startswith("nothing"):
            assert each == ["measured"] * STEPS
        else:
            assert each[ON].startswith("step skipped: ")
            assert all("does not prove itself" in after for after in each[ON + 1 :])
    if name.startswith(("penalty", "head")):
        assert "2.weight" in said[0][ON]
        assert "on some rank" in said[1][ON]
