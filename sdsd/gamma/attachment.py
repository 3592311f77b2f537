"""How a monitored module sees its own forward pass: a subclass put in the place of its class.

A subclass, because it needs no hook (hooks break torch.compile's graph), keeps isinstance true, makes compiled code
that was traced before recompile (its guards are on the type), and can be taken away without a trace: `release` puts
the class back and removes the one entry in the module's `__dict__`. Copies and pickles are of the original class.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any

import torch
from torch import nn

KEY = "_sdsd_gamma"
"""The entry in a monitored module's `__dict__`; its `forward(plain, args, kwargs)` runs in the place of `forward`."""


@functools.cache
def _monitored(original: type[nn.Module]) -> type[nn.Module]:
    class Monitored(original):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.__dict__[KEY].forward(self, super().forward, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            reduced = list(super().__reduce_ex__(protocol))
            if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
                # Pickle insists that __newobj__ names the object's own class; _reconstructor names any.
                reduced[0], reduced[1] = copyreg._reconstructor, (original, object, None)  # type: ignore[attr-defined]
            if isinstance(reduced[2], dict):
                reduced[2] = {name: value for name, value in reduced[2].items() if name != KEY}
            return tuple(reduced)

    Monitored.__name__, Monitored.__qualname__ = original.__name__, original.__qualname__
    Monitored.__module__, Monitored.__doc__ = original.__module__, original.__doc__
    Monitored._sdsd_original = original
    return Monitored


def is_attached(module: nn.Module) -> bool:
    """Whether a monitor watches `module` already."""
    return KEY in module.__dict__


def attach(module: nn.Module, watcher: Any) -> None:
    """Let `watcher.forward(module, plain, args, kwargs)` run in the place of `module.forward`."""
    subclass = _monitored(type(module))  # type: ignore[arg-type]
    module.__dict__[KEY] = watcher
    try:
        module.__class__ = subclass
    except TypeError:
        del module.__dict__[KEY]
        raise


def release(module: nn.Module) -> None:
    """Undo `attach`; nothing of it is left."""
    del module.__dict__[KEY]
    module.__class__ = type(module)._sdsd_original  # type: ignore[assignment, attr-defined]


def compiling() -> bool:
    """Whether torch.compile is tracing this very call."""
    return torch.compiler.is_compiling()
