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
from . import rules_layout, rules_products, rules_values
from .atoms import READING, REAL, REMOVAL, Atoms, Ids, Obstacle
from .counts import Count, Origin
from .values import Value, words
from .walk import KEEP_SIZE, Walk

__all__ = ["Recording", "as_arguments", "follow", "outputs", "record", "rules_layout", "rules_products", "rules_values"]

IS_OUTPUT = "its neurons are the model's output"
KEEP_THE_NUMBER = (
    "Store the number when the model is built (self.scale = …), so that it stays as it is, or merge without removal "
    "(remove=False)."
)
TAKE_SIZES = words(
    """
    conv1d conv2d conv3d view reshape expand repeat split split_with_sizes chunk narrow unflatten tensor_split zeros
    ones empty rand randn new_zeros new_ones new_empty flatten tile slice unsafe_chunk broadcast_to select index_select
    """
)
"""Functions that take sizes for what they are; elsewhere a size is used as a number."""
ALIGNED = {"view", "reshape", "expand", "zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones", "new_empty"}
"""Those whose sizes are the result's."""
MODULE_SIZES = ("out_features", "in_features", "out_channels", "in_channels", "num_features", "num_parameters")


class Recording(NamedTuple):
    """What the runs of one model said."""

    atoms: Atoms
    values: dict[str, Value]  # by the names of parameters and buffers
    names: dict[int, list[str]]  # every name of a tensor, by its id
    walks: list[Walk]
    ran: set[str]  # modules that were called


