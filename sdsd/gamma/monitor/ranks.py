"""Processes that share a step: which they are, what each of them knows, and how gradients come together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...models import unwrap_calls
from .parameters import Parameters, listed
from .proof import max_eps

_INSTEAD = (
    "Measure a few hundred steps of the same model from a checkpoint under DistributedDataParallel or FSDP2 "
    "(fully_shard over one mesh dimension): the noise scale is of the weights, not of the setup."
)


class Ranks(NamedTuple):
    """The ranks whose gradients are one."""

    group: Any
    world: int
    sharded: bool
    """Whether each holds a part of every gradient (FSDP2), and not all of it (DDP)."""
    wrapped: Any = None
    """The DistributedDataParallel that brings gradients together, where it is known."""

    def add(self, values: Tensor) -> Tensor:
        """Sum in place over the ranks."""
        if self.world > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def totals(self, counts: list[int], device: torch.device) -> list[int]:
        """The sums of what each rank counts."""
        return [round(total) for total in self.add(torch.tensor(counts, dtype=torch.float64, device=device)).tolist()]

    def hooks(self) -> list[Any]:
        """What carries gradients from rank to rank in the place of an average: communication hooks of DDP. What they
        give may cease to be the average at any step."""
        return [hook for hook, _ in getattr(self.wrapped, "_comm_hooks", ())]

    def rounded(self, dtype: torch.dtype | None) -> torch.dtype | None:
        """The coarser of a dtype and what gradients may be rounded to on their way, as far as that is known."""
        if self.sharded:
            return max_eps(dtype, torch.float16)  # reduce_dtype is nowhere to be read
        if hooks := self.hooks():
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            if default_hooks.bf16_compress_hook in hooks:
                return max_eps(dtype, torch.bfloat16)
            if default_hooks.fp16_compress_hook in hooks:
                return max_eps(dtype, torch.float16)
        return dtype

    def why_not_proved(self, factor: float | None) -> str:
        """What of the way that gradients take over ranks can be why they are not what the samples add up to, and is
        `factor` times that, if it is one number."""
        if self.world == 1:
            return ""
        if names := [getattr(hook, "__name__", type(hook).__name__) for hook in self.hooks()]:
            return (
                f" DistributedDataParallel has a communication hook, {', '.join(names)}: what it gives is not the "
                "average over ranks. Measure a few hundred steps without it."
            )
        if factor is not None and round(factor, 2) == self.world:
            return (
                f" {self.world} ranks share the step, and their gradients are taken for averaged: divide sums over "
                "ranks by the number of ranks before step()."
            )
        if self.sharded or factor is not None:
            return ""
        return (
            f" Or .grad is not the average over all {self.world} ranks: average gradients over them before step(); "
            "where they step apart (no_sync throughout, local SGD), pass process_group=None to measure each alone."
        )

    def refuse_joined(self) -> None:
        """Raise inside `DistributedDataParallel.join()`: a rank whose batches have run out waits for no step."""
        config = getattr(self.wrapped, "_join_config", None)
        if self.world > 1 and config is not None and config.enable:
            raise RuntimeError(
                "step() inside DistributedDataParallel.join(): a rank that has run out of batches takes no part in "
                "it, and the others would wait. Leave join() out and give every rank as many batches, as "
                "torch.utils.data.DistributedSampler does."
            )


def ranks_of(model: nn.Module, parameters: Parameters, given: Any) -> Ranks:
    """The ranks that share a step of `model`.

    Args:
        given: a process group; None for this rank alone; "auto" to take it from DDP or FSDP2.

    Raises:
        ValueError: several ranks without a word how they share gradients, or parameters that are spread over ranks
            otherwise than by FSDP2 over one mesh dimension.
    """
    mesh = _mesh(parameters)
    if mesh is not None:
        return Ranks(mesh.get_group(), mesh.size(), True)
    model = unwrap_calls(model)
    wrapped = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
    if given != "auto":
        return Ranks(given, dist.get_world_size(given) if given is not None else 1, False, wrapped)
    if wrapped is not None:
        return Ranks(wrapped.process_group, dist.get_world_size(wrapped.process_group), False, wrapped)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"model: {dist.get_world_size()} ranks run, but it is neither wrapped in DistributedDataParallel nor "
            "sharded by FSDP2. Pass the wrapped model, or process_group=… where gradients are averaged over ranks, or "
            "process_group=None to measure this rank alone."
        )
    return Ranks(None, 1, False)


def _mesh(parameters: Parameters) -> Any:
    """The one mesh dimension over which FSDP2 shards all that is measured; None where nothing is spread over ranks."""
    spread = {name: p for name, p in parameters.everything.items() if hasattr(p, "device_mesh")}
    if not spread:
        return None
    from torch.distributed.fsdp import FSDPModule

    by_fsdp = {
        id(parameter)
        for module in parameters.root.modules()
        if isinstance(module, FSDPModule)
        for parameter in module.parameters()
    }
    if others := [name for name, parameter in spread.items() if id(parameter) not in by_fsdp]:
        raise ValueError(
            f"model: {listed(others)}: spread over ranks by tensor parallelism (parallelize_module, "
            f"distribute_tensor), where a rank has parts of samples and no sample's whole gradient. {_INSTEAD}"
        )
    meshes = [(name, parameter.device_mesh) for name, parameter in spread.items() if name in parameters.chosen]
    for name, mesh in meshes:
        if mesh.ndim != 1:
            raise ValueError(
                f"model: {name} lies on a device mesh of {mesh.ndim} dimensions; FSDP2 is measured over one, without "
                f"copies (HSDP), tensor or pipeline parallelism. {_INSTEAD}"
            )
    alone = [name for name in parameters.chosen if name not in spread]
    alone += [name for name, mesh in meshes if mesh != meshes[0][1]]
    if meshes and alone:
        raise ValueError(
            f"model: {listed(alone)}: not sharded with the other parameters, so that ranks share their gradients in "
            "another way, or not at all. Call fully_shard on the whole model, too, or leave these out with "
            "parameters=…."
        )
    return meshes[0][1] if meshes else None
