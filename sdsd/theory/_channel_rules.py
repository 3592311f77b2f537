"""Rules for channels: layouts, sums and products, functions of single entries, reductions, norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graphs.rules_values import _spatial_names
from ..graphs.walk import tensors
from ._channel_walk import RULES, ChannelWalk, Step, plain_type, rule
from ._channels import BIAS, EXTRA, KERNEL, MATRIX, READ, SCALE, NormUse, Seen, compact, pairs, spread, unique, varies

TRY_SHAPES = "pass example_input if this is wrong"


# ---- layouts ---------------------------------------------------------------------------------------------------------


def _moved(walk: ChannelWalk, step: Step, move: Any) -> None:
    """Give the results what `move` makes of the entries."""
    seen = walk.seen(step.args[0])
    outs = list(tensors(step.out))
    many = isinstance(step.out, (tuple, list))

    def apply(ids: Tensor) -> list[Tensor]:
        made = move(ids)
        return [spread(each) for each in (made if many else [made])]

    if seen.is_parameter:
        parts = [apply(each) for each in seen.entries]
        for place, out in enumerate(outs):
            walk.give(out, Seen(name=seen.name, entries=tuple(part[place] for part in parts)))
    elif seen.ids is not None:
        for out, ids in zip(outs, apply(seen.ids), strict=True):
            walk.give(out, Seen(ids, offsets=seen.offsets, power=seen.power, statistic=seen.statistic))
    else:
        for out in outs:
            walk.give(out, Seen(computed=seen.computed))


@rule("view _unsafe_view reshape _reshape_alias view_as")
def reshape(walk: ChannelWalk, step: Step) -> None:
    if step.out.dtype != step.args[0].dtype:
        walk.opaque(step)
    else:
        _moved(walk, step, lambda ids: ids.reshape(step.out.shape))


@rule("t transpose permute unsqueeze squeeze expand")
def turn(walk: ChannelWalk, step: Step) -> None:
    _moved(walk, step, lambda ids: step.func(ids, *step.args[1:], **step.kwargs))


@rule("clone _to_copy alias detach lift_fresh contiguous lift native_dropout positive")
def same(walk: ChannelWalk, step: Step) -> None:
    for out in tensors(step.out):
        fits = out.shape == step.args[0].shape
        walk.give(out, walk.seen(step.args[0]) if fits else Seen())


@rule("slice select split split_with_sizes unbind narrow chunk unsafe_chunk unsafe_split tensor_split")
def pieces(walk: ChannelWalk, step: Step) -> None:
    """Those of one piece do not change places with those of another."""
    _moved(walk, step, lambda ids: step.func(ids, *step.args[1:], **step.kwargs))
    seen = walk.seen(step.args[0])
    if seen.ids is None or seen.is_parameter:
        return
    everything = unique(seen.ids)
    for out in tensors(step.out):
        part = walk.seen(out).ids
        if part is not None and len(mine := unique(part)) < len(everything):
            walk.channels.refine(mine, np.zeros_like(mine))


@rule("flip roll index index_select gather repeat constant_pad_nd unfold diagonal")
def placed(walk: ChannelWalk, step: Step) -> None:
    """What takes entries by their places lets none of them change places, where it runs over channels."""
    seen = walk.seen(step.args[0])
    if seen.ids is not None and step.name == "index":
        dims = [k for k, each in enumerate(step.args[1]) if each is not None]
    elif seen.ids is not None and step.name in ("index_select", "gather", "unfold"):
        dims = [step.args[1] % seen.ids.ndim]
    elif seen.ids is not None and step.name in ("flip", "roll"):
        given = step.args[1] if step.name == "flip" else (step.argument(2, "dims", ()) or range(seen.ids.ndim))
        dims = [dim % seen.ids.ndim for dim in ([given] if isinstance(given, int) else given)]
    else:
        dims = list(range(seen.ids.ndim)) if seen.ids is not None and step.name == "diagonal" else []
    if seen.ids is not None and any(varies(seen.ids, dim) for dim in dims):
        ids = unique(seen.ids)
        walk.channels.keep_place(ids, f"{walk.label(step.name)} takes them by their places")
        walk.channels.bend(ids)
    pad: tuple[Any, ...] = (0,) if step.name == "constant_pad_nd" else ()
    rest = step.args[1:2] if pad else step.args[1:]
    _moved(walk, step, lambda ids: step.func(ids, *rest, *pad, **({} if pad else step.kwargs)))


@rule("cat stack concat concatenate")
def cat(walk: ChannelWalk, step: Step) -> None:
    parts = [each for each in step.args[0] if each.numel() > 0]
    seen = [walk.seen(each) for each in parts]
    if all(each.ids is None for each in seen):
        names = [each for each in seen if each.is_parameter]
        walk.outside.update(each.name for each in names)
        walk.give(step.out, Seen(computed=True))
        return
    seen = [walk.as_channels(each, part) for each, part in zip(seen, parts, strict=True)]
    for each in seen:
        walk.regular(each, f"{walk.label(step.name)} joins powers of them")
    dim = step.argument(1, "dim", 0)
    if step.name != "stack" and not any(each.ids is not None and varies(each.ids, dim) for each in seen):
        _in_a_row(walk, seen, step.out, dim)
        return
    shadows = [
        each.ids if each.ids is not None else torch.zeros(1, dtype=torch.int64).expand(part.shape)
        for each, part in zip(seen, parts, strict=True)
    ]
    walk.give(step.out, Seen(spread(step.func(shadows, *step.args[1:], **step.kwargs))))


def _in_a_row(walk: ChannelWalk, seen: list[Seen], out: Tensor, dim: int) -> None:
    """Positions one after the other, as a class token before the pictures' patches: of the same channels."""
    first, *others = [None if each.ids is None else each.ids.narrow(dim, 0, 1) for each in seen]
    none = torch.zeros(1, dtype=torch.int64)
    for other in others:
        one, two = (none if each is None else each for each in (first, other))
        walk.channels.tie(one, two, why=f"{walk.label('cat')} joins them with what no layer writes")
        first = other if first is None else first
    assert first is not None
    walk.give(out, Seen(first.expand(out.shape)))


