"""From tensors to launches. All that a call's shapes decide is settled once, in a plan that one look-up finds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._device import DeviceRecord, device_record
from .._launch import NORMS_WIDTH, Launch, kept, on_device
from ..per_sample.sums import plan_sums
from ..per_sample.sums_kernel import finish_kernel


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
    given = grads, inputs, mean, rstd, square_norms, scale_row, shift_row, dtype
    here = not grads.is_cuda or grads.get_device() == torch._C._cuda_getDevice()
    return plan(*given) if here else on_device(grads, plan, *given)  # type: ignore[no-any-return]


def make_plan(
    grads: Tensor, inputs: Tensor | None, mean: Tensor | None, rstd: Tensor | None, shifted: bool, record: DeviceRecord
) -> Plan:
    sums = plan_sums(grads, inputs, mean, rstd, record)
    both = int(inputs is not None) + int(shifted)
    finish = Launch(finish_kernel, (sums.blocks, both, 1), sums.finish | {"width": NORMS_WIDTH}, num_warps=4)
    return Plan(sums.launch, finish, sums.part)
