"""Gradients of a scale and a shift, and Σ‖per-sample gradient‖² of both: two launches.

For output gradients b (N, T, C) and normalised inputs x̂ = (x − mean) · rstd

    scale:  s_n[c] = Σ_t b_n[t, c] · x̂_n[t, c]        shift:  s_n[c] = Σ_t b_n[t, c]

`sums_kernel`: one program a sample, a block of channels and a share of the positions, all of them read once.
`finish_kernel`: one program a block of channels adds the shares of every sample, squares, and adds up the samples.
Fixed order, no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit
def sums_kernel(
    grads,  # b (N, T, C)
    inputs, mean, rstd,  # x (N, T, C); mean and rstd, a number a position or a group of channels; each may be None
    scale_part, shift_part,  # (N, splits, C) float32, either may be None
    positions, channels,
    b_n, b_t, b_c, x_n, x_t, x_c, m_n, m_t, m_g, r_n, r_t, r_g,  # strides
    group,  # channels that share a mean
    PER_POSITION: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):
    across = tl.cdiv(channels, BLOCK_C)
    n = (tl.program_id(0) // across).to(tl.int64)
    splits = tl.num_programs(1)
    channel = tl.program_id(0) % across * BLOCK_C + tl.arange(0, BLOCK_C)
    held = channel < channels
    grads += n * b_n + channel.to(tl.int64)[None, :] * b_c
    scale = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    shift = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    if inputs is not None:
        inputs += n * x_n + channel.to(tl.int64)[None, :] * x_c
        of_group = (channel // group).to(tl.int64)
        if not PER_POSITION:
            if mean is not None:
                centre = tl.load(mean + n * m_n + of_group * m_g, mask=held, other=0.0)[None, :].to(tl.float32)
    for start in range(tl.program_id(1) * BLOCK_T, positions, splits * BLOCK_T):
        position = start + tl.arange(0, BLOCK_T)
        there = position < positions
        live = there[:, None] & held[None, :]
        step = position.to(tl.int64)
        b = tl.load(grads + step[:, None] * b_t, mask=live, other=0.0).to(tl.float32)
        if shift_part is not None:
            shift += b
        if inputs is not None:
            x = tl.load(inputs + step[:, None] * x_t, mask=live, other=0.0).to(tl.float32)
            if PER_POSITION:
                if mean is not None:
                    x -= tl.load(mean + n * m_n + step * m_t, mask=there, other=0.0)[:, None].to(tl.float32)
                if rstd is not None:
                    x *= tl.load(rstd + n * r_n + step * r_t, mask=there, other=0.0)[:, None].to(tl.float32)
            elif mean is not None:
                x -= centre
            scale += b * x
    target = (n * splits + tl.program_id(1)) * channels + channel
    if shift_part is not None:
        tl.store(shift_part + target, tl.sum(shift, 0), mask=held)
    if inputs is not None:
        value = tl.sum(scale, 0)
        if not PER_POSITION:
            if rstd is not None:
                value *= tl.load(rstd + n * r_n + of_group * r_g, mask=held, other=0.0).to(tl.float32)
        tl.store(scale_part + target, value, mask=held)


@triton.jit
def finish_block(
    block, part, total, square_norms, samples, splits, channels, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The gradient (C,) and the share of the square norm of one block of channels, from sums (N, splits, C)."""
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    held = channel < channels
    sums = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_N, BLOCK_C), tl.float64)
    for start in range(0, samples, BLOCK_N):
        sample = start + tl.arange(0, BLOCK_N)
        live = (sample < samples)[:, None] & held[None, :]
        place = sample.to(tl.int64)[:, None] * splits * channels + channel[None, :]
        each = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for split in range(0, splits):
            each += tl.load(part + place + split * channels, mask=live, other=0.0)
        sums += each
        wide = each.to(tl.float64)
        squares += wide * wide
    tl.store(total + channel, tl.sum(sums, 0).to(total.dtype.element_ty), mask=held)
    tl.store(square_norms + block, tl.sum(tl.sum(squares, 1), 0))


@triton.jit(do_not_specialize=["scale_row", "shift_row"])
def finish_kernel(
    scale_part, shift_part,  # as in sums_kernel
    scale_grad, shift_grad,  # (C,), either may be None
    square_norms, scale_row, shift_row,  # (rows, width) float64: the first blocks of these rows are written
    samples, splits, channels, width,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """The second grid dimension names what is finished: the scale where there is one, then the shift."""
    if scale_part is not None:
        if tl.program_id(1) == 0:
            norms = square_norms + scale_row * width
            finish_block(tl.program_id(0), scale_part, scale_grad, norms, samples, splits, channels, BLOCK_N, BLOCK_C)
    if shift_part is not None:
        if tl.program_id(1) == tl.num_programs(1) - 1:
            norms = square_norms + shift_row * width
            finish_block(tl.program_id(0), shift_part, shift_grad, norms, samples, splits, channels, BLOCK_N, BLOCK_C)