# ---- sums ------------------------------------------------------------------------------------------------------------


@rule("add sub rsub")
def add_(walk: ChannelWalk, step: Step) -> None:
    one, other = step.args[0], step.args[1]
    alpha = float(step.kwargs.get("alpha", 1.0))
    factors = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[step.name]
    walk.give(step.out, added(walk, (one, other), factors, tuple(step.out.shape)))


def added(walk: ChannelWalk, terms: tuple[Any, Any], factors: tuple[float, float], shape: tuple[int, ...]) -> Seen:
    """What the sum of two terms is."""
    seen = [walk.seen(term) for term in terms]
    if all(each.ids is None for each in seen):
        walk.outside.update(each.name for each in seen if each.is_parameter)
        return Seen(computed=any(each.is_parameter or each.computed for each in seen))
    if seen[0].ids is None:
        terms, factors, seen = terms[::-1], factors[::-1], seen[::-1]
    mine, theirs, label = seen[0], seen[1], walk.label("add")
    assert mine.ids is not None
    offsets = _times(mine.offsets, factors[0])
    if theirs.is_parameter:
        walk.regular(mine, f"{label} adds a parameter to a power or a mean of them")
        return _biased(walk, mine, theirs, factors[1], shape, offsets)
    if theirs.ids is None:
        return _with_constant(walk, mine, terms[1], shape, offsets, theirs.computed)
    if mine.power != theirs.power:
        for each in (mine, theirs):
            walk.channels.hold(unique(each.ids), f"{label} adds different powers of them")  # type: ignore[arg-type]
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


def _times(offsets: dict[str, float] | None, factor: float) -> dict[str, float] | None:
    return None if offsets is None else {name: factor * value for name, value in offsets.items()}


def _biased(
    walk: ChannelWalk, mine: Seen, weight: Seen, factor: float, shape: tuple[int, ...], offsets: dict[str, float] | None
) -> Seen:
    assert mine.ids is not None
    ids = mine.ids.expand(shape)
    found = walk.laid(ids, weight, shape)
    if found is None:
        walk.outside.add(weight.name)
        walk.channels.fix(unique(ids), f"{weight.name!r} is added to them all alike")
        return Seen(ids)
    axis, entries, channels = found
    plain = len(weight.entries) == 1
    walk.use(BIAS if plain else KERNEL, weight, axis, entries, channels, walk.taken(weight))
    if offsets is not None and plain:
        offsets[weight.name] = offsets.get(weight.name, 0.0) + factor
    return Seen(ids, offsets=offsets if plain else None)


def _with_constant(
    walk: ChannelWalk, mine: Seen, constant: Any, shape: tuple[int, ...], offsets: dict[str, float] | None, computed: bool
) -> Seen:
    assert mine.ids is not None
    ids = mine.ids.expand(shape)
    if mine.statistic and isinstance(constant, float) and (0 < constant < 1e-2 or _eps_of(walk, constant)):
        _norm_of_statistic(walk, mine, float(constant))
        return Seen(ids, power=mine.power, statistic=True)
    if not isinstance(constant, (int, float)) or constant != 0:
        walk.channels.hold(unique(ids), f"a constant is added to them ({walk.label('add')})")
        walk.channels.bend(unique(ids))
    _by_place(walk, ids, constant, computed)
    return Seen(ids, offsets=offsets, power=mine.power)


def _by_place(walk: ChannelWalk, ids: Tensor, other: Any, unknown: bool = False) -> None:
    """Channels each of which meets another number cannot change places."""
    if not isinstance(other, Tensor) or other.numel() == 1:
        return
    shift = ids.ndim - other.ndim
    if any(varies(ids, dim) and dim >= shift and other.shape[dim - shift] > 1 for dim in range(ids.ndim)):
        what = "what the model computes from parameters" if unknown else "what no layer writes"
        walk.channels.keep_place(unique(ids), f"{walk.label('each')} meets an entry of its own of {what}")
        walk.channels.bend(unique(ids))


