"""How tensors lie in memory, seen as (N, H, W, C), and what the copy engine can read of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ENGINE_BYTES = 16
"""Addresses and strides that the copy engine reads are multiples of this."""


class Layout(NamedTuple):
    """Sizes and strides of (N, H, W, C), in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    order: tuple[int, ...]
    """Which of the four every dimension of the tensor is."""


class Copy(NamedTuple):
    """Memory of another layout, filled with a tensor's values."""

    size: tuple[int, ...]
    """The tensor's; smaller than the layout's where that is padded."""
    strides: tuple[int, ...]
    elements: int
    dtype: torch.dtype
    zeroed: bool

    def of(self, x: Tensor) -> Tensor:
        memory = (torch.zeros if self.zeroed else torch.empty)(self.elements, dtype=self.dtype, device=x.device)
        memory.as_strided(self.size, self.strides).copy_(x)
        return memory


def as_layout(x: Tensor, linear: bool) -> Layout:
    """(N, T, d) of a linear layer as (N, 1, T, d); (N, C, W) or (N, C, H, W) as (N, H, W, C)."""
    order = (0, 2, 3) if linear else (0, 3, 2) if x.ndim == 3 else (0, 3, 1, 2)
    shape, strides = [1] * 4, [0] * 4
    for axis, size, stride in zip(order, x.shape, x.stride(), strict=True):
        shape[axis], strides[axis] = size, stride
    return Layout(tuple(shape), tuple(strides), order)


def packed(x: Layout, itemsize: int, multiples: tuple[int, int] = (1, 1)) -> Layout:
    """Channels adjacent, their number padded to 16 bytes, and sizes of space to `multiples`."""
    n, h, w, c = x.shape
    h, w = (-(-size // multiple) * multiple for size, multiple in zip((h, w), multiples, strict=True))
    lane = ENGINE_BYTES // itemsize
    wide = -(-c // lane) * lane
    return Layout((n, h, w, c), (h * w * wide, w * wide, wide, 1), x.order)


def copy_into(target: Layout, x: Layout, dtype: torch.dtype) -> Copy:
    """How a tensor that lies as `x` gets to lie as `target`; zero in between where sizes of space are padded."""
    size, strides = (tuple(values[axis] for axis in x.order) for values in (x.shape, target.strides))
    # Every row holds its padding, the last one too.
    return Copy(size, strides, target.shape[0] * target.strides[0], dtype, zeroed=x.shape != target.shape)


def described(
    x: Layout, dtype: torch.dtype, address: int, multiples: tuple[int, int] = (1, 1)
) -> tuple[Layout, Copy | None]:
    """`x` as tensor descriptors can read it: where it lies, or as a copy.

    `multiples`: what height and width have to be multiples of, for `phases`.
    """
    lane = ENGINE_BYTES // dtype.itemsize
    # torch may call the stride of a dimension with one element anything.
    strides = tuple(
        stride if size > 1 else 1 if axis == 3 else lane
        for axis, (size, stride) in enumerate(zip(x.shape, x.strides, strict=True))
    )
    readable = address % ENGINE_BYTES == 0 and strides[3] == 1
    readable = readable and all(stride > 0 and stride % lane == 0 for stride in strides[:3])
    if readable and x.shape[1] % multiples[0] == 0 and x.shape[2] % multiples[1] == 0:
        return x._replace(strides=strides), None
    target = packed(x, dtype.itemsize, multiples)
    return target, copy_into(target, x, dtype)


def adjacent_channels(x: Layout, dtype: torch.dtype) -> tuple[Layout, Copy | None]:
    """`x`, or where its channels are not adjacent a copy in which they are."""
    if x.strides[3] == 1 or x.shape[3] == 1:
        return x, None
    target = packed(x, dtype.itemsize)
    return target, copy_into(target, x, dtype)


def every(x: Layout, stride: tuple[int, int], size: tuple[int, int]) -> Layout:
    """The view of every stride-th position, `size` of them."""
    n, _, _, c = x.shape
    strides = (x.strides[0], x.strides[1] * stride[0], x.strides[2] * stride[1], x.strides[3])
    return Layout((n, *size, c), strides, x.order)


def phases(x: Layout, stride: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of the view (N, H/s, s, W/s, s·C), in which positions of one phase are neighbours.

    The last dimension runs over a row's memory, from the first channel of phase 0 to the last of phase s − 1.
    """
    (n, h, w, c), (of_n, of_h, of_w, _) = x.shape, x.strides
    shape = (n, h // stride[0], stride[0], w // stride[1], (stride[1] - 1) * of_w + c)
    return shape, (of_n, of_h * stride[0], of_h, of_w * stride[1], 1)


def weight_strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Strides of a weight (P, C, *kernel), in the order of its dimensions or with C adjacent."""
    order = [0, *range(2, len(shape)), 1] if channels_last else list(range(len(shape)))
    strides = [0] * len(shape)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)
