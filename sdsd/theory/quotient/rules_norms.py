"""Rules for norms, in one operation or put together by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...graphs import tensors
from .channels import BIAS, EXTRA, SCALE, NormUse, Seen, compact, renamed, unique, varies
from .walk import TRY_SHAPES, MoveWalk, Step, eps_of, kind_of, noted, rule


def _gives(
    walk: MoveWalk,
    step: Step,
    before: Tensor | None,
    dim: int,
    *,
    weight: Any,
    bias: Any,
    extras: Iterable[Any] = (),
) -> Tensor:
    """The channels that γ and β of a norm write; its inputs keep their order with them."""
    shape, outs = tuple(step.args[0].shape), list(tensors(step.out))
    layout = [-1 if k == dim else 1 for k in range(len(shape))]
    source = torch.arange(1, shape[dim] + 1).view(layout).expand(shape) if before is None else before
    known, table = walk.channels.renewed(source)
    made, after = table[known], renamed(source, table)
    if before is None:
        walk.channels.keep_place(made, "they are joined with what no layer writes")
    else:
        walk.channels.follow(known, made)
    for tensor, role in ((weight, SCALE), (bias, BIAS), *((each, EXTRA) for each in extras)):
        seen = walk.value(tensor)
        if not isinstance(tensor, Tensor):
            continue
        if not seen.is_parameter or (place := walk.laid(after, seen.laid_out(layout), shape)) is None:
            if seen.computed or seen.is_parameter:
                walk.outside.update([seen.name] if seen.is_parameter else [])
                walk.channels.fix(made, f"{walk.label('norm')} has parameters that are computed or laid otherwise")
            continue
        walk.use(role, seen, *place, walk.taken(seen))
    if not walk.value(weight).is_parameter:
        walk.channels.hold(made, f"{_label(walk, step)} has no scale of its own")
    for out in outs:
        walk.give(out, Seen())
    shift = walk.value(bias)
    walk.give(outs[0], Seen(after, offsets={shift.name: 1.0} if shift.is_parameter else {}))
    return after


def _label(walk: MoveWalk, step: Step) -> str:
    names = {"batch norm": "batch_norm", "group norm": "group_norm"}
    return walk.label(names.get(step.row.kind, step.name))


def _elsewhere(walk: MoveWalk, step: Step) -> None:
    walk.unknown(step, f"{_label(walk, step)} normalises another axis than theirs; {TRY_SHAPES}")


def _varies_beside(ids: Tensor | None, dim: int) -> bool:
    return ids is not None and any(varies(ids, k) for k in range(ids.ndim) if k != dim)


@rule("batch norm")
def batch_norm(walk: MoveWalk, step: Step) -> None:
    given, weight, bias = step.args[:3]
    running = [each for each in step.args[3:5] if isinstance(each, Tensor)]
    kind = kind_of(walk, ("BatchNorm", "InstanceNorm"), "BatchNorm")
    eps = next((each for each in reversed(step.args) if isinstance(each, float)), 1e-5)
    seen, label = walk.value(given), _label(walk, step)
    if _varies_beside(seen.ids, 1):
        _elsewhere(walk, step)
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    buffers = [walk.value(each) for each in running]
    owned = all(each.is_parameter for each in buffers)
    owner = buffers[0].name.rpartition(".")[0] if buffers and owned else walk.module
    if seen.ids is not None:
        line = _line(seen.ids).numpy()
        if "InstanceNorm" in kind:  # it sees each sample's channels one after the other
            gamma = walk.value(weight)
            line = line[: len(gamma.entries[0].unique() if gamma.is_parameter else unique(seen.ids))]
        names = owner if not buffers or owned else ""
        walk.channels.norms.append(NormUse(names, kind, line, dict(seen.offsets or {}), eps_of(walk, eps)))
        if not owned:
            walk.channels.fix(seen.ids, f"{label} keeps its statistics elsewhere than in buffers")
    extras = [each for each, buffer in zip(running, buffers, strict=True) if buffer.is_parameter]
    _gives(walk, step, seen.ids, 1, weight=weight, bias=bias, extras=extras)


@rule("layer norm")
def layer_norm(walk: MoveWalk, step: Step) -> None:
    given, shape, weight = step.args[0], step.args[1], step.args[2]
    mean = "layer" in step.name
    bias, eps = (step.args[3], step.argument(4, "eps", 1e-5)) if mean else (None, step.argument(3, "eps"))
    seen, label = walk.value(given), _label(walk, step)
    if len(shape) != 1:
        _elsewhere(walk, step)
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    if seen.ids is not None and not varies(seen.ids, given.ndim - 1) and given.shape[-1] > 1:
        _elsewhere(walk, step)
        return
    if seen.ids is not None:
        lead = seen.ids.narrow(-1, 0, 1)
        walk.channels.tie(seen.ids, lead.expand(seen.ids.shape), order=False, why=f"{label} joins them with others")
        walk.channels.bend(seen.ids)
        if not mean:
            walk.channels.keep_shift(seen.ids, f"{label} does not subtract a mean")
        walk.apart(seen.ids, given.ndim - 1)
        noted(walk, compact(seen.ids)[0], "LayerNorm" if mean else "RMSNorm", eps, seen.offsets)
    _gives(walk, step, seen.ids, given.ndim - 1, weight=weight, bias=bias)


@rule("group norm")
def group_norm(walk: MoveWalk, step: Step) -> None:
    given, weight, bias = step.args[:3]
    groups, eps = step.args[6], step.args[7]
    seen, label = walk.value(given), _label(walk, step)
    if _varies_beside(seen.ids, 1):
        _elsewhere(walk, step)
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    several = 1 < groups < given.shape[1]
    if seen.ids is not None:
        rows = _line(seen.ids).view(groups, -1)
        walk.channels.tie(rows, rows[:, :1].expand(rows.shape), order=False, why=f"{label} joins them with others")
        walk.channels.bend(rows)
        if several:
            walk.apart(rows, 1)
        noted(walk, rows.flatten().numpy(), "GroupNorm", eps, seen.offsets)
    after = _gives(walk, step, seen.ids, 1, weight=weight, bias=bias)
    if seen.ids is not None and several:
        walk.apart(_line(after).view(groups, -1), 1)


def _line(ids: Tensor) -> Tensor:
    """The channels along the second dimension, as of pictures."""
    return ids.movedim(1, 0).reshape(ids.shape[1], -1)[:, 0]
