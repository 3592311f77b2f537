"""Processes that share a step: which they are, and what each of them knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks(NamedTuple):
    """The ranks whose gradients are one."""

    group: Any
    world: int
    sharded: bool
    """Whether each holds a part of every gradient (FSDP2), and not all of it (DDP)."""

    def add(self, values: Tensor) -> Tensor:
        """Sum in place over the ranks."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def totals(self, counts: list[int], device: torch.device) -> list[int]:
        """The sums of what each rank counts."""
        return [round(total) for total in self.add(torch.tensor(counts, dtype=torch.float64, device=device)).tolist()]


def ranks_of(model: nn.Module, parameters: list[nn.Parameter], given: Any) -> Ranks:
    """The ranks that share a step of `model`.

    Args:
        given: a process group; None for this rank alone; "auto" to take it from DDP or FSDP2.

    Raises:
        ValueError: several ranks without a word how they share gradients, or a mesh of several dimensions.
    """
    sharded = any(hasattr(parameter, "device_mesh") for parameter in parameters)
    if given != "auto" and not sharded:
        return Ranks(given, dist.get_world_size(given) if given is not None else 1, False)
    if sharded:
        mesh = next(p.device_mesh for p in parameters if hasattr(p, "device_mesh"))
        if mesh.ndim != 1:
            raise ValueError(
                f"model: parameters lie on a device mesh of {mesh.ndim} dimensions; exact mode knows one (FSDP2), no "
                "tensor or pipeline parallelism."
            )
        return Ranks(mesh.get_group(), mesh.size(), True)
    while isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's wrapper
        model = model._orig_mod  # type: ignore[assignment]
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return Ranks(model.process_group, dist.get_world_size(model.process_group), False)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"model: {dist.get_world_size()} ranks run, but it is neither wrapped in DistributedDataParallel nor "
            "sharded by FSDP2. Pass the wrapped model, or process_group=… where gradients are averaged over ranks, or "
            "process_group=None to measure this rank alone."
        )
    return Ranks(None, 1, False)
