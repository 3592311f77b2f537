"""One rank of tests/gamma/test_monitor_distributed.py: prints what GammaMonitor found as JSON."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sdsd
from tests.gamma.models import Gpt, token_loss

SAMPLES = 8
POPULATION = 10


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randint(0, 13, (SAMPLES, 5), generator=generator) for _ in range(2))


def make(tied: bool = True) -> nn.Module:
    torch.manual_seed(3)
    return Gpt(tied=tied)


def summary(stats: sdsd.GammaStats) -> dict:
    return {
        "n": stats.n,
        "samples_per_gradient": stats.samples_per_gradient,
        "signal": stats.signal,
        "noise": stats.noise,
        "unbiased": [stats.signal_unbiased, stats.smoothed.signal_unbiased],
        "parameters": {name: [each.signal, each.noise] for name, each in stats.parameters.items()},
    }


def measure(model: nn.Module, watched: nn.Module, x: torch.Tensor, y: torch.Tensor, **options) -> dict:
    with sdsd.GammaMonitor(watched, **options) as monitor:
        for _ in range(2):
            model.zero_grad()
            token_loss(model(x), y).backward()
            stats = monitor.step()
    return summary(stats)


def measure_all() -> dict:
    rank, world = dist.get_rank(), dist.get_world_size()
    x, y = (each.chunk(world)[rank] for each in data())
    found = {}

    ddp = DistributedDataParallel(make())
    found["ddp exact"] = measure(ddp, ddp, x, y, mode="exact")
    found["ddp ranks as samples"] = measure(ddp, ddp, x, y, mode="micro")
    found["ddp, part of a population"] = measure(ddp, ddp, x, y, mode="exact", population=POPULATION)
    found["ddp ranks, part of a population"] = measure(ddp, ddp, x, y, mode="micro", population=POPULATION)
    try:
        measure(ddp, ddp, x, y, mode="exact", population=SAMPLES - 1)
    except ValueError as error:
        found["ddp, small population"] = str(error)
    inner = make()
    with sdsd.GammaMonitor(inner, mode="exact", process_group=dist.group.WORLD) as monitor:
        wrapped = DistributedDataParallel(inner)
        token_loss(wrapped(x), y).backward()
        found["attached, then wrapped"] = summary(monitor.step())

    alone = make()
    try:
        sdsd.GammaMonitor(alone)
    except ValueError as error:
        found["without a word"] = str(error)
    found["this rank alone"] = measure(alone, alone, x, y, mode="exact", process_group=None)

    try:
        from torch.distributed.fsdp import fully_shard

        sharded = make(tied=False)
        for block in sharded.blocks:
            for layer in block.values():
                fully_shard(layer)
        fully_shard(sharded)
        found["fsdp2"] = measure(sharded, sharded, x, y, mode="exact")
    except Exception as error:
        found["fsdp2"] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    dist.init_process_group("gloo")
    found = measure_all()
    if dist.get_rank() == 0:
        print("RESULT" + json.dumps(found))
    # Wrapped models hold the group, and so its threads: one that lets go of a tensor while Python ends aborts.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main())
