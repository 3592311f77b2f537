"""Activations as the kernels of cosines take them: checked, one neuron a row, read where they lie."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ._checks import check_float_tensor, check_neurons


def rows_of(activations: Any, neuron_dim: Any, name: str = "activations") -> Tensor:
    """Checked `activations` as rows (N, OUTER, INNER), without gradients."""
    check_float_tensor(activations, name)
    return as_rows(activations.detach(), check_neurons(activations, neuron_dim, name))


def rows_of_both(x: Any, y: Any, neuron_dim: Any, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """`x` and `y` as rows that cut the same samples alike, (N, OUTER, INNER) and (M, OUTER, INNER)."""
    rows, others = rows_of(x, neuron_dim, names[0]), rows_of(y, neuron_dim, names[1])
    for what, expected, got in (
        ("dtype", rows.dtype, others.dtype),
        ("device", rows.device, others.device),
        ("number of samples", rows[0].numel(), others[0].numel()),
    ):
        if expected != got:
            raise ValueError(
                f"{names[1]}: expected the {what} of {names[0]}, {expected}, got {got} (shapes {tuple(y.shape)} and "
                f"{tuple(x.shape)}, neuron_dim={neuron_dim}). Both must hold the same samples in one order."
            )
    return _cut_alike(rows, others)


def _cut_alike(rows: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The same (OUTER, INNER) for both: a view where either has one sample stride, else a copy of `others`."""
    if rows.shape[1:] == others.shape[1:]:
        return rows, others
    if rows.shape[1] == 1:
        return rows.reshape(rows.shape[0], *others.shape[1:]), others
    return rows, others.reshape(others.shape[0], *rows.shape[1:])


def as_rows(activations: Tensor, neuron_dim: int) -> Tensor:
    """(N, OUTER, INNER) view, one stride for each; a copy where samples have more than two, or torch negates a view."""
    moved = activations.resolve_neg().movedim(neuron_dim, 0)
    sizes, strides = moved.shape[1:], moved.stride()[1:]
    # INNER is the longest run of trailing dimensions that one stride walks.
    inner, stride = 1, None
    for size, step in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if stride is not None and step != stride * inner:
            break
        inner, stride = inner * size, step if stride is None else stride
    return moved.reshape(moved.shape[0], math.prod(sizes) // inner, inner)
