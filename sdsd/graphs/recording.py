"""Running a model once and noting what becomes of the entries of its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..models import evaluating, training_outside_torch, untouched
from . import rules_layout, rules_pictures, rules_products, rules_values
from .atoms import READING, REAL, Atoms, Ids, Obstacle
from .attention import heads_apart
from .chance import RUNS, draws
from .counts import Count
from .sizes import Sizes, counting
from .values import Value
from .walk import Walk
from .writes import parameters_kept

__all__ = [
    "Recording",
    "as_arguments",
    "call_of",
    "follow",
    "outputs",
    "record",
    "rules_layout",
    "rules_pictures",
    "rules_products",
    "rules_values",
]

IS_OUTPUT = "its neurons are the model's output"


class Recording(NamedTuple):
    """What the runs of one model said."""

    atoms: Atoms
    values: dict[str, Value]  # by the names of parameters and buffers
    names: dict[int, list[str]]  # every name of a tensor, by its id
    walks: list[Walk]
    ran: set[str]  # modules that were called


class Call(NamedTuple):
    """An example of both kinds: positional and keyword arguments."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def as_arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model."""
    if isinstance(example_input, Call):
        return example_input
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,), {}


Heard = Callable[[str, int, Tensor, int], None]
"""Called with a parameter, its axis, what it was multiplied by over that axis, and the dimension of that."""


@contextmanager
def listening(model: nn.Module, heard: Heard) -> Iterator[None]:
    """While the model runs inside, in the mode it is in, `heard` gets what each of its parameters multiplies."""
    atoms, named, _, _ = _parameters(model)
    axes = {
        int(axis[0]): (next(iter(value.parameters)), dim, len(axis))
        for value in named.values()
        for dim, axis in enumerate(value.axes)
        if isinstance(axis, np.ndarray) and len(axis)
    }
    walk = Walk(atoms, named)

    def recognised(ids: Ids, tensor: Tensor, dim: int) -> None:
        name, axis, length = axes.get(int(ids[0]), ("", 0, 0))
        if length == len(ids) and int(ids[-1]) == int(ids[0]) + length - 1:
            heard(name, axis, tensor, dim)

    walk.heard = recognised
    with _Operations(walk), Plain():
        yield


class Listener(Protocol):
    """What `follow` tells of every operation that torch carries out."""

    module: str  # the name of the module that runs

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """One operation."""

    def left(self, name: str, given: tuple[Any, ...], output: Any) -> None:
        """A module has run: its name, what it took, and what it gave."""


def follow(model: nn.Module, example_input: Any, listener: Listener) -> Any:
    """Run the model once, in eval mode, and let `listener` see every operation; the model is left as it was.

    Returns:
        What the model gives.

    Raises:
        Whatever the model raises.
    """
    arguments, named = as_arguments(example_input)
    with ExitStack() as stack:
        for kept in (untouched(model), evaluating(model), torch.random.fork_rng(devices=_cuda(model))):
            stack.enter_context(kept)
        for seen in (_module_names(model, listener, set()), _Operations(listener), Plain()):
            stack.enter_context(seen)
        return model(*arguments, **named)


def call_of(model: nn.Module, use: Callable[[], Any]) -> Call | None:
    """How `use` calls `model` first; None where it calls something else of it, or fails."""
    calls: list[Call] = []
    hook = model.register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append(Call(args, dict(kwargs))), with_kwargs=True
    )
    try:
        with untouched(model), evaluating(model), torch.random.fork_rng(devices=_cuda(model)):
            use()
    except Exception:
        return None  # whoever asked runs it again, and is told
    finally:
        hook.remove()
    return calls[0] if calls else None


def _parameters(
    model: nn.Module,
) -> tuple[Atoms, dict[int, Value], dict[str, Value], dict[int, list[str]]]:
    """Entries for every parameter and buffer, by the tensor's id and by name, and the names of each."""
    atoms = Atoms()
    named: dict[int, Value] = {}
    values: dict[str, Value] = {}
    names: dict[int, list[str]] = {}
    owned = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in owned:
        names.setdefault(id(tensor), []).append(name)
        if id(tensor) not in named:
            axes: list[Any] = [atoms.new(length, REAL) for length in tensor.shape]
            named[id(tensor)] = Value(axes, True, True, frozenset([name]), repr(name))
        values[name] = named[id(tensor)]
    return atoms, named, values, names


