"""Numbers in what modules hold beside their tensors: attributes, configurations, lists, tables."""

from __future__ import annotations

import copy
import enum
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

DEPTH = 4
MOST_ENTRIES = 256
"""Of a list, a dictionary or an object that is a setting, and no data that a module holds."""
WORDS = (int, float, complex, str, bytes, type(None), type, enum.Enum, torch.dtype, torch.device)
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)

Change = Callable[[str, int], Any]
"""What becomes of a number, of its path: names, keys and places with points between."""


def is_setting(value: Any, depth: int = DEPTH) -> bool:
    """Whether it holds words and numbers alone, as a configuration does."""
    if isinstance(value, (*WORDS, *FUNCTIONS)):
        return True
    if isinstance(value, (list, tuple, dict)):
        inside = list(value.values() if isinstance(value, dict) else value)
    elif _is_record(value):
        inside = list(vars(value).values())
    else:
        return False
    return bool(depth) and len(inside) <= MOST_ENTRIES and all(is_setting(each, depth - 1) for each in inside)


def _is_record(value: Any) -> bool:
    """An object with attributes: a dataclass, a namespace, a configuration."""
    return hasattr(value, "__dict__") and not callable(value) and not isinstance(value, (*WORDS, nn.Module, Tensor))


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Names, keys or places of what a setting holds; what has a point in its name is left out."""
    if isinstance(value, (list, tuple)):
        yield from ((str(place), each) for place, each in enumerate(value))
        return
    items = dict(value) if isinstance(value, dict) else {}
    for key, each in (items | dict(getattr(value, "__dict__", {}))).items():
        if isinstance(key, str) and "." not in key:
            yield key, each


def changed(value: Any, change: Change, path: str = "", depth: int = DEPTH) -> Any:
    """A copy with other numbers in it, down to those that nothing in it was changed of; the value itself where none
    was."""
    if type(value) is int:
        return change(path, value)
    if not depth or isinstance(value, (*WORDS, *FUNCTIONS)):
        return value
    dot = f"{path}." if path else ""
    made = {key: changed(each, change, dot + key, depth - 1) for key, each in parts_of(value)}
    return _with(value, {key: made[key] for key, each in parts_of(value) if made[key] is not each})


def _with(value: Any, parts: dict[str, Any]) -> Any:
    """A copy that holds other things by these names, keys or places."""
    if not parts:
        return value
    if isinstance(value, (list, tuple)):
        listed = [parts.get(str(place), each) for place, each in enumerate(value)]
        return type(value)(*listed) if hasattr(value, "_fields") else type(value)(listed)
    try:
        made = copy.copy(value)
    except Exception:  # of a class that cannot be copied: it stays as it is
        return value
    for key, each in parts.items():
        if isinstance(value, dict) and key in value:
            made[key] = each
        if key in getattr(value, "__dict__", {}):
            vars(made)[key] = each  # frozen ones, too
    return made


def with_number(value: Any, path: str, number: Callable[[int], int]) -> Any:
    """A copy with one number changed, by its path.

    Args:
        number: the new one, of the old one.
    """
    return changed(value, lambda place, old: number(old) if place == path else old)


def snapshot(value: Any, depth: int = DEPTH) -> Any:
    """Another one where something in it was written into."""
    inside = isinstance(value, (list, tuple, dict)) or _is_record(value)
    return id(value), [(key, snapshot(each, depth - 1)) for key, each in parts_of(value)] if inside and depth else []
