"""What the callbacks and the monitor say to parameters that are sharded over ranks; one rank is enough for that."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import sdsd
from sdsd.integrations._attach import attach_monitor


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.filterwarnings("ignore:.*FSDP.*", "ignore:.*NO_SHARD.*")
def test_the_callbacks_refuse_fsdp1(one_rank, original):
    wrapped = FullyShardedDataParallel(network(), use_orig_params=original, device_id=torch.device("cpu"))
    for model in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(ValueError, match=r"\(FSDP1\) joins the parameters.*FSDP2 \(fully_shard\) or DDP"):
            attach_monitor(model, {})


def test_the_callbacks_take_fsdp2(one_rank):
    model = fully_shard(network(), mesh=init_device_mesh("cpu", (1,)))
    with attach_monitor(model, {"mode": "exact"}) as monitor:
        (model(torch.randn(8, 5)) - 1).square().mean().backward()
        assert monitor.step().n == 8


def test_hsdp_is_refused(one_rank):
    """A mesh of two dimensions: shards on one, copies of them on the other."""
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("copies", "shards"))
    model = fully_shard(network(), mesh=mesh)
    with pytest.raises(ValueError, match="device mesh of 2 dimensions"):
        sdsd.GammaMonitor(model, process_group=dist.group.WORLD)
