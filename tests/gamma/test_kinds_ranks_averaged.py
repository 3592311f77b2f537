"""Gradients that ranks average by hand, and what people set in DistributedDataParallel: right, or refused by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import sdsd
from tests.zoo.parts import Net, class_loss
from tests.zoo.verdict import per_sample

from .ranks import RANKS, N, X, Y, backward, gradients, launched, network, own, said, watched

POWER = 4
"""The step from which PowerSGD compresses; torch's default is the thousandth."""


def averaged(model: nn.Module) -> None:
    backward(model)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= RANKS


def averaged_flat(model: nn.Module) -> None:
    backward(model)
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    dist.all_reduce(flat)
    pieces = (flat / RANKS).split([parameter.numel() for parameter in model.parameters()])
    for parameter, piece in zip(model.parameters(), pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


def averaged_once(model: nn.Module) -> None:
    """After two backward passes."""
    backward(model, 2)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= RANKS


def summed(model: nn.Module) -> None:
    backward(model)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)


def by_hand(step: Callable[[nn.Module], None], passes: int | None = None, **options: Any) -> list[str]:
    rows = gradients(network(), passes)
    return watched(network(), step, truth=lambda: rows, process_group=dist.group.WORLD, **options)


def by_hooks() -> list[str]:
    model = network()
    for parameter in model.parameters():

        def average(parameter: Tensor) -> None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= RANKS

        parameter.register_post_accumulate_grad_hook(average)
    rows = gradients(network())
    return watched(model, truth=lambda: rows, process_group=dist.group.WORLD)


def accumulated(model: nn.Module) -> None:
    first, second = own(2)
    with model.no_sync():
        (class_loss(model, X[first], Y[first]) / 2).backward()
    (class_loss(model, X[second], Y[second]) / 2).backward()


def ddp(
    step: Callable[[nn.Module], Any] = backward,
    passes: int | None = None,
    hook: Any = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> list[str]:
    model, rows = DistributedDataParallel(network(), **settings or {}), gradients(network(), passes)
    if hook is not None:
        model.register_comm_hook(*hook())
    return watched(model, step, truth=lambda: rows, **options)


def power() -> tuple[Any, Any]:
    state = powerSGD_hook.PowerSGDState(
        dist.group.WORLD, matrix_approximation_rank=1, start_powerSGD_iter=POWER, min_compression_rate=0.5
    )
    return state, powerSGD_hook.powerSGD_hook


def two_heads(turns: bool) -> list[str]:
    """Rank 0 uses the second head alone, rank 1 the first; or both take the first, by turns with that."""
    torch.manual_seed(0)
    both = Net(lambda m, x: m.heads[m.which](x.tanh()), heads=nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)]))
    model = DistributedDataParallel(both, find_unused_parameters=True)
    verdicts = []
    with sdsd.GammaMonitor(model) as monitor:
        for k in range(6):
            apart = not (turns and k % 2)

            def one(m: nn.Module, i: int, apart: bool = apart) -> Tensor:
                m.which = int(apart and i < N // RANKS)
                return class_loss(m, X[i : i + 1], Y[i : i + 1]) / N

            both.which = 0
            rows = per_sample(copy.deepcopy(both), one, N)
            model.zero_grad()
            both.which = int(apart and dist.get_rank() == 0)
            backward(model)
            if not apart:
                rows = {name: row for name, row in rows.items() if name.startswith("heads.0")} | {
                    name: torch.zeros_like(row) for name, row in rows.items() if name.startswith("heads.1")
                }
            verdicts.append(said(monitor, rows))
    return verdicts


def joined() -> list[str]:
    """Rank 0 has three batches, rank 1 has one."""
    model, verdicts = DistributedDataParallel(network()), []
    with sdsd.GammaMonitor(model) as monitor, model.join():
        for _ in range(1 if dist.get_rank() else 3):
            model.zero_grad()
            backward(model)
            verdicts.append(said(monitor, {}))
    return verdicts


RIGHT: dict[str, Callable[[], list[str]]] = {
    "by hand": lambda: by_hand(averaged),
    "by hand, in one buffer": lambda: by_hand(averaged_flat),
    "by hand, after two passes": lambda: by_hand(averaged_once, mode="exact"),
    "by hand, in hooks": by_hooks,
    "by hand, ranks as samples": lambda: by_hand(averaged, RANKS, mode="micro"),
    "by hand, micro-batches": lambda: by_hand(averaged_once, 2 * RANKS, mode="micro"),
    "no_sync": lambda: ddp(accumulated, mode="exact"),
    "no_sync, micro-batches": lambda: ddp(accumulated, 2 * RANKS, mode="micro"),
    "no_sync, buckets": lambda: ddp(accumulated, mode="exact", settings={"gradient_as_bucket_view": True}),
    "static graph": lambda: ddp(settings={"static_graph": True}),
    "a head each": lambda: two_heads(False),
    "a head each, by turns": lambda: two_heads(True),
    "allreduce_hook": lambda: ddp(hook=lambda: (dist.group.WORLD, default_hooks.allreduce_hook)),
    "fp16_compress_hook": lambda: ddp(
        hook=lambda: (dist.group.WORLD, default_hooks.fp16_compress_hook), tolerance=1e-3
    ),
}
SUMMED = f"Every gradient is {RANKS} times what.*divide sums over ranks by the number of ranks"
REFUSED: dict[str, tuple[Callable[[], list[str]], str]] = {
    "by hand, summed": (lambda: by_hand(summed), SUMMED),
    "by hand, not yet averaged": (
        lambda: by_hand(backward),
        r"not the average over all 2 ranks: average gradients over them before step\(\)",
    ),
    "join": (joined, r"inside DistributedDataParallel\.join\(\).*Leave join\(\) out"),
}
CASES = {**RIGHT, **{name: case for name, (case, _) in REFUSED.items()}, "power": lambda: ddp(hook=power, steps=8)}


@pytest.fixture(scope="module")
def answers() -> dict:
    return launched(__name__)


@pytest.mark.parametrize("name", RIGHT)
def test_right_on_every_rank(answers, name):
    for rank in range(RANKS):
        assert set(answers[name, rank]) == {"right"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_on_every_rank(answers, name):
    for rank in range(RANKS):
        for each in answers[name, rank]:
            assert re.search(REFUSED[name][1], each, re.DOTALL), each


def test_a_hook_that_begins_to_compress_is_seen_at_once(answers):
    """In a step that none but the hook would have proved."""
    for rank in range(RANKS):
        verdicts = answers["power", rank]
        assert verdicts[:POWER] == ["right"] * POWER
        assert all("a communication hook, powerSGD_hook: what it gives is not" in each for each in verdicts[POWER:])
