"""Weight gradient and squared norms of per-sample gradients of linear layers and convolutions, in one product.

For inputs a (N, H, W, C) and output gradients b (N, H', W', P), a position (y, x) of b meets, at tap (i, j) of the
kernel, the position (y·s + i·δ − π, x·s + j·δ − π) of a: stride s, dilation δ, padding π. So the gradient of sample n
is one product of matrices a tap, over all positions:

    g_n[:, :, i, j] = Σ_yx b_n[y, x]ᵀ a_n[y·s + i·δ − π, x·s + j·δ − π]

A linear layer is the case H = 1, W = T and one tap. A program owns a tile (BLOCK_P, BLOCK_D) of one tap's matrix and a
range of samples. It takes the positions of a sample in boxes of BLOCK_H × BLOCK_W; after the last it squares the tile,
adds it to the total and starts anew. Two accumulators, no g_n in memory, the multiply-adds of the weight gradient
alone. Samples and boxes are one loop, so loads of the next sample run ahead while the last one is finished.

Two loaders. The copy engine reads boxes by tensor descriptors and writes zeros beyond the ends of a dimension: padding,
shifts and ragged ends cost nothing. With a stride a descriptor has five dimensions, (N, H/s, s, W/s, s·C), so that
shifted boxes of one phase are boxes too. Where there is no copy engine, and for few channels, pointers read the same
boxes; with FLAT the columns of a tile run over all taps and channels, so that three channels fill a tile.

Convolutions in groups: a *set* is one group, or as many whole groups as fit one tile, whose blocks off the diagonal are
left out. Every program writes its share of the square norm, float64; `finish_kernel` adds shares and ranges up. Fixed
order, no atomics.

float32 by the copy engine arrives as float16: split_kernel.py makes a high and a low part of every value, times a
power of two of its channel, and three products of parts are added to a float32 sum after every step, because the matrix
unit's own additions truncate.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .sums_kernel import finish_block


# fmt: off
@triton.jit
def _place(p, d, taps, FLAT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr):
    """Set, first row, first column and tap of this program's tile; bands of GROUP rows of tiles share inputs."""
    rows = tl.cdiv(p, BLOCK_P)
    columns = tl.cdiv(d * taps, BLOCK_D) if FLAT else tl.cdiv(d, BLOCK_D) * taps
    tile = tl.program_id(0)
    group = tile // (rows * columns)
    tile -= group * rows * columns
    band = tile // (GROUP * columns)
    height = tl.minimum(rows - band * GROUP, GROUP)
    inside = tile - band * GROUP * columns
    column = inside // height
    row = band * GROUP + inside % height
    tap = 0
    if not FLAT:
        tap = column % taps
        column = column // taps
    return group, row * BLOCK_P, column * BLOCK_D, tap


