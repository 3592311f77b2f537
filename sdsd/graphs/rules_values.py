"""Operations that compute with each entry by itself, and those that sum over entries."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from .atoms import READING, REMOVAL, Ids
from .cut import CutWalk, rule, rule_of_axes
from .operations import Step, covered, tensors
from .values import FREE, MADE, Axis, Value

STATISTICS_ADVICE = (
    "Pass norms='repeat' to consolidate, so that the norm goes on to see merged neurons as often as there were, merge "
    "without removal (remove=False), or choose a layer whose neurons are read before this norm."
)


@rule("each", "same", "sum", "product", "negative", "power", "prelu", "curved", "mask")
def pointwise(walk: CutWalk, step: Step) -> None:
    everything = [*tensors(step.args), *tensors(tuple(step.kwargs.values()))]
    outs = list(tensors(step.out))
    if not everything or not outs:
        return
    out = outs[0]
    given = [each for each in everything if walk.value(each).statistic is None]
    statistics = [walk.value(each).statistic for each in everything if walk.value(each).statistic is not None]
    if statistics and not _has_neurons(walk, given, statistics[0], out):  # type: ignore[arg-type]
        if all(each.numel() == 1 for each in given):
            walk.give(out, [None] * out.ndim)
            walk.value(out).statistic = statistics[0]
            return
        walk.note(statistics[0], "'mean' mixes all neurons")  # type: ignore[arg-type]
        given = everything
    axes: list[Axis] = [FREE] * out.ndim
    known = [False] * out.ndim
    owner: list[Tensor | None] = [None] * out.ndim
    for tensor in given:
        shift = out.ndim - tensor.ndim
        for dim, axis in enumerate(walk.value(tensor).axes):
            place = dim + shift
            if place < 0 or tensor.shape[dim] == 1 != out.shape[place]:
                continue
            if out.shape[place] == 1:
                axes[place] = None if not isinstance(axis, np.ndarray) else axis
                known[place] = True
                continue
            if known[place]:
                axes[place] = _joined(walk, (owner[place], axes[place]), (tensor, axis))
            else:
                axes[place] = axis
            if owner[place] is None or not isinstance(axis, np.ndarray):
                owner[place] = tensor
            known[place] = True
    written_in = any(walk.value(each).written_in for each in given)
    for one in outs:
        if one.shape == out.shape:
            walk.give(one, axes, _result(walk, step, given))
            if id(one) not in walk.named:
                walk.value(one).written_in = written_in


def _has_neurons(walk: CutWalk, given: list[Tensor], statistic: Ids, out: Tensor) -> bool:
    """Whether a mean over all neurons comes back to them, as in a norm."""
    roots = walk.atoms.roots(statistic)
    for tensor in given:
        for dim, axis in enumerate(walk.value(tensor).axes):
            if tensor.shape[dim] != out.shape[dim + out.ndim - tensor.ndim] or not isinstance(axis, np.ndarray):
                continue
            if len(axis) == len(roots) and np.array_equal(walk.atoms.roots(axis), roots):
                reason = "a norm takes its statistics over all neurons, which removing any would change"
                walk.statistics(axis, reason, STATISTICS_ADVICE)
                return True
    return False


@rule("weight norm")
def weight_norm(walk: CutWalk, step: Step) -> None:
    direction, size = step.args[0], step.args[1]
    dim = step.argument(2, "dim", 0) % direction.ndim
    axes = walk.axes(direction)
    for k, axis in enumerate(axes):
        if k == dim:
            walk.join(axis, walk.followed(size, size.ndim - direction.ndim + k))
        else:
            walk.mixed(axis, "the norm of a weight is taken over them", REMOVAL)
    walk.give_alike(step, axes, walk.together([direction, size]))


def _joined(walk: CutWalk, one: tuple[Tensor | None, Axis], other: tuple[Tensor, Axis]) -> Axis:
    (a, a_axis), (b, b_axis) = one, other
    if a_axis is None and b_axis is None:
        return None
    for tensor, axis, another in ((a, a_axis, b_axis), (b, b_axis, a_axis)):
        if axis is FREE and tensor is not None and walk.value(tensor).written_in and isinstance(another, np.ndarray):
            dim = [k for k, each in enumerate(walk.value(tensor).axes) if each is FREE]
            for k in dim:
                if tensor.shape[k] == len(another):
                    walk.atoms.unite(walk.followed(tensor, k), another)  # type: ignore[arg-type]
    unknown = a if a_axis is None else b if b_axis is None else None
    label = walk.value(unknown).label if unknown is not None else ""
    return walk.join(a_axis, b_axis, label)


def _result(walk: CutWalk, step: Step, given: list[Tensor]) -> Value:
    made = walk.together(given)
    with_parameters = sum(bool(walk.value(each).parameters) for each in given)
    product = step.row.kind == "product"
    if not step.row.linear or (product and with_parameters > 1):
        made.linear = False
    if step.name == "div" and len(given) > 1 and walk.value(given[1]).parameters:
        made.linear = False
    if product and any(each.ndim > 0 and each.numel() > 1 for each in given[1:]):
        made.linear = False
    if made.linear and made.parameters and _across(walk, given):
        made.linear = False
    return made


def _across(walk: CutWalk, given: list[Tensor]) -> bool:
    """Whether one axis of a parameter comes in two places, as in a weight plus its transpose."""
    for one, other in itertools.combinations([walk.value(each) for each in given], 2):
        if one.static and other.static and one.parameters & other.parameters:
            for (k, a), (j, b) in itertools.product(enumerate(one.axes[::-1]), enumerate(other.axes[::-1])):
                if k != j and isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.isin(a, b).any():
                    return True
    return False


@rule("copy")
def copy_(walk: CutWalk, step: Step) -> None:
    """One tensor is written into another, which keeps its entries."""
    target, source = step.args[0], step.args[1]
    shift = target.ndim - source.ndim
    for dim in range(source.ndim):
        if source.shape[dim] == target.shape[dim + shift] > 1:
            walk.join(walk.followed(target, dim + shift), walk.followed(source, dim))
    written = walk.value(target)
    if id(target) not in walk.named:
        written.static = written.static and walk.value(source).static
        written.linear = written.linear and walk.value(source).linear
        written.parameters |= walk.value(source).parameters
        _spread(walk, target, written.static)


def _spread(walk: CutWalk, target: Tensor, static: bool) -> None:
    """What shares memory with a tensor that was written is no more static than what was written."""
    if static:
        return
    for _, value in walk.sharing(target):
        value.static = False


@rule("put")
def put(walk: CutWalk, step: Step) -> None:
    """Samples or positions are written by their places."""
    target = step.args[0]
    axes = list(walk.value(target).axes)
    if step.name == "index_put":
        dims, source = covered(step.args[1], target.ndim), step.args[2]
        first = step.args[1][0]
        if source.numel() == 1 and first is not None and first.dtype == torch.bool and first.shape == target.shape:
            axes = [walk.join(axis, walk.followed(first, k)) for k, axis in enumerate(axes)]
            dims = []  # one number, wherever a mask says: each entry by itself
    else:
        dims = [step.args[1] % max(1, target.ndim)]
        source = step.args[3] if len(step.args) > 3 and isinstance(step.args[3], Tensor) else None
    for dim in dims:
        if isinstance(axes[dim], np.ndarray):
            walk.mixed(axes[dim], "some of them are written by their places")
        axes[dim] = None
    if source is not None and source.ndim == target.ndim:
        for k in range(target.ndim):
            if k not in dims and source.shape[k] == target.shape[k] > 1:
                axes[k] = walk.join(axes[k], walk.followed(source, k))
    elif source is not None and source.ndim > 0:
        for k in range(1, source.ndim + 1):
            if k <= target.ndim and source.shape[-k] == target.shape[-k] > 1 and target.ndim - k not in dims:
                axes[-k] = walk.join(axes[-k], walk.followed(source, source.ndim - k))
    if step.name != "index_put":
        walk.join_indices(axes, step.argument(2, "index", None), dims[0])
    if step.out is target and id(target) not in walk.named:
        walk.value(target).axes = axes
        walk.value(target).static = False
        _spread(walk, target, False)
    else:
        walk.give(step.out, axes)


@rule("constant")
def factory(walk: CutWalk, step: Step) -> None:
    for out in tensors(step.out):
        walk.give(out, [FREE] * out.ndim, Value([], True, True))
        walk.value(out).written_in = walk.sizes_written_in
        walk.value(out).label = MADE


@rule("like")
def made_like(walk: CutWalk, step: Step) -> None:
    walk.give(step.out, walk.axes(step.args[0]), Value([], True, True))


@rule("count")
def counted(walk: CutWalk, step: Step) -> None:
    for out in tensors(step.out):
        walk.give(out, [None] * out.ndim, Value([], True, True))
        walk.value(out).label = MADE


# ---- sums ------------------------------------------------------------------------------------------------------------


@rule("reduce", "digest")
def reduction(walk: CutWalk, step: Step) -> None:
    given: Tensor = step.args[0]
    if step.name in ("max", "min") and len(step.args) > 1 and isinstance(step.args[1], Tensor):
        pointwise(walk, step)
        return
    over = step.over
    axes = walk.axes(given)
    value = walk.value(given)
    blocks = REMOVAL if value.static else READING
    what = f"a weight of theirs is summed up by {walk.name!r}" if value.static else f"{walk.name!r} mixes all neurons"
    statistic = _as_statistic(walk, step, axes, over) if not value.static else None
    if_used = []
    for dim in over:
        if given.ndim and given.shape[dim] > 1 and statistic is None:
            if_used += walk.mixed_if_used(axes[dim], what, blocks)
    for out in tensors(step.out):
        kept = out.ndim == given.ndim
        made = [None if k in over else axis for k, axis in enumerate(axes) if kept or k not in over]
        walk.give(out, made if len(made) == out.ndim else [None] * out.ndim, value, linear=False)
        walk.value(out).if_used = if_used
        if statistic is not None:
            walk.value(out).statistic = statistic


def _as_statistic(walk: CutWalk, step: Step, axes: list[Axis], over: list[int]) -> Ids | None:
    """The neurons of a mean over them that keeps its place, which a norm may divide by."""
    if step.name not in ("mean", "var", "linalg_vector_norm") or len(over) != 1:
        return None
    axis = axes[over[0]]
    kept = step.out.ndim == step.args[0].ndim and step.out.shape != step.args[0].shape
    return axis if kept and isinstance(axis, np.ndarray) and not walk.atoms.inside(axis) else None


@rule_of_axes("softmax", "cumulate", linear=False)
def along(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    if given.ndim:
        walk.mixed(axes[step.argument(1, "dim", -1)], f"{walk.name!r} mixes all neurons")
    return axes


@rule("distance")
def distance(walk: CutWalk, step: Step) -> None:
    """Of points in a space that the neurons span."""
    given = list(tensors(step.args))
    for each in given:
        walk.mixed(walk.axes(each)[-1], f"{walk.name!r} adds up differences of all neurons")
    walk.give(step.out, [None] * step.out.ndim, walk.together(given), linear=False)


@rule_of_axes("transform", linear=False)
def transform(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    for dim in step.args[1]:
        walk.mixed(axes[dim], f"{walk.name!r} mixes all neurons")
        axes[dim] = None
    return axes


@rule_of_axes("order", linear=False)
def ordered(walk: CutWalk, step: Step, given: Tensor, axes: list[Axis]) -> list[Axis]:
    dim = step.argument(2 if step.name == "topk" else 1, "dim", -1)
    dim = dim if isinstance(dim, int) else -1
    walk.mixed(axes[dim], f"{walk.name!r} orders the neurons")
    axes[dim] = None
    return axes


@rule("gate")
def glu(walk: CutWalk, step: Step) -> None:
    given: Tensor = step.args[0]
    dim = step.argument(1, "dim", -1) % given.ndim
    axes = walk.axes(given)
    axis = axes[dim]
    if isinstance(axis, np.ndarray):
        walk.atoms.unite(*np.split(axis, 2))
        axes[dim] = axis[: len(axis) // 2]
    walk.give(step.out, axes)


# ---- norms -----------------------------------------------------------------------------------------------------------


@rule("batch norm")
def batch_norm(walk: CutWalk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    for other in tensors(step.args[1:5]):
        if other.ndim == 1 and given.ndim > 1 and given.shape[1] > 1:
            axes[1] = walk.join(axes[1], walk.followed(other, 0))
    for k, along in enumerate(axes):
        if k != 1 and given.shape[k] > 1:
            if walk.value(given).static:  # a weight that is standardised
                walk.mixed(along, "a weight that is computed from others takes statistics over them", REMOVAL)
            else:
                _over_neurons(walk, along, "" if step.argument(5, "training") is True else ", in training,")
    for out in tensors(step.out):
        walk.give(out, axes if out.ndim == given.ndim else [None] * out.ndim, walk.together([given]), linear=False)


def _over_neurons(walk: CutWalk, axis: Axis, when: str) -> None:
    """A batch norm takes its statistics over an axis that is not its channels."""
    reason = f"{walk.name!r} takes its statistics{when} over all neurons, which removing any would change"
    if isinstance(axis, np.ndarray) and len(np.unique(axis)) < len(axis):  # with samples or positions
        walk.mixed(axis, reason, REMOVAL)
    else:
        walk.statistics(axis, reason, STATISTICS_ADVICE)


@rule("layer norm")
def layer_norm(walk: CutWalk, step: Step) -> None:
    given, shape = step.args[0], step.args[1]
    axes = walk.axes(given)
    for k in range(1, len(shape) + 1):
        if given.shape[-k] == 1:
            continue
        for other in tensors(step.args[2:4]):
            axes[-k] = walk.join(axes[-k], walk.followed(other, other.ndim - k))
        reason = f"{walk.name!r} takes its statistics over all neurons, which removing any would change"
        walk.statistics(axes[-k], reason, STATISTICS_ADVICE)
    walk.give_alike(step, axes, walk.value(given))


@rule("group norm")
def group_norm(walk: CutWalk, step: Step) -> None:
    given: Tensor = step.args[0]
    axes = walk.axes(given)
    for other in tensors(step.args[1:3]):
        axes[1] = walk.join(axes[1], walk.followed(other, 0))
    groups = step.argument(6, "group")
    if given.shape[1] != groups:
        reason = f"{walk.name!r} takes its statistics over groups of neurons, which removing any would change"
        walk.statistics(axes[1], reason, STATISTICS_ADVICE)
    walk.give_alike(step, axes, walk.value(given))
