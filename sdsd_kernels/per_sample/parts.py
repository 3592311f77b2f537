"""Float16 parts of float32 tensors, whose products the matrix unit adds up: how they are made, and how they lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._device import DeviceRecord
from .._launch import Launch
from . import config, layout
from .layout import Layout
from .split_kernel import largest_kernel, split_kernel


class Split(NamedTuple):
    """Two launches that make float16 parts of both tensors."""

    largest: Launch
    split: Launch
    three: bool
    channels: tuple[int, int]
    elements: tuple[int, int]

    def __call__(self, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        device = a.device
        most = torch.zeros(sum(self.channels), dtype=torch.int32, device=device)
        factors = [torch.empty(channels, dtype=torch.float32, device=device) for channels in self.channels]
        high = [torch.empty(elements, dtype=torch.float16, device=device) for elements in self.elements]
        low: list[Any] = [None, None]
        if self.three:
            low = [torch.empty(elements, dtype=torch.float16, device=device) for elements in self.elements]
        self.largest(a, b, most)
        self.split(a, b, most, high[0], low[0], high[1], low[1], *factors)
        return high[0], low[0], high[1], low[1], *factors


def plan_split(a: Layout, b: Layout, three: bool, record: DeviceRecord) -> tuple[Split, Layout, Layout]:
    """The launches that make float16 parts, and how the parts lie."""
    settled: dict[str, Any] = {"ROWS": config.SPLIT_BLOCK[0], "CHANNELS": config.SPLIT_BLOCK[1]}
    parts = []
    for name, x in (("a", a), ("b", b)):
        samples, height, width, channels = x.shape
        part = layout.packed(x, 2)
        settled |= {f"rows_{name}": samples * height * width, f"height_{name}": height, f"width_{name}": width}
        settled |= {f"channels_{name}": channels, f"padded_{name}": part.strides[2]}
        settled |= strides_by_name(name, "nhwc", x.strides)
        parts.append(part)
    blocks = ceil_divide(max(settled["rows_a"], settled["rows_b"]), config.SPLIT_BLOCK[0])
    across = ceil_divide(max(a.shape[3], b.shape[3]), config.SPLIT_BLOCK[1])
    programs = min(blocks, config.LARGEST_PROGRAMS * record.multiprocessors)
    elements = tuple(part.shape[0] * part.strides[0] for part in parts)
    split = Split(
        Launch(largest_kernel, (programs, across, 2), settled, num_warps=4),
        Launch(split_kernel, (blocks, across, 2), settled, num_warps=4),
        three,
        (a.shape[3], b.shape[3]),
        (elements[0], elements[1]),
    )
    return split, parts[0], parts[1]


def ceil_divide(count: int, size: int) -> int:
    return -(-count // size)


def strides_by_name(tensor: str, axes: str, strides: tuple[int, ...]) -> dict[str, int]:
    """Strides by the names of a kernel's arguments."""
    return {f"{tensor}_{axis}": stride for axis, stride in zip(axes, strides, strict=True)}
