"""Gram matrix in Triton: the upper triangle of products, added to a sum in place.

    G[i, j] += Σ_k a[i, k] · a[j, k]    for i ≤ j,    a_i = (x_i − shift_i) · scale_i

Shapes: rows (N, OUTER, INNER) with any three strides, read where it lies; shift and scale (N,) float32, or None;
gram (N, N) float32 or float64, contiguous.

The product kernels are those of ../cosine_matrix/product_kernel.py. A tile is added by the program that computed it;
where `waves.py` splits the samples, the partial sums of all splits are added up in order by a second launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._device import device_record
from ..cosine_matrix import autotune, config, waves
from ..cosine_matrix.kernel import problem_of
from ..cosine_matrix.product_kernel import launch_products, launch_reduce


def launch_gram_accumulate(
    gram: Tensor,
    rows: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    *,
    precision: str,
    plan: waves.Plan | None = None,
) -> None:
    """Add the products of `rows` (N, OUTER, INNER), float32 or half, to the upper triangle of `gram`.

    `plan` None leaves the choice to the wave model, or to measurements where SDSD_AUTOTUNE=1 asks for them.
    """
    changed = shift is not None or scale is not None
    if shift is not None and scale is None:
        scale = torch.ones_like(shift)
    record = device_record(rows.device)
    # A shifted or scaled half is a half no longer.
    dot = config.dot_precision(precision, rows.dtype, center=changed, arch=record.family)
    if plan is None:
        problem = problem_of(rows, record, dot, "sum", scaled=changed)
        plan = autotune.choose(
            "gram_accumulate",
            problem,
            lambda plan: _add(torch.zeros_like(gram), rows, shift, scale, dot, plan),
            rows.device,
        )
    _add(gram, rows, shift, scale, dot, plan)


def _add(gram: Tensor, rows: Tensor, shift: Tensor | None, scale: Tensor | None, dot: str, plan: waves.Plan) -> None:
    """Products by `plan`, into `gram`."""
    neurons, outer, inner = rows.shape
    options = {"mean": shift, "scale": scale, "center": shift is not None, "scale_operands": scale is not None}
    if not plan.finishes:
        launch_products(rows, plan, dot, "add", gram, **options)
        return
    splits = waves.split_count(outer * inner, plan.splits, plan.launch.block_samples)
    partial = rows.new_empty((splits, neurons, neurons), dtype=torch.float32)
    launch_products(rows, plan, dot, "partial", partial, **options)
    launch_reduce(partial, "add", gram)
