"""Products of matrices, convolutions and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .atoms import CHOOSE_ANOTHER, INNER, MERGING, Ids
from .cut import CutWalk, rule
from .operations import Step, tensors
from .values import Axis, Factor, Value


@rule("matrix product")
def matrix_product(walk: CutWalk, step: Step) -> None:
    plus, a, b = step.factors
    a_axes, b_axes = walk.axes(a), walk.axes(b)
    over = b.ndim - 2 if b.ndim > 1 else 0
    made: list[Axis] = []
    if a.ndim == 3:
        made.append(_batch(walk, a_axes[0], b_axes[0]))
    walk.contract(Factor(a, a.ndim - 1, a_axes[-1]), Factor(b, over, b_axes[over]))
    weight = walk.weight_of(a, b)
    if a.ndim > 1:
        made.append(a_axes[-2])
        if not walk.value(b).static or walk.value(a) is weight:
            walk.writes(a, a_axes[-2])
    if b.ndim > 1:
        made.append(b_axes[-1])
        if not walk.value(a).static or walk.value(b) is weight:
            walk.writes(b, b_axes[-1])
    if plus is not None:
        walk.read_otherwise |= {walk.norm_of(plus)} - {""}
        for k in range(1, plus.ndim + 1):
            if plus.shape[-k] == step.out.shape[-k] > 1:
                made[-k] = walk.join(made[-k], walk.followed(plus, plus.ndim - k), walk.value(plus).label)
    value = walk.together([a, b])
    if plus is not None:
        value = walk.together([a, b, plus]) if value.static else value
    walk.give(step.out, made, value)


def _batch(walk: CutWalk, one: Axis, other: Axis) -> Axis:
    """The axis of a batch of products: of samples, or of heads, or of both."""
    for axis in (one, other):
        if isinstance(axis, np.ndarray):
            walk.atoms.counts_units(axis)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        walk.atoms.unite(one, other)
        return one
    known = one if isinstance(one, np.ndarray) else other
    if isinstance(known, np.ndarray):
        walk.mixed(known, f"{walk.name!r} multiplies them by what no layer writes")
    return known if isinstance(known, np.ndarray) else None


@rule("bilinear")
def bilinear(walk: CutWalk, step: Step) -> None:
    """One matrix an output between two tensors, as in `torch.nn.Bilinear`."""
    (one, weight, other), places = step.args[:3], [list(each) for each in step.args[3:7]]
    if places != [[1, 3], [0], [1, 2], [2, 3]]:
        walk.unknown(step)
        return
    samples, left = walk.axes(one)
    outputs, rows, columns = walk.axes(weight)
    walk.contract(Factor(one, 1, left), Factor(weight, 1, rows))
    walk.contract(Factor(other, 1, walk.axes(other)[1]), Factor(weight, 2, columns))
    walk.writes(weight, outputs)
    walk.give(step.out, [samples, outputs], walk.together([one, weight, other]), linear=False)


@rule("convolution")
def convolution(walk: CutWalk, step: Step) -> None:
    given, weight, bias = step.args[0], step.args[1], step.args[2]
    transposed, groups = step.args[6], step.args[8]
    axes, kernel = walk.axes(given), walk.axes(weight)
    channels = axes[1]
    for axis in axes[2:]:  # before the channels are read: where an axis was cut into both, these count the neurons
        walk.mixed(axis, f"{walk.name!r} runs along the axis of the neurons")
    if transposed:
        out = _transposed(walk, (given, channels), (weight, kernel), groups)
    elif groups == 1:
        walk.contract(Factor(given, 1, channels), Factor(weight, 1, kernel[1]))
        out = kernel[0]
    else:
        out = _grouped(walk, (given, channels), (weight, kernel), groups)
    walk.writes(weight, out)
    if bias is not None and isinstance(out, np.ndarray) and bias.shape[0] > 1:
        out = walk.join(out, walk.followed(bias, 0))
    for kernel_axis in kernel[2:]:
        walk.note(kernel_axis, "they are places of a kernel")
    walk.give(step.out, [axes[0], out, *[None] * (step.out.ndim - 2)], Value([], walk.value(given).static, False))


def _grouped(walk: CutWalk, given: tuple[Tensor, Axis], weights: tuple[Tensor, list[Axis]], groups: int) -> Axis:
    (x, channels), (weight, kernel) = given, weights
    rows = kernel[0]
    if weight.shape[1] == 1:  # depthwise
        return _each(walk, channels, rows, weight.shape[0] // groups)
    if isinstance(rows, np.ndarray):
        _alike(walk, rows.reshape(groups, -1))
    if isinstance(channels, np.ndarray):
        parts = channels.reshape(groups, -1)
        _alike(walk, parts)
        walk.contract(Factor(x, 1, parts[0]), Factor(weight, 1, kernel[1]))
    else:
        walk.contract(Factor(x, 1, None), Factor(weight, 1, kernel[1]))
    return rows


def _transposed(walk: CutWalk, given: tuple[Tensor, Axis], weights: tuple[Tensor, list[Axis]], groups: int) -> Axis:
    (x, channels), (weight, kernel) = given, weights
    rows, out = kernel[:2]
    if groups == weight.shape[0] > 1 and (weight.shape[1] == 1 or isinstance(channels, np.ndarray)):  # depthwise
        if weight.shape[1] > 1:
            walk.note(out, "each of them is of every channel", CHOOSE_ANOTHER, MERGING)
        rows = _each(walk, channels, rows, 1)
        return np.repeat(rows, weight.shape[1]) if isinstance(rows, np.ndarray) else None
    if groups > 1:
        for axis in (channels, rows):
            if isinstance(axis, np.ndarray):
                _alike(walk, axis.reshape(groups, -1))
    walk.contract(Factor(x, 1, channels), Factor(weight, 0, rows))
    return np.tile(out, groups) if isinstance(out, np.ndarray) else None


def _each(walk: CutWalk, channels: Axis, rows: Axis, times: int) -> Axis:
    """Every channel by itself, by `times` kernels."""
    if not isinstance(rows, np.ndarray):
        walk.mixed(channels, f"{walk.name!r} multiplies each by what no layer writes")
    elif isinstance(channels, np.ndarray):
        walk.atoms.unite(np.repeat(channels, times), rows)
    else:
        walk.note(rows, "each reads an input of its own", CHOOSE_ANOTHER, MERGING)
    return rows


def _alike(walk: CutWalk, rows: Ids) -> None:
    """Every group has to lose the same places."""
    for row in rows[1:]:
        walk.atoms.unite(rows[0], row)


@rule("attention")
def attention(walk: CutWalk, step: Step) -> None:
    query, key, value = step.args[:3]
    q, k, v = (walk.axes(each) for each in (query, key, value))
    heads = q[1]
    for given, other in ((key, k[1]), (value, v[1])):
        if given.shape[1] == 1 < query.shape[1]:
            continue  # one head of keys and values for all
        if isinstance(other, np.ndarray) and isinstance(heads, np.ndarray) and len(other) < len(heads):
            other = np.repeat(other, len(heads) // len(other))
        heads = _batch(walk, heads, other)
    for axis in (q[3], k[3]):
        walk.mixed(axis, "attention multiplies queries by keys")
    if isinstance(heads, np.ndarray) and isinstance(v[3], np.ndarray) and not walk.atoms.inside(v[3]):
        walk.atoms.mark(v[3], INNER)
    if isinstance(q[3], np.ndarray) and isinstance(k[3], np.ndarray):
        walk.atoms.unite(q[3], k[3])
    for bias in tensors((*step.args[3:], *step.kwargs.values())):
        if bias.ndim == 4 and bias.shape[1] == query.shape[1] > 1:
            walk.join(heads, walk.followed(bias, 1), walk.value(bias).label)
    outs: list[Any] = list(tensors(step.out))
    for out in outs:
        same = out.ndim == 4 and out.shape[:3] == query.shape[:3] and out.shape[3] == value.shape[3]
        walk.give(out, [q[0], heads, None, v[3]] if same else [None] * out.ndim)


@rule("recurrent layer")
def recurrent_layer(walk: CutWalk, step: Step) -> None:
    """An LSTM: its inputs are read by one matrix, and everything else stays as it is."""
    given, weight, *others = step.args[:7]
    inputs, columns = walk.axes(given)[-1], walk.axes(weight)[1]
    walk.contract(Factor(given, given.ndim - 1, inputs), Factor(weight, 1, columns))
    walk.mixed(walk.axes(weight)[0], "they are gates")
    for other in tensors(others):
        for axis in walk.axes(other):
            walk.mixed(axis, "a recurrent layer keeps them")
    for out in tensors(step.out):
        walk.give(out, [None] * out.ndim)
        walk.value(out).label = "what a recurrent layer gives"


@rule("grouped product")
def grouped_product(walk: CutWalk, step: Step) -> None:
    """Rows of one tensor, in groups, each by a matrix of its own: experts."""
    rows, experts = step.args[0], step.args[1]
    if rows.ndim != 2 or experts.ndim != 3:
        walk.unknown(step)
        return
    given, weights = walk.axes(rows), walk.axes(experts)
    walk.mixed(weights[0], "they are experts, and chosen by their places")
    walk.contract(Factor(rows, 1, given[1]), Factor(experts, 1, weights[1]))
    walk.writes(experts, weights[2])
    walk.give(step.out, [given[0], weights[2]], walk.together([rows, experts]))
