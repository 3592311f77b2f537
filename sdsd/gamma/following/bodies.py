"""Functions of torch that are written in Python and have no rule: their inside is followed instead.

Under a `TorchFunctionMode` such a function is handed over as a whole, because it asks `has_torch_function` first.
`body` is the same code with that question answered no: run with the mode active, it shows the calls within.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from .table import RULES

QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _no(*_: Any) -> bool:
    return False


@functools.cache
def body(func: Callable[..., Any]) -> Callable[..., Any]:
    """The code of `func`, a member of `COMPOSITE`, that does not hand itself over to modes. Cached."""
    if not isinstance(func, types.FunctionType):
        raise TypeError(f"expected a function written in Python, got {func!r}")
    scope = {**func.__globals__, **dict.fromkeys(QUESTIONS, _no)}
    clone = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    clone.__kwdefaults__ = func.__kwdefaults__
    return clone


def composite_functions() -> frozenset[Any]:
    """Functions written in Python, without a rule, that would hide what they call from a mode."""
    holders = (functional, torch.functional)
    candidates = (function for holder in holders for function in vars(holder).values())
    return frozenset(
        function
        for function in candidates
        if isinstance(function, types.FunctionType)
        and function not in RULES
        and set(QUESTIONS) & set(function.__code__.co_names)
        and function.__module__ in ("torch.nn.functional", "torch.functional")
        and not function.__name__.startswith("_")
    )
