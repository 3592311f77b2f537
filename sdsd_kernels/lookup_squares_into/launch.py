"""From tensors to launches: one sort, and two launches that a plan has settled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._device import device_record
from .._launch import NORMS_WIDTH, Launch, kept, on_device
from .kernel import add_shares_kernel, lookup_kernel

BLOCK = (32, 64)
"""Positions and features at once. On an H200, 8 × 1024 × 1024 float32, with the sort: 144 µs for tokens of 32,768, 219
for tokens of 50, 114 for each token once. Other blocks were not tried."""
BLOCK_INTERPRETED = (4, 16)
PROGRAMS = 8
"""Programs that a multiprocessor is to have, where features can be shared for it."""
SHARES = 1024

_plans: dict[tuple[Any, ...], tuple[Launch, Launch, tuple[int, int, int]]] = {}


def launch(grads: Tensor, tokens: Tensor, square_norms: Tensor, row: int, padding: int) -> None:
    """The square norm of (N, T, d) gradients at (N, T) tokens into a row of `square_norms`."""
    key = (grads.shape, grads.stride(), grads.dtype, grads.device, grads.data_ptr() % 16)
    plan = _plans.get(key)
    if plan is None:
        plan = kept(_plans, key, _plan(grads))
    on_device(grads, _run, plan, grads, tokens, square_norms, row, padding)


def _run(plan: Any, grads: Tensor, tokens: Tensor, square_norms: Tensor, row: int, padding: int) -> None:
    squares, add, shape = plan
    ordered, order = tokens.long().sort(dim=1)
    shares = torch.empty(shape, dtype=torch.float64, device=grads.device)
    squares(grads, ordered.contiguous(), order.contiguous(), shares, padding)
    add(shares, square_norms, row)


def _plan(grads: Tensor) -> tuple[Launch, Launch, tuple[int, int, int]]:
    samples, positions, features = grads.shape
    record = device_record(grads.device)
    block, block_k = BLOCK_INTERPRETED if record.family == "interpreted" else BLOCK
    tiles = -(-positions // block)
    wanted = -(-record.multiprocessors * PROGRAMS // (tiles * samples))
    splits = max(1, min(wanted, -(-features // block_k)))
    settled = {"positions": positions, "features": features, "BLOCK": block, "BLOCK_K": block_k}
    settled |= dict(zip(("b_n", "b_t", "b_d"), grads.stride(), strict=True))
    add = {"count": splits * samples * tiles, "width": NORMS_WIDTH, "BLOCK": SHARES}
    return (
        Launch(lookup_kernel, (tiles * samples, splits, 1), settled, num_warps=4),
        Launch(add_shares_kernel, (1, 1, 1), add, num_warps=4),
        (splits, samples, tiles),
    )
