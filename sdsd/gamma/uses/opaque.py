"""What the mode cannot look into: compiled parts, torch.func's transforms, and models that other monitors watch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import _pop_mode_temporarily

from ...models import is_skipped, uncompiled
from ..following import Mixed, layers_of, set_track, track_of, using
from .operand import leaves_of, marked
from .tensors import deep_tensors, tensors_in

if TYPE_CHECKING:
    from .measuring import Measuring

_LOST = Mixed(
    "code that torch.compile compiled, in which samples could not be followed. From the next batch on it runs "
    "uncompiled where it is measured; to measure this one, leave it uncompiled"
)


def hide_from_dynamo(function: Any) -> None:
    """Of a mode: where a compiled function is called under it, Dynamo would compile the mode, too, frame by frame."""
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))


def within_another(mode: Measuring, func: Any, args: Any, kwargs: Any, how: str) -> Any:
    """A call by a model that another monitor watches, run inside of this one's: samples of this one's own account."""
    with using(mode.ledger.tracks):
        return mode._any_call(func, args, kwargs, how)


def transformed(mode: Measuring, func: Any, args: Any, kwargs: Any) -> Any:
    """Within vmap and the like samples are not followed, and no parameter that meets them is measured."""
    inputs = [layer for tensor in tensors_in(args, kwargs) for layer in layers_of(tensor)]
    parameters = [t for t in inputs if t.requires_grad and track_of(t) is None]
    out = marked(mode.follow(func, args, kwargs, func(*args, **kwargs)))
    if parameters and any(track_of(t) is not None for t in inputs):
        # By name alone: within a transform a parameter's own node cannot be asked for.
        computed = [leaf.name for t in parameters if t.grad_fn is not None for leaf in leaves_of(t, mode.session)[0]]
        own = [mode.session.name_of(t) for t in parameters if t.grad_fn is None]
        mode.ledger.refuse([*computed, *(name for name in own if name is not None)], _transforms())
    return out


def _transforms() -> str:
    """Why nothing is measured in the transforms that are under way."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    names = ", ".join(dict.fromkeys(f"torch.func.{each.key().name.lower()}" for each in stack))
    return (
        f"samples are not followed inside {names}. Where vmap only repeats a layer, call the layer with all samples "
        "(layer(x) in the place of vmap(layer)(x)); what needs derivatives of the model takes micro-batches for samples"
    )


def user_function() -> str | None:
    """The autograd.Function of the user's inside of which this is called, or None."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "apply":
            kind = frame.f_locals.get("cls")
            if isinstance(kind, type) and issubclass(kind, torch.autograd.Function):
                return None if kind.__module__.startswith("torch.") else kind.__qualname__
        frame = frame.f_back
    return None


def through_compiled(
    mode: Measuring, part: tuple[nn.Module, str], plain: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """A compiled part of the model, into which no mode can look: it is measured module by module.

    Where its outputs carry samples was followed while it was compiled, from where its inputs did. One that could
    not be followed runs uncompiled the next time.
    """
    session = mode.session
    if id(part[0]) in session.uncompiled_parts or is_skipped(*part):
        return uncompiled(*part)(*args, **kwargs)
    carried = [(t, track_of(t)) for t in deep_tensors((args, kwargs))]
    for tensor, _ in carried:
        set_track(tensor, None)
    session.entering, session.leaving, session.lying = carried, [], str([track for _, track in carried])
    try:
        with _pop_mode_temporarily():
            out = plain(*args, **kwargs)
        known = {id(tensor): track for tensor, track in (*carried, *session.leaving)}
    finally:
        session.entering, session.leaving, session.lying = None, None, ""
        for tensor, track in carried:
            set_track(tensor, track)
    sampled = any(track is not None for _, track in carried)
    for tensor in deep_tensors(out):
        if not sampled and tensor.grad_fn is None:
            continue
        track = known.get(id(tensor), _LOST)
        if track is _LOST:
            session.uncompiled_parts.add(id(part[0]))
        set_track(tensor, track)
        if isinstance(track, Mixed):
            mode.watch_mixing([tensor], track)
        marked(tensor)
    return out
