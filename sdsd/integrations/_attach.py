"""What the callbacks share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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


def go_on_from(monitor: GammaMonitor, saved: Mapping[str, Any] | None, steps: int) -> None:
    """Go on after step number `steps`, with the running averages of that step where a checkpoint holds them.

    Averages that it holds of other parameters, another population or another step begin anew, with a warning: nobody
    can take a callback's state out of a checkpoint to go on without it.
    """
    fresh = {**monitor.state_dict(), "steps": steps}
    if saved is not None:
        reason = f"they are of step {saved['steps']}, the checkpoint is of step {steps}."
        if saved["steps"] == steps:
            try:
                monitor.load_state_dict(saved)
                return
            except ValueError as error:
                reason = str(error)
        warnings.warn(
            f"GammaCallback: running averages begin anew, those of the checkpoint do not fit: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
    monitor.load_state_dict(fresh)
