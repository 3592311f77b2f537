"""Norms of neurons in one pass, and neurons rewritten as the halves that products are made of.

    a_i = s_i (x_i − mean_i),    r_i = 1 / ‖a_i‖

mean_i is 0, or the neuron's own mean, or a number given for it; s_i, a power of two, brings ‖a_i‖ of a neuron that is
rewritten into [2^TARGET, 2^(TARGET+1)). README.md says why, why sums are float64, and what the guard of bfloat16 is.

`measure_kernel`: a program owns BLOCK_NEURONS neurons over one range of samples. `directions_kernel` adds up ranges.
`write_kernel`: a program rewrites BLOCK_NEURONS × BLOCK_SAMPLES values as a high part and, where asked, a low one.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST_SQUARE = tl.constexpr(2.0**120)
SMALLEST_SQUARE = tl.constexpr(2.0**-80)
"""Raw products serve while ‖x‖² is in this range: r_i r_j stays normal, and so do all products that matter."""


# fmt: off
@triton.jit
def _load_tile(rows_ptr, neuron, sample, lie, NESTED):
    """A (neurons, samples) tile in the dtype it is stored in; 0 beyond the ends.

    `lie`: how many neurons and samples there are and how they lie, (neurons, samples, INNER, and the three strides).
    """
    neurons, samples, inner, stride_neuron, stride_outer, stride_inner = lie
    if NESTED:
        offset = (sample // inner).to(tl.int64) * stride_outer + (sample % inner).to(tl.int64) * stride_inner
    else:
        offset = sample.to(tl.int64) * stride_inner
    place = (neuron.to(tl.int64) * stride_neuron)[:, None] + offset[None, :]
    return tl.load(rows_ptr + place, mask=(neuron < neurons)[:, None] & (sample < samples)[None, :], other=0.0)


@triton.jit
def _origin(rows_ptr, shift_ptr, neuron, neurons, stride_neuron):
    """What is subtracted first, float64: the given number, or the neuron's first sample."""
    if shift_ptr is not None:
        return tl.load(shift_ptr + neuron, mask=neuron < neurons, other=0.0).to(tl.float64)
    else:
        place = neuron.to(tl.int64) * stride_neuron
        return tl.load(rows_ptr + place, mask=neuron < neurons, other=0.0).to(tl.float64)


