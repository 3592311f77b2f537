"""Running a model once, so that a walk sees every operation, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..models import evaluating, untouched, unwritten
from .calls import Call, as_arguments, outputs
from .chance import draws, seeded
from .walk import Walk
from .writes import parameters_kept

Mode = Callable[[nn.Module], AbstractContextManager[None]]


def run(
    model: nn.Module,
    example_input: Any,
    walk: Walk[Any],
    mode: Mode = evaluating,
    *,
    seed: int | None = None,
    beside: Iterable[AbstractContextManager[Any]] = (),
) -> None:
    """Run the model once and let `walk` see every operation; the model is left as it was.

    Args:
        mode: what the model runs in.
        seed: of random numbers; None: they go on from where they are.
        beside: what else is entered while it runs.

    Raises:
        Whatever the model raises.
    """
    arguments, named = as_arguments(example_input)
    devices = _cuda(model)
    with untouched(model), unwritten(arguments, named):
        with ExitStack() as stack:
            for kept in (mode(model), draws(walk.chance, seed, devices), parameters_kept(model, walk.written_into)):
                stack.enter_context(kept)
            for seen in (_module_names(model, walk), *beside, _Operations(walk)):
                stack.enter_context(seen)
            given = list(outputs(model(*arguments, **named)))
        walk.ended(given)  # before the model is as it was: attributes that a forward sets hold tensors


@contextmanager
def overheard(walk: Walk[Any]) -> Iterator[None]:
    """What runs inside is told to a walk, and is neither held to a mode nor put back."""
    with _Operations(walk), Plain():
        yield


def call_of(model: nn.Module, use: Callable[[], Any]) -> Call | None:
    """How `use` calls `model` first; None where it calls something else of it, or fails."""
    calls: list[Call] = []
    hook = model.register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append(Call(args, dict(kwargs))), with_kwargs=True
    )
    try:
        with untouched(model, parameters=True), evaluating(model), seeded(None, _cuda(model)):
            use()
    except Exception:
        return None  # whoever asked runs it again, and is told
    finally:
        hook.remove()
    return calls[0] if calls else None


def _cuda(model: nn.Module) -> list[torch.device]:
    return list({each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"})


class _Operations(TorchDispatchMode):
    """Tells the walk of every operation."""

    def __init__(self, walk: Walk[Any]) -> None:
        super().__init__()
        self.walk = walk

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        self.walk.step(func, args, named, out)
        return out


class Plain(TorchFunctionMode):
    """Changes nothing; modules of torch.nn that see one run operation by operation, not as one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def _module_names(model: nn.Module, walk: Walk[Any]) -> Iterator[None]:
    """Keeps `walk.module` at the name of the module that runs."""
    names = {id(module): name for name, module in model.named_modules()}
    inside: list[str] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        inside.append(names.get(id(module), walk.module))
        walk.module = inside[-1]
        walk.ran.add(walk.module)

    def leave(_module: nn.Module, given: tuple[Any, ...], *more: Any) -> None:
        *named, output = more  # torch leaves what is given by name out where the module has raised
        if inside:
            by_name = [value for each in named for value in each.values()]
            walk.left(inside.pop(), (*given, *by_name) if given else (), output)
        walk.module = inside[-1] if inside else ""

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, with_kwargs=True, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