def _with_statistic(walk: ChannelWalk, mine: Seen, theirs: Seen, shape: tuple[int, ...], label: str) -> Seen:
    """A mean over neurons is added to them, or taken away, as a norm does."""
    if mine.statistic:
        mine, theirs = theirs, mine
    assert mine.ids is not None
    assert theirs.ids is not None
    walk.channels.tie(mine.ids, theirs.ids, order=False, why=f"{label} joins them with what no layer writes")
    for each in (mine.ids, theirs.ids):
        walk.channels.keep_shift(unique(each), f"{label} joins them with a mean")
        walk.channels.bend(unique(each))
    return Seen(mine.ids.expand(shape), power=mine.power, statistic=mine.statistic)


# ---- products --------------------------------------------------------------------------------------------------------


@rule("mm addmm bmm baddbmm mv addmv dot vdot")
def product(walk: ChannelWalk, step: Step) -> None:
    plus = step.args[0] if step.name in ("addmm", "baddbmm", "addmv") else None
    a, b = step.args[1:3] if plus is not None else step.args[:2]
    one, other = walk.seen(a), walk.seen(b)
    if a.ndim == 1:
        one = _reshaped(one, (1, len(a)))
    if b.ndim == 1:
        other = _reshaped(other, (len(b), 1))
    rows, columns = (1 if a.ndim == 1 else a.shape[-2]), (1 if b.ndim == 1 else b.shape[-1])
    batch = a.shape[:-2]
    if one.computed or other.computed:
        found = _by_computed(walk, one, other)
    elif one.is_parameter and other.is_parameter:
        walk.outside.update((one.name, other.name))
        found = Seen(computed=True)
    elif other.is_parameter:
        found = walk.through(one, other, (b.ndim - 2 if b.ndim > 1 else 0, b.ndim - 1 if b.ndim > 1 else 1),
                             (*batch, rows, columns), MATRIX)  # fmt: skip
    elif one.is_parameter:
        turned = None if other.ids is None else Seen(
            other.ids.mT, offsets=other.offsets, power=other.power, statistic=other.statistic
        )
        last = max(a.ndim, 2)
        found = walk.through(turned or Seen(), one, (last - 1, last - 2), (*batch, columns, rows), MATRIX)
        found = Seen(None if found.ids is None else found.ids.mT, offsets=found.offsets)
    else:
        found = _of_neurons(walk, step, one, other, (*batch, rows, columns))
    if found.ids is not None:
        found.ids = found.ids.reshape(step.out.shape)
    if plus is not None and step.kwargs.get("beta", 1) != 0:
        found = added(walk, (step.out, plus), (1.0, 1.0), tuple(step.out.shape)) if _set(walk, step.out, found) else found
    walk.give(step.out, found)


def _set(walk: ChannelWalk, out: Tensor, found: Seen) -> bool:
    walk.give(out, found)
    return True


def _reshaped(seen: Seen, shape: tuple[int, int]) -> Seen:
    return Seen(
        None if seen.ids is None else seen.ids.reshape(shape), seen.name,
        tuple(each.reshape(shape) for each in seen.entries), seen.computed, seen.offsets, seen.power, seen.statistic,
    )  # fmt: skip


def _by_computed(walk: ChannelWalk, *both: Seen) -> Seen:
    for each in both:
        if each.is_parameter:
            walk.outside.add(each.name)
        if each.ids is not None:
            why = f"{walk.module!r} computes its weight from other parameters"
            walk.channels.fix(unique(each.ids), why)
    return Seen(computed=all(each.ids is None for each in both))


def _of_neurons(walk: ChannelWalk, step: Step, one: Seen, other: Seen, shape: tuple[int, ...]) -> Seen:
    """A product of two tensors that the model computes: queries by keys, what attention gives by values."""
    label = walk.label(step.name.strip("_"))
    for each in (one, other):
        walk.regular(each, f"{label} multiplies powers or means of them")
    left, right = one.ids, other.ids
    if left is not None and right is not None and not varies(left, -2) and not varies(right, -1):
        _inverse(walk, left[..., 0, :], right[..., 0], label)
        return Seen()
    if left is None and right is not None and not varies(right, -2):
        return _weighted(walk, right[..., :1, :], shape, label)
    if right is None and left is not None and not varies(left, -1):
        return _weighted(walk, left[..., :, :1], shape, label)
    for each in (one, other):
        if each.ids is not None:
            walk.channels.fix(unique(each.ids), f"{label} multiplies them by what the model computes")
    return Seen()


