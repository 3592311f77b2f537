"""A function without a rule: run again with one sample changed, to see which entries of the output change with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .call import Call, Found
from .track import Track, track_of

RANDOM = (
    "rand",
    "normal",
    "bernoulli",
    "multinomial",
    "dropout",
    "rrelu",
    "poisson",
    "exponential",
    "uniform",
    "gumbel",
)


def tested(call: Call, outputs: list[Tensor]) -> list[Found]:
    """Where the samples lie in every output; Mixed where one sample reaches more than its own entries."""
    refusal = call.mixed("is not followed")
    name = call.name
    if name.endswith("_") or name.startswith("__i") or any(word in name for word in RANDOM) or call.n < 2:
        return [refusal] * len(outputs)
    inputs = call.tracked()
    if any(not t.is_floating_point() for t, _ in inputs) or any(not t.is_floating_point() for t in outputs):
        return [refusal] * len(outputs)
    candidates: list[set[Track] | None] = [None] * len(outputs)
    state = torch.get_rng_state()
    try:
        for sample in (0, call.n - 1):
            try:
                after = _again(call, sample)
            except Exception:  # what cannot run again cannot be told
                return [refusal] * len(outputs)
            if len(after) != len(outputs) or any(a.shape != b.shape for a, b in zip(after, outputs, strict=True)):
                return [refusal] * len(outputs)
            for k, (before, now) in enumerate(zip(outputs, after, strict=True)):
                found = _fitting(call, inputs, (before.detach() != now) & ~(before.isnan() & now.isnan()), sample)
                held = candidates[k]
                candidates[k] = found if held is None else held & found
    finally:
        torch.set_rng_state(state)
    return [next(iter(found)) if found is not None and len(found) == 1 else refusal for found in candidates]


def _again(call: Call, sample: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)

    def changed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        track = track_of(value)
        copy = value.detach()
        if not isinstance(track, Track):
            return copy
        copy = copy.clone()
        rows = copy.unflatten(track.axis, (track.outer, call.n, track.inner)).select(track.axis + 1, sample)
        noise = torch.rand(rows.shape, generator=generator, dtype=torch.float64).to(rows)
        rows.copy_(rows * (1.5 + noise) + noise)
        return copy

    args, kwargs = pytree.tree_map(changed, (call.args, call.kwargs))
    with torch.no_grad():
        out = call.func(*args, **kwargs)
    return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]


def _fitting(call: Call, inputs: list[tuple[Tensor, Track]], change: Tensor, sample: int) -> set[Track]:
    """Layouts under which nothing but this sample's entries changed, and something did."""
    found = set()
    layouts = {(track.outer, track.inner) for _, track in inputs}
    if not change.any():
        return found
    for axis, size in enumerate(change.shape):
        for outer, inner in layouts:
            if outer * call.n * inner != size:
                continue
            rows = change.unflatten(axis, (outer, call.n, inner)).movedim(axis + 1, 0).flatten(1).any(1)
            others = rows.clone()
            others[sample] = False
            if rows[sample] and not others.any():
                found.add(Track(axis, outer, inner))
    return found
