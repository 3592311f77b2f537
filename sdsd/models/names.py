"""A model and its parameters without what wrappers put around them and into their names."""

from __future__ import annotations

import re

from torch import nn

from .usable import check_module


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel and torch.compile's wrapper.

    Raises:
        TypeError: no module.
    """
    check_module(model)
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def clean(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    return re.sub(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)", "", name).lstrip(".")
