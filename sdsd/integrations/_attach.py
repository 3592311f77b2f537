"""What the callbacks share."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn

from ..gamma import GammaMonitor


def attach_monitor(model: nn.Module, options: dict[str, Any]) -> GammaMonitor:
    """A monitor of `model`; where several ranks train, all of them share a step, for Trainers average over all."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        options = {"process_group": dist.group.WORLD, **options}
    return GammaMonitor(model, **options)
