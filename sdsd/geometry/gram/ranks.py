"""What calls over several ranks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_group(group: ProcessGroup | None) -> None:
    """RuntimeError unless this process is a rank of `group`, or of the default group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "expected an initialised process group, got none. Call torch.distributed.init_process_group(...) first, "
            "and start one process a rank, for example with torchrun."
        )
    if dist.get_rank(group) < 0:
        raise RuntimeError("group: expected a process group that this rank is in. Call only on its ranks.")


def gathered(values: Sequence[int], group: ProcessGroup | None) -> list[tuple[int, ...]]:
    """The same few integers of every rank: for each of `values` a tuple over ranks."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    own = torch.tensor(values, dtype=torch.int64, device=device)
    everyones = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyones, own, group=group)
    return list(zip(*(each.tolist() for each in everyones), strict=True))


def check_alike(call: str, name: str, values: Sequence[Any]) -> None:
    """ValueError unless all ranks have the same."""
    if len(set(values)) > 1:
        listed = ", ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
        raise ValueError(f"{call}: expected the same {name} on all ranks, got {listed}.")