def _inverse(walk: ChannelWalk, queries: Tensor, keys: Tensor, label: str) -> None:
    """Their products are summed over: one can grow as the other shrinks. The last dimension is summed over."""
    walk.channels.tie(queries, keys, inverse=True, why=f"{label} multiplies them by what the model computes")
    for ids in (queries, keys):
        walk.channels.keep_shift(unique(ids), f"{label} multiplies them by other neurons")
        _apart(walk, ids, ids.ndim - 1)


def _weighted(walk: ChannelWalk, ids: Tensor, shape: tuple[int, ...], label: str) -> Seen:
    """Sums over positions, with weights that the model computes."""
    walk.channels.keep_shift(unique(ids), f"{label} sums over their positions")
    _apart(walk, ids, ids.ndim - 2)
    return Seen(ids.expand(shape))


def _apart(walk: ChannelWalk, ids: Tensor, batch: int) -> None:
    """Those of different products of a batch (of heads, that is) do not change places with one another."""
    if any(varies(ids, dim) for dim in range(min(batch, ids.ndim))):
        shape = ids.shape
        each = torch.arange(int(np.prod(shape[:batch]))).view(*shape[:batch], *[1] * (ids.ndim - batch)).expand(shape)
        numbers, places = compact(ids, each)
        walk.channels.refine(numbers, places)


@rule("convolution _convolution")
def convolution(walk: ChannelWalk, step: Step) -> None:
    given, weight, bias = step.args[0], step.args[1], step.args[2]
    transposed, groups = bool(step.args[6]), int(step.args[8])
    x, kernel = walk.seen(given), walk.seen(weight)
    whole = kernel.is_parameter and kernel.entries[0].shape == walk.model_tensor(kernel.name).shape
    if not whole:
        found = _by_computed(walk, x, kernel)
        if bias is not None and walk.seen(bias).is_parameter:
            walk.outside.add(walk.seen(bias).name)
        walk.give(step.out, Seen(computed=False) if x.ids is not None else found)
        return
    layer, taken = kernel.name.rpartition(".")[0] or kernel.name, walk.taken(kernel)
    ids = x.ids
    channels: Tensor | None = None
    if ids is not None:
        walk.regular(x, f"{layer!r} reads a power or a mean of them")
        if any(varies(ids, dim) for dim in range(ids.ndim) if dim != 1):
            walk.channels.fix(unique(ids), f"{layer!r} reads another axis than theirs")
        else:
            channels = ids.movedim(1, 0).reshape(ids.shape[1], -1)[:, 0]
    rows = 1 if transposed else 0
    inputs, outputs = int(given.shape[1]), int(step.out.shape[1])
    depthwise = groups > 1 and groups == inputs == outputs
    if channels is not None:
        walk.channels.keep_shift(unique(channels), f"{layer!r} reads them")
        if groups == 1 or depthwise:
            axis = (1 - rows) if groups == 1 else 0
            walk.use(READ, kernel, axis, np.arange(inputs), channels.numpy(), taken)
        else:
            walk.channels.fix(unique(channels), f"{layer!r} reads them in groups")
    made = walk.channels.new(outputs)
    if not (transposed and groups > 1 and not depthwise):
        walk.use(KERNEL, kernel, 0 if depthwise else rows, np.arange(outputs), made, taken)
    if depthwise:
        if channels is None:
            walk.channels.keep_place(made, f"{layer!r} reads an input each")
        else:
            walk.channels.places.unite(channels.numpy()[channels.numpy() > 0], made[channels.numpy() > 0])
        walk.channels.bend(made)
        walk.channels.bend(unique(channels) if channels is not None else made)
    elif groups > 1:
        walk.channels.fix(made, f"{layer!r} writes them in groups")
    shape = [1] * step.out.ndim
    shape[1] = -1
    walk.give(step.out, Seen(torch.from_numpy(made).view(shape).expand(step.out.shape), offsets={}))
    if bias is not None:
        turned = walk.seen(bias)
        laid = Seen(name=turned.name, computed=turned.computed,
                    entries=tuple(each.reshape(shape) for each in turned.entries))  # fmt: skip
        if turned.is_parameter:
            mine = walk.seen(step.out)
            walk.give(step.out, _biased(walk, mine, laid, 1.0, tuple(step.out.shape), {}))
        else:
            walk.channels.fix(made, f"{layer!r} computes its bias from other parameters")


