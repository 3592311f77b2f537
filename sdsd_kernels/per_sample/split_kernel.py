"""float32 as float16: a power of two a channel, a high part and, for full precision, the rest as a low part.

    v = 2^(14 − ⌊log2 max|x|⌋) · x        high = float16(v)        low = float16(v − high)

The largest value of a channel lands in 2^14 … 2^15, so high and low together hold 22 bits of every value down to 2^-14
of it, and below that an error of 2^-40 of it. Scaling by a power of two rounds nothing. Both tensors are read twice;
parts are written channels last, with channels padded to a multiple of 8, as the copy engine wants them.
"""

from __future__ import annotations

import triton
import triton.language as tl


# fmt: off
@triton.jit
def _rows(x, row, rows, height, width, x_n, x_h, x_w):
    """Addresses of rows (n, h, w), counted through, and which of them there are."""
    n = row // (height * width)
    rest = row - n * height * width
    y = rest // width
    offset = n.to(tl.int64) * x_n + y.to(tl.int64) * x_h + (rest - y * width).to(tl.int64) * x_w
    return x + offset, row < rows


@triton.jit
def _largest(
    x, largest, rows, height, width, channels, x_n, x_h, x_w, x_c, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    held = channel < channels
    largest_so_far = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        place, live = _rows(x, start + tl.arange(0, ROWS), rows, height, width, x_n, x_h, x_w)
        pointers = place[:, None] + channel.to(tl.int64)[None, :] * x_c
        value = tl.abs(tl.load(pointers, mask=live[:, None] & held[None, :], other=0.0).to(tl.float32))
        # NaN and infinity stay what they are in float16 and have no say in the factor.
        largest_so_far = tl.where((value < float("inf")) & (value > largest_so_far), value, largest_so_far)
    # Of floats that are not negative the bits are in the same order; a maximum is the same in any.
    tl.atomic_max(largest + channel, tl.max(largest_so_far, 0).to(tl.int32, bitcast=True), mask=held)


@triton.jit
def largest_kernel(
    a, b, largest,  # (N, H, W, C), (N, H', W', P); (C + P,) int32, zero before: the bits of the largest magnitudes
    rows_a, height_a, width_a, channels_a, a_n, a_h, a_w, a_c,
    rows_b, height_b, width_b, channels_b, b_n, b_h, b_w, b_c,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):
    """The largest magnitude of every channel; the third grid dimension names the tensor."""
    if tl.program_id(2) == 0:
        if tl.program_id(1) * CHANNELS < channels_a:
            _largest(a, largest, rows_a, height_a, width_a, channels_a, a_n, a_h, a_w, a_c, ROWS, CHANNELS)
    else:
        if tl.program_id(1) * CHANNELS < channels_b:
            _largest(b, largest + channels_a, rows_b, height_b, width_b, channels_b, b_n, b_h, b_w, b_c, ROWS, CHANNELS)


@triton.jit
def _split(
    x, largest, high, low, factor, rows, height, width, channels, padded, x_n, x_h, x_w, x_c,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    held = channel < channels
    most = tl.load(largest + channel, mask=held, other=0)
    # Exponents of float32 run from 1 to 254; 253 keeps the inverse normal.
    exponent = tl.minimum(268 - ((most >> 23) & 0xFF), 253)
    times = (exponent << 23).to(tl.float32, bitcast=True)
    if tl.program_id(0) == 0:
        tl.store(factor + channel, ((254 - exponent) << 23).to(tl.float32, bitcast=True), mask=held)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place, live = _rows(x, row, rows, height, width, x_n, x_h, x_w)
    mask = live[:, None] & held[None, :]
    value = tl.load(place[:, None] + channel.to(tl.int64)[None, :] * x_c, mask=mask, other=0.0).to(tl.float32)
    value = value * times[None, :]
    part = value.to(tl.float16)
    target = row.to(tl.int64)[:, None] * padded + channel[None, :]
    tl.store(high + target, part, mask=mask)
    if low is not None:
        tl.store(low + target, (value - part.to(tl.float32)).to(tl.float16), mask=mask)


@triton.jit
def split_kernel(
    a, b, largest,  # as in largest_kernel
    high_a, low_a, high_b, low_b,  # (N, H, W, padded) float16; low ones may be None
    factor_a, factor_b,  # (C,), (P,) float32: what brings products back
    rows_a, height_a, width_a, channels_a, padded_a, a_n, a_h, a_w, a_c,
    rows_b, height_b, width_b, channels_b, padded_b, b_n, b_h, b_w, b_c,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):
    if tl.program_id(2) == 0:
        if (tl.program_id(0) * ROWS < rows_a) & (tl.program_id(1) * CHANNELS < channels_a):
            _split(a, largest, high_a, low_a, factor_a, rows_a, height_a, width_a, channels_a, padded_a,
                   a_n, a_h, a_w, a_c, ROWS, CHANNELS)
    else:
        if (tl.program_id(0) * ROWS < rows_b) & (tl.program_id(1) * CHANNELS < channels_b):
            _split(b, largest + channels_a, high_b, low_b, factor_b, rows_b, height_b, width_b, channels_b, padded_b,
                   b_n, b_h, b_w, b_c, ROWS, CHANNELS)