@triton.jit
def boxes_kernel(
    a, a_low,  # inputs: descriptors (N, H, W, C), or (N, H/s, s, W/s, s·C) if STRIDED; a pointer if POINTERS
    b, b_low,  # output gradients (N, H', W', P); the low parts are None unless THREE
    a_factor, b_factor,  # (C,), (P,): the powers of two that undo those of split_kernel, or None
    scale_ptr,  # D in the order of the weight (P, C / groups, kernel_h, kernel_w), or None
    total_ptr,  # (ranges, weight), written only if WEIGHT_GRAD
    squares_ptr,  # (ranges, tiles) float64
    samples, samples_each, height, width, out_height, out_width,
    d, p,  # columns and rows of a set
    group_d, group_p,  # channels of a group
    taps, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    phase_width,  # channels from one phase to the next in the last dimension of a STRIDED descriptor
    a_n, a_h, a_w, a_c, b_n, b_h, b_w, b_c,  # strides, read only if POINTERS
    total_range, total_p, total_d, total_tap,  # strides
    scale_p, scale_d, scale_h, scale_w,
    POINTERS: tl.constexpr, FLAT: tl.constexpr, STRIDED: tl.constexpr, MASKED: tl.constexpr, SEVERAL: tl.constexpr,
    THREE: tl.constexpr, PRECISION: tl.constexpr, WEIGHT_GRAD: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, GROUP: tl.constexpr,
):
    """MASKED: a tile may hold what belongs to other sets. SEVERAL: a set has several groups."""
    BLOCK_T: tl.constexpr = BLOCK_H * BLOCK_W
    group, row_start, column_start, tap = _place(p, d, taps, FLAT, BLOCK_P, BLOCK_D, GROUP)
    row = row_start + tl.arange(0, BLOCK_P)
    column = column_start + tl.arange(0, BLOCK_D)
    if FLAT:
        tap = column // d
        channel = column - tap * d
        inside = (row < p)[:, None] & (tap < taps)[None, :]
    else:
        channel = column
        inside = (row < p)[:, None] & (column < d)[None, :]
    if SEVERAL:
        inside = inside & ((row // group_p)[:, None] == (column // group_d)[None, :])
    first_row = group * p
    first_channel = group * d

    # Where the tap shifts to; of a STRIDED descriptor, in whole strides, and the phase that is left.
    shift_h = tap // kernel_w * dilation_h - pad_h
    shift_w = tap % kernel_w * dilation_w - pad_w
    if STRIDED:
        lift_h = tl.cdiv(pad_h, stride_h)
        lift_w = tl.cdiv(pad_w, stride_w)
        phase_h = (shift_h + lift_h * stride_h) % stride_h
        phase_w = (shift_w + lift_w * stride_w) % stride_w
        shift_h = (shift_h + lift_h * stride_h) // stride_h - lift_h
        shift_w = (shift_w + lift_w * stride_w) // stride_w - lift_w
    if POINTERS:
        lanes = tl.arange(0, BLOCK_T)
        lane_h = lanes // BLOCK_W
        lane_w = lanes % BLOCK_W
        grads = b + (first_row + row).to(tl.int64)[:, None] * b_c
        inputs = a + (first_channel + channel).to(tl.int64)[None, :] * a_c

    boxes_w = tl.cdiv(out_width, BLOCK_W)
    boxes = tl.cdiv(out_height, BLOCK_H) * boxes_w
    first = tl.program_id(1) * samples_each
    count = tl.minimum(samples_each, samples - first)
    sample = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    squares = tl.zeros((BLOCK_P,), tl.float64)
    for step in range(0, count * boxes):
        n = first + step // boxes
        box = step % boxes
        h = box // boxes_w * BLOCK_H
        w = box % boxes_w * BLOCK_W
        if POINTERS:
            y = h + lane_h
            x = w + lane_w
            live = (y < out_height) & (x < out_width)
            place = tl.cast(n, tl.int64) * b_n + y.to(tl.int64) * b_h + x.to(tl.int64) * b_w
            left = tl.load(grads + place[None, :], mask=(row < p)[:, None] & live[None, :], other=0.0)
            y = y * stride_h
            x = x * stride_w
            if FLAT:
                y = y[:, None] + shift_h[None, :]
                x = x[:, None] + shift_w[None, :]
                known = (live[:, None] & (tap < taps)[None, :]) & ((y >= 0) & (y < height)) & ((x >= 0) & (x < width))
                place = tl.cast(n, tl.int64) * a_n + y.to(tl.int64) * a_h + x.to(tl.int64) * a_w
                right = tl.load(inputs + place, mask=known, other=0.0)
            else:
                y += shift_h
                x += shift_w
                live = live & ((y >= 0) & (y < height)) & ((x >= 0) & (x < width))
                place = tl.cast(n, tl.int64) * a_n + y.to(tl.int64) * a_h + x.to(tl.int64) * a_w
                right = tl.load(inputs + place[:, None], mask=live[:, None] & (column < d)[None, :], other=0.0)
        else:
            left = b.load([n, h, w, first_row + row_start]).reshape([BLOCK_T, BLOCK_P]).T
            if STRIDED:
                c = phase_w * phase_width + first_channel + column_start
                right = a.load([n, h + shift_h, phase_h, w + shift_w, c]).reshape([BLOCK_T, BLOCK_D])
            else:
                c = first_channel + column_start
                right = a.load([n, h + shift_h, w + shift_w, c]).reshape([BLOCK_T, BLOCK_D])
        if INTERPRET:
            # The interpreter's dot on bfloat16 returns garbage, and float32 holds every half exactly.
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        if THREE:
            left_low = b_low.load([n, h, w, first_row + row_start]).reshape([BLOCK_T, BLOCK_P]).T
            if STRIDED:
                right_low = a_low.load([n, h + shift_h, phase_h, w + shift_w, c]).reshape([BLOCK_T, BLOCK_D])
            else:
                right_low = a_low.load([n, h + shift_h, w + shift_w, c]).reshape([BLOCK_T, BLOCK_D])
            if INTERPRET:
                left_low = left_low.to(tl.float32)
                right_low = right_low.to(tl.float32)
            part = tl.dot(left_low, right)
            part = tl.dot(left, right_low, part)
            sample += tl.dot(left, right, part)
        else:
            sample = tl.dot(left, right, sample, input_precision=PRECISION)
        if box == boxes - 1:
            if a_factor is not None:
                of_row = tl.load(b_factor + first_row + row, mask=row < p, other=0.0)
                of_column = tl.load(a_factor + first_channel + column, mask=column < d, other=0.0)
                sample = sample * of_row[:, None] * of_column[None, :]
            if MASKED:
                sample = tl.where(inside, sample, 0.0)
            if WEIGHT_GRAD:
                total += sample
            if scale_ptr is not None:
                # Offsets within a tile have 32 bits: with 64 they take the registers of a third accumulator.
                along = tap // kernel_w * scale_h + tap % kernel_w * scale_w
                corner = scale_ptr + (first_row + row_start).to(tl.int64) * scale_p
                across = (channel % group_d if SEVERAL else channel) * scale_d + along
                factors = tl.load(
                    corner + tl.arange(0, BLOCK_P)[:, None] * scale_p + across[None, :], mask=inside, other=0.0
                )
                sample = sample * factors.to(tl.float32)
            squares += tl.sum(sample * sample, 1).to(tl.float64)
            sample = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)

    samples_range = tl.program_id(1).to(tl.int64)
    tl.store(squares_ptr + samples_range * tl.num_programs(0) + tl.program_id(0), tl.sum(squares, 0))
    if WEIGHT_GRAD:
        offsets = samples_range * total_range + (first_row + row).to(tl.int64)[:, None] * total_p
        offsets += ((channel % group_d if SEVERAL else channel) * total_d)[None, :]
        offsets += (tap * total_tap)[None, :] if FLAT else tap * total_tap
        tl.store(total_ptr + offsets, total.to(total_ptr.dtype.element_ty), mask=inside)


@triton.jit
def depthwise_kernel(
    a, b, scale_ptr, total_ptr, squares_ptr,  # as in boxes_kernel; one input channel a group, so no matrix product
    samples, samples_each, height, width, out_height, out_width, p, group_p,
    taps, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
    a_n, a_h, a_w, a_c, b_n, b_h, b_w, b_c, total_range, total_p, total_tap, scale_p, scale_h, scale_w,
    WEIGHT_GRAD: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr,
):
    """One program: BLOCK_P output channels at one tap, and a range of samples."""
    tap = tl.program_id(0) % taps
    row = tl.program_id(0) // taps * BLOCK_P + tl.arange(0, BLOCK_P)
    held = row < p
    shift_h = tap // kernel_w * dilation_h - pad_h
    shift_w = tap % kernel_w * dilation_w - pad_w
    grads = b + row.to(tl.int64)[None, :] * b_c
    inputs = a + (row // group_p).to(tl.int64)[None, :] * a_c
    positions = out_height * out_width
    boxes = tl.cdiv(positions, BLOCK_T)
    first = tl.program_id(1) * samples_each
    count = tl.minimum(samples_each, samples - first)
    factor = tl.full((BLOCK_P,), 1.0, tl.float32)
    if scale_ptr is not None:
        offsets = row.to(tl.int64) * scale_p + tap // kernel_w * scale_h + tap % kernel_w * scale_w
        factor = tl.load(scale_ptr + offsets, mask=held, other=0.0).to(tl.float32)
    sums = tl.zeros((BLOCK_T, BLOCK_P), tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    squares = tl.zeros((BLOCK_P,), tl.float64)
    for step in range(0, count * boxes):
        n = tl.cast(first + step // boxes, tl.int64)
        box = step % boxes
        position = box * BLOCK_T + tl.arange(0, BLOCK_T)
        y = position // out_width
        x = position % out_width
        place = n * b_n + y.to(tl.int64) * b_h + x.to(tl.int64) * b_w
        live = (position < positions)[:, None] & held[None, :]
        left = tl.load(grads + place[:, None], mask=live, other=0.0).to(tl.float32)
        y = y * stride_h + shift_h
        x = x * stride_w + shift_w
        place = n * a_n + y.to(tl.int64) * a_h + x.to(tl.int64) * a_w
        live = live & ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
        right = tl.load(inputs + place[:, None], mask=live, other=0.0).to(tl.float32)
        sums += left * right
        if box == boxes - 1:
            sample = tl.sum(sums, 0)
            total += sample
            sample = (sample * factor).to(tl.float64)
            squares += sample * sample
            sums = tl.zeros((BLOCK_T, BLOCK_P), tl.float32)
    samples_range = tl.program_id(1).to(tl.int64)
    tl.store(squares_ptr + samples_range * tl.num_programs(0) + tl.program_id(0), tl.sum(squares, 0))
    if WEIGHT_GRAD:
        offsets = samples_range * total_range + row.to(tl.int64) * total_p + tap * total_tap
        tl.store(total_ptr + offsets, total.to(total_ptr.dtype.element_ty), mask=held)


@triton.jit(do_not_specialize=["row", "bias_row"])
def finish_kernel(
    partial_ptr,  # (ranges, elements) float32, or None where there is one range
    squares_ptr,  # (count,) float64
    total_ptr,  # (elements,)
    bias_part, bias_total,  # sums (N, splits, p) of output gradients and the bias' gradient (p,), or None
    square_norm_ptr, row, bias_row,  # (rows, width) float64: entry (row, 0) is written, and the bias' row
    ranges, elements, count, width, samples, splits, channels,
    BLOCK: tl.constexpr, RANGES: tl.constexpr, SHARES: tl.constexpr,
    BIAS_BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """The first program adds up the squares, the last BIAS_BLOCKS finish the bias, those between add up the ranges."""
    own = tl.num_programs(0) - BIAS_BLOCKS
    if bias_part is not None:
        if tl.program_id(0) >= own:
            norms = square_norm_ptr + bias_row * width
            finish_block(
                tl.program_id(0) - own, bias_part, bias_total, norms, samples, splits, channels, BLOCK_N, BLOCK_C
            )
            return
    if tl.program_id(0) == 0:
        lanes = tl.arange(0, SHARES)
        squares = tl.zeros((SHARES,), tl.float64)
        for start in range(0, count, SHARES):
            squares += tl.load(squares_ptr + start + lanes, mask=start + lanes < count, other=0.0)
        tl.store(square_norm_ptr + row * width, tl.sum(squares, 0))
    elif partial_ptr is not None:
        place = (tl.program_id(0) - 1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((RANGES, BLOCK), tl.float32)
        for first in range(0, ranges, RANGES):
            which = first + tl.arange(0, RANGES)
            offsets = which.to(tl.int64)[:, None] * elements + place[None, :]
            live = (which < ranges)[:, None] & (place < elements)[None, :]
            total += tl.load(partial_ptr + offsets, mask=live, other=0.0)
        tl.store(total_ptr + place, tl.sum(total, 0).to(total_ptr.dtype.element_ty), mask=place < elements)
# fmt: on


def descriptor(
    shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], dtype: torch.dtype
) -> TensorDescriptor:
    """A descriptor of no memory yet, checked once."""
    return TensorDescriptor(torch.empty(0, dtype=dtype), list(shape), list(strides), list(box))


def pointed(template: TensorDescriptor | None, base: Tensor | None) -> Any:
    """`template` at the memory of `base`, without the checks it passed when it was made; `base` where it is None."""
    if template is None or base is None:
        return base
    made = TensorDescriptor.__new__(TensorDescriptor)
    made.__dict__.update(template.__dict__)
    made.base = base
    return made
