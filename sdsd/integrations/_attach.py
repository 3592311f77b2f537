"""What the callbacks share."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from ..gamma import GammaMonitor


def refuse_deepspeed(used: object) -> None:
    """ZeRO takes the gradients away when the backward pass ends, from stage 1 on."""
    if used:
        raise ValueError("GammaCallback: DeepSpeed keeps gradients to itself. Train with DDP or FSDP2 instead.")


def attach_monitor(model: nn.Module, options: dict[str, Any]) -> GammaMonitor:
    """A monitor of `model`; where several ranks train, all of them share a step, for Trainers average over all.

    Raises:
        ValueError: FSDP1 inside, whose flat parameters are of no layer; what `GammaMonitor` refuses.
    """
    if any(kind.__name__ == "FullyShardedDataParallel" for module in model.modules() for kind in type(module).__mro__):
        raise ValueError(
            "GammaCallback: FullyShardedDataParallel (FSDP1) joins the parameters of many layers into one. Train with "
            "FSDP2 (fully_shard) or DDP instead."
        )
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        options = {"process_group": dist.group.WORLD, **options}
    return GammaMonitor(model, **options)
