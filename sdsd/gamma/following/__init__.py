"""Which dimension of which tensor carries the samples of a batch, followed from the model's input through torch calls.

===================  =================================================================================================
file                 what is inside
===================  =================================================================================================
`track.py`           `Track`, `Mixed`; how a tensor remembers them; samples out of any layout
`call.py`            one call as the rules see it; elementwise alignment
`rules.py`           rules by kind of operation
`indexing.py`        x[…] and x[…] = value
`table.py`           function name → rule
`independence.py`    functions without a rule: run once more with one sample changed
===================  =================================================================================================

A dimension is never taken for the samples' because of its size.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor

from .call import Call, nested
from .independence import tested
from .table import TABLE
from .track import Mixed, Track, arrange, set_track, track_of

__all__ = ["COMPOSITE", "PROPERTIES", "Mixed", "Track", "arrange", "body", "follow", "set_track", "track_of"]

COMPOSITE = frozenset({torch.nn.functional.multi_head_attention_forward})
"""Python functions of torch that are followed through their own body."""
PROPERTIES = frozenset({"T", "mT", "H", "mH", "real", "imag", "data"})
"""Attributes that give a tensor with samples."""


def name_of(func: Any) -> str:
    """The name by which the table knows a function: without the underscore of in-place variants."""
    name: str = getattr(func, "__name__", str(func))
    if name == "__get__":
        return str(func.__self__.__name__)
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name


def follow(func: Any, args: Any, kwargs: Any, out: Any, n: int) -> None:
    """Set the track of every tensor in `out` from those of the inputs of `func(*args, **kwargs)`.

    Args:
        n: samples in the batch.
    """
    name = name_of(func)
    call = Call(func, name, args, kwargs, n)
    if name == "__setitem__":
        set_track(args[0], _mixed_input(args) or TABLE[name](call, args[0]))
        return
    outputs = [out] if isinstance(out, Tensor) else list(nested(out))
    mixed = _mixed_input((args, kwargs))
    if mixed is not None:
        rule = TABLE.get(name)
        for tensor in outputs:
            set_track(tensor, None if rule is TABLE["zeros_like"] else mixed)
        return
    rule = TABLE.get(name)
    if rule is None:
        for tensor, found in zip(outputs, tested(call, outputs), strict=True):
            set_track(tensor, found)
        return
    for which, tensor in enumerate(outputs):
        call.which = which
        set_track(tensor, rule(call, tensor))


def _mixed_input(values: Any) -> Mixed | None:
    return next((track for t in nested(values) if isinstance(track := track_of(t), Mixed)), None)


@functools.cache
def body(func: Any) -> Any:
    """A Python function of torch that hands itself over to an active mode as a whole, as one that runs its own body."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    inner = {**func.__globals__, **dict.fromkeys(names, lambda *tensors: False)}
    clone = types.FunctionType(func.__code__, inner, func.__name__, func.__defaults__, func.__closure__)
    clone.__kwdefaults__ = func.__kwdefaults__
    return clone