@triton.jit
def _power_of_two(square, TARGET: tl.constexpr):
    """The power of two that brings √square into [2^TARGET, 2^(TARGET+1)), as far as float32 has one."""
    exponent = ((square.to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1023
    wanted = tl.minimum(tl.maximum(TARGET - (exponent >> 1), -126), 126)
    return ((wanted + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _store_directions(
    total, square, neuron, neurons, samples, into,
    CENTER: tl.constexpr, SCALE: tl.constexpr, TARGET: tl.constexpr, ZERO_AS_NAN: tl.constexpr,
):
    """Mean, scale and inverse norm from Σδ and Σδ². SCALE: "all" neurons, those out of range ("guard"), or "none"."""
    rest_ptr, scale_ptr, inverse_ptr = into
    live = neuron < neurons
    if CENTER:
        rest = total / samples
        square = square - total * rest
        tl.store(rest_ptr + neuron, rest, mask=live)
    scale = tl.full(square.shape, 1.0, tl.float32)
    outside = (square > 0) & ((square < SMALLEST_SQUARE) | (square > LARGEST_SQUARE)) & (square < float("inf"))
    if SCALE == "all":
        scale = _power_of_two(square, TARGET)
    if SCALE == "guard":
        scale = tl.where(outside, _power_of_two(square, TARGET), scale)
    if SCALE != "none":
        tl.store(scale_ptr + neuron, scale, mask=live)
    # The square of a scaled neuron, and of one in range, is a float32.
    inverse = 1.0 / tl.sqrt_rn((square * scale.to(tl.float64) * scale.to(tl.float64)).to(tl.float32))
    if SCALE == "guard":
        inverse = tl.where(outside, -inverse, inverse)
    inverse = tl.where(square == 0, float("nan") if ZERO_AS_NAN else 0.0, inverse)
    # A NaN and an infinity show in the sum of squares, which no finite value makes infinite.
    inverse = tl.where(square < float("inf"), inverse, float("nan"))
    tl.store(inverse_ptr + neuron, inverse, mask=live)


@triton.jit
def measure_kernel(
    rows_ptr,  # neurons, any strides
    shift_ptr,  # (N,), or None
    sums_ptr,  # (ranges, 2, N) float64: Σδ and Σδ² of each range; None where one range is all
    rest_ptr, scale_ptr, inverse_ptr,  # (N,) float64, float32, float32
    neurons, samples, range_samples, inner, stride_neuron, stride_outer, stride_inner,
    CENTER: tl.constexpr, SCALE: tl.constexpr, TARGET: tl.constexpr, ZERO_AS_NAN: tl.constexpr, NESTED: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):
    neuron = tl.program_id(0) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    lanes = tl.arange(0, BLOCK_SAMPLES)
    first = tl.program_id(1) * range_samples
    SHIFT: tl.constexpr = CENTER or shift_ptr is not None
    if SHIFT:
        origin = _origin(rows_ptr, shift_ptr, neuron, neurons, stride_neuron)
    lie = (neurons, samples, inner, stride_neuron, stride_outer, stride_inner)
    totals = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float64)
    squares = tl.zeros((BLOCK_NEURONS, BLOCK_SAMPLES), tl.float64)
    for start in range(first, tl.minimum(first + range_samples, samples), BLOCK_SAMPLES):
        sample = start + lanes
        tile = _load_tile(rows_ptr, neuron, sample, lie, NESTED).to(tl.float64)
        if SHIFT:
            tile = tl.where((sample < samples)[None, :], tile - origin[:, None], 0.0)
        if CENTER:
            totals += tile
        squares += tile * tile
    square = tl.sum(squares, axis=1)
    total = square
    if CENTER:
        total = tl.sum(totals, axis=1)
    if sums_ptr is None:
        into = (rest_ptr, scale_ptr, inverse_ptr)
        _store_directions(total, square, neuron, neurons, samples, into, CENTER, SCALE, TARGET, ZERO_AS_NAN)
    else:
        place = sums_ptr + tl.program_id(1).to(tl.int64) * 2 * neurons + neuron
        tl.store(place, total, mask=neuron < neurons)
        tl.store(place + neurons, square, mask=neuron < neurons)


@triton.jit
def directions_kernel(
    sums_ptr, rest_ptr, scale_ptr, inverse_ptr, ranges, neurons, samples,
    CENTER: tl.constexpr, SCALE: tl.constexpr, TARGET: tl.constexpr, ZERO_AS_NAN: tl.constexpr, BLOCK: tl.constexpr,
):
    """What `measure_kernel` finds, from the sums of several ranges."""
    neuron = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    square = tl.zeros((BLOCK,), tl.float64)
    for number in range(0, ranges):
        place = sums_ptr + tl.cast(number, tl.int64) * 2 * neurons + neuron
        total += tl.load(place, mask=neuron < neurons, other=0.0)
        square += tl.load(place + neurons, mask=neuron < neurons, other=0.0)
    into = (rest_ptr, scale_ptr, inverse_ptr)
    _store_directions(total, square, neuron, neurons, samples, into, CENTER, SCALE, TARGET, ZERO_AS_NAN)


@triton.jit
def write_kernel(
    rows_ptr, shift_ptr, rest_ptr, scale_ptr,  # rest_ptr is None unless the neuron's mean is subtracted
    parts_ptr,  # (1 or 2, N, pitch): halves
    neurons, samples, pitch, inner, stride_neuron, stride_outer, stride_inner,
    LOW: tl.constexpr, NESTED: tl.constexpr, BLOCK_NEURONS: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):
    blocks = tl.cdiv(samples, BLOCK_SAMPLES)
    neuron = tl.program_id(0) // blocks * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    sample = tl.program_id(0) % blocks * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    lie = (neurons, samples, inner, stride_neuron, stride_outer, stride_inner)
    value = _load_tile(rows_ptr, neuron, sample, lie, NESTED)
    if rest_ptr is not None or shift_ptr is not None:
        value = value.to(tl.float64) - _origin(rows_ptr, shift_ptr, neuron, neurons, stride_neuron)[:, None]
        if rest_ptr is not None:
            value -= tl.load(rest_ptr + neuron, mask=neuron < neurons, other=0.0)[:, None]
        if scale_ptr is not None:
            value *= tl.load(scale_ptr + neuron, mask=neuron < neurons, other=1.0).to(tl.float64)[:, None]
        value = value.to(tl.float32)
    elif scale_ptr is not None:
        value = value.to(tl.float32) * tl.load(scale_ptr + neuron, mask=neuron < neurons, other=1.0)[:, None]
    high = value.to(parts_ptr.dtype.element_ty)
    place = parts_ptr + neuron.to(tl.int64)[:, None] * pitch + sample[None, :]
    mask = (neuron < neurons)[:, None] & (sample < samples)[None, :]
    tl.store(place, high, mask=mask)
    if LOW:
        low = (value - high.to(tl.float32)).to(parts_ptr.dtype.element_ty)
        tl.store(place + tl.cast(neurons, tl.int64) * pitch, low, mask=mask)
