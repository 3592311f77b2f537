"""Which dimension of which tensor carries the samples of a batch, followed from the model's input through torch calls.

===================  =================================================================================================
file                 what is inside
===================  =================================================================================================
`track.py`           `Track`, `Summed`, `Mixed`; how a tensor remembers them; samples out of any layout
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
from .rules import together
from .table import LINEAR, PRODUCTS, QUOTIENTS, TABLE
from .track import Mixed, Part, Summed, Track, arrange, is_second, set_second, set_track, track_of


__all__ = [
    "COMPOSITE", "ENTRYWISE", "PROPERTIES", "SHAPE_ONLY", "Mixed", "Part", "Summed", "Track", "arrange", "body",
    "follow", "name_of", "set_second", "set_track", "take_over", "track_of",
]  # fmt: skip

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


ENTRYWISE = frozenset(name for name, rule in TABLE.items() if rule is TABLE["relu"])
"""Names of functions (out of place) whose output of the input's shape carries samples as the input does."""
SHAPE_ONLY = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as"]) | frozenset(
    name for name, rule in TABLE.items() if rule is TABLE["zeros_like"]
)
"""Functions that take nothing but shape or type from tensors after the first (or from any)."""


def follow(func: Any, args: Any, kwargs: Any, out: Any, n: int) -> Mixed | None:
    """Set the track of every tensor in `out` from those of the inputs of `func(*args, **kwargs)`.

    Args:
        n: samples in the batch.

    Returns:
        `Mixed` where this call is the one that mixes samples, or mixes more of them.
    """
    name = name_of(func)
    call = Call(func, name, args, kwargs, n)
    place = name == "__setitem__"
    outputs = [args[0]] if place else [out] if isinstance(out, Tensor) else list(nested(out))
    rule = TABLE.get(name)
    if rule is TABLE["zeros_like"]:
        for tensor in outputs:
            set_track(tensor, None)
        return None
    read = args[:1] if name in SHAPE_ONLY else (args, kwargs)
    call.outputs = outputs
    mixed: Mixed | None = None
    sums: list[Tensor] = []
    sampled = False
    for tensor in nested(read):
        track = track_of(tensor)
        if isinstance(track, Part):
            found = together(call, outputs[0]) if name in ("cat", "concat", "stack") else Mixed(track.reason)
            if not isinstance(found, Mixed):
                set_track(outputs[0], found)
                return None
            mixed, sampled = found, True
        elif isinstance(track, Mixed):
            mixed = track
        elif isinstance(track, Summed):
            sums.append(tensor)
        elif track is not None:
            sampled = True
    if mixed is None and sums:
        reason = track_of(sums[0]).reason  # type: ignore[union-attr]
        if sampled:
            mixed = Mixed(f"{reason}, joined with samples again by torch's {name}")
        elif name not in LINEAR or not _linear(name, args, sums):
            mixed = Mixed(f"{reason}, followed by torch's {name}, which is not linear")
        else:
            for tensor in outputs:
                set_track(tensor, track_of(sums[0]))
            return None
        sampled = True
    if mixed is not None:
        for tensor in outputs:
            set_track(tensor, mixed)
        return mixed if sampled else None
    if not sampled:
        return None
    if rule is None:
        tracks = tested(call, outputs)
    else:
        tracks = []
        for which, tensor in enumerate(outputs):
            call.which = which
            tracks.append(rule(call, tensor))
    second = all(is_second(t) for t in nested(read) if track_of(t) is not None)
    for tensor, found in zip(outputs, tracks, strict=True):
        set_track(tensor, found)
        if second:
            set_second(tensor)
        if isinstance(found, Mixed):
            mixed = found
    return mixed


def _linear(name: str, args: Any, sums: list[Tensor]) -> bool:
    """Whether a function of sums over samples is linear in them: products with one that has no gradient are."""
    if name not in PRODUCTS:
        return True
    trained = [t for t in sums if t.requires_grad]
    if len(trained) > 1:
        return False
    return name not in QUOTIENTS or not trained or trained[0] is args[0]


def take_over(out: Tensor, source: Tensor) -> None:
    """`out` carries samples as `source` does."""
    set_track(out, track_of(source))
    if is_second(source):
        set_second(out)


@functools.cache
def body(func: Any) -> Any:
    """A Python function of torch that hands itself over to an active mode as a whole, as one that runs its own body."""
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    inner = {**func.__globals__, **dict.fromkeys(names, lambda *tensors: False)}
    clone = types.FunctionType(func.__code__, inner, func.__name__, func.__defaults__, func.__closure__)
    clone.__kwdefaults__ = func.__kwdefaults__
    return clone
