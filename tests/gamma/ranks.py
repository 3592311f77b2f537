"""Cases that two ranks run, real processes (gloo), and what each of them says: a verdict for every step."""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import sdsd
from tests.gamma.test_monitor_distributed import free_port
from tests.zoo.parts import class_loss, classes, numbers
from tests.zoo.verdict import TOLERANCE, compare, float64_default, per_sample

RANKS, N = 2, 8
X, Y = numbers(N, 8), classes(N)


def network() -> nn.Module:
    """Rows that two ranks share evenly (6) and such as they do not (3)."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def own(parts: int = 1) -> list[slice]:
    """This rank's samples, in so many pieces."""
    size = N // RANKS // parts
    return [slice(start, start + size) for start in range(dist.get_rank() * N // RANKS, N, size)][:parts]


def backward(model: nn.Module, parts: int = 1) -> None:
    for piece in own(parts):
        (class_loss(model, X[piece], Y[piece]) / parts).backward()


def gradients(model: nn.Module, passes: int | None = None) -> dict[str, Tensor]:
    """n × the gradients of all ranks' single samples in the mean over them, or of so many passes of them."""
    model, size = copy.deepcopy(model), 1 if passes is None else N // passes
    model.zero_grad()
    cuts = [slice(start, start + size) for start in range(0, N, size)]
    return per_sample(model, lambda m, i: class_loss(m, X[cuts[i]], Y[cuts[i]]) / len(cuts), len(cuts))


def said(monitor: sdsd.GammaMonitor, rows: dict[str, Tensor], tolerance: float = TOLERANCE) -> str:
    """ "right", what is wrong, or the refusal."""
    try:
        stats = monitor.step()
    except (ValueError, RuntimeError) as error:
        return str(error)
    verdict = compare(stats, rows, tolerance=tolerance)
    return verdict.kind if verdict.kind == "right" else f"{verdict.kind}: {verdict.why}"


def watched(
    model: nn.Module,
    step: Callable[[nn.Module], Any] = backward,
    *,
    truth: Callable[[], dict[str, Tensor]],
    steps: int = 3,
    tolerance: float = TOLERANCE,
    **options: Any,
) -> list[str]:
    """What a monitor of the model says of so many steps, or why it refuses to be attached."""
    try:
        monitor = sdsd.GammaMonitor(model, **options)
    except ValueError as error:
        return [str(error)]
    verdicts = []
    for _ in range(steps):
        model.zero_grad()
        step(model)
        verdicts.append(said(monitor, truth(), tolerance))
    monitor.detach()
    return verdicts


def _rank(rank: int, port: int, cases: str, answers: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=30)
    )
    with float64_default():
        for name, case in import_module(cases).CASES.items():
            try:
                answers[name, rank] = case()
            except Exception as error:  # one case that crashes is not to hide the others
                answers[name, rank] = [f"crash: {type(error).__name__}: {error}"]
            dist.barrier()  # one rank's refusal is not to meet the other's next case
    gc.collect()  # wrapped models hold the group, and so its threads
    dist.destroy_process_group()


def launched(cases: str) -> dict[tuple[str, int], Any]:
    """What every rank answers to each of `CASES` of a module; one launch, for starting processes takes the time."""
    with mp.get_context("spawn").Manager() as manager:
        answers = manager.dict()
        context = mp.spawn(_rank, (free_port(), cases, answers), RANKS, join=False)
        deadline = time.monotonic() + 240
        while not context.join(timeout=2) and time.monotonic() < deadline:
            pass
        for process in context.processes:
            process.kill()
        return dict(answers)
