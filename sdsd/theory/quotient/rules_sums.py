"""Rules for sums and products entry by entry: biases, residual adds, γ, gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .channels import BIAS, KERNEL, READ, SCALE, Seen, pairs, renamed, spread, unique, varies
from .walk import MoveWalk, Step, eps_of, kind_of, noted, rule


@rule("sum")
def add_(walk: MoveWalk, step: Step) -> None:
    one, other = step.args[0], step.args[1]
    alpha = float(step.kwargs.get("alpha", 1.0))
    factors = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[step.name]
    walk.give(step.out, added(walk, (one, other), factors, tuple(step.out.shape)))


def added(walk: MoveWalk, terms: tuple[Any, Any], factors: tuple[float, float], shape: tuple[int, ...]) -> Seen:
    """What the sum of two terms is."""
    seen = [walk.value(term) for term in terms]
    if all(each.ids is None for each in seen):
        walk.outside.update(each.name for each in seen if each.is_parameter)
        return Seen(computed=any(each.is_parameter or each.computed for each in seen))
    if seen[0].ids is None:
        terms, factors, seen = terms[::-1], factors[::-1], seen[::-1]
    mine, theirs, label = seen[0], seen[1], walk.label("add")
    assert mine.ids is not None
    offsets = times(mine.offsets, factors[0])
    if theirs.is_parameter:
        walk.regular(mine, f"{label} adds a parameter to a power or a mean of them")
        return biased(walk, mine, theirs, factors[1], shape, offsets)
    if theirs.ids is None:
        return _with_constant(walk, mine, terms[1], shape, offsets, theirs.computed)
    if mine.power != theirs.power:
        for each in (mine, theirs):
            walk.channels.hold(each.ids, f"{label} adds different powers of them")  # type: ignore[arg-type]
        mine, theirs = (Seen(each.ids, statistic=each.statistic) for each in (mine, theirs))
    if mine.statistic or theirs.statistic:
        return _with_statistic(walk, mine, theirs, shape, label)
    walk.channels.tie(mine.ids, theirs.ids, why=f"{label} joins them with what no layer writes")  # type: ignore[arg-type]
    wide = _most(mine.ids, theirs.ids, shape)  # type: ignore[arg-type]
    if offsets is not None and theirs.offsets is not None:
        for name, value in theirs.offsets.items():
            offsets[name] = offsets.get(name, 0.0) + factors[1] * value
        return Seen(wide, offsets=offsets, power=mine.power)
    return Seen(wide, power=mine.power)


def _most(one: Tensor, other: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Of tied channels those of the tensor that has most."""
    one, other = one.expand(shape), other.expand(shape)
    lead, rest = (one, other) if one.count_nonzero() >= other.count_nonzero() else (other, one)
    return lead if bool((lead > 0).all()) else spread(torch.where(lead > 0, lead, rest))


def times(offsets: dict[str, float] | None, factor: float) -> dict[str, float] | None:
    return None if offsets is None else {name: factor * value for name, value in offsets.items()}


def biased(
    walk: MoveWalk, mine: Seen, weight: Seen, factor: float, shape: tuple[int, ...], offsets: dict[str, float] | None
) -> Seen:
    assert mine.ids is not None
    ids = mine.ids.expand(shape)
    place = walk.laid(ids, weight, shape)
    if place is None:
        walk.outside.add(weight.name)
        walk.channels.fix(ids, f"{weight.name!r} is added to them all alike")
        return Seen(ids)
    axis, entries, channels = place
    plain = len(weight.entries) == 1
    walk.use(BIAS if plain else KERNEL, weight, axis, entries, channels, walk.taken(weight))
    if offsets is not None and plain:
        offsets[weight.name] = offsets.get(weight.name, 0.0) + factor
    return Seen(ids, offsets=offsets if plain else None)


def _with_constant(
    walk: MoveWalk,
    mine: Seen,
    constant: Any,
    shape: tuple[int, ...],
    offsets: dict[str, float] | None,
    computed: bool,
) -> Seen:
    assert mine.ids is not None
    ids = mine.ids.expand(shape)
    if mine.statistic and isinstance(constant, float) and (0 < constant < 1e-2 or eps_of(walk, constant)):
        _norm_of_statistic(walk, mine, float(constant))
        return Seen(ids, power=mine.power, statistic=True)
    if not isinstance(constant, (int, float)) or constant != 0:
        walk.channels.hold(ids, f"a constant is added to them ({walk.label('add')})")
        walk.channels.bend(ids)
    by_place(walk, ids, constant, computed)
    return Seen(ids, offsets=offsets, power=mine.power)


def by_place(walk: MoveWalk, ids: Tensor, other: Any, unknown: bool = False) -> None:
    """Channels each of which meets another number cannot change places."""
    if not isinstance(other, Tensor) or other.numel() == 1:
        return
    shift = ids.ndim - other.ndim
    if any(varies(ids, dim) and dim >= shift and other.shape[dim - shift] > 1 for dim in range(ids.ndim)):
        what = "what the model computes from parameters" if unknown else "what no layer writes"
        walk.channels.keep_place(ids, f"{walk.label('each')} meets an entry of its own of {what}")
        walk.channels.bend(ids)


