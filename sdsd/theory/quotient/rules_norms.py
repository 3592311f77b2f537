"""Rules for norms, in one operation or put together by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...graphs import tensors
from .channels import BIAS, EXTRA, SCALE, NormUse, Seen, compact, renamed, unique, varies
from .rules_products import apart
from .walk import TRY_SHAPES, MoveWalk, Step, eps_of, kind_of, rule


def _after(
    walk: MoveWalk,
    before: Tensor | None,
    shape: tuple[int, ...],
    dim: int,
    *,
    weight: Any,
    bias: Any,
    why: str,
    extras: tuple[Any, ...] = (),
) -> Tensor:
    """The channels that γ and β of a norm write; its inputs keep their order with them."""
    places = torch.arange(1, shape[dim] + 1).view([-1 if k == dim else 1 for k in range(len(shape))]).expand(shape)
    source = places if before is None else before
    known = unique(source)
    made = walk.channels.new(len(known))
    table = np.zeros(max(walk.channels.count, int(known.max(initial=0)) + 1), np.int64)
    table[known] = made
    after = renamed(source, table)
    if before is None:
        walk.channels.keep_place(made, "they are joined with what no layer writes")
    else:
        walk.channels.follow(known, made)
    layout = [-1 if k == dim else 1 for k in range(len(shape))]
    for tensor, role in ((weight, SCALE), (bias, BIAS), *((each, EXTRA) for each in extras)):
        seen = walk.value(tensor)
        if not isinstance(tensor, Tensor):
            continue
        if not seen.is_parameter or (place := walk.laid(after, _reshape_seen(seen, layout), shape)) is None:
            if seen.computed or seen.is_parameter:
                walk.outside.update([seen.name] if seen.is_parameter else [])
                walk.channels.fix(made, f"{walk.label('norm')} has parameters that are computed or laid otherwise")
            continue
        walk.use(role, seen, *place, walk.taken(seen))
    if not walk.value(weight).is_parameter:
        walk.channels.hold(made, why)
    return after


def _reshape_seen(seen: Seen, layout: list[int]) -> Seen:
    return Seen(name=seen.name, entries=tuple(each.reshape(layout) for each in seen.entries))


def _offsets(walk: MoveWalk, bias: Any) -> dict[str, float]:
    seen = walk.value(bias)
    return {seen.name: 1.0} if seen.is_parameter else {}


@rule("batch norm")
def batch_norm(walk: MoveWalk, step: Step) -> None:
    given, weight, bias = step.args[:3]
    running = [each for each in step.args[3:5] if isinstance(each, Tensor)]
    kind = kind_of(walk, ("BatchNorm", "InstanceNorm"), "BatchNorm")
    eps = next((each for each in reversed(step.args) if isinstance(each, float)), 1e-5)
    seen, label = walk.value(given), walk.label("batch_norm")
    if seen.ids is not None and any(varies(seen.ids, dim) for dim in range(given.ndim) if dim != 1):
        walk.unknown(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    buffers = [walk.value(each) for each in running]
    owned = all(each.is_parameter for each in buffers)
    owner = buffers[0].name.rpartition(".")[0] if buffers and owned else walk.module
    if seen.ids is not None:
        line = seen.ids.movedim(1, 0).reshape(given.shape[1], -1)[:, 0].numpy()
        if "InstanceNorm" in kind:  # it sees each sample's channels one after the other
            gamma = walk.value(weight)
            line = line[: len(gamma.entries[0].unique() if gamma.is_parameter else unique(seen.ids))]
        names = owner if not buffers or owned else ""
        walk.channels.norms.append(NormUse(names, kind, line, dict(seen.offsets or {}), eps_of(walk, eps)))
        if not owned:
            walk.channels.fix(unique(seen.ids), f"{label} keeps its statistics elsewhere than in buffers")
    extras = tuple(each for each, buffer in zip(running, buffers, strict=True) if buffer.is_parameter)
    why = f"{label} has no scale of its own"
    after = _after(walk, seen.ids, tuple(given.shape), 1, weight=weight, bias=bias, why=why, extras=extras)
    outs = list(tensors(step.out))
    for out in outs:
        walk.give(out, Seen())
    walk.give(outs[0], Seen(after, offsets=_offsets(walk, bias)))


@rule("layer norm")
def layer_norm(walk: MoveWalk, step: Step) -> None:
    given, shape, weight = step.args[0], step.args[1], step.args[2]
    mean = "layer" in step.name
    bias, eps = (step.args[3], step.argument(4, "eps", 1e-5)) if mean else (None, step.argument(3, "eps"))
    kind, label = ("LayerNorm" if mean else "RMSNorm"), walk.label(step.name)
    seen = walk.value(given)
    if len(shape) != 1:
        walk.unknown(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    if seen.ids is not None and not varies(seen.ids, given.ndim - 1) and given.shape[-1] > 1:
        walk.unknown(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
        return
    if seen.ids is not None:
        lead = seen.ids.narrow(-1, 0, 1)
        walk.channels.tie(seen.ids, lead.expand(seen.ids.shape), order=False, why=f"{label} joins them with others")
        walk.channels.bend(unique(seen.ids))
        if not mean:
            walk.channels.keep_shift(unique(seen.ids), f"{label} does not subtract a mean")
        name = walk.module if eps_of(walk, eps) else ""
        apart(walk, seen.ids, given.ndim - 1)
        line = compact(seen.ids)[0]
        walk.channels.norms.append(NormUse(name, kind, line, dict(seen.offsets or {}), eps_of(walk, eps)))
    why = f"{label} has no scale of its own"
    after = _after(walk, seen.ids, tuple(given.shape), given.ndim - 1, weight=weight, bias=bias, why=why)
    outs = list(tensors(step.out))
    for out in outs:
        walk.give(out, Seen())
    walk.give(outs[0], Seen(after, offsets=_offsets(walk, bias)))


@rule("group norm")
def group_norm(walk: MoveWalk, step: Step) -> None:
    given, weight, bias = step.args[:3]
    groups, eps = step.args[6], step.args[7]
    seen, label = walk.value(given), walk.label("group_norm")
    if seen.ids is not None and any(varies(seen.ids, dim) for dim in range(given.ndim) if dim != 1):
        walk.unknown(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    if seen.ids is not None:
        line = seen.ids.movedim(1, 0).reshape(given.shape[1], -1)[:, 0]
        rows = line.view(groups, -1)
        walk.channels.tie(rows, rows[:, :1].expand(rows.shape), order=False, why=f"{label} joins them with others")
        walk.channels.bend(unique(line))
        if 1 < groups < len(line):
            each = torch.arange(groups)[:, None].expand(rows.shape)
            walk.channels.refine(rows.reshape(-1).numpy(), each.reshape(-1).numpy())
        name = walk.module if eps_of(walk, eps) else ""
        walk.channels.norms.append(
            NormUse(name, "GroupNorm", line.numpy(), dict(seen.offsets or {}), eps_of(walk, eps))
        )
    why = f"{label} has no scale of its own"
    after = _after(walk, seen.ids, tuple(given.shape), 1, weight=weight, bias=bias, why=why)
    if seen.ids is not None and 1 < groups < given.shape[1]:
        rows = after.movedim(1, 0).reshape(given.shape[1], -1)[:, 0].view(groups, -1)
        each = torch.arange(groups)[:, None].expand(rows.shape)
        walk.channels.refine(rows.reshape(-1).numpy(), each.reshape(-1).numpy())
    outs = list(tensors(step.out))
    for out in outs:
        walk.give(out, Seen())
    walk.give(outs[0], Seen(after, offsets=_offsets(walk, bias)))