def as_arguments(example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model."""
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

    def found(ids: Ids, tensor: Tensor, dim: int) -> None:
        name, axis, length = axes.get(int(ids[0]), ("", 0, 0))
        if length == len(ids) and int(ids[-1]) == int(ids[0]) + length - 1:
            heard(name, axis, tensor, dim)

    walk.heard = found
    with _Operations(walk), _Plain():
        yield


class Listener(Protocol):
    """What `follow` tells of every operation that torch carries out."""

    module: str  # the name of the module that runs

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """One operation."""


def follow(model: nn.Module, example_input: Any, listener: Listener) -> Any:
    """Run the model once, in eval mode, and let `listener` see every operation; the model is left as it was.

    Returns:
        What the model gives.

    Raises:
        Whatever the model raises.
    """
    arguments, named = as_arguments(example_input)
    with untouched(model), evaluating(model), torch.random.fork_rng(devices=_cuda(model)):
        with _module_names(model, listener, set()), _Operations(listener), _Plain():
            return model(*arguments, **named)


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
    """Run the model in eval mode, and as in training without dropout and with running statistics.

    Raises:
        Whatever the model raises in eval mode. A model that does not run in training is recorded in eval mode alone.
    """
    atoms, named, values, names = _parameters(model)
    walks: list[Walk] = []
    ran: set[str] = set()
    modes: tuple[tuple[bool, Callable[[nn.Module], AbstractContextManager[None]]], ...]
    modes = ((False, evaluating), (True, training_outside_torch))
    for training, mode in modes:
        walk = Walk(atoms, named)
        walk.training = training
        try:
            with untouched(model), mode(model), torch.random.fork_rng(devices=_cuda(model)):
                _run(model, example_input, walk, ran)
        except Exception:
            if not training:
                raise
            continue  # it may need targets
        walks.append(walk)
        walk.values = WeakIdKeyDictionary()
    atoms.settle()
    for walk in walks:
        _check_pieces(walk)
    return Recording(atoms, values, names, walks, ran)


def _cuda(model: nn.Module) -> list[torch.device]:
    return list({each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"})


def _run(model: nn.Module, example_input: Any, walk: Walk, ran: set[str]) -> None:
    arguments, named = as_arguments(example_input)
    for tensor in _inputs((arguments, named)):
        if id(tensor) not in walk.named:
            walk.values[tensor] = Value([None] * tensor.ndim, label="the model's input")
    with ExitStack() as stack:
        stack.enter_context(_module_names(model, walk, ran))
        stack.enter_context(_counting(model, walk))
        stack.enter_context(_Operations(walk))
        stack.enter_context(_Sizes(walk))
        given = model(*arguments, **named)
    given_out = list(outputs(given))
    walk.lose_statistics(tuple(each for each in given_out if isinstance(each, Tensor)))
    for each in given_out:
        if isinstance(each, Tensor):
            for axis in walk.axes(each):
                if isinstance(axis, np.ndarray):
                    where = "model, in training" if walk.training else "model"
                    walk.atoms.note(axis, Obstacle(where, IS_OUTPUT, "Choose a layer before it.", READING))
        elif isinstance(each, Count):
            _used_as_number(walk, each, "what the model gives")


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


def _check_pieces(walk: Walk) -> None:
    """Pieces of an axis keep their share of it if every unit has its share in them."""
    for whole, part, obstacle in walk.pieces:
        units, counts = np.unique(walk.atoms.roots(whole), return_counts=True)
        inside = dict(zip(*np.unique(walk.atoms.roots(part), return_counts=True), strict=True))
        share = len(part) / len(whole)
        if any(inside.get(unit, 0) != count * share for unit, count in zip(units, counts, strict=True)):
            walk.atoms.note(whole, obstacle)
    for ids, axis, obstacle in walk.same_size:
        if not np.array_equal(np.sort(walk.atoms.roots(ids)), np.sort(walk.atoms.roots(axis))):
            walk.atoms.note(ids, obstacle)
            walk.atoms.note(axis, obstacle)


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


class _Plain(TorchFunctionMode):
    """Changes nothing; modules of torch.nn that see one run operation by operation, not as one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Sizes(TorchFunctionMode):
    """Hands sizes out as `Count`s, and sees where they go."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            if getattr(getattr(func, "__self__", None), "__name__", "") == "shape":
                return torch.Size(self._count(args[0], dim) for dim in range(args[0].ndim))
            return func(*args, **named)
        if name in ("size", "__len__", "numel", "nelement") and isinstance(args[0], Tensor):
            return self._size(func, name, args, named)
        plain = name.strip("_")
        counts = [each for each in _counts((*args, *named.values()), 3) if each.ids or each.origins]
        sized = [each for each in counts if each.ids]
        known = sized if plain in ("getitem", "narrow", "slice") else counts
        takes = plain in TAKE_SIZES or (plain == "getitem" and self._own(args[0], sized))
        for each in sized if not takes else ():
            _used_as_number(self.walk, each, repr(plain))
        before, self.walk.sizes_written_in = self.walk.sizes_written_in, not known and plain != "chunk"
        try:
            out = func(*args, **named)
        finally:
            self.walk.sizes_written_in = before
        if plain in ALIGNED:
            self._align(plain, args, named, out)
        elif plain in ("split", "unsafe_split") and isinstance(out, (tuple, list)):
            self._link_pieces(args, named, out)
        return out

    def _count(self, tensor: Tensor, dim: int) -> int:
        axis = self.walk.followed(tensor, dim)
        length = tensor.shape[dim]
        return Count(length, self._note, (axis,)) if isinstance(axis, np.ndarray) else length

    def _note(self, count: Count, how: str) -> None:
        _used_as_number(self.walk, count, how)

    def _size(self, func: Any, name: str, args: Any, named: Any) -> Any:
        tensor = args[0]
        dim = args[1] if len(args) > 1 else named.get("dim")
        if name == "size" and dim is None:
            return torch.Size(self._count(tensor, each) for each in range(tensor.ndim))
        if name == "size":
            return self._count(tensor, dim % tensor.ndim)
        if name == "__len__":  # Python hands it on as a plain number
            if id(tensor) in self.walk.named:
                _used_as_number(self.walk, Count(len(tensor), self._note, (self.walk.axes(tensor)[0],)), "'len'")  # type: ignore[arg-type]
            return tensor.shape[0]
        ids = [axis for axis in self.walk.axes(tensor) if isinstance(axis, np.ndarray)]
        length = func(*args, **named)
        return Count(length, self._note, tuple(ids), exact=False) if ids else length

    def _own(self, tensor: Any, counts: list[Count]) -> bool:
        """Whether the sizes are of the tensor that is sliced."""
        if not isinstance(tensor, Tensor):
            return False
        own = [axis for axis in self.walk.value(tensor).axes if isinstance(axis, np.ndarray)]
        return all(any(np.array_equal(ids, axis) for axis in own) for count in counts for ids in count.ids)

    def _align(self, name: str, args: Any, named: Any, out: Any) -> None:
        made = name in ("zeros", "ones", "empty", "rand", "randn")
        sizes = args if made else args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        if not sizes:
            sizes = tuple(named.get("size", named.get("shape", ())))
        if not isinstance(out, Tensor) or len(sizes) != out.ndim:
            return
        for dim, size in enumerate(sizes):
            axis = self.walk.value(out).axes[dim]
            if isinstance(size, Count) and made and size.exact:
                axis = self.walk.followed(out, dim)
            if not isinstance(axis, np.ndarray) or not isinstance(size, int) or int(size) < 2:
                continue
            if isinstance(size, Count):
                for origin in size.origins if size.exact else ():
                    self.walk.linked.append((origin, axis, int(size)))
                if size.exact and size.ids and len(size.ids[0]) == len(axis):
                    reason = f"{name!r} gives them the size of other neurons"
                    obstacle = Obstacle(self.walk.where(name), reason, KEEP_SIZE, REMOVAL)
                    self.walk.same_size.append((size.ids[0], axis, obstacle))
            elif name != "expand":
                self.walk.mixed(axis, f"{name!r} has the size {size} written into it", REMOVAL, KEEP_SIZE)

    def _link_pieces(self, args: Any, named: Any, out: Any) -> None:
        size = args[1] if len(args) > 1 else named.get("split_size_or_sections", named.get("split_size"))
        sizes = size if isinstance(size, (tuple, list)) else [size] * len(out)
        dim = args[2] if len(args) > 2 else named.get("dim", 0)
        for each, piece in zip(sizes, out, strict=False):
            axis = self.walk.value(piece).axes[dim]
            if isinstance(each, Count) and isinstance(axis, np.ndarray):
                self.walk.linked += [(origin, axis, int(each)) for origin in each.origins]


def _counts(values: Any, depth: int) -> Iterator[Count]:
    for value in values:
        if isinstance(value, Count):
            yield value
        elif isinstance(value, slice):
            yield from _counts((value.start, value.stop, value.step), depth)
        elif depth and isinstance(value, (tuple, list)):
            yield from _counts(value, depth - 1)


def _used_as_number(walk: Walk, count: Count, how: str) -> None:
    for ids in count.ids:
        reason = f"{how} uses the number of neurons, which would change"
        walk.mixed(ids, reason, REMOVAL, KEEP_THE_NUMBER)


@contextmanager
def _module_names(model: nn.Module, walk: Listener, ran: set[str]) -> Iterator[None]:
    """Keeps `walk.module` at the name of the module that runs."""
    names = {id(module): name for name, module in model.named_modules()}
    inside: list[str] = []

    def enter(module: nn.Module, _inputs: Any) -> None:
        inside.append(names.get(id(module), walk.module))
        walk.module = inside[-1]
        ran.add(walk.module)

    def leave(module: nn.Module, _inputs: Any, _output: Any) -> None:
        if inside:
            inside.pop()
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


@contextmanager
def _counting(model: nn.Module, walk: Walk) -> Iterator[None]:
    """Whole numbers that modules hold become `Count`s meanwhile."""
    held: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, module in model.named_modules():
            store = vars(module)
            for attribute, number in list(store.items()):
                if type(number) is not int or number < 2:
                    continue
                held.append((store, attribute, number))
                ids = _ids_of(module, attribute, walk)
                origins: tuple[Origin, ...] = () if ids else ((name, attribute),)
                store[attribute] = Count(number, lambda count, how: _used_as_number(walk, count, how), ids, origins)
        yield
    finally:
        for store, attribute, number in held:
            store[attribute] = number


def _ids_of(module: nn.Module, attribute: str, walk: Walk) -> tuple[Ids, ...]:
    """The entries that a size of a layer counts."""
    if attribute not in MODULE_SIZES:
        return ()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or id(weight) not in walk.named:
        return ()
    transposed = "Transpose" in type(module).__name__
    first = attribute in ("out_features", "num_features", "num_parameters") or attribute == (
        "in_channels" if transposed else "out_channels"
    )
    axis = walk.named[id(weight)].axes[0 if first or weight.ndim == 1 else 1]
    return (axis,) if isinstance(axis, np.ndarray) and len(axis) == vars(module)[attribute] else ()
