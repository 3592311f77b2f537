"""Parameters and layers that are spread over ranks: FSDP2, tensor parallelism, pipelines. Right, or refused by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import sdsd
from tests.zoo.parts import class_loss

from .ranks import RANKS, X, Y, backward, gradients, launched, network, own, said, watched

MICRO_BATCHES = 4


def whole(model: nn.Module, **options: Any) -> None:
    for layer in (model[0], model[2], model):
        fully_shard(layer, **options)


def columns(model: nn.Module) -> None:
    """Matrices cut along their second dimension."""
    fully_shard(model[0], shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))
    fully_shard(model)


def halves(model: nn.Module) -> None:
    whole(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16))


def summed(model: nn.Module) -> None:
    whole(model)
    for layer in (model[0], model[2], model):
        layer.set_gradient_divide_factor(1.0)


def accumulated(model: nn.Module) -> None:
    """Gradients stay whole, and out of .grad, until the last pass."""
    first, second = own(2)
    model.set_requires_gradient_sync(False)
    (class_loss(model, X[first], Y[first]) / 2).backward()
    model.set_requires_gradient_sync(True)
    (class_loss(model, X[second], Y[second]) / 2).backward()


def cleared(model: nn.Module) -> None:
    """A first pass that does not count."""
    class_loss(model, 3 * X[own()[0]], Y[own()[0]]).backward()
    model.zero_grad()
    backward(model)


def clipped(model: nn.Module) -> None:
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)


def halved_precision(model: nn.Module) -> None:
    (piece,) = own()
    F.cross_entropy(model(X[piece]).double(), Y[piece]).backward()


def fsdp(
    shard: Callable[[nn.Module], Any],
    step: Callable[[nn.Module], Any] = backward,
    only: str = "",
    **options: Any,
) -> list[str]:
    model, rows = network(), gradients(network())
    shard(model)
    rows = {name: row for name, row in rows.items() if name.startswith(only)}
    return watched(model, step, truth=lambda: rows, **options)


def in_a_metric() -> list[str]:
    model = network()
    whole(model)
    return watched(model, truth=dict, precondition=torch.optim.Adam(model.parameters()))


def tensors(plan: dict[str, Any], model: nn.Module | None = None, x: Tensor = X, **options: Any) -> list[str]:
    """A program that runs, and what a monitor says to it when attached."""
    model = parallelize_module(model or network(), init_device_mesh("cpu", (RANKS,)), plan)
    model(x).sum().backward()
    return watched(model, truth=dict, **options)


def pipeline(schedule: Any, mode: str, scale: bool = False) -> list[str]:
    """Half of the model a rank, each with a monitor of its own; four micro-batches a step."""
    model, place = network(), dist.get_rank()
    part, prefix = (model[:2], "0.") if place == 0 else (model[2:], "2.")
    truths = {
        each: {name: row for name, row in gradients(model, passes).items() if name.startswith(prefix)}
        for each, passes in (("exact", None), ("micro", MICRO_BATCHES))
    }
    divisor = 1 if scale else MICRO_BATCHES
    stage = PipelineStage(part, place, RANKS, torch.device("cpu"))
    runs = schedule(stage, MICRO_BATCHES, loss_fn=lambda out, y: F.cross_entropy(out, y) / divisor, scale_grads=scale)
    verdicts = []
    with sdsd.GammaMonitor(part, process_group=None, mode=mode) as monitor:
        for _ in range(3):
            part.zero_grad()
            _ = runs.step(X) if place == 0 else runs.step(target=Y, losses=[])
            verdicts.append(said(monitor, truths[monitor.mode]))
    return verdicts


def zero_bubble() -> list[str]:
    """Two stages a rank; gradients of inputs first, those of weights when there is time."""
    place = dist.get_rank()
    torch.manual_seed(0)
    parts = [nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)]
    truth = gradients(nn.Sequential(*copy.deepcopy(parts)))
    stages = [PipelineStage(parts[i], i, 2 * RANKS, torch.device("cpu")) for i in (place, place + 2)]
    runs = ScheduleInterleavedZeroBubble(
        stages, MICRO_BATCHES, loss_fn=lambda out, y: F.cross_entropy(out, y) / MICRO_BATCHES, scale_grads=False
    )
    monitors = [sdsd.GammaMonitor(parts[i], process_group=None) for i in (place, place + 2)]
    _ = runs.step(X) if place == 0 else runs.step(target=Y, losses=[])
    return [
        said(monitor, {name[2:]: row for name, row in truth.items() if name.startswith(f"{i}.")})
        for monitor, i in zip(monitors, (place, place + 2), strict=True)
    ]


RIGHT: dict[str, Callable[[], list[str]]] = {
    "fsdp2": lambda: fsdp(whole),
    "columns": lambda: fsdp(columns),
    "accumulated": lambda: fsdp(whole, accumulated),
    "cleared": lambda: fsdp(whole, cleared),
    "four passes": lambda: fsdp(whole, lambda model: backward(model, 4)),
    "in bfloat16": lambda: fsdp(halves, halved_precision, tolerance=3e-2),
    "in part, these alone": lambda: fsdp(lambda model: fully_shard(model[0]), only="0.", parameters=["0.*"]),
    **{
        f"{schedule.__name__}, {mode}": lambda schedule=schedule, mode=mode: pipeline(schedule, mode)
        for schedule in (ScheduleGPipe, Schedule1F1B)
        for mode in ("exact", "micro", "auto")
    },
}
ROWS = ColwiseParallel(output_layouts=Replicate())
CUT = {"0": ColwiseParallel(), "2": RowwiseParallel()}
BY_PARTS = r"spread over ranks by tensor parallelism.*Measure a few hundred steps of the same model"
REFUSED: dict[str, tuple[Callable[[], list[str]], str]] = {
    "fsdp2, summed": (lambda: fsdp(summed), r"is 2 times what.*divide sums over ranks"),
    "fsdp2, clipped": (lambda: fsdp(whole, clipped), r"call step\(\) before gradients are clipped"),
    "fsdp2, in part": (lambda: fsdp(lambda model: fully_shard(model[0])), r"2\.weight, 2\.bias: not sharded with"),
    "fsdp2, some ignored": (
        lambda: fsdp(lambda model: fully_shard(model, ignored_params={model[0].bias})),
        r"0\.bias: not sharded with the other parameters",
    ),
    "fsdp2, micro-batches": (lambda: fsdp(whole, mode="micro"), r"Pass mode='exact'"),
    "fsdp2, in a metric": (in_a_metric, r"precondition: expected None for parameters that FSDP2 shards"),
    "columns and rows": (lambda: tensors(CUT), r"0\.weight, 0\.bias, 2\.weight and 1 more: " + BY_PARTS),
    "this rank alone": (lambda: tensors(CUT, process_group=None), BY_PARTS),
    "what is whole": (lambda: tensors({"0": ROWS}, parameters=["2.*"]), r"0\.weight, 0\.bias: " + BY_PARTS),
    "along sequences": (
        lambda: tensors({"0": SequenceParallel()}, nn.Sequential(nn.LayerNorm(8)), X.view(2, 4, 8)),
        r"0\.weight, 0\.bias: " + BY_PARTS,
    ),
    "gradients of a pipeline scaled": (
        lambda: pipeline(ScheduleGPipe, "exact", scale=True),
        r"is 0\.25 times what.*pipelines: scale_grads=False",
    ),
    "micro-batches of a pipeline scaled": (
        lambda: pipeline(Schedule1F1B, "micro", scale=True),
        r"is 0\.25 times what.*pipelines: scale_grads=False",
    ),
    "zero bubble": (zero_bubble, r"^right$|weight, bias have gradients, but not from a forward pass"),
}
CASES = {**RIGHT, **{name: case for name, (case, _) in REFUSED.items()}}


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


def test_of_a_zero_bubble_schedule_the_first_stage_alone_is_seen(answers):
    assert [[each == "right" for each in answers["zero bubble", rank]] for rank in range(RANKS)] == [
        [True, False],
        [False, False],
    ]
