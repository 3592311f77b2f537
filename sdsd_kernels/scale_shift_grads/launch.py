"""From tensors to launches. All that a call's shapes decide is settled once, in a plan that one look-up finds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._device import DeviceRecord, device_record
from .._launch import NORMS_WIDTH, Launch, kept, on_device
from . import config
from .kernel import finish_kernel, sums_kernel


class Plan(NamedTuple):
    """A call with everything settled but its tensors."""

    sums: Launch
    finish: Launch
    part: tuple[int, int, int]

    def __call__(
        self,
        grads: Tensor,
        inputs: Tensor | None,
        mean: Tensor | None,
        rstd: Tensor | None,
        square_norms: Tensor,
        scale_row: int,
        shift_row: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, Tensor | None]:
        device, channels = grads.device, self.part[2]
        parts: list[Any] = [None, None]
        totals: list[Any] = [None, None]
        for index, row in enumerate((scale_row, shift_row)):
            if row >= 0:
                parts[index] = torch.empty(self.part, dtype=torch.float32, device=device)
                totals[index] = torch.empty(channels, dtype=dtype, device=device)
        self.sums(grads, inputs, mean, rstd, *parts)
        self.finish(*parts, *totals, square_norms, scale_row, shift_row)
        return totals[0], totals[1]


_plans: dict[tuple[Any, ...], Any] = {}


def launch(
    grads: Tensor,
    inputs: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    square_norms: Tensor,
    scale_row: int,
    shift_row: int,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of scale and shift, (C,) or None, from (N, T, C); their square norms into rows of `square_norms`."""
    key: tuple[Any, ...] = (
        grads.shape,
        grads.stride(),
        grads.dtype,
        grads.device,
        grads.data_ptr() % 16,
        scale_row >= 0,
        shift_row >= 0,
        dtype,
    )
    if inputs is not None:
        key += (inputs.stride(), inputs.dtype, inputs.data_ptr() % 16)
        if mean is not None:
            key += ("mean", mean.shape, mean.stride(), mean.dtype, mean.data_ptr() % 16)
        if rstd is not None:
            key += ("rstd", rstd.shape, rstd.stride(), rstd.dtype, rstd.data_ptr() % 16)
    plan = _plans.get(key)
    if plan is None:
        made = make_plan(grads, inputs, mean, rstd, shift_row >= 0, device_record(grads.device))
        plan = kept(_plans, key, made)
    return on_device(grads, plan, grads, inputs, mean, rstd, square_norms, scale_row, shift_row, dtype)  # type: ignore[no-any-return]


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
    chosen = config.block(record, inputs is not None, positions_last)
    across = -(-channels // chosen.block_c)
    splits = config.splits(record, across * samples, positions, chosen.block_t)
    known = {"positions": positions, "channels": channels, "group": channels, "PER_POSITION": True}
    known |= {"BLOCK_T": chosen.block_t, "BLOCK_C": chosen.block_c}
    for name, axes, tensor in (("b", "ntc", grads), ("x", "ntc", inputs), ("m", "ntg", mean), ("r", "ntg", rstd)):
        strides = (0, 0, 0) if tensor is None else tensor.stride()
        known |= {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}
    statistic = rstd if rstd is not None else mean
    if statistic is not None:
        known["group"] = channels // statistic.shape[2]
        known["PER_POSITION"] = statistic.shape[1] == positions and statistic.shape[2] == 1
    block_n, block_c = config.finish_block(record, samples, channels)
    return Sums(
        Launch(sums_kernel, (across, samples, splits), known, num_warps=chosen.num_warps),
        (samples, splits, channels),
        {"samples": samples, "splits": splits, "channels": channels, "BLOCK_N": block_n, "BLOCK_C": block_c},
        -(-channels // block_c),
    )


def make_plan(
    grads: Tensor, inputs: Tensor | None, mean: Tensor | None, rstd: Tensor | None, shifted: bool, record: DeviceRecord
) -> Plan:
    sums = plan_sums(grads, inputs, mean, rstd, record)
    both = int(inputs is not None) + int(shifted)
    finish = Launch(finish_kernel, (sums.blocks, both, 1), sums.finish | {"width": NORMS_WIDTH}, num_warps=4)
    return Plan(sums.launch, finish, sums.part)
