"""Public function → checks → backend → the operator `sdsd::gamma_moments` and its fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_float_tensor
from .._register import register
from . import cpu
from .layout import row_width


class GammaMoments(NamedTuple):
    """Moments of L gradient tensors of N rows each, float64, on the gradients' device.

    With g_i the i-th row, ḡ the mean row and d_i = g_i − ḡ:
    """

    signal: Tensor
    """‖ḡ‖²; shape: (L,)"""
    squares: Tensor
    """Σ_i ‖d_i‖²; shape: (L,). Divide by N − 1 for Tr Var."""
    deviations: Tensor | None
    """a_i = ‖d_i‖²; shape: (L, N). None unless per_sample."""
    projections: Tensor | None
    """q_i = d_i·ḡ; shape: (L, N). None unless per_sample."""
    products: Tensor | None
    """c_j = (g_4j − g_4j+1)·(g_4j+2 − g_4j+3) / 2; shape: (L, N // 4); E[c²] = Tr Σ². None unless per_sample."""


def gamma_moments(
    grads: Tensor | Sequence[Tensor] | Mapping[str, Tensor], *, per_sample: bool = False, backend: str | None = None
) -> GammaMoments:
    """Moments of the rows of G: ‖ḡ‖², Σ‖g_i − ḡ‖² and, on request, two numbers a row for leave-one-out.

    In plain PyTorch, for one matrix G of shape (N, P)::

        mean = G.double().mean(0)
        d = G.double() - mean
        signal, squares = mean @ mean, (d * d).sum()
        deviations, projections = (d * d).sum(1), d @ mean

    G is read once (twice for N > 1024 with per_sample); extra memory is O(N) a program, no (N, N) or (N, P) buffer.
    Sums run in float64, or in float32 over a few values of which the mean was taken away, and in float64 beyond them.
    Values of any scale that the input dtype holds are right: what float32 cannot square is squared in float64.
    A NaN or infinity makes the moments of its own tensor NaN. Deterministic. Not differentiable: inputs are detached.

    Args:
        grads: one tensor of shape (N, *shape), or a sequence or mapping of them with the same N, one entry a
            parameter; float64, float32, float16 or bfloat16, dtypes may differ; any strides; one device.
        per_sample: also return `deviations`, `projections` and `products`.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        `GammaMoments`, one row an entry of `grads` (L = 1 for a single tensor), float64.

    Raises:
        TypeError: an entry that is not a dense real floating-point tensor.
        ValueError: N < 2, an empty tensor, list or mapping, entries that differ in N or device, an unusable backend.
        RuntimeError: several tensors, or one that no single pair of strides walks, inside a CUDA graph.
    """
    if isinstance(grads, (list, tuple)):
        entries = list(grads)
    elif isinstance(grads, Tensor) or not isinstance(grads, Mapping):
        entries = [grads]
    else:
        entries = list(grads.values())
    if not entries:
        raise ValueError(f"grads: expected at least one tensor, got an empty {type(grads).__name__}.")
    _check(entries, grads)
    device = entries[0].device
    table = _operator([entry.detach() for entry in entries], per_sample, choose_backend(backend, device))
    if not per_sample:
        return GammaMoments(table[:, 0], table[:, 1], None, None, None)
    n = entries[0].shape[0]
    deviations, projections, products = table[:, 2:].split((n, n, n // 4), dim=1)
    return GammaMoments(table[:, 0], table[:, 1], deviations, projections, products)


_MAX_CHECKED = 4096
_checked: set[tuple[Any, ...]] = set()
"""Shapes, dtypes and layouts that passed, so that they are looked at once; a trace looks at all, at no cost later."""


def _check(entries: list[Any], grads: Any) -> None:
    """Raise unless all entries are matrices of gradients, of one number of rows and on one device."""
    tracing = torch.compiler.is_compiling()
    first = entries[0]
    for index, entry in enumerate(entries):
        unseen = tracing or not isinstance(entry, Tensor) or entry.is_nested  # which has no shape
        if unseen or (entry.shape, entry.dtype, entry.layout) not in _checked:
            name = _name(grads, index)
            check_gradient_rows(check_float_tensor(entry, name), name)
            if not tracing:
                if len(_checked) >= _MAX_CHECKED:
                    _checked.clear()
                _checked.add((entry.shape, entry.dtype, entry.layout))
        if entry.shape[0] != first.shape[0]:
            name = _name(grads, index)
            raise ValueError(
                f"{name}: expected {first.shape[0]} gradients like the first entry, got {entry.shape[0]}. "
                f"Every entry needs the same number of gradients, along its first dimension."
            )
        if entry.device != first.device:
            name = _name(grads, index)
            raise ValueError(
                f"{name}: expected device {first.device} like the first entry, got {entry.device}. "
                f"Move all gradients to one device first."
            )


def _name(grads: Any, index: int) -> str:
    """What an entry is called in an error."""
    if isinstance(grads, Mapping):
        return f"grads[{list(grads)[index]!r}]"
    return f"grads[{index}]" if isinstance(grads, (list, tuple)) else "grads"


def check_gradient_rows(entry: Tensor, name: str) -> None:
    """Raise unless `entry` holds at least two gradients of at least one element along its first dimension."""
    if entry.ndim < 2:
        raise ValueError(
            f"{name}: expected shape (N, ...), one gradient a row, got shape {tuple(entry.shape)}. "
            f"For one parameter of a single element use {name}.reshape(N, 1)."
        )
    if entry.shape[0] < 2:
        raise ValueError(
            f"{name}: expected at least 2 gradients (a variance needs them), got {entry.shape[0]} "
            f"in shape {tuple(entry.shape)}. The first dimension counts the gradients."
        )
    if entry.numel() == 0:
        raise ValueError(f"{name}: expected at least one element a gradient, got shape {tuple(entry.shape)}.")


def _compute(grads: list[Tensor], per_sample: bool, backend: str) -> Tensor:
    if backend == "triton":
        from .launch import launch_gamma_moments

        return launch_gamma_moments(grads, per_sample)
    return cpu.gamma_moments(grads, per_sample)


def _fake(grads: list[Tensor], per_sample: bool, backend: str) -> Tensor:
    return grads[0].new_empty((len(grads), row_width(grads[0].shape[0], per_sample)), dtype=torch.float64)


_operator = register("gamma_moments(Tensor[] grads, bool per_sample, str backend) -> Tensor", _compute, fake=_fake)
