"""Ranks whose batches differ in size: counted right on every rank, or refused by name. Real processes (gloo)."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

import sdsd
from tests.gamma.test_monitor_distributed import free_port
from tests.zoo.parts import class_loss, classes, numbers, perceptron
from tests.zoo.verdict import float64_default, per_sample, refused

SIZES = {"equal": (4, 4), "unequal": (8, 4), "one sample on a rank": (5, 1), "a rank without samples": (6, 0)}
RANKS = 2


def made() -> nn.Module:
    torch.manual_seed(0)
    return perceptron().double()


def data(sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return numbers(sum(sizes), 8), classes(sum(sizes))


def truth(sizes: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """Signal and noise of the averaged gradient: a sample's contribution is its part of its rank's mean, over ranks."""
    with float64_default():
        x, y = data(sizes)
        share = [1 / (len(sizes) * size) for size in sizes for _ in range(size)]
        rows = per_sample(made(), lambda m, i: share[i] * class_loss(m, x[i : i + 1], y[i : i + 1]), sum(sizes))
    rows = {name: r.flatten(1) for name, r in rows.items()}
    rows["total"] = torch.cat(list(rows.values()), 1)
    return {name: (r.mean(0).square().sum().item(), r.var(0).sum().item()) for name, r in rows.items()}


def _rank(rank: int, port: int, kind: str, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=20)
    )
    with float64_default():
        for name, sizes in SIZES.items():
            answers[name, rank] = _answer(rank, kind, sizes)
    dist.destroy_process_group()


def _answer(rank: int, kind: str, sizes: tuple[int, ...]) -> Any:
    x, y = data(sizes)
    start = sum(sizes[:rank])
    part = slice(start, start + sizes[rank])
    model = made()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        for layer in (model[0], model[2], model):
            fully_shard(layer)
    try:
        monitor = sdsd.GammaMonitor(model)
        for _ in range(2):
            model.zero_grad()
            out = model(x[part])
            (nn.functional.cross_entropy(out, y[part]) if sizes[rank] else out.sum()).backward()
            stats = monitor.step()
    except Exception as error:
        verdict = refused(error, model, r"\branks?\b|\bsamples?\b")
        return verdict.kind, verdict.why
    if stats is None:
        return "skipped", ""
    each = {"total": stats, **stats.parameters}
    return "measured", {"n": stats.n, **{name: (found.signal, found.noise) for name, found in each.items()}}


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def answers(request) -> dict:
    """One launch for all sizes: starting processes is what takes the time."""
    with mp.get_context("spawn").Manager() as manager:
        found = manager.dict()
        context = mp.spawn(_rank, (free_port(), request.param, found), RANKS, join=False)
        deadline = time.monotonic() + 240
        while not context.join(timeout=2) and time.monotonic() < deadline:
            pass
        for process in context.processes:
            process.kill()
        return dict(found)


@pytest.mark.parametrize("name", SIZES)
def test_right_on_every_rank_or_refused_on_every_rank(answers, name):
    kinds, values = zip(*(answers.get((name, rank), ("hung", "")) for rank in range(RANKS)), strict=True)
    assert len(set(kinds)) == 1, f"ranks disagree, and the next collective of one waits for the other: {kinds} {values}"
    if kinds[0] == "measured":
        assert values[0] == values[1]
        assert values[0].pop("n") == sum(SIZES[name])
        for parameter, wanted in truth(SIZES[name]).items():
            assert values[0][parameter] == pytest.approx(wanted, rel=1e-6), parameter
    else:
        assert kinds[0] in ("refused", "skipped"), values
        assert name != "equal"
