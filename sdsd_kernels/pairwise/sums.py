"""Sums of products over batches, in strips of their triangle: one launch a batch, and one for the matrix at the end."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._device import device_record
from .._launch import Launch, kept, on_device
from .._rows import as_rows
from .launch import Preparation, Triangle, has_room_for_a_guard, key_of
from .sums_kernel import expand_kernel, mean_kernel

MEANS = 256
"""Neurons of a program of `mean_kernel`."""
EXPANDED = 32
"""Side of a tile of `expand_kernel`: in float64, with its mirror image."""


class _Update(NamedTuple):
    prepare: Preparation
    triangle: Triangle
    mean: Launch | None


_updates: dict[tuple[Any, ...], _Update] = {}
_expansions: dict[tuple[Any, ...], Launch] = {}


def add_batch(
    before: Tensor | None,
    activations: Tensor,
    out: Tensor,
    *,
    strips: int,
    weight: Tensor | None,
    mean: Tensor | None,
    count: int,
    center: bool,
    precision: str,
) -> Tensor | None:
    """out = before + products of a batch of samples, with a = weight (x − its mean where centred).

    Args:
        before: sums so far, float64, strip by strip; None: none.
        activations: the batch, neurons first: (N, …), float32 or half.
        out: memory for the new sums; may be `before`.
        strips: rows of a strip.
        weight: (N,) float32, or None.
        mean: of all samples so far, times `weight`; None where there are none, or without centring.  # shape: (N,)
        count: how many samples there were.
        center: whether sums are about the mean of all samples.
        precision: "float32" or "fp16".

    Returns:
        The mean of all samples, float64, or None without centring.  # shape: (N,)
    """
    rows = as_rows(activations, 0)
    key = key_of(rows, strips, weight is None, before is None, mean is None, center, precision)
    plan = _updates.get(key)
    if plan is None:
        prepare = Preparation(
            rows, device_record(rows.device), precision=precision, center=center, guarded=has_room_for_a_guard(rows)
        )
        step = None
        if center:
            step = mean_launch(prepare.neurons, rows.stride(0))
        plan = kept(_updates, key, _Update(prepare, Triangle(prepare, "add", strips=strips, guard=prepare.guard), step))
    return on_device(rows, _add_batch, plan, before, rows, out, weight, mean, count)


def _add_batch(
    plan: _Update,
    before: Tensor | None,
    rows: Tensor,
    out: Tensor,
    weight: Tensor | None,
    mean: Tensor | None,
    count: int,
) -> Tensor | None:
    if plan.prepare.in_place and not plan.prepare.guard:
        plan.triangle(rows, None, None, weight, None, before, out)
        return None
    operands, scale, inverse, rest = plan.prepare(rows)
    delta = after = None
    if plan.mean is not None:
        after = torch.empty(plan.prepare.neurons, dtype=torch.float64, device=rows.device)
        delta = None if mean is None else torch.empty_like(after)
        plan.mean(rows, rest, weight, mean, after, delta, count, plan.prepare.samples)
    plan.triangle(operands, scale, inverse, weight, delta, before, out)
    return after


def mean_launch(neurons: int, stride_neuron: int) -> Launch:
    """One step of the means of so many neurons."""
    known = {"neurons": neurons, "stride_neuron": stride_neuron, "BLOCK": MEANS}
    return Launch(mean_kernel, (-(-neurons // MEANS), 1, 1), known, num_warps=4)


def expand_launch(neurons: int, *, cosine: bool, strips: int) -> Launch:
    """The whole matrix of so many neurons."""
    across = -(-neurons // EXPANDED)
    known = {"neurons": neurons, "COSINE": cosine, "STRIPS": strips, "BLOCK": EXPANDED, "GROUP": 8}
    return Launch(expand_kernel, (across * (across + 1) // 2, 1, 1), known, num_warps=8)


def expand(sums: Tensor, factor: Tensor, shift: Tensor | None, out: Tensor, *, strips: int, cosine: bool) -> None:
    """Write (T[i, j] + shift_i shift_j) · (factor_i factor_j) into `out` (N, N), as a whole symmetric matrix.

    Args:
        sums: T, float64, strip by strip.
        factor: (N,), float64; for cosines inverse norms, 0 or NaN for a neuron without direction.
        shift: (N,), float64, or None.
        out: what is written, of any floating-point dtype.
        strips: rows of a strip.
        cosine: within ±1, and 1 on the diagonal of neurons that have a direction.
    """
    neurons = out.shape[0]
    key = (neurons, out.dtype, out.device, shift is None, strips, cosine)
    launch = _expansions.get(key)
    if launch is None:
        launch = kept(_expansions, key, expand_launch(neurons, cosine=cosine, strips=strips))
    on_device(out, launch, sums, factor, shift, out)
