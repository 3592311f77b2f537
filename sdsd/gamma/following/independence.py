"""Functions without a rule: are the samples of their output independent? Found out by trying.

The function runs again, without gradients, on inputs in which one sample was changed; whatever changes in the output
has to lie at that sample's place along one dimension. What is random or in place, or reads samples that are whole
numbers, which may be positions, is not tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .table import name_of
from .tracks import Mixed, Track, Verdict, set_written, tensors_in, track_of

_verdicts: dict[Any, list[Verdict]] = {}

UNCHANGED = "unchanged"
WAYS = ("swapped", "noise", "large", "poison")


def _map(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(v, change) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    return value


def _key(func: Any, args: Any, kwargs: Any, n: int) -> Any:
    """What a verdict may depend on; None where it may depend on values: whole numbers can be positions."""
    for x in tensors_in((args, list(kwargs.values()))):
        if not (x.is_floating_point() or x.is_complex()):
            return None
    described = _map((args, kwargs), lambda x: (tuple(x.shape), x.dtype, x.device, track_of(x)))
    return func, n, repr(described)


def _changed(x: Tensor, n: int, sample: int, way: str, noise: torch.Generator) -> Tensor:
    """A copy of `x` in which the entries of one sample have other values."""
    copy = x.detach().clone()
    track = track_of(x)
    if not isinstance(track, Track) or way == UNCHANGED:
        return copy
    rows = copy.movedim(track.axis, 0).unflatten(0, (track.outer, n, track.inner))
    part = rows[:, sample]
    if way == "swapped":
        rows[:, sample] = rows[:, (sample + 1) % n].clone()
    elif way == "poison":
        part.fill_(float("nan"))
    else:
        drawn = torch.randn(part.shape, generator=noise, dtype=torch.float64)
        rows[:, sample] = part + (1000.0 if way == "large" else 1.0) * drawn.to(part)
    return copy


def _same(a: Tensor, b: Tensor) -> Tensor:
    """Entry by entry: equal, or both not a number."""
    return (a == b) | ((a != a) & (b != b))


def _patterns(differs: Tensor, n: int, sample: int) -> set[Track]:
    """Every track whose places of `sample` are just those that changed."""
    tracks = set()
    for axis, size in enumerate(differs.shape):
        if size % n or size == 0:
            continue
        others = [d for d in range(differs.dim()) if d != axis]
        changed = differs.any(dim=others) if others else differs
        for inner in range(1, size // n + 1):
            if (size // n) % inner == 0:
                index = torch.arange(size, device=differs.device)
                if bool((changed == ((index // inner) % n == sample)).all()):
                    tracks.add(Track(axis, size // n // inner, inner))
    return tracks


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return states


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def tested(func: Any, args: Any, kwargs: Any, out: Any, n: int) -> Any:
    """The verdict of each output tensor of a function without a rule."""
    name = name_of(func)
    unknown = Mixed(f"{name}, which is not known")
    outputs = list(tensors_in(out))
    if any(x.is_nested for x in outputs):
        return Mixed(f"{name}, which makes a nested tensor; pad it and mask what is not valid instead")
    inputs = list(tensors_in((args, list(kwargs.values()))))
    followed = [x for x in inputs if isinstance(track_of(x), Track)]
    if "out" in kwargs or getattr(func, "__name__", "").endswith("_"):
        for x in inputs:
            set_written(x, track_of(x), unknown)
        return unknown
    if not outputs or n < 2 or not all(x.is_floating_point() or x.is_complex() for x in followed):
        return unknown
    if any(x.is_cuda for x in inputs) and torch.cuda.is_current_stream_capturing():
        return unknown
    key = _key(func, args, kwargs, n)
    if key is not None and key in _verdicts:
        return list(_verdicts[key])
    states = _random_state()
    try:
        with torch.no_grad():
            verdicts = _tried(func, args, kwargs, inputs, outputs, n, unknown=unknown, states=states)
    except Exception as error:  # Whatever a function says about changed inputs, it cannot be tried.
        # Some of torch's errors list every backend there is.
        why = str(error).split(". ")[0]
        verdicts = [Mixed(f"{name}, which is not known and could not be tried ({why})")] * len(outputs)
    finally:
        _restore(states)
    if key is not None:
        _verdicts[key] = verdicts
    return list(verdicts)


def _tried(
    func: Any,
    args: Any,
    kwargs: Any,
    inputs: list[Tensor],
    outputs: list[Tensor],
    n: int,
    *,
    unknown: Mixed,
    states: list[Tensor],
) -> list[Verdict]:
    noise = torch.Generator().manual_seed(0)

    def again(sample: int, way: str) -> tuple[list[Tensor], list[bool]]:
        copies: list[Tensor] = []

        def change(x: Tensor) -> Tensor:
            copies.append(_changed(x, n, sample, way, noise))
            return copies[-1]

        changed_args, changed_kwargs = _map(tuple(args), change), _map(dict(kwargs), change)
        versions = [x._version for x in copies]
        result = [x.detach().clone() for x in tensors_in(func(*changed_args, **changed_kwargs))]
        return result, [x._version != v for x, v in zip(copies, versions, strict=True)]

    first, written = again(0, UNCHANGED)
    if any(written):
        for x, was_written in zip(inputs, written, strict=True):
            if was_written:
                set_written(x, track_of(x), unknown)
        return [unknown] * len(outputs)
    drawn = any(not torch.equal(a, b) for a, b in zip(states, _random_state(), strict=True))
    if drawn or any(a.shape != b.shape or not bool(_same(a, b).all()) for a, b in zip(outputs, first, strict=True)):
        return [Mixed(f"{unknown.reason}, random, or different at each call")] * len(outputs)
    fitting: list[set[Track] | None] = [None] * len(outputs)
    for sample in sorted({0, 1, n // 3, (n - 1) // 2, n - 2, n - 1}):
        differs = [torch.zeros(x.shape, dtype=torch.bool, device=x.device) for x in outputs]
        for way in WAYS:
            result, _ = again(sample, way)
            for k, (before, after) in enumerate(zip(outputs, result, strict=True)):
                if before.shape != after.shape:
                    return [unknown] * len(outputs)
                differs[k] |= ~_same(before, after)
        for k, changed in enumerate(differs):
            possible = _patterns(changed, n, sample)
            held = fitting[k]
            fitting[k] = possible if held is None else held & possible
    return [next(iter(f)) if f is not None and len(f) == 1 else unknown for f in fitting]
