"""How a monitored module sees its own forward pass: a subclass put in the place of its class.

A subclass, because it needs no hook (hooks break torch.compile's graph), keeps isinstance true, makes compiled code
that was traced before recompile (its guards are on the type), and can be taken away without a trace: `release` puts
the class back and removes what was put into the module's `__dict__`. Copies and pickles are of the original class.

Libraries put a `forward` of their own on an instance (autocast around it, or a copy of the bound method); that one is
replaced as well, and put back.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

KEY = "_sdsd_gamma"
"""The entry in a monitored module's `__dict__`; its `forward(plain, args, kwargs)` runs in the place of `forward`."""

OWN_FORWARD = "_sdsd_gamma_forward"
"""The entry that keeps a `forward` the module had in its own `__dict__`."""


@functools.cache
def _monitored(original: type[nn.Module]) -> type[nn.Module]:
    class Monitored(original):  # type: ignore[misc, valid-type]
        @functools.wraps(original.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            watcher = self.__dict__.get(KEY)
            if watcher is None:  # somebody kept the bound method beyond `release`
                return original.forward(self, *args, **kwargs)
            if watcher.idle and not torch.compiler.is_dynamo_compiling():
                return original.forward(self, *args, **kwargs)
            return watcher.forward(self, super().forward, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            reduced = list(super().__reduce_ex__(protocol))
            if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
                # Pickle insists that __newobj__ names the object's own class; _reconstructor names any.
                reduced[0], reduced[1] = copyreg._reconstructor, (original, object, None)  # type: ignore[attr-defined]
            if isinstance(reduced[2], dict):
                state = {name: value for name, value in reduced[2].items() if name != KEY}
                if OWN_FORWARD in state:
                    state["forward"] = state.pop(OWN_FORWARD)
                reduced[2] = state
            return tuple(reduced)

    Monitored.__name__, Monitored.__qualname__ = original.__name__, original.__qualname__
    Monitored.__module__, Monitored.__doc__ = original.__module__, original.__doc__
    Monitored.forward._sdsd_watched = True  # type: ignore[attr-defined]
    Monitored._sdsd_original = original
    return Monitored


@functools.cache
def _monitored_with_hooks(original: type[nn.Module]) -> type[nn.Module]:
    class Monitored(_monitored(original)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            watcher = self.__dict__.get(KEY)
            hooked = self._forward_pre_hooks or self._forward_hooks
            if watcher is None or not hooked or torch.compiler.is_compiling():
                return super().__call__(*args, **kwargs)
            return watcher.call(self, super().__call__, args, kwargs)

    Monitored.__name__, Monitored.__qualname__ = original.__name__, original.__qualname__
    Monitored.__module__, Monitored.__doc__ = original.__module__, original.__doc__
    return Monitored


def is_attached(module: nn.Module) -> bool:
    """Whether a monitor watches `module` already."""
    return KEY in module.__dict__


def attach(module: nn.Module, watcher: Any, with_hooks: bool = False) -> None:
    """Let `watcher.forward(module, plain, args, kwargs)` run in the place of `module.forward`.

    `with_hooks`: and `watcher.call` in the place of a call where the module has forward hooks, which stand around it.
    """
    subclass = (_monitored_with_hooks if with_hooks else _monitored)(type(module))  # type: ignore[arg-type]
    module.__dict__[KEY] = watcher
    try:
        object.__setattr__(module, "__class__", subclass)  # not by a wrapper's own, which may set it inside, too
    except TypeError:
        del module.__dict__[KEY]
        raise
    own = module.__dict__.get("forward")
    if own is not None and not getattr(own, "_sdsd_watched", False):

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return watcher.forward(module, own, args, kwargs)

        module.__dict__[OWN_FORWARD] = own
        module.__dict__["forward"] = forward


def release(module: nn.Module) -> None:
    """Undo `attach`; nothing of it is left."""
    del module.__dict__[KEY]
    if OWN_FORWARD in module.__dict__:
        module.__dict__["forward"] = module.__dict__.pop(OWN_FORWARD)
    object.__setattr__(module, "__class__", type(module)._sdsd_original)  # type: ignore[attr-defined]


def compiled_parts(root: nn.Module) -> list[tuple[nn.Module, str]]:
    """Compiled modules inside `root`, and the entry of their `__dict__` that holds the compiled code."""
    parts: dict[int, tuple[nn.Module, str]] = {}
    waiting = [root]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is None:
                continue
            waiting.append(module)
            own = module.__dict__
            if own.get("_compiled_call_impl") is not None:
                parts[id(module)] = (module, "_compiled_call_impl")
            elif "dynamo_ctx" in own and "forward" in own:
                parts[id(module)] = (module, "forward")
    return list(parts.values())


def uncompiled(module: nn.Module, entry: str) -> Callable[..., Any]:
    """A compiled part, one of `compiled_parts`, as it is without torch.compile."""
    own: Callable[..., Any] = module._call_impl if entry == "_compiled_call_impl" else module._orig_mod  # type: ignore[assignment]
    return own


def is_skipped(module: nn.Module, entry: str) -> bool:
    """Whether Dynamo does not trace a part itself: a container of torch's own that was compiled in place."""
    kind = getattr(type(module), "_sdsd_original", type(module))
    return entry == "_compiled_call_impl" and kind.forward.__module__.startswith("torch.nn.modules")


@contextmanager
def intercepted(parts: list[tuple[nn.Module, str]], through: Callable[..., Any]) -> Iterator[None]:
    """Inside, a call of a compiled part goes by `through(part, own, args, kwargs)`."""
    kept = [(module, entry, module.__dict__[entry]) for module, entry in parts]
    for module, entry, own in kept:
        module.__dict__[entry] = functools.partial(_by, through, (module, entry), own)
    try:
        yield
    finally:
        for module, entry, own in kept:
            module.__dict__[entry] = own


def _by(through: Callable[..., Any], part: tuple[nn.Module, str], own: Any, *args: Any, **kwargs: Any) -> Any:
    return through(part, own, args, kwargs)


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Passes of `model` inside are measured by no GammaMonitor that watches it, or a part of it."""
    watchers = [vars(module)[KEY] for module in model.modules() if is_attached(module)]
    with ExitStack() as stack:
        for session in {id(watcher.session): watcher.session for watcher in watchers}.values():
            stack.enter_context(session.paused())
        yield


def compiling() -> bool:
    """Whether torch.compile is tracing this very call."""
    return torch.compiler.is_compiling()
