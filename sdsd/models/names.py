"""A model and its parameters without what wrappers put around them and into their names."""

from __future__ import annotations

import re

from torch import nn

from .usable import check_module


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel and what `unwrap_calls` takes away.

    Raises:
        TypeError: no module.
    """
    check_module(model)
    model = unwrap_calls(model)
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = unwrap_calls(model.module)
    return model


def unwrap_calls(model: nn.Module) -> nn.Module:
    """`model` without wrappers of one process that only call it: torch.compile's, and Lightning Fabric's."""
    while True:
        of_fabric = any(kind.__name__ == "_FabricModule" for kind in type(model).__mro__)
        inner = getattr(model, "_forward_module" if of_fabric else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def clean(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    return re.sub(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)", "", name).lstrip(".")
