"""Running a model once and noting what becomes of the entries of its parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, ValuesView
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
from .others import Call, Decisions, others
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

PRODUCTS = 2**34
"""Of numbers in an input with parameters, for which a forward is run on sizes beyond those that it compares: about a
second's work."""
IS_OUTPUT = "its neurons are the model's output"
GIVE_LESS = (
    "Choose a layer before it, or, if you do not need that output, pass a module around the model that gives on the "
    "others alone."
)


class Recording(NamedTuple):
    """What the runs of one model said."""

    atoms: Atoms
    values: dict[str, Value]  # by the names of parameters and buffers
    names: dict[int, list[str]]  # every name of a tensor, by its id
    walks: list[Walk]
    ran: set[str]  # modules that were called
    others: list[Call]  # what it was run on beside the example
    lists: list[list[str]]  # names of what stands beside each other in lists and dictionaries of modules and parameters


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
    held = [*model.parameters(), *model.buffers()]  # a buffer that a forward replaces would leave its id to others
    with _Operations(walk), Plain():
        yield
    del held


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
    """Run the model in eval mode, and as in training without dropout and with running statistics; several times where a
    forward decides by random numbers, and on others as well where it decides by sizes or values of what it is given.

    Raises:
        Whatever the model raises in eval mode. A model that does not run in training is recorded in eval mode alone.
    """
    atoms, named, values, names = _parameters(model)
    walks: list[Walk] = []
    ran: set[str] = set()
    for training, mode in MODES:
        for seed in (None, *range(1, RUNS)):
            walk = Walk(atoms, named, training)
            try:
                _run(model, example_input, walk, mode(model), seed, ran)
            except Exception:
                if not training:
                    raise
                break  # it may need targets
            walks.append(walk)
            if not walk.chance.decides:
                break
    recording = Recording(atoms, values, names, walks, ran, [], _lists(model))
    if any(walk.decisions.by_sizes or walk.decisions.by_values for walk in walks):
        _record_others(model, Call(*as_arguments(example_input)), recording, named)
    atoms.settle()
    for walk in walks:
        walk.pieces.settle()
    return recording


MODES: tuple[tuple[bool, Callable[[nn.Module], AbstractContextManager[None]]], ...]
MODES = ((False, evaluating), (True, training_outside_torch))


def _record_others(model: nn.Module, call: Call, recording: Recording, named: dict[int, Value]) -> None:
    """As `record`, on other inputs than the example."""
    decisions = Decisions()
    for walk in recording.walks:
        decisions.add(walk.decisions)
    most = PRODUCTS // max(1, sum(each.numel() for each in model.parameters()))
    for alternatives in others(call, decisions, most):
        runs = next((each for each in alternatives if _walked_in_both(model, each, recording, named)), None)
        recording.others.extend([] if runs is None else [runs])


def _lists(model: nn.Module) -> list[list[str]]:
    kinds = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    lists = [(f"{name}." if name else "", each) for name, each in model.named_modules() if isinstance(each, kinds)]
    return [[start + name for name in (*each._modules, *each._parameters)] for start, each in lists]


def _walked_in_both(model: nn.Module, call: Call, recording: Recording, named: dict[int, Value]) -> bool:
    """Whether the model runs on it, at least in eval mode; where it does not, nothing is noted."""
    for training, mode in MODES:
        walk = Walk(recording.atoms, named, training)
        try:
            with recording.atoms.unless_it_fails():
                _run(model, call, walk, mode(model), None, recording.ran)
        except Exception:
            return training
        recording.walks.append(walk)
    return True


def _cuda(model: nn.Module) -> list[torch.device]:
    return list({each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"})


def _run(model: nn.Module, example_input: Any, walk: Walk, mode: Any, seed: int | None, ran: set[str]) -> None:
    arguments, named = as_arguments(example_input)
    for tensor in _inputs((arguments, named)):
        if id(tensor) not in walk.named:
            value = Value([None] * tensor.ndim, label="the model's input", shape=tuple(tensor.shape))
            walk.values[tensor] = value
    with untouched(model):
        with ExitStack() as stack:
            for kept in (mode, heads_apart(model), draws(walk.chance, seed, _cuda(model))):
                stack.enter_context(kept)
            stack.enter_context(_module_names(model, walk, ran))
            stack.enter_context(counting(model, walk))
            stack.enter_context(parameters_kept(model, walk.written_into))
            stack.enter_context(_Operations(walk))
            stack.enter_context(Sizes(walk))
            given_out = list(outputs(model(*arguments, **named)))
        walk.use_what_is_left()  # before the model is as it was: attributes that a forward sets hold tensors
    walk.lose_statistics(tuple(each for each in given_out if isinstance(each, Tensor)))
    for each in given_out:
        if isinstance(each, Tensor):
            for axis in walk.axes(each):
                if isinstance(axis, np.ndarray):
                    where = "model, in training" if walk.training else "model"
                    walk.atoms.note(axis, Obstacle(where, IS_OUTPUT, GIVE_LESS, READING))
        elif isinstance(each, Count):
            walk.used(each, "what the model gives")
    walk.values = WeakIdKeyDictionary()


def _inputs(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _inputs(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _inputs(part)


def outputs(given: Any, depth: int = 12) -> Iterator[Any]:
    """Tensors and numbers in what a model gives. Caches of keys and values are a state of the model, and left out."""
    if isinstance(given, (Tensor, int, float)) and not isinstance(given, bool):
        yield given
    elif depth > 0 and not type(given).__name__.endswith("Cache"):
        for part in _parts(given):
            yield from outputs(part, depth - 1)


def _parts(given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        return [part for name, part in given.items() if name != "past_key_values"]
    if isinstance(given, (tuple, list, set, frozenset, deque, ValuesView, Generator)):
        return list(given)
    slots = [name for kind in type(given).__mro__ for name in _slots(kind)]
    held = [getattr(given, name) for name in slots if hasattr(given, name)]
    return [*held, *vars(given).values()] if hasattr(given, "__dict__") else held


def _slots(kind: type) -> list[str]:
    named = vars(kind).get("__slots__", ())
    names = (named,) if isinstance(named, str) else tuple(named)
    return [name for name in names if not name.startswith("__")]


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