@rule(
    """
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps
    """
)
def attention(walk: ChannelWalk, step: Step) -> None:
    """Heads: queries by keys, and what that gives by values.  # shapes: (N, heads, positions, entries)"""
    label = walk.label("scaled_dot_product_attention")
    seen = [walk.seen(each) for each in step.args[:3]]
    if any(each.is_parameter or each.computed for each in seen) or any(
        each.ids is not None and varies(each.ids, 2) for each in seen
    ):
        walk.opaque(step)
        return
    for each in seen:
        walk.regular(each, f"{label} multiplies powers or means of them")
    for mask in (*tensors(step.args[3:]), *tensors(tuple(step.kwargs.values()))):
        added = walk.seen(mask)
        if added.ids is not None:
            walk.channels.fix(unique(added.ids), f"{label} adds them to its scores")
        walk.outside.update([added.name] if added.is_parameter else [])
    heads = step.args[0].shape[1]
    q, k, v = (None if each.ids is None else each.ids[:, :, :1] for each in seen)
    k, v = (None if each is None else each.repeat_interleave(heads // each.shape[1], 1) for each in (k, v))
    none = torch.zeros(1, dtype=torch.int64)
    if q is not None or k is not None:
        shape = (q if q is not None else k).shape  # type: ignore[union-attr]
        both = [none.expand(shape) if each is None else each for each in (q, k)]
        _inverse(walk, both[0][:, :, 0], both[1][:, :, 0], label)
    for out in tensors(step.out):
        walk.give(out, Seen())
    out = next(tensors(step.out))
    if v is not None:
        walk.give(out, _weighted(walk, v, tuple(out.shape), label))


@rule("mul div")
def scaled(walk: ChannelWalk, step: Step) -> None:
    one, other = step.args[0], step.args[1]
    a, b = walk.seen(one), walk.seen(other)
    shape = tuple(step.out.shape)
    if a.ids is None and b.ids is None:
        walk.outside.update(each.name for each in (a, b) if each.is_parameter)
        walk.give(step.out, Seen(computed=any(each.is_parameter or each.computed for each in (a, b))))
        return
    if a.ids is None and step.name == "div":
        walk.opaque(step)
        return
    if a.ids is None:
        one, other, a, b = other, one, b, a
    assert a.ids is not None
    ids = a.ids.expand(shape)
    if step.name == "div" and b.ids is not None:
        b = Seen(b.ids, power=-b.power, statistic=b.statistic)
    if isinstance(other, (int, float)):
        factor = float(other) if step.name == "mul" else 1 / float(other)
        walk.give(step.out, Seen(ids, offsets=_times(a.offsets, factor), power=a.power, statistic=a.statistic))
    elif b.is_parameter:
        walk.give(step.out, _gamma(walk, a, b, shape) if step.name == "mul" else Seen())
        if step.name == "div":
            walk.opaque(step)
    elif b.ids is None:
        _by_place(walk, ids, other, b.computed)
        walk.channels.keep_shift(unique(ids), f"they pass through {walk.label(step.name)}")
        walk.give(step.out, Seen(ids, power=a.power, statistic=a.statistic))
    else:
        walk.give(step.out, _of_two(walk, a, b, shape))


def _gamma(walk: ChannelWalk, given: Seen, weight: Seen, shape: tuple[int, ...]) -> Seen:
    """A parameter multiplies each channel by a number of its own."""
    assert given.ids is not None
    ids = given.ids.expand(shape)
    label = repr(weight.name)
    walk.regular(given, f"{label} multiplies a power or a mean of them")
    if all(each.numel() == 1 for each in weight.entries) and len(unique(ids)) > 1:
        walk.outside.add(weight.name)
        walk.channels.keep_shift(unique(ids), f"they pass through a product with {label}")
        return Seen(ids)
    found = walk.laid(ids, weight, shape)
    if found is None:
        walk.outside.add(weight.name)
        walk.channels.fix(unique(ids), f"no rule for their product with {label}")
        return Seen()
    axis, entries, channels = found
    known = unique(ids)
    made = walk.channels.new(len(known))
    table = np.zeros(walk.channels.count, np.int64)
    table[known] = made
    taken = walk.taken(weight)
    walk.use(READ, weight, axis, entries, channels, taken)
    walk.use(SCALE, weight, axis, entries, table[channels], taken)
    after = _renamed(ids, table)
    walk.laid(after, weight, shape)
    walk.channels.places.unite(known, made)
    walk.channels.keep_shift(known, f"{label} multiplies them")
    for each in (known, made):
        walk.channels.bend(each)
    return Seen(after, offsets={})


def _renamed(ids: Tensor, table: Any) -> Tensor:
    """Other channels at the same places."""
    shape = ids.shape
    for dim in range(ids.ndim):
        if not varies(ids, dim):
            ids = ids.narrow(dim, 0, min(1, ids.shape[dim]))
    return torch.from_numpy(table)[ids].expand(shape)


def _of_two(walk: ChannelWalk, a: Seen, b: Seen, shape: tuple[int, ...]) -> Seen:
    """A product of neurons with neurons, entry by entry: gates, powers, and norms put together by hand."""
    assert a.ids is not None
    assert b.ids is not None
    label = walk.label("mul")
    if a.statistic and not b.statistic:
        a, b = b, a
    assert a.ids is not None
    assert b.ids is not None
    wide, second = a.ids.expand(shape), b.ids.expand(shape)
    for each in (a.ids, b.ids):
        walk.channels.keep_shift(unique(each), f"they pass through {label}")
        walk.channels.bend(unique(each))
    if b.statistic and not a.statistic:
        walk.channels.tie(wide, second, order=False, why=f"{label} joins them with what no layer writes")
        if a.power + b.power != 0:
            walk.channels.hold(unique(wide), f"{label} multiplies them by a mean of them")
            return Seen(wide)
        return _normed(walk, wide)
    mine, theirs = pairs(wide, second)
    if np.array_equal(mine, theirs) and walk.channels.is_held(mine):
        return Seen(wide)
    if np.array_equal(mine, theirs):
        return Seen(wide, power=a.power + b.power, statistic=a.statistic and b.statistic)
    for each in (a, b):
        walk.regular(each, f"{label} multiplies powers of neurons")
    if walk.channels.is_held(unique(a.ids)):
        wide, second = second, wide
    elif not walk.channels.is_held(unique(b.ids)):
        walk.channels.hold(unique(b.ids), f"{label} multiplies them by other neurons")
    both = (mine > 0) & (theirs > 0)
    walk.channels.places.unite(mine[both], theirs[both])
    for each in (mine[(theirs == 0)], theirs[(mine == 0)]):
        walk.channels.fix(each, f"{label} joins them with what no layer writes")
    return Seen(wide)


def _normed(walk: ChannelWalk, ids: Tensor) -> Tensor | Any:
    """What a norm gives: the same neurons, whose scale is gone."""
    known = unique(ids)
    made = walk.channels.new(len(known))
    table = np.zeros(walk.channels.count, np.int64)
    table[known] = made
    walk.channels.places.unite(known, made)
    walk.channels.hold(made, "a norm sets their scale")
    return Seen(_renamed(ids, table))


# ---- functions of single entries -------------------------------------------------------------------------------------


@rule("relu leaky_relu abs rrelu_with_noise")
def homogeneous(walk: ChannelWalk, step: Step) -> None:
    _passed(walk, step, walk.seen(step.args[0]))


def _passed(walk: ChannelWalk, step: Step, seen: Seen) -> None:
    if seen.ids is None:
        walk.opaque(step)
        return
    walk.channels.keep_shift(unique(seen.ids), f"they pass through {walk.label(step.name)}")
    walk.channels.bend(unique(seen.ids))
    for out in tensors(step.out):
        if out.shape == step.args[0].shape:
            walk.give(out, Seen(seen.ids, power=seen.power, statistic=seen.statistic))


@rule("_prelu_kernel prelu")
def prelu(walk: ChannelWalk, step: Step) -> None:
    seen, weight = walk.seen(step.args[0]), walk.seen(step.args[1])
    if seen.ids is not None and weight.is_parameter and any(each.numel() > 1 for each in weight.entries):
        found = walk.laid(seen.ids, weight, tuple(seen.ids.shape))
        if found is None:
            walk.opaque(step, f"{walk.label('prelu')} runs over another axis than theirs; {TRY_SHAPES}")
            return
        walk.use(EXTRA, weight, *found, walk.taken(weight))
    _passed(walk, step, seen)


@rule("neg")
def negative(walk: ChannelWalk, step: Step) -> None:
    seen = walk.seen(step.args[0])
    if seen.ids is None:
        walk.opaque(step)
    else:
        offsets = _times(seen.offsets, -1.0)
        walk.give(step.out, Seen(seen.ids, offsets=offsets, power=seen.power, statistic=seen.statistic))


@rule("pow sqrt rsqrt square reciprocal")
def power(walk: ChannelWalk, step: Step) -> None:
    seen = walk.seen(step.args[0])
    exponent = {"sqrt": 0.5, "rsqrt": -0.5, "square": 2.0, "reciprocal": -1.0}.get(step.name)
    if exponent is None:
        exponent = step.args[1]
    if seen.ids is None or not isinstance(exponent, (int, float)):
        walk.opaque(step)
        return
    walk.channels.keep_shift(unique(seen.ids), f"they pass through {walk.label(step.name)}")
    walk.channels.bend(unique(seen.ids))
    walk.give(step.out, Seen(seen.ids, power=seen.power * float(exponent), statistic=seen.statistic))


@rule("curved clamp clamp_min clamp_max hardtanh threshold log_sigmoid_forward hardswish")
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


@rule("masked_fill")
def masked(walk: ChannelWalk, step: Step) -> None:
    seen = walk.seen(step.args[0])
    if seen.ids is None or not isinstance(step.args[2], (int, float)) or step.args[2] != 0:
        walk.opaque(step)
        return
    _by_place(walk, seen.ids, step.args[1])
    _passed(walk, step, seen)


@rule("glu")
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
    walk.give(step.out, _of_two(walk, Seen(spread(one)), Seen(spread(gate)), tuple(step.out.shape)))


# ---- reductions, pools, softmax --------------------------------------------------------------------------------------


@rule("mean sum amax amin var std linalg_vector_norm max min var_mean std_mean")
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
    if mixed or step.name not in ("mean", "sum"):
        walk.channels.bend(unique(ids))
    for dim in over:
        first = ids.narrow(dim, 0, 1)
        if dim in mixed:
            walk.channels.tie(ids, first.expand(ids.shape), order=False, why=f"{label} joins them with others")
            statistic = True
        ids = first
    changed = Seen(power=seen.power * (2 if step.name in ("var", "var_mean") else 1), statistic=statistic)
    outs = list(tensors(step.out))
    for place, out in enumerate(outs):
        if out.is_floating_point() and out.numel() == ids.numel():
            power = seen.power if place == 1 and "_mean" in step.name else changed.power
            walk.give(out, Seen(ids.reshape(out.shape), power=power, statistic=statistic))
        elif out.is_floating_point():
            walk.opaque(step)


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
    ids = seen.ids[(..., *[slice(0, 1)] * size)]
    for out in tensors(step.out):
        if out.is_floating_point():
            walk.give(out, Seen(ids.expand(out.shape), power=seen.power, statistic=seen.statistic))


rule(*_spatial_names())(pool)


@rule("_softmax _log_softmax softmax log_softmax _safe_softmax")
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


@rule("embedding")
def embedding(walk: ChannelWalk, step: Step) -> None:
    weight = walk.seen(step.args[0])
    if not weight.is_parameter or len(weight.entries) != 2 or weight.entries[0].shape != step.args[0].shape:
        walk.opaque(step)
        return
    walk.give(step.out, walk.write(weight, 1, 1, tuple(step.out.shape), MATRIX, walk.taken(weight)))


# ---- norms -----------------------------------------------------------------------------------------------------------


def _eps_of(walk: ChannelWalk, eps: float | None) -> str:
    """The attribute of the module that runs which holds eps."""
    module = walk.modules.get(walk.module)
    if module is None:
        return ""
    held = vars(module)
    if "eps" in held and (held["eps"] is None or _alike(held["eps"], eps)):
        return "eps"
    floats = [name for name, value in held.items() if isinstance(value, float) and _alike(value, eps)]
    return floats[0] if len(floats) == 1 else ""


def _alike(one: Any, other: float | None) -> bool:
    """Whether both are one number, in float32 at least."""
    return isinstance(one, float) and other is not None and abs(one - other) <= 1e-6 * abs(one)


def _kind(walk: ChannelWalk, names: tuple[str, ...], otherwise: str) -> str:
    """The class of the norm that runs, where its name says what it is."""
    module = walk.modules.get(walk.module)
    kind = plain_type(module).__name__ if module is not None and walk.module else ""
    return kind if any(each in kind for each in names) else otherwise


def _norm_of_statistic(walk: ChannelWalk, statistic: Seen, eps: float) -> None:
    """A mean over neurons, plus eps: a norm that is put together by hand."""
    ids = unique(statistic.ids)  # type: ignore[arg-type]
    name = walk.module if _eps_of(walk, eps) else ""
    kind = _kind(walk, ("Norm",), "a norm")
    walk.channels.norms.append(NormUse(name, kind, ids, {}, _eps_of(walk, eps)))


def _after(
    walk: ChannelWalk, before: Tensor | None, shape: tuple[int, ...], dim: int, weight: Any, bias: Any, why: str,
    extras: tuple[Any, ...] = (),
) -> Tensor:  # fmt: skip
    """The channels that γ and β of a norm write; its inputs keep their order with them."""
    places = torch.arange(1, shape[dim] + 1).view([-1 if k == dim else 1 for k in range(len(shape))]).expand(shape)
    source = places if before is None else before
    known = unique(source)
    made = walk.channels.new(len(known))
    table = np.zeros(max(walk.channels.count, int(known.max(initial=0)) + 1), np.int64)
    table[known] = made
    after = _renamed(source, table)
    if before is None:
        walk.channels.keep_place(made, "they are joined with what no layer writes")
    else:
        walk.channels.places.unite(known, made)
    layout = [-1 if k == dim else 1 for k in range(len(shape))]
    for tensor, role in ((weight, SCALE), (bias, BIAS), *((each, EXTRA) for each in extras)):
        seen = walk.seen(tensor)
        if not isinstance(tensor, Tensor):
            continue
        if not seen.is_parameter or (found := walk.laid(after, _reshape_seen(seen, layout), shape)) is None:
            if seen.computed or seen.is_parameter:
                walk.outside.update([seen.name] if seen.is_parameter else [])
                walk.channels.fix(made, f"{walk.label('norm')} has parameters that are computed or laid otherwise")
            continue
        walk.use(role, seen, *found, walk.taken(seen))
    if not walk.seen(weight).is_parameter:
        walk.channels.hold(made, why)
    return after


def _reshape_seen(seen: Seen, layout: list[int]) -> Seen:
    return Seen(name=seen.name, entries=tuple(each.reshape(layout) for each in seen.entries))


def _offsets(walk: ChannelWalk, bias: Any) -> dict[str, float]:
    seen = walk.seen(bias)
    return {seen.name: 1.0} if seen.is_parameter else {}


@rule(
    """
    native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _batch_norm_with_update
    _native_batch_norm_legit_no_training _batch_norm_no_update _native_batch_norm_legit_functional
    """
)
def batch_norm(walk: ChannelWalk, step: Step) -> None:
    given, weight, bias = step.args[:3]
    running = [each for each in step.args[3:5] if isinstance(each, Tensor)]
    kind = _kind(walk, ("BatchNorm", "InstanceNorm"), "BatchNorm")
    eps = next((each for each in reversed(step.args) if isinstance(each, float)), 1e-5)
    seen, label = walk.seen(given), walk.label("batch_norm")
    if seen.ids is not None and any(varies(seen.ids, dim) for dim in range(given.ndim) if dim != 1):
        walk.opaque(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    buffers = [walk.seen(each) for each in running]
    owned = all(each.is_parameter for each in buffers)
    owner = buffers[0].name.rpartition(".")[0] if buffers and owned else walk.module
    if seen.ids is not None:
        line = seen.ids.movedim(1, 0).reshape(given.shape[1], -1)[:, 0].numpy()
        if "InstanceNorm" in kind:  # it sees each sample's channels one after the other
            width = len(walk.seen(weight).entries[0].unique()) if walk.seen(weight).is_parameter else len(unique(seen.ids))
            line = line[: max(1, width)]
        names = owner if not buffers or owned else ""
        walk.channels.norms.append(NormUse(names, kind, line, dict(seen.offsets or {}), _eps_of(walk, eps)))
        if not owned:
            walk.channels.fix(unique(seen.ids), f"{label} keeps its statistics elsewhere than in buffers")
    extras = tuple(each for each, buffer in zip(running, buffers, strict=True) if buffer.is_parameter)
    after = _after(walk, seen.ids, tuple(given.shape), 1, weight, bias, f"{label} has no scale of its own", extras)
    outs = list(tensors(step.out))
    for out in outs:
        walk.give(out, Seen())
    walk.give(outs[0], Seen(after, offsets=_offsets(walk, bias)))


@rule("native_layer_norm layer_norm _fused_rms_norm rms_norm")
def layer_norm(walk: ChannelWalk, step: Step) -> None:
    given, shape, weight = step.args[0], step.args[1], step.args[2]
    mean = "layer" in step.name
    bias, eps = (step.args[3], step.argument(4, "eps", 1e-5)) if mean else (None, step.argument(3, "eps"))
    kind, label = ("LayerNorm" if mean else "RMSNorm"), walk.label(step.name)
    seen = walk.seen(given)
    if len(shape) != 1:
        walk.opaque(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
        return
    walk.regular(seen, f"{label} reads a power or a mean of them")
    if seen.ids is not None and not varies(seen.ids, given.ndim - 1) and given.shape[-1] > 1:
        walk.opaque(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
        return
    if seen.ids is not None:
        lead = seen.ids.narrow(-1, 0, 1)
        walk.channels.tie(seen.ids, lead.expand(seen.ids.shape), order=False, why=f"{label} joins them with others")
        walk.channels.bend(unique(seen.ids))
        if not mean:
            walk.channels.keep_shift(unique(seen.ids), f"{label} does not subtract a mean")
        name = walk.module if _eps_of(walk, eps) else ""
        _apart(walk, seen.ids, given.ndim - 1)
        line = compact(seen.ids)[0]
        walk.channels.norms.append(NormUse(name, kind, line, dict(seen.offsets or {}), _eps_of(walk, eps)))
    after = _after(
        walk, seen.ids, tuple(given.shape), given.ndim - 1, weight, bias, f"{label} has no scale of its own"
    )
    outs = list(tensors(step.out))
    for out in outs:
        walk.give(out, Seen())
    walk.give(outs[0], Seen(after, offsets=_offsets(walk, bias)))


@rule("native_group_norm group_norm")
def group_norm(walk: ChannelWalk, step: Step) -> None:
    given, weight, bias = step.args[:3]
    groups, eps = step.args[6], step.args[7]
    seen, label = walk.seen(given), walk.label("group_norm")
    if seen.ids is not None and any(varies(seen.ids, dim) for dim in range(given.ndim) if dim != 1):
        walk.opaque(step, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
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
        name = walk.module if _eps_of(walk, eps) else ""
        walk.channels.norms.append(
            NormUse(name, "GroupNorm", line.numpy(), dict(seen.offsets or {}), _eps_of(walk, eps))
        )
    after = _after(walk, seen.ids, tuple(given.shape), 1, weight, bias, f"{label} has no scale of its own")
    if seen.ids is not None and 1 < groups < given.shape[1]:
        rows = after.movedim(1, 0).reshape(given.shape[1], -1)[:, 0].view(groups, -1)
        each = torch.arange(groups)[:, None].expand(rows.shape)
        walk.channels.refine(rows.reshape(-1).numpy(), each.reshape(-1).numpy())
    outs = list(tensors(step.out))
    for out in outs:
        walk.give(out, Seen())
    walk.give(outs[0], Seen(after, offsets=_offsets(walk, bias)))


__all__ = ["RULES"]
