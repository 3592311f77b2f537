"""Rules for products that are summed over: matrices, convolutions, attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...graphs import Ids, tensors
from .channels import KERNEL, MATRIX, READ, Attention, Seen, varies
from .rules_sums import added, biased
from .walk import MoveWalk, Step, layer_of, rule


@rule("matrix product")
def product(walk: MoveWalk, step: Step) -> None:
    plus, a, b = step.factors
    one, other = walk.value(a), walk.value(b)
    if a.ndim == 1:
        one = one.laid_out((1, len(a)))
    if b.ndim == 1:
        other = other.laid_out((len(b), 1))
    rows, columns = (1 if a.ndim == 1 else a.shape[-2]), (1 if b.ndim == 1 else b.shape[-1])
    batch = a.shape[:-2]
    if one.computed or other.computed:
        made = _by_computed(walk, one, other)
    elif one.is_parameter and other.is_parameter:
        walk.outside.update((one.name, other.name))
        made = Seen(computed=True)
    elif other.is_parameter:
        made = walk.through(
            one,
            other,
            (b.ndim - 2 if b.ndim > 1 else 0, b.ndim - 1 if b.ndim > 1 else 1),
            (*batch, rows, columns),
            MATRIX,
        )
    elif one.is_parameter:
        turned = other if other.ids is None else other.on(other.ids.mT)
        last = max(a.ndim, 2)
        made = walk.through(turned, one, (last - 1, last - 2), (*batch, columns, rows), MATRIX)
        made = Seen(None if made.ids is None else made.ids.mT, offsets=made.offsets)
    else:
        made = _of_neurons(walk, step, one, other, (*batch, rows, columns))
    if made.ids is not None:
        made.ids = made.ids.reshape(step.out.shape)
    if plus is not None and step.kwargs.get("beta", 1) != 0:
        walk.give(step.out, made)
        made = added(walk, (step.out, plus), (1.0, 1.0), tuple(step.out.shape))
    walk.give(step.out, made)


def _by_computed(walk: MoveWalk, *both: Seen) -> Seen:
    for each in both:
        if each.is_parameter:
            walk.outside.add(each.name)
        if each.ids is not None:
            why = f"{walk.module!r} computes its weight from other parameters"
            walk.channels.fix(each.ids, why)
    return Seen(computed=all(each.ids is None for each in both))


def _of_neurons(walk: MoveWalk, step: Step, one: Seen, other: Seen, shape: tuple[int, ...]) -> Seen:
    """A product of two tensors that the model computes: queries by keys, what attention gives by values."""
    label = walk.label(step.name.strip("_"))
    for each in (one, other):
        walk.regular(each, f"{label} multiplies powers or means of them")
    left, right = one.ids, other.ids
    if left is not None and right is not None and not varies(left, -2) and not varies(right, -1):
        _inverse(walk, left[..., 0, :], right[..., 0], label)
        walk.scores[step.out] = _attended(walk, left[..., 0, :], right[..., 0], one, other)
        return Seen()
    for factor, ids in ((step.args[-2], right), (step.args[-1], left)):
        if ids is not None and (attention := walk.scores.get(factor)) is not None:
            attention.values.append(_rows(ids[..., :1, :] if ids is right else ids[..., :1].mT))
    if left is None and right is not None and not varies(right, -2):
        return _weighted(walk, right[..., :1, :], shape, label)
    if right is None and left is not None and not varies(left, -1):
        return _weighted(walk, left[..., :, :1], shape, label)
    for each in (one, other):
        if each.ids is not None:
            walk.channels.fix(each.ids, f"{label} multiplies them by what the model computes")
    return Seen()


def _inverse(walk: MoveWalk, queries: Tensor, keys: Tensor, label: str) -> None:
    """Their products are summed over: one can grow as the other shrinks. The last dimension is summed over."""
    walk.channels.tie(queries, keys, inverse=True, why=f"{label} multiplies them by what the model computes")
    for ids in (queries, keys):
        walk.channels.keep_shift(ids, f"{label} multiplies them by other neurons")
        walk.apart(ids, ids.ndim - 1)


def _attended(walk: MoveWalk, queries: Tensor, keys: Tensor, one: Seen, other: Seen) -> Attention:
    """Note heads: their last dimension is summed over, the ones before count them and the samples."""
    shape = torch.broadcast_shapes(queries.shape, keys.shape)
    offsets = tuple(dict.fromkeys((*(one.offsets or ()), *(other.offsets or ()))))
    made = Attention(_rows(queries.expand(shape)), _rows(keys.expand(shape)), offsets)
    walk.channels.attentions.append(made)
    return made


def _rows(ids: Tensor) -> Ids:
    return ids.reshape(-1, ids.shape[-1]).numpy()


def _weighted(walk: MoveWalk, ids: Tensor, shape: tuple[int, ...], label: str) -> Seen:
    """Sums over positions, with weights that the model computes."""
    walk.channels.keep_shift(ids, f"{label} sums over their positions")
    walk.apart(ids, ids.ndim - 2)
    return Seen(ids.expand(shape))


@rule("convolution")
def convolution(walk: MoveWalk, step: Step) -> None:
    given, weight, bias = step.args[0], step.args[1], step.args[2]
    transposed, groups = bool(step.args[6]), int(step.args[8])
    x, kernel = walk.value(given), walk.value(weight)
    whole = kernel.is_parameter and kernel.entries[0].shape == walk.model_tensor(kernel.name).shape
    if not whole:
        computed = _by_computed(walk, x, kernel)
        if bias is not None and walk.value(bias).is_parameter:
            walk.outside.add(walk.value(bias).name)
        walk.give(step.out, Seen(computed=False) if x.ids is not None else computed)
        return
    layer, taken = layer_of(kernel.name), walk.taken(kernel)
    ids = x.ids
    channels: Tensor | None = None
    if ids is not None:
        walk.regular(x, f"{layer!r} reads a power or a mean of them")
        if any(varies(ids, dim) for dim in range(ids.ndim) if dim != 1):
            walk.channels.fix(ids, f"{layer!r} reads another axis than theirs")
        else:
            channels = ids.movedim(1, 0).reshape(ids.shape[1], -1)[:, 0]
    rows = 1 if transposed else 0
    inputs, outputs = int(given.shape[1]), int(step.out.shape[1])
    depthwise = groups > 1 and groups == inputs == outputs
    if channels is not None:
        walk.channels.keep_shift(channels, f"{layer!r} reads them")
        if groups == 1 or depthwise:
            axis = (1 - rows) if groups == 1 else 0
            walk.use(READ, kernel, axis, np.arange(inputs), channels.numpy(), taken)
        else:
            walk.channels.fix(channels, f"{layer!r} reads them in groups")
    made = walk.channels.new(outputs)
    if not (transposed and groups > 1 and not depthwise):
        walk.use(KERNEL, kernel, 0 if depthwise else rows, np.arange(outputs), made, taken)
    if depthwise:
        if channels is None:
            walk.channels.keep_place(made, f"{layer!r} reads an input each")
        else:
            walk.channels.follow(channels.numpy()[channels.numpy() > 0], made[channels.numpy() > 0])
        walk.channels.bend(made)
        walk.channels.bend(channels if channels is not None else made)
    elif groups > 1:
        walk.channels.fix(made, f"{layer!r} writes them in groups")
    shape = [1] * step.out.ndim
    shape[1] = -1
    walk.give(step.out, Seen(torch.from_numpy(made).view(shape).expand(step.out.shape), offsets={}))
    if bias is not None:
        added_on = walk.value(bias)
        if added_on.is_parameter:
            mine, laid = walk.value(step.out), added_on.laid_out(shape)
            walk.give(step.out, biased(walk, mine, laid, 1.0, tuple(step.out.shape), {}))
        else:
            walk.channels.fix(made, f"{layer!r} computes its bias from other parameters")


@rule("attention")
def attention(walk: MoveWalk, step: Step) -> None:
    """Heads: queries by keys, and what that gives by values.  # shapes: (N, heads, positions, entries)"""
    label = walk.label("scaled_dot_product_attention")
    seen = [walk.value(each) for each in step.args[:3]]
    if any(each.is_parameter or each.computed for each in seen) or any(
        each.ids is not None and varies(each.ids, 2) for each in seen
    ):
        walk.unknown(step)
        return
    for each in seen:
        walk.regular(each, f"{label} multiplies powers or means of them")
    for mask in (*tensors(step.args[3:]), *tensors(tuple(step.kwargs.values()))):
        added = walk.value(mask)
        if added.ids is not None:
            walk.channels.fix(added.ids, f"{label} adds them to its scores")
        walk.outside.update([added.name] if added.is_parameter else [])
    heads = step.args[0].shape[1]
    q, k, v = (None if each.ids is None else each.ids[:, :, :1] for each in seen)
    k, v = (None if each is None else each.repeat_interleave(heads // each.shape[1], 1) for each in (k, v))
    none = torch.zeros(1, dtype=torch.int64)
    if q is not None or k is not None:
        shape = (q if q is not None else k).shape  # type: ignore[union-attr]
        both = [none.expand(shape) if each is None else each for each in (q, k)]
        _inverse(walk, both[0][:, :, 0], both[1][:, :, 0], label)
        made = _attended(walk, both[0][:, :, 0], both[1][:, :, 0], *seen[:2])
        made.values += [] if v is None else [_rows(v[:, :, 0])]
    for out in tensors(step.out):
        walk.give(out, Seen())
    out = next(tensors(step.out))
    if v is not None:
        walk.give(out, _weighted(walk, v, tuple(out.shape), label))
