"""Sums over positions: a norm's and a bias's gradients of the samples, and what adds their squares up."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .._device import DeviceRecord
from .._launch import Launch
from . import sums_config
from .sums_kernel import sums_kernel


class Sums(NamedTuple):
    """The first launch, and what the second has to know of it."""

    launch: Launch
    part: tuple[int, int, int]
    """Shape of the sums that it leaves."""
    finish: dict[str, int]
    blocks: int
    """Programs that finish them."""


def plan_sums(
    grads: Tensor, inputs: Tensor | None, mean: Tensor | None, rstd: Tensor | None, record: DeviceRecord
) -> Sums:
    samples, positions, channels = grads.shape
    positions_last = positions > 1 and grads.stride(1) == 1 and channels > 1 and grads.stride(2) != 1
    chosen = sums_config.block(record, inputs is not None, positions_last)
    across = -(-channels // chosen.block_c)
    splits = sums_config.splits(record, across * samples, positions, chosen.block_t)
    known = {"positions": positions, "channels": channels, "group": channels, "PER_POSITION": True}
    known |= {"BLOCK_T": chosen.block_t, "BLOCK_C": chosen.block_c}
    for name, axes, tensor in (("b", "ntc", grads), ("x", "ntc", inputs), ("m", "ntg", mean), ("r", "ntg", rstd)):
        strides = (0, 0, 0) if tensor is None else tensor.stride()
        known |= {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}
    statistic = rstd if rstd is not None else mean
    if statistic is not None:
        known["group"] = channels // statistic.shape[2]
        known["PER_POSITION"] = statistic.shape[1] == positions and statistic.shape[2] == 1
    block_n, block_c = sums_config.finish_block(record, samples, channels)
    return Sums(
        Launch(sums_kernel, (across * samples, splits, 1), known, num_warps=chosen.num_warps),
        (samples, splits, channels),
        {"samples": samples, "splits": splits, "channels": channels, "BLOCK_N": block_n, "BLOCK_C": block_c},
        -(-channels // block_c),
    )
