"""Any other module that owns parameters: measured in eager code at its operations, refused in compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Rule, UnsupportedError, Watcher


class GenericRule(Rule):
    name = "generic (the operations of its forward)"

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        if not any(watcher.trainable(module)):
            return plain(*args, **kwargs)
        raise UnsupportedError(
            f"{watcher.name}: {type(module).__name__} has no rule that torch.compile can trace. Instead of the whole "
            "model, compile the layers around it, each by itself (`for layer in model.layers: layer.compile()`); or "
            "leave it uncompiled (torch.compiler.disable), use mode='micro', or leave its parameters out with "
            "parameters=…."
        )
