"""Any other module that owns parameters: measured in eager code at its operations, refused in compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import WHAT_TO_DO, Rule, UnsupportedError, Watcher


class GenericRule(Rule):
    name = "generic (the operations of its forward)"

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        if not any(watcher.trainable(module)):
            return plain(*args, **kwargs)
        raise UnsupportedError(
            f"{watcher.name}: {type(module).__name__} has no rule that torch.compile can trace. {WHAT_TO_DO}"
        )