def record(model: nn.Module, example_input: Any) -> Recording:
    """Run the model in eval mode, and as in training without dropout and with running statistics; where a forward
    decides by random numbers, several times each.

    Raises:
        Whatever the model raises in eval mode. A model that does not run in training is recorded in eval mode alone.
    """
    atoms, named, values, names = _parameters(model)
    walks: list[Walk] = []
    ran: set[str] = set()
    modes: tuple[tuple[bool, Callable[[nn.Module], AbstractContextManager[None]]], ...]
    modes = ((False, evaluating), (True, training_outside_torch))
    devices = _cuda(model)
    for training, mode in modes:
        for seed in (None, *range(1, RUNS)):
            walk = Walk(atoms, named)
            walk.training = training
            try:
                with untouched(model), mode(model), heads_apart(model), draws(walk.chance, seed, devices):
                    _run(model, example_input, walk, ran)
            except Exception:
                if not training:
                    raise
                break  # it may need targets
            walks.append(walk)
            walk.values = WeakIdKeyDictionary()
            if not walk.chance.decides:
                break
    atoms.settle()
    for walk in walks:
        walk.settle()
    return Recording(atoms, values, names, walks, ran)


def _cuda(model: nn.Module) -> list[torch.device]:
    return list({each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"})


def _run(model: nn.Module, example_input: Any, walk: Walk, ran: set[str]) -> None:
    arguments, named = as_arguments(example_input)
    for tensor in _inputs((arguments, named)):
        if id(tensor) not in walk.named:
            value = Value([None] * tensor.ndim, label="the model's input", shape=tuple(tensor.shape))
            walk.values[tensor] = value
    with ExitStack() as stack:
        stack.enter_context(_module_names(model, walk, ran))
        stack.enter_context(counting(model, walk))
        stack.enter_context(parameters_kept(model, walk.written_into))
        stack.enter_context(_Operations(walk))
        stack.enter_context(Sizes(walk))
        given = model(*arguments, **named)
    walk.use_what_is_left()
    given_out = list(outputs(given))
    walk.lose_statistics(tuple(each for each in given_out if isinstance(each, Tensor)))
    for each in given_out:
        if isinstance(each, Tensor):
            for axis in walk.axes(each):
                if isinstance(axis, np.ndarray):
                    where = "model, in training" if walk.training else "model"
                    walk.atoms.note(axis, Obstacle(where, IS_OUTPUT, "Choose a layer before it.", READING))
        elif isinstance(each, Count):
            walk.used(each, "what the model gives")


def _inputs(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _inputs(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _inputs(part)


def outputs(given: Any, depth: int = 6) -> Iterator[Any]:
    """Tensors and numbers in what a model gives. Caches of keys and values are a state of the model, and left out."""
    if isinstance(given, (Tensor, int, float)) and not isinstance(given, bool):
        yield given
    elif depth > 0 and not type(given).__name__.endswith("Cache"):
        if isinstance(given, Mapping):
            parts = [part for name, part in given.items() if name != "past_key_values"]
        elif isinstance(given, (tuple, list)):
            parts = list(given)
        elif dataclasses.is_dataclass(given) or hasattr(given, "__dict__"):
            parts = list(vars(given).values())
        else:
            parts = []
        for part in parts:
            yield from outputs(part, depth - 1)


class _Operations(TorchDispatchMode):
    """Tells the walk of every operation."""

    def __init__(self, walk: Listener) -> None:
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
def _module_names(model: nn.Module, walk: Listener, ran: set[str]) -> Iterator[None]:
    """Keeps `walk.module` at the name of the module that runs."""
    names = {id(module): name for name, module in model.named_modules()}
    inside: list[str] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        inside.append(names.get(id(module), walk.module))
        walk.module = inside[-1]
        ran.add(walk.module)

    def leave(_module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if inside:
            walk.left(inside.pop(), given, output)
        walk.module = inside[-1] if inside else ""

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
