"""What a model is called with, and what it gives."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, ValuesView
from typing import Any, NamedTuple

from torch import Tensor


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
