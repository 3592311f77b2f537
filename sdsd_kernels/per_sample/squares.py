"""Σ‖g_n‖² without the weight gradient: by products of positions, or for one position a sample by squared lengths."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import interpreting
from .._device import DeviceRecord, device_record
from .._launch import Launch, kept, on_device
from . import config, layout
from .convolution import LINEAR
from .kernel import descriptor, pointed
from .launch import PLANS, finish_launch, precision_of, tf32_allowed
from .parts import ceil_divide, strides_by_name
from .squares_kernel import gram_kernel, rank1_kernel
from .sums import Sums


class Squares(NamedTuple):
    """Squares without the weight gradient, from tensors as they lie, by "gram" or "rank1"; and the bias' gradient."""

    main: Launch
    finish: Launch
    descriptors: tuple[Any, Any]
    shares: int
    bias: Sums | None
    dtype: torch.dtype

    def __call__(
        self, a: Tensor, b: Tensor, square_norms: Tensor | None = None, row: int = 0, bias_row: int = -1
    ) -> tuple[Tensor | None, Tensor]:
        bias_part = bias_total = None
        if self.bias is not None:
            bias_part = torch.empty(self.bias.part, dtype=torch.float32, device=b.device)
            self.bias.launch(b, None, None, None, None, bias_part)
            bias_total = torch.empty(self.bias.part[2], dtype=self.dtype, device=b.device)
        if square_norms is None:
            square_norms = torch.empty((), dtype=torch.float64, device=a.device)
        squares = square_norms.new_empty(self.shares)
        of_a, of_b = self.descriptors
        self.main(a if of_a is None else pointed(of_a, a), b if of_b is None else pointed(of_b, b), squares)
        self.finish(None, squares, squares, bias_part, bias_total, square_norms, row, bias_row)
        return bias_total, square_norms


def launch_squares(inputs: Tensor, output_grads: Tensor, method: str) -> Tensor:
    """Σ‖g_n‖² (), float64, of inputs (N, T, d) and output gradients (N, T, p) by "gram", or for T = 1 by "rank1"."""
    tf32 = inputs.dtype == torch.float32 and tf32_allowed(LINEAR)
    key: tuple[Any, ...] = (inputs.shape, inputs.stride(), output_grads.shape, output_grads.stride())
    key += (inputs.dtype, inputs.device, inputs.data_ptr() % 16, output_grads.data_ptr() % 16)
    key += (method, tf32)
    plan = PLANS.get(key)
    if plan is None:
        make = plan_gram if method == "gram" else plan_rank1
        plan = kept(PLANS, key, make(inputs, output_grads, tf32, device_record(inputs.device), inputs.dtype))
    return on_device(inputs, plan, inputs, output_grads)[1]  # type: ignore[no-any-return]


def plan_gram(
    inputs: Tensor, output_grads: Tensor, tf32: bool, record: DeviceRecord, dtype: torch.dtype, bias: Sums | None = None
) -> Squares:
    samples, positions, d = inputs.shape
    p = output_grads.shape[2]
    chosen = config.gram_config(record, inputs.dtype.itemsize, positions)
    descriptors: list[Any] = [None, None]
    pointers = not config.reads_boxes(record)
    for index, x in enumerate((inputs, output_grads)):
        (shape, strides, _), copy = layout.described(layout.as_layout(x, True), x.dtype, x.data_ptr())
        pointers = pointers or copy is not None
        if not pointers:
            box = (1, chosen.block_t, chosen.block_k)
            descriptors[index] = descriptor((shape[0], *shape[2:]), (strides[0], *strides[2:]), box, x.dtype)
    if pointers:
        descriptors = [None, None]
    tiles = ceil_divide(positions, chosen.block_t)
    triangle = tiles * (tiles + 1) // 2
    settled: dict[str, Any] = {"positions": positions, "d": d, "p": p, "tiles": tiles, "POINTERS": pointers}
    settled |= {"PRECISION": precision_of(inputs.dtype, record, tf32), "INTERPRET": interpreting()}
    settled |= {"BLOCK_T": chosen.block_t, "BLOCK_K": chosen.block_k, "EVERY": config.gram_every(record, max(d, p))}
    settled |= strides_by_name("a", "ntd", inputs.stride() if pointers else (0, 0, 0))
    settled |= strides_by_name("b", "ntp", output_grads.stride() if pointers else (0, 0, 0))
    main = Launch(
        gram_kernel, (triangle * samples, 1, 1), settled, num_warps=chosen.num_warps, num_stages=chosen.num_stages
    )
    shares = triangle * samples
    finish = finish_launch(shares, 1, 1, bias)
    return Squares(main, finish, (descriptors[0], descriptors[1]), shares, bias, dtype)


def plan_rank1(
    inputs: Tensor, output_grads: Tensor, tf32: bool, record: DeviceRecord, dtype: torch.dtype, bias: Sums | None = None
) -> Squares:
    samples, _, d = inputs.shape
    rows, features = config.RANK1_BLOCK
    programs = ceil_divide(samples, rows)
    settled = {"samples": samples, "d": d, "p": output_grads.shape[2], "a_n": inputs.stride(0)}
    settled |= {"a_d": inputs.stride(2), "b_n": output_grads.stride(0), "b_p": output_grads.stride(2)}
    settled |= {"BLOCK_N": rows, "BLOCK_K": features}
    main = Launch(rank1_kernel, (programs, 1, 1), settled, num_warps=4)
    return Squares(main, finish_launch(programs, 1, 1, bias), (None, None), programs, bias, dtype)
