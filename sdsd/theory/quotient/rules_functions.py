"""Rules for functions of single entries, reductions, pools and softmax."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...graphs import EACH, tensors
from .channels import EXTRA, MATRIX, NormUse, Seen, compact, spread, unique, varies
from .rules_sums import by_place, of_two, times
from .walk import TRY_SHAPES, ChannelWalk, Step, rule


def _passed(walk: ChannelWalk, step: Step, seen: Seen) -> None:
    if seen.ids is None:
        walk.opaque(step)
        return
    walk.channels.keep_shift(unique(seen.ids), f"they pass through {walk.label(step.name)}")
    walk.channels.bend(unique(seen.ids))
    for out in tensors(step.out):
        if out.shape == step.args[0].shape:
            walk.give(out, Seen(seen.ids, power=seen.power, statistic=seen.statistic))


@rule("prelu")
def prelu(walk: ChannelWalk, step: Step) -> None:
    seen, weight = walk.seen(step.args[0]), walk.seen(step.args[1])
    if seen.ids is not None and weight.is_parameter and any(each.numel() > 1 for each in weight.entries):
        place = walk.laid(seen.ids, weight, tuple(seen.ids.shape))
        if place is None:
            walk.opaque(step, f"{walk.label('prelu')} runs over another axis than theirs; {TRY_SHAPES}")
            return
        walk.use(EXTRA, weight, *place, walk.taken(weight))
    _passed(walk, step, seen)


@rule("negative")
def negative(walk: ChannelWalk, step: Step) -> None:
    seen = walk.seen(step.args[0])
    if seen.ids is None:
        walk.opaque(step)
    else:
        offsets = times(seen.offsets, -1.0)
        walk.give(step.out, Seen(seen.ids, offsets=offsets, power=seen.power, statistic=seen.statistic))


@rule("power")
def power(walk: ChannelWalk, step: Step) -> None:
    seen = walk.seen(step.args[0])
    exponent = step.args[1] if step.row.power is None else step.row.power
    if seen.ids is None or not isinstance(exponent, (int, float)):
        walk.opaque(step)
        return
    walk.channels.keep_shift(unique(seen.ids), f"they pass through {walk.label(step.name)}")
    walk.channels.bend(unique(seen.ids))
    walk.give(step.out, Seen(seen.ids, power=seen.power * float(exponent), statistic=seen.statistic))


@rule(EACH)
def pointwise(walk: ChannelWalk, step: Step) -> None:
    """A function nobody has told of may be any."""
    if torch.Tag.pointwise in step.func.tags and len(list(tensors(step.args))) == 1:
        curved(walk, step)
    else:
        walk.opaque(step)


@rule("curved")
def curved(walk: ChannelWalk, step: Step) -> None:
    seen = walk.seen(step.args[0])
    if seen.ids is None:
        walk.opaque(step)
        return
    if step.name == "clamp_min" and step.args[1] == 0:
        _passed(walk, step, seen)
        return
    ids = unique(seen.ids)
    why = f"they pass through {walk.label(step.name)}, which is not positively homogeneous"
    walk.channels.hold(ids, why)
    walk.channels.keep_shift(ids, why)
    walk.channels.bend(ids)
    for out in tensors(step.out):
        if out.shape == step.args[0].shape:
            walk.give(out, Seen(seen.ids, statistic=seen.statistic))


@rule("mask")
def masked(walk: ChannelWalk, step: Step) -> None:
    seen, known = walk.seen(step.args[0]), walk.seen(step.args[1]).ids is None
    if seen.ids is None or not known or not isinstance(step.args[2], (int, float)) or step.args[2] != 0:
        walk.opaque(step)
        return
    by_place(walk, seen.ids, step.args[1])
    _passed(walk, step, seen)


@rule("gate")
def glu(walk: ChannelWalk, step: Step) -> None:
    seen = walk.seen(step.args[0])
    if seen.ids is None:
        walk.opaque(step)
        return
    dim = step.argument(1, "dim", -1)
    one, gate = seen.ids.chunk(2, dim)
    for part in (one, gate):
        mine = unique(part)
        walk.channels.refine(mine, np.zeros_like(mine))
    walk.channels.hold(unique(gate), f"they pass through {walk.label('glu')}, which is not positively homogeneous")
    walk.give(step.out, of_two(walk, Seen(spread(one)), Seen(spread(gate)), tuple(step.out.shape)))


@rule("reduce")
def reduction(walk: ChannelWalk, step: Step) -> None:
    seen, given = walk.seen(step.args[0]), step.args[0]
    label = walk.label(step.name)
    order = step.argument(1, "ord", 2) if step.name == "linalg_vector_norm" else 2
    dims = step.argument(2 if step.name == "linalg_vector_norm" else 1, "dim")
    if seen.ids is None or isinstance(dims, (bool, Tensor)) or order in (0,):
        walk.opaque(step)
        return
    listed = range(given.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    over = {dim % max(1, given.ndim) for dim in listed}
    ids, statistic = seen.ids, seen.statistic
    mixed = [dim for dim in over if varies(ids, dim)]
    walk.channels.keep_shift(unique(ids), f"they pass through {label}")
    if mixed or not step.row.linear:
        walk.channels.bend(unique(ids))
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
            walk.opaque(step)


@rule("pool")
def pool(walk: ChannelWalk, step: Step) -> None:
    seen, label = walk.seen(step.args[0]), walk.label(step.name)
    size = next((int(each) for each in step.name if each.isdigit()), 2)
    if seen.ids is None:
        walk.opaque(step)
        return
    if any(varies(seen.ids, dim) for dim in range(seen.ids.ndim - size, seen.ids.ndim)):
        walk.opaque(step, f"{label} pools another axis than their positions; {TRY_SHAPES}")
        return
    walk.channels.keep_shift(unique(seen.ids), f"they pass through {label}")
    walk.channels.bend(unique(seen.ids))
    ids = seen.ids
    for dim in range(ids.ndim - size, ids.ndim):
        ids = ids.narrow(dim, 0, 1)
    for out in tensors(step.out):
        if out.is_floating_point():
            walk.give(out, Seen(ids.expand(out.shape), power=seen.power, statistic=seen.statistic))


@rule("softmax")
def softmax(walk: ChannelWalk, step: Step) -> None:
    seen, label = walk.seen(step.args[0]), walk.label(step.name.strip("_"))
    if seen.ids is None:
        walk.opaque(step)
        return
    ids, dim = seen.ids, step.argument(1, "dim", -1)
    if any(varies(ids, k) for k in range(ids.ndim) if k != dim % ids.ndim):
        walk.opaque(step, f"{label} runs over another axis than theirs; {TRY_SHAPES}")
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    known = unique(ids)
    walk.channels.hold(known, f"they pass through {label}")
    walk.channels.keep_place(known, f"they pass through {label}")
    walk.channels.outputs.append(known)
    walk.channels.norms.append(NormUse("", "softmax", compact(ids)[0], {}, ""))
    walk.give(step.out, Seen())


@rule("lookup")
def embedding(walk: ChannelWalk, step: Step) -> None:
    weight = walk.seen(step.args[0])
    if not weight.is_parameter or len(weight.entries) != 2 or weight.entries[0].shape != step.args[0].shape:
        walk.opaque(step)
        return
    axis = walk.axis_along(weight, 1)
    if axis is None:  # vectors of one entry
        axis = 1 if walk.model_tensor(weight.name).shape == step.args[0].shape else 0
    walk.give(step.out, walk.write(weight, axis, 1, tuple(step.out.shape), MATRIX, walk.taken(weight)))
