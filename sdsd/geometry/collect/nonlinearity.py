"""What the readers of a layer get, found while the model runs: torch tells a mode of every function that is called.

The output of a layer is followed through functions that give each neuron's entry from the same entry: nonlinearities,
norms, arithmetic with other tensors, in place or not, and through poolings and changes of layout. Each step is added to
a path. Where something else reads the tensor (a Linear layer, a convolution, a product), the path so far is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ...models import place_of
from .choice import Path, Reading, Step
from .function_names import (
    ADD_A_PRODUCT,
    AFFINE,
    ELEMENTWISE,
    LEAVES_TORCH,
    MOVES,
    NO_VALUES,
    NORMS,
    PERMUTES,
    POOLINGS,
    READERS,
    RESHAPES,
    SUMMARIES,
    UNCHANGED,
    name_of,
)
from .mixtures import Undo, mixes_neurons


class _Followed(NamedTuple):
    reading: Reading
    path: Path
    undo: Undo
    moved: str = ""  # the first of MOVES on the way, behind which nothing is taken


def original_layout(value: Tensor, undo: Undo) -> Tensor:
    for what, numbers in reversed(undo):
        value = value.reshape(numbers) if what == "reshape" else value.permute(numbers)
    return value


class ReadersFollower(TorchFunctionMode):
    """Follows the outputs of layers. `made(reading, path, value)` is called for each step, value in its own layout.

    `neuron_dim(layer, output)` is the dimension of an output that counts neurons.
    """

    def __init__(
        self,
        neuron_dim: Callable[[str, Tensor], int],
        made: Callable[[Reading, Path, Callable[[], Tensor]], object] | None = None,
    ) -> None:
        super().__init__()
        self.neuron_dim = neuron_dim
        self.made = made
        self.readings: list[Reading] = []
        self.followed: Any = WeakIdKeyDictionary()  # tensor → what it is of
        self.versions: Any = WeakIdKeyDictionary()  # tensor → how often it had been written when it was followed

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def follow(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                reading = Reading(name, self.neuron_dim(name, output))
                if self.made is None:
                    self.readings.append(reading)
                self._follow(output, [*self.followed.get(output, ()), _Followed(reading, (), ())])

        return follow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        sources = [each for each in _tensors((*args, *named.values())) if each in self.followed]
        for source in sources:
            self._check_version(source)
        result = func(*args, **named)
        if sources:
            self._saw(func, sources, args, named, result)
        return result

    def _saw(self, func: Any, sources: list[Tensor], args: Any, named: Any, result: Any) -> None:
        name = name_of(func)
        if name in NO_VALUES:
            return
        if name in ("setitem", "copy"):
            self._filled(name, args[0], sources)
            return
        if name in ("max", "min") and len(args) + len(named) > 1 and len(sources[0].shape) == len(_shape(result)):
            name = f"{name}imum"
        if name in MOVES:
            items = [each._replace(moved=each.moved or name) for source in sources for each in self.followed[source]]
            for made in _tensors(result if isinstance(result, (tuple, list)) else (result,)):
                if made not in self.followed:
                    self._follow(made, items, again=False)
            return
        if not isinstance(result, Tensor):
            inside = result if isinstance(result, (tuple, list)) else ()
            if name in LEAVES_TORCH or any(isinstance(part, Tensor) for part in inside):
                self._read_by(name, sources, args, named)
            return
        if name in NORMS or name in POOLINGS or name in UNCHANGED or name in RESHAPES:
            sources = [source for source in sources if source is (args[0] if args else named.get("input"))]
            if not sources:
                return  # it is asked for its type or shape
        if name in ADD_A_PRODUCT:
            added = [source for source in sources if source is (args[0] if args else named.get("input"))]
            if added:
                self._elementwise("add", added, args, named, result)
            sources = [source for source in sources if source not in added]
        if name == "einsum" and not _sums(args[0], sources[0], args[1:]):
            self._read_by(name, sources, args, named, layer=False)
        elif name in UNCHANGED or name in POOLINGS:
            if result not in self.followed:
                items = [each for source in sources for each in self.followed[source]]
                if name in POOLINGS:
                    mixed = [each for each in items if _mixes(name, sources[0], each, args, named)]
                    self._lost(name, mixed)
                    items = [each for each in items if each not in mixed]
                self._follow(result, items, again=not sources[0].is_floating_point())
        elif name in ELEMENTWISE or name in NORMS:
            self._elementwise(name, sources, args, named, result)
        elif name in RESHAPES or name in PERMUTES:
            back = ("reshape", tuple(sources[0].shape))
            if name in PERMUTES:
                back = ("permute", _inverse(_permutation(func, sources[0].ndim, args, named)))
            moved = [each._replace(undo=(*each.undo, back)) for each in self.followed[sources[0]]]
            self._follow(result, moved, again=False)
        else:
            self._read_by(name, sources, args, named)
            for each in self.followed[result] if any(result is source for source in sources) else ():
                each.reading.written = True

    def _elementwise(self, name: str, sources: list[Tensor], args: Any, named: Any, result: Tensor) -> None:
        in_place = any(result is source for source in sources)
        others = [each for each in _tensors((*args, *named.values())) if not any(each is source for source in sources)]
        gate = any(each.numel() == result.numel() and not isinstance(each, nn.Parameter) for each in others)
        curved = name not in AFFINE or (name in ("mul", "div") and (gate or len(sources) > 1))
        numbers = [value for value in (*args, *named.values()) if isinstance(value, (int, float, str))]
        step = Step(name, " ".join(map(str, numbers)), curved)
        joined: dict[Reading, _Followed] = {}
        for source in sources:
            for each in self.followed[source]:
                if each.moved:
                    if not in_place:
                        each.reading.pieces = name
                        each.reading.elsewhere.setdefault(each.path, each.moved)
                    continue
                if source.shape != result.shape:
                    each.reading.read[each.path] = None  # spread over a larger tensor: read as it is
                    continue
                before = joined.get(each.reading)
                joined[each.reading] = each if before is None else each._replace(path=_joined(before.path, each.path))
                each.reading.used.add(each.path)
        new = [each._replace(path=(*each.path, step)) for each in joined.values()]
        if in_place:
            self._changed_in_place(result, step)
        if new:
            self._follow(result, new)

    def _changed_in_place(self, target: Tensor, step: Step) -> None:
        """Tensors that share memory with one that is written are other values now."""
        place = place_of(target)
        sharing = [(tensor, items) for tensor, items in list(self.followed.items()) if place_of(tensor) == place]
        whole = {each.reading for _, items in sharing for each in items if not each.moved}
        for tensor, items in sharing:
            for each in items:
                each.reading.used.add(each.path)
                if each.reading not in whole:
                    each.reading.elsewhere.setdefault(each.path, each.moved)
            kept = [each._replace(path=(*each.path, step)) for each in items if each.reading in whole]
            self._follow(tensor, kept)

    def _filled(self, name: str, target: Tensor, sources: list[Tensor]) -> None:
        """Something is written into a tensor by its places."""
        held = self.followed.get(target, [])
        if any(not each.moved for each in held):
            self._changed_in_place(target, Step(name, "", True))
        else:
            others = [each for source in sources if source is not target for each in self.followed[source]]
            self._follow(target, [*held, *(each._replace(moved=each.moved or name) for each in others)], again=False)

    def _lost(self, name: str, items: Iterable[_Followed]) -> None:
        """What is not followed beyond the function `name`."""
        for each in items:
            each.reading.elsewhere.setdefault(each.path, each.moved or name)

    def _read_by(self, name: str, sources: list[Tensor], args: Any, named: Any, layer: bool = True) -> None:
        for source in sources:
            for each in self.followed[source]:
                if name in READERS and layer:
                    each.reading.read[each.path] = None
                    each.reading.whole |= not each.moved
                elif name in SUMMARIES and not each.moved and not _mixes(name, source, each, args, named):
                    each.reading.summed = True
                else:
                    self._lost(name, [each])

    def given_back(self, values: Iterable[Any]) -> None:
        """Note what the model gives."""
        for value in values:
            for each in self.followed.get(value, ()) if isinstance(value, Tensor) else ():
                each.reading.given_back = True

    def _check_version(self, tensor: Tensor) -> None:
        if self.versions.get(tensor) != _version(tensor):
            for each in self.followed[tensor]:
                each.reading.written = True

    def _follow(self, tensor: Tensor, items: list[_Followed], again: bool = True) -> None:
        self.versions[tensor] = _version(tensor)  # first, for a mode that is on is told of this look as well
        self.followed[tensor] = items
        for each in items if again and tensor.is_floating_point() else ():
            if each.moved:
                continue
            each.reading.made[each.path] = None
            if self.made is not None:
                self.made(each.reading, each.path, partial(original_layout, tensor, each.undo))


def _mixes(name: str, source: Tensor, each: _Followed, args: Any, named: Any) -> bool:
    return not each.moved and mixes_neurons(name, source, each.undo, each.reading.neuron_dim, args, named)


def _joined(one: Path, other: Path) -> Path:
    """The path of what reads two steps of the same layer: both, their common beginning once."""
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return (*one, *other[common:])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _shape(result: Any) -> tuple[int, ...]:
    return tuple(result.shape) if isinstance(result, Tensor) else ()


def _sums(equation: Any, followed: Tensor, operands: Any) -> bool:
    """Whether an einsum sums over something of this operand, as a layer does that reads it."""
    if not isinstance(equation, str) or "->" not in equation:
        return True
    inputs, _, output = equation.replace(" ", "").partition("->")
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    mine = [term for term, operand in zip(inputs.split(","), given, strict=False) if operand is followed]
    return any(set(term) - set(output) for term in mine)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _permutation(func: Any, ndim: int, args: Any, named: Any) -> tuple[int, ...]:
    """Where each dimension of what the function gives comes from."""
    numbered = torch.empty(tuple(range(ndim)), device="meta")
    given = func(numbered, *args[1:], **named) if args else func(**{**named, "input": numbered})
    return tuple(given.shape)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.tensor(order).argsort().tolist())