def _with_statistic(walk: MoveWalk, mine: Seen, theirs: Seen, shape: tuple[int, ...], label: str) -> Seen:
    """A mean over neurons is added to them, or taken away, as a norm does."""
    if mine.statistic:
        mine, theirs = theirs, mine
    assert mine.ids is not None
    assert theirs.ids is not None
    walk.channels.tie(mine.ids, theirs.ids, order=False, why=f"{label} joins them with what no layer writes")
    for each in (mine.ids, theirs.ids):
        walk.channels.pass_through(each, f"{label} joins them with a mean")
    return Seen(mine.ids.expand(shape), power=mine.power, statistic=mine.statistic)


@rule("product")
def scaled(walk: MoveWalk, step: Step) -> None:
    one, other = step.args[0], step.args[1]
    a, b = walk.value(one), walk.value(other)
    shape = tuple(step.out.shape)
    if a.ids is None and b.ids is None:
        walk.outside.update(each.name for each in (a, b) if each.is_parameter)
        walk.give(step.out, Seen(computed=any(each.is_parameter or each.computed for each in (a, b))))
        return
    if a.ids is None and step.name == "div":
        walk.unknown(step)
        return
    if a.ids is None:
        one, other, a, b = other, one, b, a
    assert a.ids is not None
    ids = a.ids.expand(shape)
    if step.name == "div" and b.ids is not None:
        b = b.on(b.ids, power=-b.power)
    if isinstance(other, (int, float)):
        factor = float(other) if step.name == "mul" else 1 / float(other)
        walk.give(step.out, a.on(ids, offsets=times(a.offsets, factor)))
    elif b.is_parameter:
        walk.give(step.out, _gamma(walk, a, b, shape) if step.name == "mul" else Seen())
        if step.name == "div":
            walk.unknown(step)
    elif b.ids is None:
        by_place(walk, ids, other, b.computed)
        walk.channels.keep_shift(ids, f"they pass through {walk.label(step.name)}")
        walk.give(step.out, Seen(ids, power=a.power, statistic=a.statistic))
    else:
        walk.give(step.out, of_two(walk, a, b, shape))


def _gamma(walk: MoveWalk, given: Seen, weight: Seen, shape: tuple[int, ...]) -> Seen:
    """A parameter multiplies each channel by a number of its own."""
    assert given.ids is not None
    ids = given.ids.expand(shape)
    label = repr(weight.name)
    walk.regular(given, f"{label} multiplies a power or a mean of them")
    if all(each.numel() == 1 for each in weight.entries) and len(unique(ids)) > 1:
        walk.outside.add(weight.name)
        walk.channels.keep_shift(ids, f"they pass through a product with {label}")
        return Seen(ids)
    place = walk.laid(ids, weight, shape)
    if place is None:
        walk.outside.add(weight.name)
        walk.channels.fix(ids, f"no rule for their product with {label}")
        return Seen()
    axis, entries, channels = place
    known, table = walk.channels.renewed(ids)
    taken = walk.taken(weight)
    walk.use(READ, weight, axis, entries, channels, taken)
    walk.use(SCALE, weight, axis, entries, table[channels], taken)
    after = renamed(ids, table)
    walk.laid(after, weight, shape)
    walk.channels.follow(known, table[known])
    walk.channels.pass_through(known, f"{label} multiplies them")
    return Seen(after, offsets={})


def of_two(walk: MoveWalk, a: Seen, b: Seen, shape: tuple[int, ...]) -> Seen:
    """A product of neurons with neurons, entry by entry: gates, powers, and norms put together by hand."""
    assert a.ids is not None
    assert b.ids is not None
    label = walk.label("mul")
    if a.statistic and not b.statistic:
        a, b = b, a
    assert a.ids is not None
    assert b.ids is not None
    wide, second = a.ids.expand(shape), b.ids.expand(shape)
    for ids in (a.ids, b.ids):
        walk.channels.pass_through(ids, f"they pass through {label}")
    if b.statistic and not a.statistic:
        walk.channels.tie(wide, second, order=False, why=f"{label} joins them with what no layer writes")
        if a.power + b.power != 0:
            walk.channels.hold(wide, f"{label} multiplies them by a mean of them")
            return Seen(wide)
        return _normed(walk, wide)
    mine, theirs = pairs(wide, second)
    if np.array_equal(mine, theirs) and walk.channels.is_held(mine):
        return Seen(wide)
    if np.array_equal(mine, theirs):
        return Seen(wide, power=a.power + b.power, statistic=a.statistic and b.statistic)
    for each in (a, b):
        walk.regular(each, f"{label} multiplies powers of neurons")
    if walk.channels.is_held(a.ids):
        wide, second = second, wide
    elif not walk.channels.is_held(b.ids):
        walk.channels.hold(b.ids, f"{label} multiplies them by other neurons")
    both = (mine > 0) & (theirs > 0)
    walk.channels.follow(mine[both], theirs[both])
    for alone in (mine[theirs == 0], theirs[mine == 0]):
        walk.channels.fix(alone, f"{label} joins them with what no layer writes")
    return Seen(wide)


def _normed(walk: MoveWalk, ids: Tensor) -> Seen:
    """What a norm gives: the same neurons, whose scale is gone."""
    known, table = walk.channels.renewed(ids)
    walk.channels.follow(known, table[known])
    walk.channels.hold(table[known], "a norm sets their scale")
    return Seen(renamed(ids, table))


def _norm_of_statistic(walk: MoveWalk, statistic: Seen, eps: float) -> None:
    """A mean over neurons, plus eps: a norm that is put together by hand."""
    ids = unique(statistic.ids)  # type: ignore[arg-type]
    noted(walk, ids, kind_of(walk, ("Norm",), "a norm"), eps)
