"""Running a model once and noting what becomes of the entries of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..models import evaluating, training_outside_torch
from . import rules_layout, rules_pictures, rules_products, rules_values
from .atoms import REAL, Atoms, Ids
from .attention import heads_apart
from .calls import Call, as_arguments
from .chance import RUNS
from .cut import CutWalk
from .others import Decisions, others, tensors_in
from .recording import Recording
from .running import Mode, overheard, run
from .sizes import Sizes, counting
from .values import Value

__all__ = ["listening", "record", "rules_layout", "rules_pictures", "rules_products", "rules_values"]

PRODUCTS = 2**34
"""Of numbers in an input with parameters, for which a forward is run on sizes beyond those that it compares: about a
second's work."""

Heard = Callable[[str, int, Tensor, int], None]
"""Called with a parameter, its axis, what it was multiplied by over that axis, and the dimension of that."""


@contextmanager
def listening(model: nn.Module, heard: Heard) -> Iterator[None]:
    """While the model runs inside, in the mode it is in, `heard` gets what each of its parameters multiplies."""
    atoms, named, _ = _parameters(model)
    axes = {
        int(axis[0]): (next(iter(value.parameters)), dim, len(axis))
        for value in named.values()
        for dim, axis in enumerate(value.axes)
        if isinstance(axis, np.ndarray) and len(axis)
    }
    walk = CutWalk(atoms, named)

    def recognised(ids: Ids, tensor: Tensor, dim: int) -> None:
        name, axis, length = axes.get(int(ids[0]), ("", 0, 0))
        if length == len(ids) and int(ids[-1]) == int(ids[0]) + length - 1:
            heard(name, axis, tensor, dim)

    walk.heard = recognised
    held = [*model.parameters(), *model.buffers()]  # a buffer that a forward replaces would leave its id to others
    with overheard(walk):
        yield
    del held


def _parameters(model: nn.Module) -> tuple[Atoms, dict[int, Value], dict[str, Value]]:
    """Entries for every parameter and buffer, by the tensor's id and by each of its names."""
    atoms = Atoms()
    named: dict[int, Value] = {}
    values: dict[str, Value] = {}
    owned = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in owned:
        if id(tensor) not in named:
            axes: list[Any] = [atoms.new(length, REAL) for length in tensor.shape]
            named[id(tensor)] = Value(axes, True, True, frozenset([name]), repr(name))
        values[name] = named[id(tensor)]
    return atoms, named, values


def record(model: nn.Module, example_input: Any) -> Recording:
    """Run the model in eval mode, and as in training without dropout and with running statistics; several times where a
    forward decides by random numbers, and on others as well where it decides by sizes or values of what it is given.

    Raises:
        Whatever the model raises in eval mode. A model that does not run in training is recorded in eval mode alone.
    """
    atoms, named, values = _parameters(model)
    walks: list[CutWalk] = []
    ran: set[str] = set()
    for training, mode in MODES:
        for seed in (None, *range(1, RUNS)):
            try:
                walk = _walked(model, example_input, (atoms, named), (training, mode, seed), ran)
            except Exception:
                if not training:
                    raise
                break  # it may need targets
            walks.append(walk)
            if not walk.chance.decides:
                break
    recording = Recording(atoms, values, walks, ran, [], _lists(model))
    if any(walk.decisions.by_sizes or walk.decisions.by_values for walk in walks):
        _record_others(model, Call(*as_arguments(example_input)), recording, named)
    atoms.settle()
    for walk in walks:
        walk.pieces.settle()
    return recording


MODES: tuple[tuple[bool, Mode], ...] = ((False, evaluating), (True, training_outside_torch))


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
        try:
            walk = _walked(model, call, (recording.atoms, named), (training, mode, None), recording.ran)
        except Exception:
            return training
        recording.walks.append(walk)
    return True


def _walked(
    model: nn.Module,
    example_input: Any,
    entries: tuple[Atoms, dict[int, Value]],
    how: tuple[bool, Mode, int | None],
    ran: set[str],
) -> CutWalk:
    """One run; numbers in configurations are left as they are where modules share what the forward writes there."""
    (atoms, named), (training, mode, seed) = entries, how
    for inside in (True, False):
        walk = CutWalk(atoms, named, training)
        walk.ran = ran
        for tensor in tensors_in(as_arguments(example_input)):
            if id(tensor) not in walk.named:
                walk.values[tensor] = Value([None] * tensor.ndim, label="the model's input", shape=tuple(tensor.shape))
        beside = (heads_apart(model), counting(model, walk, inside), Sizes(walk))
        try:
            with atoms.unless_it_fails():
                run(model, example_input, walk, mode, seed=seed, beside=beside)
        except Exception:
            if not inside:
                raise
        else:
            return walk
    raise AssertionError("unreachable")
