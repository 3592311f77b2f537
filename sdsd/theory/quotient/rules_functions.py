"""Rules for functions of single entries, reductions, pools and softmax."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...graphs import EACH, tensors
from .channels import EXTRA, MATRIX, NormUse, Seen, compact, spread, unique, varies
from .rules_sums import by_place, of_two, times
from .walk import RULES, TRY_SHAPES, MoveWalk, Step, rule, rule_of_channels


def _passed(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    walk.channels.pass_through(ids, f"they pass through {walk.label(step.name)}")
    for out in tensors(step.out):
        if out.shape == step.args[0].shape:
            walk.give(out, Seen(ids, power=seen.power, statistic=seen.statistic))


@rule_of_channels("prelu")
def prelu(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    weight = walk.value(step.args[1])
    if weight.is_parameter and any(each.numel() > 1 for each in weight.entries):
        place = walk.laid(ids, weight, tuple(ids.shape))
        if place is None:
            walk.unknown(step, f"{walk.label('prelu')} runs over another axis than theirs; {TRY_SHAPES}")
            return
        walk.use(EXTRA, weight, *place, walk.taken(weight))
    _passed(walk, step, seen, ids)


@rule_of_channels("negative")
def negative(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    walk.give(step.out, seen.on(ids, offsets=times(seen.offsets, -1.0)))


@rule_of_channels("power")
def power(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    exponent = step.args[1] if step.row.power is None else step.row.power
    if not isinstance(exponent, (int, float)):
        walk.unknown(step)
        return
    walk.channels.pass_through(ids, f"they pass through {walk.label(step.name)}")
    walk.give(step.out, Seen(ids, power=seen.power * float(exponent), statistic=seen.statistic))


@rule(EACH)
def pointwise(walk: MoveWalk, step: Step) -> None:
    """A function nobody has told of may be any."""
    if torch.Tag.pointwise in step.func.tags and len(list(tensors(step.args))) == 1:
        RULES["curved"](walk, step)
    else:
        walk.unknown(step)


@rule_of_channels("curved")
def curved(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    if step.name == "clamp_min" and step.args[1] == 0:
        _passed(walk, step, seen, ids)
        return
    why = f"they pass through {walk.label(step.name)}, which is not positively homogeneous"
    walk.channels.hold(ids, why)
    walk.channels.pass_through(ids, why)
    for out in tensors(step.out):
        if out.shape == step.args[0].shape:
            walk.give(out, Seen(ids, statistic=seen.statistic))


@rule_of_channels("mask")
def masked(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    computed = walk.value(step.args[1]).ids is not None
    if computed or not isinstance(step.args[2], (int, float)) or step.args[2] != 0:
        walk.unknown(step)
        return
    by_place(walk, ids, step.args[1])
    _passed(walk, step, seen, ids)


@rule_of_channels("gate")
def glu(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    one, gate = ids.chunk(2, step.argument(1, "dim", -1))
    for part in (one, gate):
        mine = unique(part)
        walk.channels.refine(mine, np.zeros_like(mine))
    walk.channels.hold(gate, f"they pass through {walk.label('glu')}, which is not positively homogeneous")
    walk.give(step.out, of_two(walk, Seen(spread(one)), Seen(spread(gate)), tuple(step.out.shape)))


@rule_of_channels("reduce")
def reduction(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    order = step.argument(1, "ord", 2) if step.name == "linalg_vector_norm" else 2
    if isinstance(step.argument(1, "dim"), (bool, Tensor)) or order == 0:
        walk.unknown(step)
        return
    over, statistic, label = step.over, seen.statistic, walk.label(step.name)
    mixed = [dim for dim in over if varies(ids, dim)]
    walk.channels.keep_shift(ids, f"they pass through {label}")
    if mixed or not step.row.linear:
        walk.channels.bend(ids)
    for dim in over:
        first = ids.narrow(dim, 0, 1)
        if dim in mixed:
            walk.channels.tie(ids, first.expand(ids.shape), order=False, why=f"{label} joins them with others")
            walk.channels.refine(*compact(ids, first.expand(ids.shape)))
            statistic = True
        ids = first
    assert step.row.power is not None
    for place, out in enumerate(tensors(step.out)):
        if out.is_floating_point() and out.numel() == ids.numel():
            power = seen.power if place == 1 and "_mean" in step.name else seen.power * step.row.power
            walk.give(out, Seen(ids.reshape(out.shape), power=power, statistic=statistic))
        elif out.is_floating_point():
            walk.unknown(step)


@rule_of_channels("pool")
def pool(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    pixels = range(ids.ndim - step.picture_dims, ids.ndim)
    if any(varies(ids, dim) for dim in pixels):
        walk.unknown(step, f"{walk.label(step.name)} pools another axis than their positions; {TRY_SHAPES}")
        return
    walk.channels.pass_through(ids, f"they pass through {walk.label(step.name)}")
    for dim in pixels:
        ids = ids.narrow(dim, 0, 1)
    for out in tensors(step.out):
        if out.is_floating_point():
            walk.give(out, Seen(ids.expand(out.shape), power=seen.power, statistic=seen.statistic))


@rule_of_channels("softmax")
def softmax(walk: MoveWalk, step: Step, seen: Seen, ids: Tensor) -> None:
    label, dim = walk.label(step.name.strip("_")), step.argument(1, "dim", -1)
    if any(varies(ids, k) for k in range(ids.ndim) if k != dim % ids.ndim):
        walk.unknown(step, f"{label} runs over another axis than theirs; {TRY_SHAPES}")
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    known = unique(ids)
    walk.channels.hold(known, f"they pass through {label}")
    walk.channels.keep_place(known, f"they pass through {label}")
    walk.channels.outputs.append(known)
    walk.channels.norms.append(NormUse("", "softmax", compact(ids)[0], {}, ""))
    walk.give(step.out, Seen())


@rule("lookup")
def embedding(walk: MoveWalk, step: Step) -> None:
    weight = walk.value(step.args[0])
    if not weight.is_parameter or len(weight.entries) != 2 or weight.entries[0].shape != step.args[0].shape:
        walk.unknown(step)
        return
    axis = walk.axis_along(weight, 1)
    if axis is None:  # vectors of one entry
        axis = 1 if walk.model_tensor(weight.name).shape == step.args[0].shape else 0
    walk.give(step.out, walk.write(weight, axis, 1, tuple(step.out.shape), MATRIX, walk.taken(weight)))


@rule("constant", "like")
def made(walk: MoveWalk, step: Step) -> None:
    """Of what it is given it takes the shape alone."""
    walk.give(step.out, Seen())
